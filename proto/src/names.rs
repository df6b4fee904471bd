//! From names to addresses, out of the netmap alone (`dnsConfigForNetmap` in `ipn/ipnlocal/node_backend.go`), and the
//! names that a node may ask for (`util/dnsname`).

use std::net::IpAddr;

use ipnet::IpNet;

use crate::key::NodePublic;
use crate::netmap::{Netmap, Refusal};
use crate::tailcfg::Node;

/// Bytes of a DNS label at most (RFC 1035 §2.3.4).
const MAX_LABEL: usize = 63;
/// Bytes of a name that are shown in an error.
const MAX_SHOWN: usize = 100;
/// What a node is called whose wanted name has no usable character.
const FALLBACK_HOSTNAME: &str = "nixtail";
/// Endings that local networks add to host names, which Go drops.
const LOCAL_SUFFIXES: [&str; 3] = [".local", ".localdomain", ".lan"];
/// A node with this capability has each name below its own, too.
const SUBDOMAIN_RESOLVE: &str = "dns-subdomain-resolve";

/// A name or address that leads to nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// No node of the tailnet has it.
    #[error("no node of the tailnet is called \"{0}\"")]
    Unknown(String),
    /// A node has it, and no address that we could reach.
    #[error("\"{0}\" has no address that this node could reach")]
    NoAddress(String),
    /// A node has it that must not be used.
    #[error("\"{0}\" can't be used: {1}")]
    Refused(String, Refusal),
}

/// The address of `host`, a peer's name (whole or its first label) or address, and the node key of the peer that has
/// it. No key: an address or a DNS record that isn't a peer's own.
///
/// Of several nodes with one name the one that is online wins, then the newest.
///
/// # Errors
/// When it leads to nobody that may be used.
pub fn resolve(netmap: &Netmap, host: &str) -> Result<(IpAddr, Option<NodePublic>), NameError> {
    if let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok((address, netmap.peer_by_address(address).map(|peer| peer.key)));
    }
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    if name.is_empty() {
        return Err(NameError::Unknown(shown(host)));
    }
    candidates(netmap, &name)
        .iter()
        .find_map(|name| resolve_whole(netmap, name))
        .unwrap_or_else(|| Err(NameError::Unknown(shown(host))))
}

/// The name as it is, and for one without dots also with the tailnet's suffix and each search domain behind it. One with dots
/// may be a host name that a node asked for (`ubuntu-24.04-1`): then it is called what control makes of that.
fn candidates(netmap: &Netmap, name: &str) -> Vec<String> {
    let mut names = vec![name.to_owned()];
    if name.contains('.') {
        let suffix = netmap.tailnet_suffix().trim_matches('.').to_ascii_lowercase();
        let is_name = !suffix.is_empty() && name.contains(|c: char| c.is_ascii_alphanumeric());
        names.extend(is_name.then(|| format!("{}.{suffix}", valid_hostname(name))));
    } else {
        let domains = std::iter::once(netmap.tailnet_suffix()).chain(netmap.dns.domains.iter().map(String::as_str));
        let domains = domains.map(|domain| domain.trim_matches('.')).filter(|domain| !domain.is_empty());
        names.extend(domains.map(|domain| format!("{name}.{}", domain.to_ascii_lowercase())));
    }
    names
}

fn resolve_whole(netmap: &Netmap, name: &str) -> Option<Result<(IpAddr, Option<NodePublic>), NameError>> {
    let is_called = |node: &&Node| node.dns_name().eq_ignore_ascii_case(name);
    let rank = |node: &&Node| (node.online == Some(true), node.created);
    let called = |name: &str| netmap.peers.called(name).map(AsRef::as_ref);

    let found = called(name).max_by_key(rank);
    if let Some(node) = found.or_else(|| Some(&*netmap.self_node).filter(is_called)) {
        let address = address_of(netmap, node).map(|address| (address, Some(node.key)));
        return Some(address.ok_or_else(|| NameError::NoAddress(shown(name))));
    }
    if let Some((_, why)) = netmap.refused.values().find(|(peer, _)| is_called(&peer.as_ref())) {
        return Some(Err(NameError::Refused(shown(name), *why)));
    }
    let parents = name.split_once('.').into_iter().flat_map(|(_, parent)| called(parent));
    if let Some(node) = parents.filter(|node| node.cap_map.contains_key(SUBDOMAIN_RESOLVE)).max_by_key(rank) {
        return address_of(netmap, node).map(|address| Ok((address, Some(node.key))));
    }
    extra_record(netmap, name).map(|address| Ok((address, netmap.peer_by_address(address).map(|peer| peer.key))))
}

/// IPv4 if the node has it and we do, else IPv6.
fn address_of(netmap: &Netmap, node: &Node) -> Option<IpAddr> {
    let first = |nets: &[IpNet], v4: bool| nets.iter().map(IpNet::addr).find(|address| address.is_ipv4() == v4);
    let ours = &netmap.self_node.addresses;
    let v4 = first(&node.addresses, true).filter(|_| first(ours, true).is_some());
    v4.or_else(|| first(&node.addresses, false).filter(|_| first(ours, false).is_some()))
}

fn extra_record(netmap: &Netmap, name: &str) -> Option<IpAddr> {
    netmap.dns.extra_records.iter().find_map(|record| {
        let record_name = record.name.strip_suffix('.').unwrap_or(&record.name);
        let address = record.value.parse::<IpAddr>().ok()?;
        let fits = match record.kind.as_str() {
            "" => true,
            "A" => address.is_ipv4(),
            "AAAA" => address.is_ipv6(),
            _ => false,
        };
        (fits && record_name.eq_ignore_ascii_case(name)).then_some(address)
    })
}

/// The host name nearest to `wanted` that a node may ask for: one label of lower-case letters, digits and hyphens
/// (`SanitizeHostname`). What control really calls the node is in its netmap.
#[must_use]
pub fn valid_hostname(wanted: &str) -> String {
    let wanted = LOCAL_SUFFIXES.iter().find_map(|suffix| wanted.strip_suffix(suffix)).unwrap_or(wanted);
    let cut: String = wanted.chars().filter(char::is_ascii).take(MAX_LABEL).collect();
    let label: String = cut
        .trim_matches(|c: char| !c.is_ascii_alphanumeric())
        .chars()
        .filter_map(|c| match c {
            ' ' | '.' | '@' | '_' => Some('-'),
            c if c.is_ascii_alphanumeric() || c == '-' => Some(c.to_ascii_lowercase()),
            _ => None,
        })
        .collect();
    if label.is_empty() { FALLBACK_HOSTNAME.to_owned() } else { label }
}

/// A name fit to be shown: bounded, without control characters.
fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(MAX_SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::tailcfg::{DnsConfig, MapResponse, Timestamp};

    fn netmap(json: serde_json::Value) -> Netmap {
        let response: MapResponse = serde_json::from_value(json).unwrap();
        let mut state = crate::netmap::NetmapState::default();
        state.handle_response(response, Timestamp::from_unix(1_700_000_000));
        state.netmap(Timestamp::from_unix(1_700_000_000)).unwrap()
    }

    fn key(n: u8) -> NodePublic {
        NodePublic::from_bytes([n; 32])
    }

    fn sample() -> Netmap {
        netmap(serde_json::json!({
            "Node": {"ID": 1, "Name": "me.tail.ts.net.", "Key": key(1), "Addresses": ["100.64.0.1/32", "fd7a::1/128"]},
            "Peers": [
                {"ID": 2, "Name": "a.tail.ts.net.", "Key": key(2), "Addresses": ["100.64.0.2/32", "fd7a::2/128"]},
                {"ID": 3, "Name": "six.tail.ts.net.", "Key": key(3), "Addresses": ["fd7a::3/128"],
                 "CapMap": {"dns-subdomain-resolve": null}},
                {"ID": 4, "Name": "a.other.ts.net.", "Key": key(4), "Addresses": ["100.64.0.4/32"]},
                {"ID": 5, "Name": "twin.tail.ts.net.", "Key": key(5), "Addresses": ["100.64.0.5/32"], "Created": "2024-01-01T00:00:00Z"},
                {"ID": 6, "Name": "twin.tail.ts.net.", "Key": key(6), "Addresses": ["100.64.0.6/32"], "Created": "2023-01-01T00:00:00Z", "Online": true},
                {"ID": 7, "Name": "old.tail.ts.net.", "Key": key(7), "Addresses": ["100.64.0.7/32"], "Expired": true},
                {"ID": 8, "Name": "bare", "Key": key(8), "Addresses": ["100.64.0.8/32"]},
                {"ID": 9, "Name": "ubuntu-24-04-1.tail.ts.net.", "Key": key(9), "Addresses": ["100.64.0.9/32"]}
            ],
            "DNSConfig": {"Domains": ["corp.example"], "ExtraRecords": [
                {"Name": "db.corp.example.", "Value": "100.64.0.2"}, {"Name": "x.corp.example", "Type": "TXT", "Value": "1.2.3.4"}]}
        }))
    }

    #[test]
    fn names_lead_to_addresses() {
        let netmap = sample();
        for (host, address, peer) in [
            ("100.64.0.2", "100.64.0.2", Some(2)),
            ("[fd7a::2]", "fd7a::2", Some(2)),
            ("9.9.9.9", "9.9.9.9", None),
            ("A.Tail.ts.net.", "100.64.0.2", Some(2)),
            ("a", "100.64.0.2", Some(2)),
            ("a.other.ts.net", "100.64.0.4", Some(4)),
            ("six", "fd7a::3", Some(3)),
            ("sub.six.tail.ts.net", "fd7a::3", Some(3)),
            ("twin", "100.64.0.6", Some(6)),
            ("bare", "100.64.0.8", Some(8)),
            ("db", "100.64.0.2", Some(2)),
            ("me", "100.64.0.1", Some(1)),
            ("Ubuntu-24.04-1", "100.64.0.9", Some(9)),
        ] {
            assert_eq!(resolve(&netmap, host), Ok((address.parse().unwrap(), peer.map(key))), "{host}");
        }
    }

    #[test]
    fn names_that_lead_nowhere_say_why() {
        let netmap = sample();
        for host in ["", ".", "...", "24.04", "nobody", "sub.a.tail.ts.net", "x", "a.tail", "é"] {
            assert!(matches!(resolve(&netmap, host), Err(NameError::Unknown(_))), "{host}");
        }
        assert!(matches!(resolve(&netmap, "old"), Err(NameError::Refused(_, Refusal::Expired))));
        assert_eq!(resolve(&netmap, "a\u{1b}[0mb"), Err(NameError::Unknown("a[0mb".to_owned())));
    }

    #[test]
    fn a_node_without_ipv4_takes_ipv6() {
        let mut netmap = sample();
        Arc::make_mut(&mut netmap.self_node).addresses = vec!["fd7a::1/128".parse().unwrap()];
        netmap.dns = Arc::new(DnsConfig::default());
        assert_eq!(resolve(&netmap, "a"), Ok(("fd7a::2".parse().unwrap(), Some(key(2)))));
        assert!(matches!(resolve(&netmap, "twin"), Err(NameError::NoAddress(_))));
    }

    #[test]
    fn hostnames_become_labels() {
        for (wanted, label) in [
            ("Runner_1.example", "runner-1-example"),
            ("mac.local", "mac"),
            ("-a-b-", "a-b"),
            ("ünïcode", "ncode"),
            ("", FALLBACK_HOSTNAME),
            ("...", FALLBACK_HOSTNAME),
        ] {
            assert_eq!(valid_hostname(wanted), label, "{wanted}");
        }
        assert_eq!(valid_hostname(&"x".repeat(80)).len(), MAX_LABEL);
    }
}
