//! IP packets as they travel inside the tunnel: batches of them, and the few headers that we read and write ourselves.
//!
//! TCP proper belongs to [`crate::stack`]; what is here is stateless: reading what a filter must know ([`Packet`]),
//! writing a header ([`build`]), an answer to a stray TCP segment ([`tcp`]), ICMP echo ([`icmp`]) and Tailscale's
//! own TSMP ([`tsmp`]).

pub mod batch;
pub mod build;
mod cut;
pub mod icmp;
mod join;
pub mod parse;
pub mod tcp;
mod trim;
pub mod tsmp;

#[cfg(test)]
mod tests;

pub use batch::PacketBatch;
pub use parse::{Packet, ParseError, Transport};

/// IP protocol numbers (IANA "Assigned Internet Protocol Numbers").
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP_V4: u8 = 1;
    /// IGMP.
    pub const IGMP: u8 = 2;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// The IPv6 fragment header, which stands before the real protocol (RFC 8200 §4.5).
    pub const FRAGMENT_V6: u8 = 44;
    /// ICMP for IPv6.
    pub const ICMP_V6: u8 = 58;
    /// Tailscale's own messages, inside WireGuard only ("any private encryption scheme"; Go: `types/ipproto`).
    pub const TSMP: u8 = 99;
    /// SCTP.
    pub const SCTP: u8 = 132;
}
