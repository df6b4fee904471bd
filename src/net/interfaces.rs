//! The addresses of this machine's interfaces that a peer might reach us at.

use std::net::{IpAddr, SocketAddr};

use if_addrs::{IfAddr, get_if_addrs};

/// At most this many own addresses are told to peers: each is one disco ping per peer, and machines with
/// hundreds (container hosts) would flood them.
const MAX_ADDRESSES: usize = 32;

/// Lists the endpoints of this machine: each usable interface address with the port its family's socket is bound to.
///
/// Loopback counts only where there is nothing else; link-local IPv6 and Tailscale's own ranges never do
/// (`tailscale/tailscale` `net/netmon`, `LocalAddresses`). A machine whose interfaces can't be read has none.
pub(crate) fn local_endpoints(port_v4: Option<u16>, port_v6: Option<u16>) -> Vec<SocketAddr> {
    let addresses = get_if_addrs().unwrap_or_else(|error| {
        tracing::warn!(%error, "this machine's interface addresses can't be read: peers learn only what STUN finds");
        Vec::new()
    });
    let usable = addresses.iter().filter(|interface| interface.is_oper_up() || interface.addr.is_loopback());
    choose(usable.map(|interface| match &interface.addr {
        IfAddr::V4(v4) => IpAddr::V4(v4.ip),
        IfAddr::V6(v6) => IpAddr::V6(v6.ip),
    }))
    .into_iter()
    .filter_map(|address| {
        let port = if address.is_ipv4() { port_v4 } else { port_v6 };
        port.map(|port| SocketAddr::new(address, port))
    })
    .collect()
}

fn choose(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let (mut loopback, mut others): (Vec<IpAddr>, Vec<IpAddr>) =
        addresses.filter(|address| !is_excluded(*address)).partition(IpAddr::is_loopback);
    let chosen = if others.is_empty() { &mut loopback } else { &mut others };
    chosen.sort_unstable();
    chosen.dedup();
    chosen.truncate(MAX_ADDRESSES);
    std::mem::take(chosen)
}

fn is_excluded(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [first, second, ..] = v4.octets();
            let shared = first == 100 && (64..128).contains(&second); // 100.64.0.0/10, the tailnet's own
            v4.is_unspecified() || v4.is_link_local() || shared
        }
        IpAddr::V6(v6) => {
            let tailnet = v6.segments()[..3] == [0xfd7a, 0x115c, 0xa1e0];
            v6.is_unspecified() || v6.is_unicast_link_local() || tailnet
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(addresses: &[&str]) -> Vec<String> {
        choose(addresses.iter().map(|a| a.parse().unwrap())).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn loopback_is_told_only_where_there_is_nothing_else() {
        assert_eq!(chosen(&["127.0.0.1", "::1", "fe80::1"]), ["127.0.0.1", "::1"]);
        assert_eq!(chosen(&["127.0.0.1", "192.0.2.2", "::1"]), ["192.0.2.2"]);
    }

    #[test]
    fn tailnet_and_link_local_addresses_are_never_told() {
        let given =
            ["100.64.0.1", "100.127.255.1", "169.254.1.1", "fd7a:115c:a1e0::1", "fe80::2", "100.128.0.1", "fd00::2"];
        assert_eq!(chosen(&given), ["100.128.0.1", "fd00::2"]);
    }

    #[test]
    fn the_list_is_bounded_and_has_no_doubles() {
        let many: Vec<IpAddr> = (0..100u8).flat_map(|n| [IpAddr::from([10, 0, 0, n]); 2]).collect();
        let chosen = choose(many.into_iter());
        assert_eq!(chosen.len(), MAX_ADDRESSES);
        assert!(chosen.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
