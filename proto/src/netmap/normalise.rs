//! The forms that control may use, brought to one (`upgradeNode` in `control/controlclient/map.go`).

use std::net::IpAddr;

use ipnet::IpNet;

use crate::tailcfg::{FilterRule, Node};

/// Brings a node to normal form.
pub(super) fn normalise(mut node: Node) -> Node {
    node.home_derp = node.home_region().unwrap_or_default();
    node.legacy_derp = String::new();
    // A peer that tailnet lock doesn't cover must not get routes from a malicious control server.
    if node.unsigned_peer_api_only || node.allowed_ips.is_none() {
        node.allowed_ips = Some(node.addresses.clone());
    }
    for capability in std::mem::take(&mut node.capabilities) {
        node.cap_map.entry(capability).or_default();
    }
    node
}

/// Whether some rule lets packets of one of these addresses in (`packetFilterPermitsUnlockedNodes`). What can't be
/// read counts as if it did.
pub(super) fn any_rule_admits<'a>(rules: &[FilterRule], addresses: impl Iterator<Item = &'a IpNet> + Clone) -> bool {
    rules
        .iter()
        .filter(|rule| !rule.dst_ports.is_empty())
        .flat_map(|rule| &rule.src_ips)
        .any(|source| addresses.clone().any(|net| overlaps(source, net)))
}

fn overlaps(source: &str, net: &IpNet) -> bool {
    if source.starts_with("cap:") {
        return false;
    }
    let parse = |text: &str| text.trim().parse::<IpAddr>().ok();
    let range = match (source.parse::<IpNet>(), parse(source), source.split_once('-')) {
        (Ok(prefix), ..) => Some((prefix.network(), prefix.broadcast())),
        (_, Some(address), _) => Some((address, address)),
        (.., Some((first, last))) => parse(first).zip(parse(last)),
        _ => None,
    };
    // `*`, and what isn't understood, is everybody.
    range.is_none_or(|(first, last)| {
        let same_family = first.is_ipv4() == net.addr().is_ipv4() && last.is_ipv4() == net.addr().is_ipv4();
        same_family && first <= net.broadcast() && net.network() <= last
    })
}
