//! DERP frames: the byte stream between a node and a relay (`tailscale/tailscale` `derp/derp.go`).
//!
//! A frame is a type, a big-endian `u32` length and that many bytes. A connection begins with the relay's
//! [`Frame::ServerKey`], then [`Frame::ClientInfo`], then [`Frame::ServerInfo`]; afterwards packets are addressed by
//! node key. Both ends are here: nodes are clients, and the test network runs a relay.

use std::time::Duration;

use crate::key::NodePublic;

mod certificate;
mod decoder;
mod info;
#[cfg(test)]
mod tests;
mod write;

pub use certificate::{CERTIFICATE_NAME_PREFIX, key_in_certificate};
pub use decoder::Decoder;
pub use info::{ClientInfo, ServerInfo};
pub use write::{write_recv_packet, write_send_packet};

/// Bytes of a frame's type and length.
pub const HEADER_LEN: usize = 5;
/// The largest packet that a relay passes on (`derp.MaxPacketSize`).
pub const MAX_PACKET_LEN: usize = 64 << 10;
/// The largest payload of a frame that is read; Go's client refuses above it as well. It bounds a [`Decoder`].
pub const MAX_FRAME_LEN: usize = 1 << 20;
/// Relays send something at least every 60 s and some jitter; a connection that is silent for this long is dead.
pub const READ_TIMEOUT: Duration = Duration::from_secs(120);
/// The version of the protocol that is spoken here.
pub const PROTOCOL_VERSION: u32 = 2;
/// What a relay's first frame begins with: `DERP🔑`.
pub const MAGIC: [u8; 8] = [0x44, 0x45, 0x52, 0x50, 0xf0, 0x9f, 0x94, 0x91];
/// The longest text of a [`Frame::Health`] that is kept, in characters.
const MAX_HEALTH_LEN: usize = 200;

/// One frame. Payloads are borrowed from the buffer that was read into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Relay → node, first of all: the relay's public key.
    ServerKey(NodePublic),
    /// Node → relay: who the node is, and a box that [`ClientInfo::open`] reads and that proves it.
    ClientInfo {
        /// The node's key.
        key: NodePublic,
        /// Nonce and box.
        sealed: &'a [u8],
    },
    /// Relay → node: nonce and box, for [`ServerInfo::open`].
    ServerInfo {
        /// Nonce and box.
        sealed: &'a [u8],
    },
    /// Node → relay: a packet for another node.
    SendPacket {
        /// Whom it is for.
        to: NodePublic,
        /// At most [`MAX_PACKET_LEN`].
        packet: &'a [u8],
    },
    /// Relay → node: a packet from another node.
    RecvPacket {
        /// Who sent it.
        from: NodePublic,
        /// At most [`MAX_PACKET_LEN`].
        packet: &'a [u8],
    },
    /// Relay → node, about every minute.
    KeepAlive,
    /// Node → relay: whether this is the node's home. For the relay's statistics only.
    NotePreferred(bool),
    /// Relay → node: this peer isn't on this relay (any more).
    PeerGone {
        /// The peer.
        peer: NodePublic,
        /// Why.
        reason: PeerGoneReason,
    },
    /// Relay → relay of the same region: a node came.
    PeerPresent {
        /// The node.
        peer: NodePublic,
    },
    /// Relay → relay: a packet between their nodes.
    ForwardPacket {
        /// Who sent it.
        from: NodePublic,
        /// Whom it is for.
        to: NodePublic,
        /// At most [`MAX_PACKET_LEN`].
        packet: &'a [u8],
    },
    /// Relay → relay: tell me of every node.
    WatchConnections,
    /// Relay → relay: close this node's connection.
    ClosePeer {
        /// The node.
        peer: NodePublic,
    },
    /// To be answered with a [`Frame::Pong`] of the same bytes.
    Ping([u8; 8]),
    /// The answer to a [`Frame::Ping`].
    Pong([u8; 8]),
    /// Relay → node: what is wrong with this connection, such as another one of the same key; empty when it is well
    /// again. Untrusted text: see [`health_text`].
    Health(&'a [u8]),
    /// Relay → node: the relay is about to restart.
    Restarting {
        /// How long to wait before the next connection.
        reconnect_in: Duration,
        /// For how long to try then, before it counts as an outage.
        try_for: Duration,
    },
    /// A type from a later version of the protocol, to be skipped.
    Unknown {
        /// The type.
        kind: u8,
    },
}

/// Why a peer isn't on a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PeerGoneReason {
    /// It was, and left.
    Disconnected,
    /// The relay doesn't know it; a packet to it was dropped.
    NotHere,
    /// Another reason.
    Other(u8),
}

impl From<u8> for PeerGoneReason {
    fn from(reason: u8) -> Self {
        match reason {
            0 => Self::Disconnected,
            1 => Self::NotHere,
            other => Self::Other(other),
        }
    }
}

impl From<PeerGoneReason> for u8 {
    fn from(reason: PeerGoneReason) -> Self {
        match reason {
            PeerGoneReason::Disconnected => 0,
            PeerGoneReason::NotHere => 1,
            PeerGoneReason::Other(other) => other,
        }
    }
}

/// Why the bytes of a DERP stream make no sense. The connection must be closed then; the fault is the other end's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DerpError {
    /// A frame longer than [`MAX_FRAME_LEN`].
    #[error("a DERP frame of type {kind:#04x} with {length} bytes, more than the {MAX_FRAME_LEN} allowed")]
    FrameTooLarge {
        /// Its type.
        kind: u8,
        /// Its length.
        length: u32,
    },
    /// A packet longer than [`MAX_PACKET_LEN`].
    #[error("a DERP packet of {length} bytes, more than the {MAX_PACKET_LEN} allowed")]
    PacketTooLarge {
        /// Its length.
        length: usize,
    },
    /// A frame shorter than its type asks for.
    #[error("a DERP frame of type {kind:#04x} that is too short")]
    Short {
        /// Its type.
        kind: u8,
    },
    /// A first frame without the magic: no DERP relay.
    #[error("not a DERP relay: its greeting doesn't begin as one")]
    Greeting,
    /// A key in the first frame that isn't the one in the relay's certificate.
    #[error("the relay's greeting and its certificate tell different keys")]
    AnotherKey,
    /// A box that wasn't sealed by the key it says.
    #[error("a DERP information box that doesn't open")]
    Sealed,
    /// A box with something else than the JSON that belongs in it.
    #[error("DERP information that is malformed")]
    Information,
}

mod kind {
    pub(super) const SERVER_KEY: u8 = 0x01;
    pub(super) const CLIENT_INFO: u8 = 0x02;
    pub(super) const SERVER_INFO: u8 = 0x03;
    pub(super) const SEND_PACKET: u8 = 0x04;
    pub(super) const RECV_PACKET: u8 = 0x05;
    pub(super) const KEEP_ALIVE: u8 = 0x06;
    pub(super) const NOTE_PREFERRED: u8 = 0x07;
    pub(super) const PEER_GONE: u8 = 0x08;
    pub(super) const PEER_PRESENT: u8 = 0x09;
    pub(super) const FORWARD_PACKET: u8 = 0x0a;
    pub(super) const WATCH_CONNECTIONS: u8 = 0x10;
    pub(super) const CLOSE_PEER: u8 = 0x11;
    pub(super) const PING: u8 = 0x12;
    pub(super) const PONG: u8 = 0x13;
    pub(super) const HEALTH: u8 = 0x14;
    pub(super) const RESTARTING: u8 = 0x15;
}

/// Reads the frame at the beginning of `buffer`: the frame, and how many bytes it took. `None` when more must be read
/// first.
///
/// # Errors
/// When the stream makes no sense from here on; a frame that is too large is refused by its header.
pub fn parse(buffer: &[u8]) -> Result<Option<(Frame<'_>, usize)>, DerpError> {
    let Some((&[kind, length @ ..], rest)) = buffer.split_first_chunk::<HEADER_LEN>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(length);
    let too_large = || DerpError::FrameTooLarge { kind, length };
    let payload_len = usize::try_from(length).map_err(|_| too_large())?;
    if payload_len > MAX_FRAME_LEN {
        return Err(too_large());
    }
    let Some(payload) = rest.get(..payload_len) else {
        return Ok(None);
    };
    Ok(Some((parse_payload(kind, payload)?, HEADER_LEN + payload_len)))
}

/// The text of a [`Frame::Health`] as it may be shown: bounded, and without control characters.
#[must_use]
pub fn health_text(problem: &[u8]) -> String {
    String::from_utf8_lossy(problem).chars().filter(|c| !c.is_control()).take(MAX_HEALTH_LEN).collect()
}

fn parse_payload(kind: u8, payload: &[u8]) -> Result<Frame<'_>, DerpError> {
    let short = DerpError::Short { kind };
    match kind {
        kind::SERVER_KEY => {
            let key = payload.strip_prefix(&MAGIC).ok_or(DerpError::Greeting)?;
            Ok(Frame::ServerKey(split_key(key).ok_or(short)?.0))
        }
        kind::CLIENT_INFO => {
            let (key, sealed) = split_key(payload).ok_or(short)?;
            Ok(Frame::ClientInfo { key, sealed })
        }
        kind::SERVER_INFO => Ok(Frame::ServerInfo { sealed: payload }),
        kind::SEND_PACKET => {
            let (to, packet) = split_key(payload).ok_or(short)?;
            Ok(Frame::SendPacket { to, packet: bounded(packet)? })
        }
        kind::RECV_PACKET => {
            let (from, packet) = split_key(payload).ok_or(short)?;
            Ok(Frame::RecvPacket { from, packet: bounded(packet)? })
        }
        kind::FORWARD_PACKET => {
            let (from, rest) = split_key(payload).ok_or_else(|| short.clone())?;
            let (to, packet) = split_key(rest).ok_or(short)?;
            Ok(Frame::ForwardPacket { from, to, packet: bounded(packet)? })
        }
        kind::KEEP_ALIVE => Ok(Frame::KeepAlive),
        kind::NOTE_PREFERRED => Ok(Frame::NotePreferred(*payload.first().ok_or(short)? != 0)),
        kind::PEER_GONE => {
            let (peer, reason) = split_key(payload).ok_or(short)?;
            // Old relays send no reason: it was there, and left.
            let reason = reason.first().copied().unwrap_or(0).into();
            Ok(Frame::PeerGone { peer, reason })
        }
        kind::PEER_PRESENT => Ok(Frame::PeerPresent { peer: split_key(payload).ok_or(short)?.0 }),
        kind::WATCH_CONNECTIONS => Ok(Frame::WatchConnections),
        kind::CLOSE_PEER => Ok(Frame::ClosePeer { peer: split_key(payload).ok_or(short)?.0 }),
        kind::PING => Ok(Frame::Ping(*payload.first_chunk().ok_or(short)?)),
        kind::PONG => Ok(Frame::Pong(*payload.first_chunk().ok_or(short)?)),
        kind::HEALTH => Ok(Frame::Health(payload)),
        kind::RESTARTING => {
            let (reconnect_in, rest) = payload.split_first_chunk().ok_or_else(|| short.clone())?;
            let try_for = rest.first_chunk().ok_or(short)?;
            let milliseconds = |bytes: &[u8; 4]| Duration::from_millis(u32::from_be_bytes(*bytes).into());
            Ok(Frame::Restarting { reconnect_in: milliseconds(reconnect_in), try_for: milliseconds(try_for) })
        }
        kind => Ok(Frame::Unknown { kind }),
    }
}

fn split_key(payload: &[u8]) -> Option<(NodePublic, &[u8])> {
    let (key, rest) = payload.split_first_chunk()?;
    Some((NodePublic::from_bytes(*key), rest))
}

fn bounded(packet: &[u8]) -> Result<&[u8], DerpError> {
    if packet.len() > MAX_PACKET_LEN {
        return Err(DerpError::PacketTooLarge { length: packet.len() });
    }
    Ok(packet)
}
