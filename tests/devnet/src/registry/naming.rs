//! Names, addresses and owners of nodes, and what they say of themselves.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use nixtail_proto::tailcfg::{Node, NodeId, UserProfile};

use super::{MAX_NODES, Registry};

/// The DNS name of the tailnet: nodes are `<hostname>.tail.devnet.`.
pub const TAILNET_DOMAIN: &str = "tail.devnet";

/// Who owns the nodes without tags.
pub(crate) const OWNER_LOGIN: &str = "owner@tail.devnet";

/// The longest label of a DNS name (RFC 1035 §2.3.4), with room for `-` and a number.
const MAX_HOSTNAME: usize = 63 - 5;
/// Most SSH host keys kept of a node.
const MAX_HOST_KEYS: usize = 8;
/// The most bytes that a node's description may have as JSON: it goes to every peer.
const MAX_HOSTINFO: usize = 64 << 10;
/// The owner of nodes without tags.
const OWNER: i64 = 1;
/// The owner of nodes with tags, which means nothing.
const TAGGED_DEVICES: i64 = 2;

impl Registry {
    /// `wanted` as a full DNS name, with `-1`, `-2`, … where another node has it.
    pub(super) fn free_name(&self, wanted: &str, own: Option<NodeId>) -> String {
        let full = |label: &str| format!("{label}.{TAILNET_DOMAIN}.");
        let taken =
            |name: &String| self.nodes.values().any(|entry| entry.node.name == *name && Some(entry.node.id) != own);
        let first = full(wanted);
        if !taken(&first) {
            return first;
        }
        // There are at most MAX_NODES names, so one of MAX_NODES + 1 is free.
        (1..=MAX_NODES + 1).map(|n| full(&format!("{wanted}-{n}"))).find(|name| !taken(name)).unwrap_or(first)
    }
}

/// The profiles of both owners, as netmaps carry them.
pub(crate) fn user_profiles() -> Vec<UserProfile> {
    vec![user_profile(OWNER), user_profile(TAGGED_DEVICES)]
}

pub(super) fn user_profile(id: i64) -> UserProfile {
    let (login_name, display_name) = match id {
        TAGGED_DEVICES => ("tagged-devices", "Tagged Devices"),
        _ => (OWNER_LOGIN, "Owner of the devnet"),
    };
    UserProfile { id, login_name: login_name.to_owned(), display_name: display_name.to_owned() }
}

pub(super) fn owner(tags: &[String]) -> i64 {
    if tags.is_empty() { OWNER } else { TAGGED_DEVICES }
}

/// Puts what a node says of itself into it; of a description that is too large only the home region is taken.
pub(super) fn describe(node: &mut Node, mut hostinfo: nixtail_proto::tailcfg::Hostinfo) {
    hostinfo.ssh_host_keys.truncate(MAX_HOST_KEYS);
    let region = hostinfo.net_info.as_ref().map_or(0, |info| info.preferred_derp);
    // An update without a home region says nothing about it.
    if region != 0 {
        node.home_derp = region;
        node.legacy_derp = format!("127.3.3.40:{region}");
    }
    if hostinfo.net_info.is_none() {
        hostinfo.net_info = node.hostinfo.net_info.take();
    }
    if serde_json::to_vec(&hostinfo).is_ok_and(|json| json.len() <= MAX_HOSTINFO) {
        node.hostinfo = hostinfo;
    }
}

/// A host name as a DNS label: lower-case letters, digits and hyphens; `node` if nothing is left.
pub(super) fn hostname(text: &str) -> String {
    let label: String = text
        .split('.')
        .next()
        .unwrap_or_default()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .take(MAX_HOSTNAME)
        .collect();
    let label = label.trim_matches('-');
    if label.is_empty() { "node".to_owned() } else { label.to_owned() }
}

/// 100.64.x.y and fd7a:115c:a1e0::x of a node.
pub(super) fn addresses(id: NodeId) -> Vec<IpNet> {
    // MAX_ID bounds it.
    let number = u16::try_from(id).unwrap_or(u16::MAX);
    let [high, low] = number.to_be_bytes();
    let v4 = IpAddr::V4(Ipv4Addr::new(100, 64, high, low));
    let v6 = IpAddr::V6(Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, number));
    vec![IpNet::from(v4), IpNet::from(v6)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_becomes_a_label() {
        assert_eq!(hostname("My_Host.example.com"), "my-host");
        assert_eq!(hostname("-é-"), "node");
        assert_eq!(hostname(&"a".repeat(100)).len(), MAX_HOSTNAME);
    }
}
