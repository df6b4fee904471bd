//! Policy files, as Tailscale's admin console and headscale take them (HuJSON).
//!
//! What a devnet doesn't do (exit nodes, postures, subnets, …) is an error, never left out in silence: a test that passes
//! under half a policy shows nothing.

use std::collections::BTreeMap;

use jsonc_parser::ast::Value;

use super::reader::Reader;
use super::selectors::{Names, network, port_list, ports, protocols};
use super::{AUTOGROUP_NONROOT, Grant, Policy, PolicyError, Ports, Selector, SshRule};

/// The sections that a devnet understands.
const SECTIONS: [&str; 6] = ["groups", "hosts", "tagOwners", "grants", "acls", "ssh"];

type Read<T> = Result<T, PolicyError>;

impl Policy {
    /// Reads a policy file. Where it has neither `grants` nor `acls`, everybody reaches everybody, as with Tailscale.
    ///
    /// # Errors
    /// At the first thing that makes no sense, isn't known, or that a devnet doesn't do.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let reader = Reader::new(text);
        let value = reader.value()?;
        let [groups, hosts, tag_owners, grants, acls, ssh] = reader.fields(&value, "a devnet's policy", SECTIONS)?;
        let mut file = File { reader, names: Names::default() };
        for (name, users) in file.lists(groups, "groups", "group:")? {
            file.names.groups.insert(name, users);
        }
        file.read_hosts(hosts)?;
        let tag_owners = tag_owners.map(|owners| file.read_tag_owners(owners)).transpose()?;

        let mut policy = Self { tag_owners, ..Self::default() };
        for grant in file.elements(grants, "grants")? {
            policy.grants.push(file.grant(grant)?);
        }
        for acl in file.elements(acls, "acls")? {
            policy.grants.append(&mut file.acl(acl)?);
        }
        if grants.is_none() && acls.is_none() {
            policy.grants = Self::allow_all().grants;
        }
        for rule in file.elements(ssh, "ssh")? {
            policy.ssh.push(file.ssh_rule(rule)?);
        }
        Ok(policy)
    }
}

/// A file that is read, and the names it has defined so far.
struct File<'t> {
    reader: Reader<'t>,
    names: Names,
}

impl<'t> File<'t> {
    fn elements<'a>(&self, section: Option<&'a Value<'t>>, what: &str) -> Read<&'a [Value<'t>]> {
        section.map_or(Ok(&[]), |section| self.reader.list(section, what))
    }

    /// A section of named lists of texts, each name with this prefix.
    fn lists(&self, section: Option<&Value<'t>>, what: &str, prefix: &str) -> Read<BTreeMap<String, Vec<String>>> {
        let mut lists = BTreeMap::new();
        let Some(section) = section else { return Ok(lists) };
        for field in self.reader.object(section, what)? {
            let name = field.name.as_str();
            if name.strip_prefix(prefix).is_none_or(str::is_empty) {
                return Err(self.reader.wrong(&field.name, format!("\"{name}\" should begin with {prefix}")));
            }
            if lists.insert(name.to_owned(), self.reader.texts(&field.value, name)?).is_some() {
                return Err(self.reader.wrong(&field.name, format!("\"{name}\" stands here twice")));
            }
        }
        Ok(lists)
    }

    fn read_hosts(&mut self, section: Option<&Value<'t>>) -> Read<()> {
        let Some(section) = section else { return Ok(()) };
        for field in self.reader.object(section, "hosts")? {
            let word = self.reader.text(&field.value, "a host")?;
            let net = network(word).ok_or_else(|| {
                self.reader.wrong(&field.value, format!("\"{word}\" is neither an address nor a network"))
            })?;
            self.names.hosts.insert(field.name.as_str().to_owned(), net);
        }
        Ok(())
    }

    /// Tags first, since they may own each other.
    fn read_tag_owners(&mut self, section: &Value<'t>) -> Read<BTreeMap<String, Vec<String>>> {
        let owners = self.lists(Some(section), "tagOwners", "tag:")?;
        self.names.tags = Some(owners.keys().cloned().collect());
        for field in self.reader.object(section, "tagOwners")? {
            self.selectors(Some(&field.value), field.name.as_str(), &field.value)?;
        }
        Ok(owners)
    }

    fn grant(&self, value: &Value<'t>) -> Read<Grant> {
        let [src, dst, ip, app] = self.reader.fields(value, "a grant", ["src", "dst", "ip", "app"])?;
        let mut grant = Grant {
            src: self.selectors(src, "src", value)?,
            dst: self.selectors(dst, "dst", value)?,
            ..Grant::default()
        };
        if ip.is_none() && app.is_none() {
            return Err(self.reader.wrong(value, "a grant needs \"ip\" or \"app\": what it allows"));
        }
        for word in self.elements(ip, "ip")? {
            grant.ports.push(self.word(word, "each of ip", ports)?);
        }
        if let Some(app) = app {
            for field in self.reader.object(app, "app")? {
                let arguments = self.reader.list(&field.value, "the arguments of a capability")?;
                let arguments = arguments.iter().map(|value| self.reader.json(value)).collect::<Read<_>>()?;
                grant.capabilities.insert(field.name.as_str().to_owned(), arguments);
            }
        }
        Ok(grant)
    }

    /// One grant for each destination, because each has its own ports.
    fn acl(&self, value: &Value<'t>) -> Read<Vec<Grant>> {
        let [action, src, dst, proto] = self.reader.fields(value, "an ACL", ["action", "src", "dst", "proto"])?;
        self.one_of(action, "action", value, &["accept"])?;
        let src = self.selectors(src, "src", value)?;
        let protocols = proto.map(|proto| self.word(proto, "proto", protocols)).transpose()?.unwrap_or_default();
        let dst = dst.ok_or_else(|| self.reader.wrong(value, "an ACL needs \"dst\""))?;
        let mut grants = Vec::new();
        for word in self.reader.list(dst, "dst")? {
            let (dst, ranges) = self.word(word, "each of dst", |word| {
                let (node, ports) = word.rsplit_once(':').ok_or("a destination should be NODE:PORTS")?;
                let node = node.strip_prefix('[').and_then(|node| node.strip_suffix(']')).unwrap_or(node);
                Ok((self.names.selector(node)?, port_list(ports)?))
            })?;
            let ports = ranges.into_iter().map(|(first, last)| Ports { protocols: protocols.clone(), first, last });
            grants.push(Grant { src: src.clone(), dst, ports: ports.collect(), ..Grant::default() });
        }
        Ok(grants)
    }

    fn ssh_rule(&self, value: &Value<'t>) -> Read<SshRule> {
        let known = ["action", "src", "dst", "users", "checkPeriod", "acceptEnv"];
        let [action, src, dst, users, check_period, accept_env] = self.reader.fields(value, "an SSH rule", known)?;
        let action = self.one_of(action, "action", value, &["accept", "check"])?;
        // How often a person is asked doesn't matter where nobody is.
        check_period.map(|period| self.reader.text(period, "checkPeriod")).transpose()?;
        let users = users.ok_or_else(|| self.reader.wrong(value, "an SSH rule needs \"users\""))?;
        for user in self.reader.list(users, "users")? {
            self.word(user, "each of users", |user| match user {
                AUTOGROUP_NONROOT => Ok(()),
                _ if user.is_empty() || user.contains([':', '@']) => Err(format!("a devnet knows no user \"{user}\"")),
                _ => Ok(()),
            })?;
        }
        Ok(SshRule {
            src: self.selectors(src, "src", value)?,
            dst: self.selectors(dst, "dst", value)?,
            users: self.reader.texts(users, "users")?,
            check: action == "check",
            accept_env: accept_env.map(|names| self.reader.texts(names, "acceptEnv")).transpose()?.unwrap_or_default(),
        })
    }

    /// The nodes that a list of words means; the list must be there.
    fn selectors(&self, list: Option<&Value<'t>>, what: &str, rule: &Value<'t>) -> Read<Vec<Selector>> {
        let list = list.ok_or_else(|| self.reader.wrong(rule, format!("\"{what}\" is missing")))?;
        let each = |word| self.word(word, &format!("each of {what}"), |word| self.names.selector(word));
        Ok(self.reader.list(list, what)?.iter().map(each).collect::<Read<Vec<_>>>()?.concat())
    }

    /// A text that `read` makes sense of.
    fn word<T>(&self, value: &Value<'t>, what: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Read<T> {
        read(self.reader.text(value, what)?).map_err(|words| self.reader.wrong(value, words))
    }

    /// A text that must be there and be one of these.
    fn one_of(&self, value: Option<&Value<'t>>, name: &str, rule: &Value<'t>, known: &[&str]) -> Read<String> {
        let value = value.ok_or_else(|| self.reader.wrong(rule, format!("\"{name}\" is missing")))?;
        self.word(value, name, |word| match known.contains(&word) {
            true => Ok(word.to_owned()),
            false => Err(format!("\"{word}\" is no {name}: {}", known.join(" or "))),
        })
    }
}
