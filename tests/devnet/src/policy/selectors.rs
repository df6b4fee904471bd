//! The words of a policy file for nodes and ports.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Ports, Selector};
use crate::registry::OWNER_LOGIN;

/// What a policy file defines before it uses it.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Users by group, `group:` included.
    pub(super) groups: BTreeMap<String, Vec<String>>,
    /// Networks by name.
    pub(super) hosts: BTreeMap<String, IpNet>,
    /// The tags that exist, `tag:` included, where it says so.
    pub(super) tags: Option<Vec<String>>,
}

impl Names {
    /// The nodes that `word` means; the error says why it means none.
    pub(super) fn selector(&self, word: &str) -> Result<Vec<Selector>, String> {
        let one = |selector| Ok(vec![selector]);
        if word == "*" {
            return one(Selector::Everyone);
        }
        if let Some(net) = network(word).or_else(|| self.hosts.get(word).copied()) {
            return one(Selector::Network(net));
        }
        match word.split_once(':') {
            Some(("tag", _)) if self.tags.as_ref().is_some_and(|tags| !tags.iter().any(|tag| tag == word)) => {
                Err(format!("tag not found: \"{word}\" must stand in tagOwners"))
            }
            Some(("tag", _)) => one(Selector::tag(word)),
            Some(("group", _)) => match self.groups.get(word) {
                Some(users) => Ok(users.iter().map(|user| self::user(user)).collect()),
                None => Err(format!("group not found: \"{word}\" must stand in groups")),
            },
            Some(("autogroup", name)) => match name {
                // One user there is, and that is all of this.
                "member" | "admin" | "owner" | "it-admin" | "network-admin" | "billing-admin" | "auditor" => {
                    one(Selector::Untagged)
                }
                "tagged" => one(Selector::Tagged),
                "self" => one(Selector::Own),
                _ => Err(format!("a devnet has no \"{word}\"")),
            },
            None if word.contains('@') => one(user(word)),
            _ => Err(format!("\"{word}\" is neither *, an address, a host, a user, group:, tag: nor autogroup:")),
        }
    }
}

fn user(login: &str) -> Selector {
    if login == OWNER_LOGIN { Selector::Untagged } else { Selector::Nobody }
}

/// An address or a network.
pub(super) fn network(word: &str) -> Option<IpNet> {
    word.parse().ok().or_else(|| word.parse::<IpAddr>().ok().map(IpNet::from))
}

/// What may be sent, in the words of a grant: `*`, `22`, `8000-8999`, `tcp:22`, `icmp:*`.
pub(super) fn ports(word: &str) -> Result<Ports, String> {
    if word == "*" {
        return Ok(Ports::all());
    }
    let (protocol, ports) = word.split_once(':').map_or((None, word), |(protocol, ports)| (Some(protocol), ports));
    let protocols = protocol.map(protocols).transpose()?.unwrap_or_default();
    let (first, last) = range(ports)?;
    Ok(Ports { protocols, first, last })
}

/// Ports, in the words of an ACL's destination: `*`, `22`, `80-90`, and more with commas between.
pub(super) fn port_list(words: &str) -> Result<Vec<(u16, u16)>, String> {
    words.split(',').map(range).collect()
}

fn range(word: &str) -> Result<(u16, u16), String> {
    if word == "*" {
        return Ok((0, u16::MAX));
    }
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) if first <= last => Ok((first, last)),
        _ => Err(format!("\"{word}\" is neither *, a port nor a range of ports")),
    }
}

/// The numbers of an IP protocol (IANA), given by name or number.
pub(super) fn protocols(word: &str) -> Result<Vec<i64>, String> {
    Ok(match word {
        "icmp" => vec![1, 58],
        "igmp" => vec![2],
        "ipv4" | "ip-in-ip" => vec![4],
        "tcp" => vec![6],
        "egp" => vec![8],
        "igp" => vec![9],
        "udp" => vec![17],
        "gre" => vec![47],
        "esp" => vec![50],
        "ah" => vec![51],
        "sctp" => vec![132],
        number => match number.parse::<u8>() {
            Ok(number) => vec![number.into()],
            Err(_) => return Err(format!("\"{number}\" is no protocol: tcp, udp, icmp, … or a number")),
        },
    })
}
