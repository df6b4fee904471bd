//! The packet filter: which of a peer's packets may reach this node.
//!
//! The rules come from control ([`crate::tailcfg::FilterRule`]); what they mean is defined by tailscale/tailscale
//! `wgengine/filter`. Without a rule that allows it, a packet is dropped. Packets that continue something (TCP without a
//! leading SYN, answers to our UDP, ICMP replies and errors) pass: they can open nothing.
//!
//! That a packet's source address belongs to the peer through whose WireGuard session it came is not judged here; that
//! comes first.

mod flows;
mod rule;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr};

use thiserror::Error;

use self::flows::{Flow, Flows};
pub use self::rule::{Rule, RuleError, compile};
use crate::packet::icmp;
use crate::packet::parse::IPV4_HEADER;
use crate::packet::tsmp::{self, RejectReason};
use crate::packet::{Packet, ParseError, Transport, protocol, tcp};

/// The one link-local address that is let through to the address check (Google Cloud's DNS; Go: `gcpDNSAddr`).
const CLOUD_METADATA: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254));

/// Why a packet was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum DropReason {
    /// Shorter than any IP packet.
    #[error("too short")]
    TooShort,
    /// Its headers make no sense, or it is a fragment that could hide one.
    #[error("malformed: {0}")]
    Malformed(ParseError),
    /// Sent to a group.
    #[error("multicast")]
    Multicast,
    /// Sent to a link-local address.
    #[error("link-local destination")]
    LinkLocal,
    /// Sent to an address that isn't ours.
    #[error("the destination isn't an address of this node")]
    NotOurs,
    /// No rule allows it.
    #[error("no rule allows it")]
    NoRule,
}

/// What to do with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Take it.
    Accept,
    /// Throw it away.
    Drop(DropReason),
}

/// The filter of one node. A new one lets nothing in.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    ours: Vec<IpAddr>,
    rules: Vec<Rule>,
    flows: Flows,
}

impl Filter {
    /// A filter without rules for a node with these addresses.
    pub fn new(ours: Vec<IpAddr>) -> Self {
        Self { ours, ..Self::default() }
    }

    /// Changes our addresses.
    pub fn set_addresses(&mut self, ours: Vec<IpAddr>) {
        self.ours = ours;
    }

    /// Changes the rules (see [`compile`]). Flows that we began stay open.
    pub fn set_rules(&mut self, rules: Vec<Rule>) {
        self.rules = rules;
    }

    /// Judges a packet that came out of a peer's session. `has_capability` says whether that peer's node has a node
    /// capability in the netmap.
    pub fn check_inbound(&mut self, bytes: &[u8], has_capability: impl Fn(&str) -> bool) -> Verdict {
        if bytes.is_empty() {
            // WireGuard's keepalive.
            return Verdict::Accept;
        }
        if bytes.len() < IPV4_HEADER {
            return Verdict::Drop(DropReason::TooShort);
        }
        match Packet::parse(bytes) {
            Ok(packet) => self.check(&packet, has_capability),
            Err(error) => Verdict::Drop(DropReason::Malformed(error)),
        }
    }

    /// Judges a packet that was parsed already.
    pub fn check(&mut self, packet: &Packet<'_>, has_capability: impl Fn(&str) -> bool) -> Verdict {
        let to = packet.destination;
        if to.is_multicast() {
            return Verdict::Drop(DropReason::Multicast);
        }
        if is_link_local(to) && to != CLOUD_METADATA {
            return Verdict::Drop(DropReason::LinkLocal);
        }
        if packet.transport == Transport::LaterFragment {
            return Verdict::Accept;
        }
        if !self.ours.contains(&to) {
            return Verdict::Drop(DropReason::NotOurs);
        }
        if self.allows(packet, has_capability) { Verdict::Accept } else { Verdict::Drop(DropReason::NoRule) }
    }

    /// Notes a packet that we send, so that the answer to it is let in. Every packet of ours must pass here, also one that
    /// no application asked for (tailscale/tailscale#14229).
    pub fn note_outbound(&mut self, packet: &Packet<'_>) {
        if let Some((number, from, to)) = datagram_ports(packet) {
            self.flows.insert(Flow {
                protocol: number,
                source: (packet.destination, to).into(),
                destination: (packet.source, from).into(),
            });
        }
    }

    fn allows(&mut self, packet: &Packet<'_>, has_capability: impl Fn(&str) -> bool) -> bool {
        let (from, to) = (packet.source, packet.destination);
        match packet.transport {
            Transport::Tcp { flags, .. } if flags & (tcp::SYN | tcp::ACK) != tcp::SYN => true,
            Transport::Tcp { destination, .. } => {
                self.rules.iter().any(|rule| rule.allows(protocol::TCP, from, to, destination, &has_capability))
            }
            Transport::Udp { .. } | Transport::Sctp { .. } => {
                let Some((number, source, destination)) = datagram_ports(packet) else {
                    return false;
                };
                let flow =
                    Flow { protocol: number, source: (from, source).into(), destination: (to, destination).into() };
                self.flows.touch(&flow)
                    || self.rules.iter().any(|rule| rule.allows(number, from, to, destination, &has_capability))
            }
            Transport::Icmp { .. } => match icmp::kind(packet) {
                Some(icmp::Kind::EchoReply | icmp::Kind::Error) => true,
                // If any port of ours is open to them, so are pings.
                _ => self.rules.iter().any(|rule| rule.connects(from, to, &has_capability)),
            },
            Transport::Tsmp => true,
            Transport::LaterFragment => true,
            Transport::Other(number) => self.rules.iter().any(|rule| rule.allows_portless(number, from, to)),
        }
    }
}

/// The message that tells the sender of a TCP SYN at once that no rule allows it; `None` for any other packet.
pub fn rejection(bytes: &[u8]) -> Option<Vec<u8>> {
    let packet = Packet::parse(bytes).ok()?;
    let is_first = tcp::Segment::parse(&packet).is_some_and(|segment| segment.is_first());
    if !is_first || packet.fragment {
        return None;
    }
    tsmp::rejection(&packet, RejectReason::Acl)
}

/// Protocol, source and destination port of UDP and SCTP, whose answers are let in.
fn datagram_ports(packet: &Packet<'_>) -> Option<(u8, u16, u16)> {
    match packet.transport {
        Transport::Udp { source, destination } => Some((protocol::UDP, source, destination)),
        Transport::Sctp { source, destination } => Some((protocol::SCTP, source, destination)),
        _ => None,
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
