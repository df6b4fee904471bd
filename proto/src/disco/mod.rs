//! Disco, the messages by which two nodes find a direct path (`tailscale/tailscale` `disco/disco.go`).
//!
//! A packet is the magic `TS💬`, the sender's disco key, and a NaCl box between the two disco keys that holds one
//! message: a type, a version (0) and a body. It travels beside WireGuard on the same UDP socket, and through DERP.
//! Nothing here says whom to trust: that the sender's key belongs to a peer, and that a [`Message::CallMeMaybe`] came
//! through DERP, is for the caller to check.

use std::fmt;
use std::net::SocketAddr;

use rand_core::CryptoRng;

use crate::key::{DiscoPrivate, DiscoPublic, KEY_LEN, NodePublic};
use crate::nacl::{self, NaclBox};

mod body;
mod peer_relay;
#[cfg(test)]
mod tests;

pub use peer_relay::{Handshake, Offer, PeerRelay};

/// The first bytes of every disco packet: `TS💬`.
pub const MAGIC: [u8; 6] = [0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac];
/// How many endpoints of a [`Message::CallMeMaybe`] are read or sent; the rest is left out. A node with many interfaces
/// has a dozen or two, and each one that we read costs a ping.
pub const MAX_ENDPOINTS: usize = 64;
/// What may be behind a Geneve header: disco, WireGuard.
const GENEVE_PROTOCOLS: std::ops::RangeInclusive<u16> = 0x7a11..=0x7a12;
/// Bytes in front of the box: magic and sender.
const HEADER_LEN: usize = MAGIC.len() + KEY_LEN;

/// What pairs a [`Message::Pong`] with its [`Message::Ping`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransactionId(pub [u8; 12]);

impl TransactionId {
    /// A new one, which nobody can guess.
    #[must_use]
    pub fn generate(rng: &mut dyn CryptoRng) -> Self {
        let mut bytes = [0; 12];
        rng.fill_bytes(&mut bytes);
        Self(bytes)
    }
}

impl fmt::Debug for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..6].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A disco message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// "Do you hear me here?" Answered with a [`Message::Pong`] on the path that it came by.
    Ping {
        /// To be repeated in the answer.
        txid: TransactionId,
        /// Which node the sender says it is; must match what the netmap says of its disco key. `None` (zero, or
        /// absent) from nodes before 1.16.
        node_key: Option<NodePublic>,
        /// Zero bytes at the end, which probe the path's MTU.
        padding: usize,
    },
    /// The answer to a [`Message::Ping`].
    Pong {
        /// That of the ping.
        txid: TransactionId,
        /// Where the ping came from, as the sender of this saw it.
        observed: SocketAddr,
    },
    /// "Ping me at these addresses; I have just pinged you." Valid only through DERP.
    CallMeMaybe {
        /// Where the sender believes it can be reached; at most [`MAX_ENDPOINTS`].
        endpoints: Vec<SocketAddr>,
    },
    /// A message of the peer-relay protocol, which we can read and don't take part in.
    PeerRelay(PeerRelay),
}

/// Why a packet or message isn't one that we understand or can send.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DiscoError {
    /// It doesn't begin as a disco packet does.
    #[error("not a disco packet")]
    NotDisco,
    /// The box wasn't sealed by this sender for us: another disco key of ours (we restarted), or a forgery.
    #[error("a disco packet that wasn't sealed for our disco key")]
    NotForUs,
    /// The message is shorter than its type asks for.
    #[error("a disco message of type {kind:#04x} that is too short")]
    Short {
        /// Its type byte; 0 when not even that was there.
        kind: u8,
    },
    /// A type from a later version of the protocol.
    #[error("a disco message of unknown type {kind:#04x}")]
    UnknownType {
        /// Its type byte.
        kind: u8,
    },
    /// Our fault: the buffer is too small for the packet.
    #[error("a disco packet of {needed} bytes has no room in a buffer of {room}")]
    NoRoom {
        /// Bytes of the packet.
        needed: usize,
        /// Bytes of the buffer.
        room: usize,
    },
}

/// Whether `packet` looks like a disco packet, by its first bytes and length.
#[must_use]
pub fn is_disco(packet: &[u8]) -> bool {
    packet.len() >= HEADER_LEN + nacl::NONCE_LEN && packet.starts_with(&MAGIC)
}

/// Whether `datagram` comes through another node as UDP relay: disco or WireGuard behind a Geneve header (RFC 8926; the
/// protocols' numbers are in `tailscale/tailscale` `net/packet/geneve.go`). WireGuard alone has zeros there.
#[must_use]
pub fn is_peer_relayed(datagram: &[u8]) -> bool {
    match datagram.first_chunk::<8>() {
        Some(&[version, flags, high, low, .., reserved]) => {
            let protocol = u16::from_be_bytes([high, low]);
            version & 0xc0 == 0 && flags & 0x3f == 0 && reserved == 0 && GENEVE_PROTOCOLS.contains(&protocol)
        }
        None => false,
    }
}

/// Who says to have sent `packet`; proven only when the box opens. `None` when it is no disco packet.
#[must_use]
pub fn sender(packet: &[u8]) -> Option<DiscoPublic> {
    if !is_disco(packet) {
        return None;
    }
    let key = packet.get(MAGIC.len()..)?.first_chunk()?;
    Some(DiscoPublic::from_bytes(*key))
}

/// Opens a packet for `own`: who sent it, and what it says. For a peer that is known, [`SharedKey::open`] is cheaper.
///
/// # Errors
/// See [`SharedKey::open`].
pub fn open(packet: &[u8], own: &DiscoPrivate) -> Result<(DiscoPublic, Message), DiscoError> {
    let sender = sender(packet).ok_or(DiscoError::NotDisco)?;
    let message = SharedKey::new(own, &sender).open(packet)?;
    Ok((sender, message))
}

/// Seals `message` from `own` for `other` and appends the packet to `out`.
///
/// # Errors
/// None that can happen: the room is made.
pub fn seal(
    message: &Message,
    own: &DiscoPrivate,
    other: &DiscoPublic,
    rng: &mut dyn CryptoRng,
    out: &mut Vec<u8>,
) -> Result<(), DiscoError> {
    let start = out.len();
    out.resize(start + sealed_len(message), 0);
    let packet = out.get_mut(start..).unwrap_or_default();
    SharedKey::new(own, other).seal(message, rng, packet).map(drop).inspect_err(|_| out.truncate(start))
}

/// Bytes of the packet that `message` becomes.
#[must_use]
pub fn sealed_len(message: &Message) -> usize {
    HEADER_LEN + nacl::OVERHEAD + message.encoded_len()
}

/// The key that our disco key and a peer's have in common. To be kept with the peer: making one costs a Diffie-Hellman.
pub struct SharedKey {
    own: DiscoPublic,
    other: DiscoPublic,
    shared: NaclBox,
}

impl SharedKey {
    /// Computes the key between `own` and `other`.
    #[must_use]
    pub fn new(own: &DiscoPrivate, other: &DiscoPublic) -> Self {
        Self { own: own.public(), other: *other, shared: NaclBox::new(own.expose_bytes(), other.as_bytes()) }
    }

    /// The peer's disco key.
    #[must_use]
    pub fn other(&self) -> &DiscoPublic {
        &self.other
    }

    /// Opens a packet that this peer sent.
    ///
    /// # Errors
    /// [`DiscoError::NotDisco`] when it is none, [`DiscoError::NotForUs`] when it is another sender's or doesn't open,
    /// [`DiscoError::Short`] and [`DiscoError::UnknownType`] when it opens and makes no sense.
    pub fn open(&self, packet: &[u8]) -> Result<Message, DiscoError> {
        if sender(packet).ok_or(DiscoError::NotDisco)? != self.other {
            return Err(DiscoError::NotForUs);
        }
        let sealed = packet.get(HEADER_LEN..).ok_or(DiscoError::NotDisco)?;
        Message::decode(&self.shared.open(sealed).ok_or(DiscoError::NotForUs)?)
    }

    /// Seals `message` into the first bytes of `out`; returns how many. The nonce comes out of `rng`.
    ///
    /// # Errors
    /// [`DiscoError::NoRoom`] when `out` is shorter than [`sealed_len`], which is as it was then.
    pub fn seal(&self, message: &Message, rng: &mut dyn CryptoRng, out: &mut [u8]) -> Result<usize, DiscoError> {
        let (needed, room) = (sealed_len(message), out.len());
        let no_room = || DiscoError::NoRoom { needed, room };
        let packet = out.get_mut(..needed).ok_or_else(no_room)?;
        let (header, sealed) = packet.split_at_mut_checked(HEADER_LEN).ok_or_else(no_room)?;
        let (magic, key) = header.split_at_mut(MAGIC.len());
        magic.copy_from_slice(&MAGIC);
        key.copy_from_slice(self.own.as_bytes());
        message.encode(sealed.get_mut(nacl::OVERHEAD..).ok_or_else(no_room)?);
        self.shared.seal_in_place(rng, sealed).ok_or_else(no_room)?;
        Ok(needed)
    }
}

impl fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedKey({:?}, redacted)", self.other)
    }
}
