//! Frames as bytes.

use std::time::Duration;

use super::{DerpError, Frame, HEADER_LEN, MAGIC, MAX_FRAME_LEN, MAX_PACKET_LEN, kind};
use crate::key::{KEY_LEN, NodePublic};

impl Frame<'_> {
    /// Appends the frame to `out`.
    ///
    /// # Errors
    /// When a packet or payload is longer than the protocol allows; `out` is as it was then.
    pub fn write(&self, out: &mut Vec<u8>) -> Result<(), DerpError> {
        match *self {
            Frame::ServerKey(key) => put(out, kind::SERVER_KEY, &[&MAGIC, key.as_bytes()]),
            Frame::ClientInfo { key, sealed } => put(out, kind::CLIENT_INFO, &[key.as_bytes(), sealed]),
            Frame::ServerInfo { sealed } => put(out, kind::SERVER_INFO, &[sealed]),
            Frame::SendPacket { to, packet } => write_send_packet(&to, packet, out),
            Frame::RecvPacket { from, packet } => write_recv_packet(&from, packet, out),
            Frame::ForwardPacket { from, to, packet } => {
                check(packet)?;
                put(out, kind::FORWARD_PACKET, &[from.as_bytes(), to.as_bytes(), packet])
            }
            Frame::KeepAlive => put(out, kind::KEEP_ALIVE, &[]),
            Frame::NotePreferred(preferred) => put(out, kind::NOTE_PREFERRED, &[&[u8::from(preferred)]]),
            Frame::PeerGone { peer, reason } => put(out, kind::PEER_GONE, &[peer.as_bytes(), &[reason.into()]]),
            Frame::PeerPresent { peer } => put(out, kind::PEER_PRESENT, &[peer.as_bytes()]),
            Frame::WatchConnections => put(out, kind::WATCH_CONNECTIONS, &[]),
            Frame::ClosePeer { peer } => put(out, kind::CLOSE_PEER, &[peer.as_bytes()]),
            Frame::Ping(data) => put(out, kind::PING, &[&data]),
            Frame::Pong(data) => put(out, kind::PONG, &[&data]),
            Frame::Health(problem) => put(out, kind::HEALTH, &[problem]),
            Frame::Restarting { reconnect_in, try_for } => {
                put(out, kind::RESTARTING, &[&milliseconds(reconnect_in), &milliseconds(try_for)])
            }
            Frame::Unknown { kind } => put(out, kind, &[]),
        }
    }
}

/// Appends a [`Frame::SendPacket`].
///
/// # Errors
/// When `packet` is longer than [`MAX_PACKET_LEN`]; `out` is as it was then.
pub fn write_send_packet(to: &NodePublic, packet: &[u8], out: &mut Vec<u8>) -> Result<(), DerpError> {
    check(packet)?;
    put(out, kind::SEND_PACKET, &[to.as_bytes(), packet])
}

/// Appends a [`Frame::RecvPacket`].
///
/// # Errors
/// When `packet` is longer than [`MAX_PACKET_LEN`]; `out` is as it was then.
pub fn write_recv_packet(from: &NodePublic, packet: &[u8], out: &mut Vec<u8>) -> Result<(), DerpError> {
    check(packet)?;
    put(out, kind::RECV_PACKET, &[from.as_bytes(), packet])
}

const _: () = assert!(2 * KEY_LEN + MAX_PACKET_LEN <= MAX_FRAME_LEN);

fn check(packet: &[u8]) -> Result<(), DerpError> {
    if packet.len() > MAX_PACKET_LEN {
        return Err(DerpError::PacketTooLarge { length: packet.len() });
    }
    Ok(())
}

fn put(out: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) -> Result<(), DerpError> {
    let payload: usize = parts.iter().map(|part| part.len()).sum();
    let length = u32::try_from(payload).unwrap_or(u32::MAX);
    if payload > MAX_FRAME_LEN {
        return Err(DerpError::FrameTooLarge { kind, length });
    }
    out.reserve(HEADER_LEN + payload);
    out.push(kind);
    out.extend_from_slice(&length.to_be_bytes());
    parts.iter().for_each(|part| out.extend_from_slice(part));
    Ok(())
}

fn milliseconds(duration: Duration) -> [u8; 4] {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX).to_be_bytes()
}
