//! Where a relay of the DERP map is to be reached: which address families, which port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::tailcfg::DerpNode;

/// The port of DERP where the map says none.
const DERP_PORT: u16 = 443;
/// The port of STUN where the map says none.
const STUN_PORT: u16 = 3478;
/// What stands in the map for a family that is off.
const OFF: &str = "none";

/// How to reach one service of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The TCP or UDP port.
    pub port: u16,
    /// Its IPv4 address.
    pub ipv4: Address,
    /// Its IPv6 address.
    pub ipv6: Address,
}

/// A relay's address of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// The map says it.
    Known(IpAddr),
    /// Its host name is to be looked up.
    Lookup,
    /// It has none.
    Off,
}

impl Target {
    /// Where the relay serves DERP. `None` when it doesn't, or when the map makes no sense.
    #[must_use]
    pub fn derp(node: &DerpNode) -> Option<Self> {
        if node.stun_only {
            return None;
        }
        Self::new(node, port(node.derp_port, DERP_PORT)?)
    }

    /// Where the relay serves STUN. `None` when it doesn't, or when the map makes no sense.
    #[must_use]
    pub fn stun(node: &DerpNode) -> Option<Self> {
        let port = port(node.stun_port, STUN_PORT)?;
        if node.stun_test_ip.is_empty() {
            return Self::new(node, port);
        }
        match node.stun_test_ip.parse().ok()? {
            ip @ IpAddr::V4(_) => Some(Self { port, ipv4: Address::Known(ip), ipv6: Address::Off }),
            ip @ IpAddr::V6(_) => Some(Self { port, ipv4: Address::Off, ipv6: Address::Known(ip) }),
        }
    }

    fn new(node: &DerpNode, port: u16) -> Option<Self> {
        let ipv4 = address(&node.ipv4, |text| text.parse::<Ipv4Addr>().ok().map(IpAddr::V4));
        let ipv6 = address(&node.ipv6, |text| text.parse::<Ipv6Addr>().ok().map(IpAddr::V6));
        let off = ipv4 == Address::Off && ipv6 == Address::Off;
        (!off).then_some(Self { port, ipv4, ipv6 })
    }
}

/// 0 is the usual port; negative ones switch the service off.
fn port(port: i32, usual: u16) -> Option<u16> {
    match u16::try_from(port).ok()? {
        0 => Some(usual),
        port => Some(port),
    }
}

fn address(text: &str, parse: impl Fn(&str) -> Option<IpAddr>) -> Address {
    match text {
        "" => Address::Lookup,
        OFF => Address::Off,
        text => parse(text).map_or(Address::Off, Address::Known),
    }
}
