//! `NO_PROXY`: what is reached without a proxy.

use std::net::IpAddr;

use ipnet::IpNet;

use super::split_port;

/// One entry of `NO_PROXY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Exception {
    /// `*`
    All,
    /// `192.0.2.0/24`
    Network(IpNet),
    /// `192.0.2.1[:PORT]`
    Address(IpAddr, Option<u16>),
    /// `example.org[:PORT]` with all names below it, or `.example.org` with these alone.
    Domain { name: String, itself: bool, port: Option<u16> },
}

impl Exception {
    /// `None` for what can't be one: as in Go it is passed over, since the list is shared by programs that each know forms
    /// of their own.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        if text == "*" {
            return Some(Self::All);
        }
        if let Ok(network) = text.parse::<IpNet>() {
            return Some(Self::Network(network.trunc()));
        }
        let (host, port) = split_port(text.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(&text))?;
        if let Ok(address) = host.parse::<IpAddr>() {
            return Some(Self::Address(address.to_canonical(), port));
        }
        let name = host.trim_start_matches('.').trim_end_matches('.');
        (!name.is_empty()).then(|| Self::Domain { name: name.to_owned(), itself: !host.starts_with('.'), port })
    }

    /// Whether it covers a target: its host in small letters, and the address that this is, if it is one.
    pub(super) fn matches(&self, host: &str, address: Option<IpAddr>, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Network(network) => address.is_some_and(|address| network.contains(&address)),
            Self::Address(own, own_port) => address == Some(*own) && own_port.is_none_or(|own| own == port),
            Self::Domain { name, itself, port: own_port } => {
                let above = host.strip_suffix(name.as_str());
                let is_inside = above.is_some_and(|above| above.ends_with('.') || (*itself && above.is_empty()));
                is_inside && own_port.is_none_or(|own| own == port)
            }
        }
    }
}
