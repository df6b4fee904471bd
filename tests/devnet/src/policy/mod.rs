//! Who may reach whom in a devnet, and what follows from it for one node: its packet filter and its SSH policy.
//!
//! The shape is that of the grants in a Tailscale policy file (`{"src": [..], "dst": [..], "ip": ["tcp:22"]}`); `file` reads
//! such files.

mod error;
mod file;
mod reader;
mod selectors;

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use nixtail_proto::tailcfg::{CapGrant, FilterRule, NetPortRange, PortRange, SshAction, SshPolicy, SshPrincipal};
use serde_json::Value;

pub use error::PolicyError;

/// The tag of a node that hands builds out.
pub const COORDINATOR_TAG: &str = "tag:nix-ci-coordinator";
/// The tag of a node that builds.
pub const BUILDER_TAG: &str = "tag:nix-ci-builder";
/// Stands for every local user but root in [`SshRule::users`], as in a Tailscale policy file.
pub const AUTOGROUP_NONROOT: &str = "autogroup:nonroot";

/// The addresses of all nodes, as control writes them where a rule is about everybody.
const EVERYONE: [&str; 2] = ["100.64.0.0/10", "fd7a:115c:a1e0::/48"];
/// Where a node asks whether a person allows a login (`check`). Nobody does on a devnet.
const CHECK: &str = "https://unused/machine/ssh/action/$SRC_NODE_ID/to/$DST_NODE_ID?ssh_user=$SSH_USER";

/// Who may send what to whom, and who may log in where. What no grant allows is refused.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// What passes the packet filters. Two nodes see each other when a grant joins them in either direction.
    pub grants: Vec<Grant>,
    /// Who may log in by SSH. It opens no port: a grant must do that.
    pub ssh: Vec<SshRule>,
    /// Who may give which tag, in the words of the policy file. `None`: every tag exists.
    pub tag_owners: Option<BTreeMap<String, Vec<String>>>,
}

/// Lets some nodes send something to some nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grant {
    /// Who sends.
    pub src: Vec<Selector>,
    /// Who receives.
    pub dst: Vec<Selector>,
    /// What may be sent.
    pub ports: Vec<Ports>,
    /// Capabilities that programs at the receiver ask for; they let no packet through.
    pub capabilities: BTreeMap<String, Vec<Value>>,
}

/// Some of a tailnet's nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// All of them.
    Everyone,
    /// None of them: a user whom a devnet hasn't.
    Nobody,
    /// Those with this tag, `tag:` included.
    Tag(String),
    /// Those with any tag.
    Tagged,
    /// Those without a tag: all belong to the one user there is.
    Untagged,
    /// As a destination: the sender's own, which it has as its owner's, without a tag.
    Own,
    /// Those with an address in this network, and only these addresses.
    Network(IpNet),
}

impl Selector {
    /// Those with `tag`, which is written with its `tag:`.
    #[must_use]
    pub fn tag(tag: &str) -> Self {
        Self::Tag(tag.to_owned())
    }

    /// The addresses of `node` that are meant where `from` sends.
    fn addresses<'a>(&self, node: Subject<'a>, from: Subject<'_>) -> impl Iterator<Item = IpAddr> + use<'a> {
        let within = match self {
            Self::Network(net) => Some(*net),
            _ => None,
        };
        let meant = match self {
            Self::Everyone | Self::Network(_) => true,
            Self::Nobody => false,
            Self::Tag(tag) => node.tags.contains(tag),
            Self::Tagged => !node.tags.is_empty(),
            Self::Untagged => node.tags.is_empty(),
            Self::Own => node.tags.is_empty() && from.tags.is_empty(),
        };
        let addresses = if meant { node.addresses } else { &[] };
        addresses.iter().map(IpNet::addr).filter(move |ip| within.is_none_or(|net| net.contains(ip)))
    }
}

/// A kind of traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports {
    /// The numbers of IP protocols; none is TCP, UDP and ICMP.
    pub protocols: Vec<i64>,
    /// The first port.
    pub first: u16,
    /// The last port.
    pub last: u16,
}

impl Ports {
    /// TCP, UDP and ICMP, every port.
    #[must_use]
    pub fn all() -> Self {
        Self { protocols: vec![], first: 0, last: u16::MAX }
    }

    /// One TCP port.
    #[must_use]
    pub fn tcp(port: u16) -> Self {
        Self { protocols: vec![6], first: port, last: port }
    }

    /// One UDP port.
    #[must_use]
    pub fn udp(port: u16) -> Self {
        Self { protocols: vec![17], ..Self::tcp(port) }
    }

    /// ICMP of both families.
    #[must_use]
    pub fn icmp() -> Self {
        Self { protocols: vec![1, 58], ..Self::all() }
    }
}

/// Lets some nodes log in on some nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SshRule {
    /// Who logs in.
    pub src: Vec<Selector>,
    /// Where.
    pub dst: Vec<Selector>,
    /// As which local users: names, and [`AUTOGROUP_NONROOT`].
    pub users: Vec<String>,
    /// A person must allow it each time, which nobody does on a devnet.
    pub check: bool,
    /// Environment variables that the client may set.
    pub accept_env: Vec<String>,
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
        let ports = vec![Ports::tcp(22), Ports::icmp()];
        Self {
            grants: vec![Grant { src: src.clone(), dst: dst.clone(), ports, ..Grant::default() }],
            ssh: vec![SshRule { src, dst, users: any_user(), ..SshRule::default() }],
            tag_owners: None,
        }
    }

    /// Everybody reaches everybody on every port and may log in as any user.
    #[must_use]
    pub fn allow_all() -> Self {
        let everyone = || vec![Selector::Everyone];
        Self {
            grants: vec![Grant { src: everyone(), dst: everyone(), ports: vec![Ports::all()], ..Grant::default() }],
            ssh: vec![SshRule { src: everyone(), dst: everyone(), users: any_user(), ..SshRule::default() }],
            tag_owners: None,
        }
    }

    /// Whether `a` and `b` are in each other's netmap.
    pub(crate) fn joins(&self, a: Subject<'_>, b: Subject<'_>) -> bool {
        let goes = |from: Subject<'_>, to: Subject<'_>, grant: &Grant| {
            selects(&grant.src, from, from) && selects(&grant.dst, to, from)
        };
        self.grants.iter().any(|grant| goes(a, b, grant) || goes(b, a, grant))
    }

    /// The packet filter of `node` among `others` (itself left out).
    pub(crate) fn filter(&self, node: Subject<'_>, others: &[Subject<'_>]) -> Vec<FilterRule> {
        let mut rules = Vec::new();
        for (grant, dst) in self.grants.iter().flat_map(|grant| parts(&grant.dst).map(|dst| (grant, dst))) {
            let src_ips = sources(&grant.src, &dst, node, others);
            // Who is meant by `Own` is settled by the sources.
            let to = addresses(&dst, node, node);
            if src_ips.is_empty() || to.is_empty() {
                continue;
            }
            for ports in &grant.ports {
                let range = PortRange { first: ports.first, last: ports.last };
                let dst_ports =
                    to.iter().map(|ip| NetPortRange { ip: ip.to_string(), bits: None, ports: range }).collect();
                let (src_ips, ip_proto) = (src_ips.clone(), ports.protocols.clone());
                rules.push(FilterRule { src_ips, dst_ports, ip_proto, ..Default::default() });
            }
            if !grant.capabilities.is_empty() {
                let dsts = to.iter().map(|ip| IpNet::from(*ip).to_string()).collect();
                let cap_map =
                    grant.capabilities.iter().map(|(name, values)| (name.clone(), Some(values.clone()))).collect();
                let cap_grant = vec![CapGrant { dsts, cap_map }];
                rules.push(FilterRule { src_ips, cap_grant, ..Default::default() });
            }
        }
        rules
    }

    /// The SSH policy of `node` among `others`: without rules where nobody may log in, which is not the same as absent
    /// (that would leave an earlier policy as it was).
    pub(crate) fn ssh_policy(&self, node: Subject<'_>, others: &[Subject<'_>]) -> SshPolicy {
        let mut rules = Vec::new();
        for rule in &self.ssh {
            let sources = sources(&rule.src, &rule.dst, node, others);
            if sources.is_empty() {
                continue;
            }
            let principals = match sources == EVERYONE {
                true => vec![Some(SshPrincipal { any: true, ..Default::default() })],
                false => {
                    sources.into_iter().map(|node_ip| Some(SshPrincipal { node_ip, ..Default::default() })).collect()
                }
            };
            let action = match rule.check {
                true => SshAction { hold_and_delegate: CHECK.to_owned(), ..Default::default() },
                false => SshAction { accept: true, ..Default::default() },
            };
            rules.push(Some(nixtail_proto::tailcfg::SshRule {
                principals,
                ssh_users: ssh_users(&rule.users),
                action: Some(action),
                accept_env: rule.accept_env.clone(),
                ..Default::default()
            }));
        }
        SshPolicy { rules }
    }
}

fn any_user() -> Vec<String> {
    vec![AUTOGROUP_NONROOT.to_owned(), "root".to_owned()]
}

/// Destinations, those apart that depend on who sends.
fn parts(dst: &[Selector]) -> [Vec<Selector>; 2] {
    let (own, others) = dst.iter().cloned().partition(|dst| *dst == Selector::Own);
    [others, own]
}

fn selects(selectors: &[Selector], node: Subject<'_>, from: Subject<'_>) -> bool {
    selectors.iter().any(|selector| selector.addresses(node, from).next().is_some())
}

/// The addresses of `node` that are meant where `from` sends, each once.
fn addresses(selectors: &[Selector], node: Subject<'_>, from: Subject<'_>) -> Vec<IpAddr> {
    let mut all = Vec::new();
    for ip in selectors.iter().flat_map(|selector| selector.addresses(node, from)) {
        if !all.contains(&ip) {
            all.push(ip);
        }
    }
    all
}

/// Which of `others` may send where `src` and `dst` say so, as texts for a rule of `node`.
fn sources(src: &[Selector], dst: &[Selector], node: Subject<'_>, others: &[Subject<'_>]) -> Vec<String> {
    let everyone = src.contains(&Selector::Everyone);
    if everyone && dst.iter().any(|dst| *dst != Selector::Own && dst.addresses(node, node).next().is_some()) {
        return EVERYONE.map(str::to_owned).to_vec();
    }
    let senders = others.iter().filter(|other| selects(dst, node, **other));
    senders.flat_map(|other| addresses(src, *other, *other)).map(|ip| ip.to_string()).collect()
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
mod tests;
