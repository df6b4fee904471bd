//! TSMP, Tailscale's small control messages between nodes (tailscale/tailscale `net/packet/tsmp.go`).
//!
//! They are IP packets of protocol 99 inside WireGuard: a type byte and a body. They tell why a connection was refused,
//! carry a ping that the node itself answers, and a peer's new disco key.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::{Packet, Transport, build, protocol};

/// The smallest message that Go accepts (the body of a rejection).
pub const SMALLEST: usize = 7;
const REJECTED: u8 = b'!';
const PING: u8 = b'p';
const PONG: u8 = b'o';
const DISCO_KEY: u8 = b'a';
const MAYBE_BROKEN: u8 = 1;

/// Why a peer refused a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RejectReason {
    /// Its access rules don't allow it.
    Acl,
    /// It takes no incoming connections at all.
    ShieldsUp,
    /// It should forward, and its system doesn't.
    IpForwarding,
    /// Its host's firewall is in the way.
    HostFirewall,
    /// An app connector doesn't know the address.
    AppConnector,
    /// A reason that we don't know.
    Other(u8),
}

impl RejectReason {
    fn from_byte(byte: u8) -> Self {
        match byte {
            b'A' => Self::Acl,
            b'S' => Self::ShieldsUp,
            b'F' => Self::IpForwarding,
            b'W' => Self::HostFirewall,
            b'T' => Self::AppConnector,
            other => Self::Other(other),
        }
    }

    fn byte(self) -> u8 {
        match self {
            Self::Acl => b'A',
            Self::ShieldsUp => b'S',
            Self::IpForwarding => b'F',
            Self::HostFirewall => b'W',
            Self::AppConnector => b'T',
            Self::Other(byte) => byte,
        }
    }
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Acl => f.write_str("its access rules don't allow it"),
            Self::ShieldsUp => f.write_str("it takes no incoming connections (shields up)"),
            Self::IpForwarding => f.write_str("IP forwarding is off on its host"),
            Self::HostFirewall => f.write_str("its host's firewall blocks it"),
            Self::AppConnector => f.write_str("the app connector doesn't know this address"),
            Self::Other(byte) => write!(f, "reason 0x{byte:02x}"),
        }
    }
}

/// "I refused this flow."
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rejected {
    /// IP protocol of the refused flow (TCP or UDP).
    pub protocol: u8,
    /// Why.
    pub reason: RejectReason,
    /// The refused flow's source.
    pub source: SocketAddr,
    /// The refused flow's destination.
    pub destination: SocketAddr,
    /// The peer isn't sure: the flow may still work, so don't fail it at once.
    pub maybe_broken: bool,
}

/// A TSMP message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// A flow was refused.
    Rejected(Rejected),
    /// Asks for a pong with the same data.
    Ping([u8; 8]),
    /// Answers a ping.
    Pong {
        /// The ping's data.
        data: [u8; 8],
        /// Port of the peer's PeerAPI, 0 if it has none.
        peer_api_port: u16,
    },
    /// The peer's new disco key.
    DiscoKey([u8; 32]),
    /// A type that we don't know: to be ignored quietly.
    Unknown(u8),
}

/// Reads a TSMP message; `None` if `packet` isn't a well-formed one.
pub fn parse(packet: &Packet<'_>) -> Option<Message> {
    if packet.transport != Transport::Tsmp {
        return None;
    }
    let (kind, body) = packet.payload.split_first()?;
    Some(match *kind {
        REJECTED => {
            let ([number, reason, a, b, c, d], flags) = body.split_first_chunk::<6>()?;
            Message::Rejected(Rejected {
                protocol: *number,
                reason: RejectReason::from_byte(*reason),
                source: (packet.destination, u16::from_be_bytes([*a, *b])).into(),
                destination: (packet.source, u16::from_be_bytes([*c, *d])).into(),
                maybe_broken: flags.first().is_some_and(|flags| flags & MAYBE_BROKEN != 0),
            })
        }
        PING => Message::Ping(*body.first_chunk()?),
        PONG => {
            let (data, rest) = body.split_first_chunk::<8>()?;
            let port = rest.first_chunk().copied().unwrap_or_default();
            Message::Pong { data: *data, peer_api_port: u16::from_be_bytes(port) }
        }
        DISCO_KEY => Message::DiscoKey(*body.first_chunk()?),
        other => Message::Unknown(other),
    })
}

/// The message that tells the sender of `refused` (a TCP SYN or a UDP packet) that we won't have it.
/// `None` if it is neither.
pub fn rejection(refused: &Packet<'_>, reason: RejectReason) -> Option<Vec<u8>> {
    let (number, source, destination) = match refused.transport {
        Transport::Tcp { source, destination, .. } => (protocol::TCP, source, destination),
        Transport::Udp { source, destination } => (protocol::UDP, source, destination),
        _ => return None,
    };
    let mut body = vec![REJECTED, number, reason.byte()];
    body.extend_from_slice(&source.to_be_bytes());
    body.extend_from_slice(&destination.to_be_bytes());
    build::ip(refused.destination, refused.source, protocol::TSMP, &body)
}

/// A ping from us. `None` if the addresses are of two families.
pub fn ping(source: IpAddr, destination: IpAddr, data: [u8; 8]) -> Option<Vec<u8>> {
    let mut body = vec![PING];
    body.extend_from_slice(&data);
    build::ip(source, destination, protocol::TSMP, &body)
}

/// The answer to a ping; `None` if `packet` isn't one. `peer_api_port` is 0 if there is no PeerAPI.
pub fn pong(packet: &Packet<'_>, peer_api_port: u16) -> Option<Vec<u8>> {
    let Message::Ping(data) = parse(packet)? else {
        return None;
    };
    let mut body = vec![PONG];
    body.extend_from_slice(&data);
    body.extend_from_slice(&peer_api_port.to_be_bytes());
    build::ip(packet.destination, packet.source, protocol::TSMP, &body)
}
