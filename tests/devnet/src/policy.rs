//! Who may reach whom in a devnet, and what follows from it for one node: its packet filter and its SSH policy.
//!
//! The shape is that of the grants in a Tailscale policy file (`{"src": [..], "dst": [..], "ip": ["tcp:22"]}`), so that
//! reading such a file later means only a parser.

use std::collections::BTreeMap;

use ipnet::IpNet;
use nixtail_proto::tailcfg::{FilterRule, NetPortRange, PortRange, SshAction, SshPolicy, SshPrincipal};

/// The tag of a node that hands builds out.
pub const COORDINATOR_TAG: &str = "tag:nix-ci-coordinator";
/// The tag of a node that builds.
pub const BUILDER_TAG: &str = "tag:nix-ci-builder";
/// Stands for every local user but root in [`SshRule::users`], as in a Tailscale policy file.
pub const AUTOGROUP_NONROOT: &str = "autogroup:nonroot";

/// Who may send what to whom, and who may log in where. What no grant allows is refused.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// What passes the packet filters. Two nodes see each other when a grant joins them in either direction.
    pub grants: Vec<Grant>,
    /// Who may log in by SSH. It opens no port: a grant must do that.
    pub ssh: Vec<SshRule>,
}

/// Lets some nodes send something to some nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Who sends.
    pub src: Vec<Selector>,
    /// Who receives.
    pub dst: Vec<Selector>,
    /// What may be sent.
    pub ports: Vec<Ports>,
}

/// Some of a tailnet's nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// All of them.
    Everyone,
    /// Those with this tag, `tag:` included.
    Tag(String),
    /// Those without a tag.
    Untagged,
}

impl Selector {
    /// Those with `tag`, which is written with its `tag:`.
    #[must_use]
    pub fn tag(tag: &str) -> Self {
        Self::Tag(tag.to_owned())
    }

    fn matches(&self, tags: &[String]) -> bool {
        match self {
            Self::Everyone => true,
            Self::Tag(tag) => tags.contains(tag),
            Self::Untagged => tags.is_empty(),
        }
    }
}

/// A kind of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// TCP, UDP and ICMP, every port.
    All,
    /// One TCP port.
    Tcp(u16),
    /// One UDP port.
    Udp(u16),
    /// ICMP of both families.
    Icmp,
}

/// Lets some nodes log in on some nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshRule {
    /// Who logs in.
    pub src: Vec<Selector>,
    /// Where.
    pub dst: Vec<Selector>,
    /// As which local users: names, and [`AUTOGROUP_NONROOT`].
    pub users: Vec<String>,
}

/// A node as the policy sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    /// Its tags.
    pub tags: &'a [String],
    /// Its own addresses.
    pub addresses: &'a [IpNet],
}

impl Policy {
    /// What a run needs and no more: coordinators reach builders by SSH and ICMP. Any local user may be logged in as,
    /// root too: a Nix-trusted login is root in effect, and the tag is the boundary.
    #[must_use]
    pub fn nix_ci() -> Self {
        let (src, dst) = (vec![Selector::tag(COORDINATOR_TAG)], vec![Selector::tag(BUILDER_TAG)]);
        Self {
            grants: vec![Grant { src: src.clone(), dst: dst.clone(), ports: vec![Ports::Tcp(22), Ports::Icmp] }],
            ssh: vec![SshRule { src, dst, users: any_user() }],
        }
    }

    /// Everybody reaches everybody on every port and may log in as any user.
    #[must_use]
    pub fn allow_all() -> Self {
        let everyone = || vec![Selector::Everyone];
        Self {
            grants: vec![Grant { src: everyone(), dst: everyone(), ports: vec![Ports::All] }],
            ssh: vec![SshRule { src: everyone(), dst: everyone(), users: any_user() }],
        }
    }

    /// Whether `a` and `b` are in each other's netmap.
    pub(crate) fn joins(&self, a: Subject<'_>, b: Subject<'_>) -> bool {
        let goes = |from: Subject<'_>, to: Subject<'_>, grant: &Grant| {
            selects(&grant.src, from.tags) && selects(&grant.dst, to.tags)
        };
        self.grants.iter().any(|grant| goes(a, b, grant) || goes(b, a, grant))
    }

    /// The packet filter of `node` among `others` (itself left out).
    pub(crate) fn filter(&self, node: Subject<'_>, others: &[Subject<'_>]) -> Vec<FilterRule> {
        let mut rules = Vec::new();
        for grant in self.grants.iter().filter(|grant| selects(&grant.dst, node.tags)) {
            let src_ips = texts(others.iter().filter(|other| selects(&grant.src, other.tags)));
            if src_ips.is_empty() {
                continue;
            }
            for ports in &grant.ports {
                let (ip_proto, range) = ports.rule();
                let dst_ports = node
                    .addresses
                    .iter()
                    .map(|to| NetPortRange { ip: to.addr().to_string(), bits: None, ports: range })
                    .collect();
                rules.push(FilterRule { src_ips: src_ips.clone(), dst_ports, ip_proto, ..Default::default() });
            }
        }
        rules
    }

    /// The SSH policy of `node` among `others`: without rules where nobody may log in, which is not the same as absent
    /// (that would leave an earlier policy as it was).
    pub(crate) fn ssh_policy(&self, node: Subject<'_>, others: &[Subject<'_>]) -> SshPolicy {
        let mut rules = Vec::new();
        for rule in self.ssh.iter().filter(|rule| selects(&rule.dst, node.tags)) {
            let principals: Vec<_> = texts(others.iter().filter(|other| selects(&rule.src, other.tags)))
                .into_iter()
                .map(|node_ip| Some(SshPrincipal { node_ip, ..Default::default() }))
                .collect();
            if principals.is_empty() {
                continue;
            }
            rules.push(Some(nixtail_proto::tailcfg::SshRule {
                principals,
                ssh_users: ssh_users(&rule.users),
                action: Some(SshAction { accept: true, ..Default::default() }),
                ..Default::default()
            }));
        }
        SshPolicy { rules }
    }
}

impl Ports {
    /// Protocol numbers (none is the filter's default: TCP, UDP and ICMP) and ports of the filter rule.
    fn rule(self) -> (Vec<i64>, PortRange) {
        const ALL: PortRange = PortRange { first: 0, last: u16::MAX };
        let one = |port| PortRange { first: port, last: port };
        match self {
            Self::All => (vec![], ALL),
            Self::Tcp(port) => (vec![6], one(port)),
            Self::Udp(port) => (vec![17], one(port)),
            Self::Icmp => (vec![1, 58], ALL),
        }
    }
}

fn any_user() -> Vec<String> {
    vec![AUTOGROUP_NONROOT.to_owned(), "root".to_owned()]
}

fn selects(selectors: &[Selector], tags: &[String]) -> bool {
    selectors.iter().any(|selector| selector.matches(tags))
}

fn texts<'a>(subjects: impl Iterator<Item = &'a Subject<'a>>) -> Vec<String> {
    subjects.flat_map(|subject| subject.addresses).map(|net| net.addr().to_string()).collect()
}

/// The wanted user to the local one, as control writes it: `*` to `=` is the same name, an empty name is nobody.
fn ssh_users(users: &[String]) -> BTreeMap<String, String> {
    let mut map = BTreeMap::new();
    for user in users {
        if user == AUTOGROUP_NONROOT {
            map.insert("*".to_owned(), "=".to_owned());
            map.entry("root".to_owned()).or_default();
        } else {
            map.insert(user.clone(), user.clone());
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn coordinators_reach_builders_and_nothing_else() {
        let (coordinator, builder) = (vec![COORDINATOR_TAG.to_owned()], vec![BUILDER_TAG.to_owned()]);
        let (first, second, third) = (nets(&["100.64.0.1/32"]), nets(&["100.64.0.2/32"]), nets(&["100.64.0.3/32"]));
        let coordinator = Subject { tags: &coordinator, addresses: &first };
        let builder_one = Subject { tags: &builder, addresses: &second };
        let builder_two = Subject { tags: &builder, addresses: &third };
        let stranger = Subject { tags: &[], addresses: &third };
        let policy = Policy::nix_ci();

        assert!(policy.joins(coordinator, builder_one) && policy.joins(builder_one, coordinator));
        assert!(!policy.joins(builder_one, builder_two) && !policy.joins(stranger, coordinator));
        assert!(policy.filter(coordinator, &[builder_one, builder_two, stranger]).is_empty());
        assert!(policy.ssh_policy(coordinator, &[builder_one]).rules.is_empty());

        let filter = policy.filter(builder_one, &[coordinator, builder_two]);
        assert_eq!(filter.len(), 2);
        assert!(filter.iter().all(|rule| rule.src_ips == ["100.64.0.1"]));
        assert_eq!(filter[0].ip_proto, [6]);
        assert_eq!(filter[0].dst_ports[0].ports, PortRange { first: 22, last: 22 });
        assert_eq!(filter[1].ip_proto, [1, 58]);

        let ssh = policy.ssh_policy(builder_one, &[coordinator, builder_two]);
        let rule = ssh.rules[0].as_ref().unwrap();
        assert_eq!(rule.principals.len(), 1);
        assert_eq!(rule.ssh_users["*"], "=");
        assert_eq!(rule.ssh_users["root"], "root");
    }

    #[test]
    fn nonroot_keeps_root_out() {
        let users = ssh_users(&[AUTOGROUP_NONROOT.to_owned()]);
        assert_eq!((users["*"].as_str(), users["root"].as_str()), ("=", ""));
        assert_eq!(ssh_users(&["root".to_owned(), AUTOGROUP_NONROOT.to_owned()])["root"], "root");
    }
}
