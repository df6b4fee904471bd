//! Reads of an IP packet what a packet filter and a stack must know, and refuses what could fool them.
//!
//! The rules are those of tailscale/tailscale `net/packet/packet.go`: packets that are cut off, protocols whose header
//! doesn't fit the first fragment, and fragments that could overlap a transport header (RFC 1858) are errors.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use thiserror::Error;

use super::protocol;

/// Smallest IPv4 header; also the least that any packet must have.
pub const IPV4_HEADER: usize = 20;
/// The IPv6 base header.
pub const IPV6_HEADER: usize = 40;
const FRAGMENT_V6_HEADER: usize = 8;
/// A later fragment may not start where a transport header could still be: largest IPv4 header plus a TCP header,
/// in blocks of 8 bytes.
const SMALLEST_LATER_FRAGMENT: u16 = (60 + 20) / 8;

/// What is wrong with a packet (always its sender's fault).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum ParseError {
    /// Shorter than its own headers.
    #[error("shorter than an IP header")]
    TooShort,
    /// Neither IPv4 nor IPv6.
    #[error("neither IPv4 nor IPv6")]
    NotIp,
    /// Shorter than its length field says, or with a length field that can't be.
    #[error("shorter than its length field says")]
    Truncated,
    /// The transport header doesn't fit, the protocol number is reserved, or it is a fragment that could hide a header.
    #[error("no complete transport header")]
    UnknownProtocol,
}

/// What stands in the transport header, as far as a filter must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP: ports and the flag byte (see [`super::tcp`] for its bits).
    Tcp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// FIN, SYN, RST, PSH, ACK, … from bit 0 up.
        flags: u8,
    },
    /// UDP ports.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// SCTP ports.
    Sctp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// ICMP of the packet's own family.
    Icmp {
        /// Message type.
        kind: u8,
        /// Message code.
        code: u8,
    },
    /// Tailscale's own messages.
    Tsmp,
    /// A fragment other than the first: there is no transport header in it.
    LaterFragment,
    /// Any other protocol.
    Other(u8),
}

/// An IP packet whose lengths are consistent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Where it says it comes from.
    pub source: IpAddr,
    /// Where it goes to.
    pub destination: IpAddr,
    /// Its transport header.
    pub transport: Transport,
    /// Whether it is a fragment (the first or a later one).
    pub fragment: bool,
    /// Transport header and what follows, up to the length that the IP header states.
    pub payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Reads the headers of `bytes`.
    ///
    /// # Errors
    /// See [`ParseError`]; all of them are the sender's fault.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        match bytes.first().ok_or(ParseError::TooShort)? >> 4 {
            4 => parse_v4(bytes),
            6 => parse_v6(bytes),
            _ => Err(ParseError::NotIp),
        }
    }
}

fn parse_v4(bytes: &[u8]) -> Result<Packet<'_>, ParseError> {
    let header: &[u8; IPV4_HEADER] = bytes.first_chunk().ok_or(ParseError::TooShort)?;
    let header_length = usize::from(header[0] & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header_length < IPV4_HEADER {
        return Err(ParseError::Truncated);
    }
    let payload = bytes.get(header_length..total).ok_or(ParseError::Truncated)?;
    let fragment_field = u16::from_be_bytes([header[6], header[7]]);
    let more_fragments = fragment_field & 0x2000 != 0;
    let offset = fragment_field & 0x1fff;
    let transport = match offset {
        0 => transport(header[9], protocol::ICMP_V4, payload, more_fragments)?,
        1..SMALLEST_LATER_FRAGMENT => return Err(ParseError::UnknownProtocol),
        _ => Transport::LaterFragment,
    };
    Ok(Packet {
        source: Ipv4Addr::new(header[12], header[13], header[14], header[15]).into(),
        destination: Ipv4Addr::new(header[16], header[17], header[18], header[19]).into(),
        transport,
        fragment: more_fragments || offset != 0,
        payload,
    })
}

fn parse_v6(bytes: &[u8]) -> Result<Packet<'_>, ParseError> {
    let header: &[u8; IPV6_HEADER] = bytes.first_chunk().ok_or(ParseError::TooShort)?;
    let (_, addresses) = header.split_at(8);
    let address = |from: usize| {
        let octets = addresses.get(from..).and_then(<[u8]>::first_chunk::<16>);
        IpAddr::V6(Ipv6Addr::from(octets.copied().unwrap_or_default()))
    };
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let mut payload = bytes.get(IPV6_HEADER..IPV6_HEADER + length).ok_or(ParseError::Truncated)?;
    let mut next = header[6];
    let mut fragment = false;
    let mut more_fragments = false;
    let mut later = false;
    if next == protocol::FRAGMENT_V6 {
        let (extension, rest) = payload.split_first_chunk::<FRAGMENT_V6_HEADER>().ok_or(ParseError::UnknownProtocol)?;
        let field = u16::from_be_bytes([extension[2], extension[3]]);
        match field >> 3 {
            0 => {}
            1..SMALLEST_LATER_FRAGMENT => return Err(ParseError::UnknownProtocol),
            _ => later = true,
        }
        fragment = true;
        more_fragments = field & 1 != 0;
        next = extension[0];
        payload = rest;
    }
    let transport =
        if later { Transport::LaterFragment } else { transport(next, protocol::ICMP_V6, payload, more_fragments)? };
    Ok(Packet { source: address(0), destination: address(16), transport, fragment, payload })
}

/// Reads the transport header. `own_icmp` is the ICMP of the packet's family: the other one is just some protocol.
fn transport(number: u8, own_icmp: u8, payload: &[u8], more_fragments: bool) -> Result<Transport, ParseError> {
    let at_least = |length: usize| {
        if payload.len() < length {
            return Err(ParseError::UnknownProtocol);
        }
        Ok(())
    };
    let word = |at: usize| {
        let bytes = payload.get(at..).and_then(<[u8]>::first_chunk::<2>);
        u16::from_be_bytes(bytes.copied().unwrap_or_default())
    };
    let byte = |at: usize| payload.get(at).copied().unwrap_or_default();
    let (source, destination) = (word(0), word(2));
    Ok(match number {
        // 0 is hop-by-hop options in IPv6 and nothing in IPv4; 255 is reserved.
        0 | 255 => return Err(ParseError::UnknownProtocol),
        protocol::TCP => {
            at_least(20)?;
            Transport::Tcp { source, destination, flags: byte(13) }
        }
        protocol::UDP => {
            at_least(8)?;
            Transport::Udp { source, destination }
        }
        protocol::SCTP => {
            at_least(12)?;
            Transport::Sctp { source, destination }
        }
        protocol::TSMP if more_fragments => return Err(ParseError::UnknownProtocol),
        protocol::TSMP => {
            at_least(super::tsmp::SMALLEST)?;
            Transport::Tsmp
        }
        number if number == own_icmp => {
            at_least(4)?;
            Transport::Icmp { kind: byte(0), code: byte(1) }
        }
        number => Transport::Other(number),
    })
}
