//! Messages by which two nodes agree on a third as UDP relay (types 4–9 of `disco/disco.go`).
//!
//! They are read, so that what is behind them can be told from noise, and then ignored: this node neither serves as such a
//! relay nor goes through one. [`CAPABILITY_VERSION`](crate::tailcfg::CAPABILITY_VERSION) is below 120 and says so; peers that heed
//! it send none.

use std::net::SocketAddr;
use std::time::Duration;

use super::body::{ENDPOINT_LEN, Writer, decode_endpoint, encode_endpoint};
use super::{DiscoError, MAX_ENDPOINTS};
use crate::key::{DiscoPublic, KEY_LEN};

const BIND: u8 = 4;
const CHALLENGE: u8 = 5;
const ANSWER: u8 = 6;
const CALL_ME_MAYBE_VIA: u8 = 7;
const ALLOCATE: u8 = 8;
const ALLOCATED: u8 = 9;

const VERSION: u8 = 0;
const CHALLENGE_LEN: usize = 32;
const HANDSHAKE_LEN: usize = 4 + 4 + KEY_LEN + CHALLENGE_LEN;
const ALLOCATE_LEN: usize = 2 * KEY_LEN + 4;
/// All of an offer but its addresses.
const OFFER_LEN: usize = 3 * KEY_LEN + 8 + 4 + 8 + 8;

/// One message of the peer-relay protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerRelay {
    /// Client → relay: here I am.
    Bind(Handshake),
    /// Relay → client: prove your address.
    Challenge(Handshake),
    /// Client → relay: the challenge, returned.
    Answer(Handshake),
    /// Client → client, through DERP: meet me at this relay.
    CallMeMaybeVia(Offer),
    /// Client → relay, through DERP: make room for the two of us.
    Allocate {
        /// Who shall meet there.
        clients: [DiscoPublic; 2],
        /// Comes back in the answer.
        generation: u32,
    },
    /// Relay → client, through DERP: there is room.
    Allocated {
        /// That of the request.
        generation: u32,
        /// Where.
        offer: Offer,
    },
    /// A later version of one of these, of which nothing is known.
    Later {
        /// Its type byte.
        kind: u8,
        /// Its version byte.
        version: u8,
    },
}

/// What the three messages of a client's handshake with a relay carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handshake {
    /// The number of the virtual network.
    pub vni: u32,
    /// Which attempt of the client's this is.
    pub generation: u32,
    /// The other client.
    pub remote: DiscoPublic,
    /// What the relay asks to have back; zero in the first message.
    pub challenge: [u8; CHALLENGE_LEN],
}

/// A place at a relay where two clients may meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The relay's disco key.
    pub server: DiscoPublic,
    /// Who may meet there.
    pub clients: [DiscoPublic; 2],
    /// Orders the relay's offers.
    pub lamport: u64,
    /// The number of the virtual network.
    pub vni: u32,
    /// For how long a client may bind.
    pub bind_lifetime: Duration,
    /// For how long it stays without a packet after that.
    pub steady_lifetime: Duration,
    /// The relay's addresses, at most [`MAX_ENDPOINTS`].
    pub addresses: Vec<SocketAddr>,
}

impl PeerRelay {
    /// Reads the body of a message of type `kind`; `None` when that is no type of this protocol.
    pub(super) fn decode(kind: u8, version: u8, body: &[u8]) -> Option<Result<Self, DiscoError>> {
        let decoded = match kind {
            BIND => Handshake::decode(body).map(Self::Bind),
            CHALLENGE => Handshake::decode(body).map(Self::Challenge),
            ANSWER => Handshake::decode(body).map(Self::Answer),
            CALL_ME_MAYBE_VIA..=ALLOCATED if version != VERSION => Some(Self::Later { kind, version }),
            CALL_ME_MAYBE_VIA => Offer::decode(body).map(Self::CallMeMaybeVia),
            ALLOCATE => decode_allocate(body),
            ALLOCATED => decode_allocated(body),
            _ => return None,
        };
        Some(decoded.ok_or(DiscoError::Short { kind }))
    }

    pub(super) fn encoded_len(&self) -> usize {
        match self {
            Self::Bind(_) | Self::Challenge(_) | Self::Answer(_) => HANDSHAKE_LEN,
            Self::CallMeMaybeVia(offer) => offer.encoded_len(),
            Self::Allocate { .. } => ALLOCATE_LEN,
            Self::Allocated { offer, .. } => 4 + offer.encoded_len(),
            Self::Later { .. } => 0,
        }
    }

    pub(super) fn encode(&self, out: &mut Writer<'_>) {
        let kind = match self {
            Self::Bind(_) => BIND,
            Self::Challenge(_) => CHALLENGE,
            Self::Answer(_) => ANSWER,
            Self::CallMeMaybeVia(_) => CALL_ME_MAYBE_VIA,
            Self::Allocate { .. } => ALLOCATE,
            Self::Allocated { .. } => ALLOCATED,
            Self::Later { kind, version } => return out.put(&[*kind, *version]),
        };
        out.put(&[kind, VERSION]);
        match self {
            Self::Bind(handshake) | Self::Challenge(handshake) | Self::Answer(handshake) => handshake.encode(out),
            Self::CallMeMaybeVia(offer) => offer.encode(out),
            Self::Allocate { clients, generation } => {
                clients.iter().for_each(|client| out.put(client.as_bytes()));
                out.put(&generation.to_be_bytes());
            }
            Self::Allocated { generation, offer } => {
                out.put(&generation.to_be_bytes());
                offer.encode(out);
            }
            Self::Later { .. } => {}
        }
    }
}

impl Handshake {
    fn decode(body: &[u8]) -> Option<Self> {
        let mut body = Reader(body);
        Some(Self {
            vni: u32::from_be_bytes(body.take()?),
            generation: u32::from_be_bytes(body.take()?),
            remote: DiscoPublic::from_bytes(body.take()?),
            challenge: body.take()?,
        })
    }

    fn encode(&self, out: &mut Writer<'_>) {
        out.put(&self.vni.to_be_bytes());
        out.put(&self.generation.to_be_bytes());
        out.put(self.remote.as_bytes());
        out.put(&self.challenge);
    }
}

impl Offer {
    fn decode(body: &[u8]) -> Option<Self> {
        let mut body = Reader(body);
        let server = DiscoPublic::from_bytes(body.take()?);
        let clients = [DiscoPublic::from_bytes(body.take()?), DiscoPublic::from_bytes(body.take()?)];
        let lamport = u64::from_be_bytes(body.take()?);
        let vni = u32::from_be_bytes(body.take()?);
        let bind_lifetime = Duration::from_nanos(u64::from_be_bytes(body.take()?));
        let steady_lifetime = Duration::from_nanos(u64::from_be_bytes(body.take()?));
        let (addresses, rest) = body.0.as_chunks::<ENDPOINT_LEN>();
        if addresses.is_empty() || !rest.is_empty() {
            return None;
        }
        let addresses = addresses.iter().take(MAX_ENDPOINTS).map(decode_endpoint).collect();
        Some(Self { server, clients, lamport, vni, bind_lifetime, steady_lifetime, addresses })
    }

    fn encoded_len(&self) -> usize {
        OFFER_LEN + ENDPOINT_LEN * self.addresses.len().min(MAX_ENDPOINTS)
    }

    fn encode(&self, out: &mut Writer<'_>) {
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).to_be_bytes();
        out.put(self.server.as_bytes());
        self.clients.iter().for_each(|client| out.put(client.as_bytes()));
        out.put(&self.lamport.to_be_bytes());
        out.put(&self.vni.to_be_bytes());
        out.put(&nanoseconds(self.bind_lifetime));
        out.put(&nanoseconds(self.steady_lifetime));
        for address in self.addresses.iter().take(MAX_ENDPOINTS) {
            out.put(&encode_endpoint(*address));
        }
    }
}

fn decode_allocate(body: &[u8]) -> Option<PeerRelay> {
    let mut body = Reader(body);
    let clients = [DiscoPublic::from_bytes(body.take()?), DiscoPublic::from_bytes(body.take()?)];
    Some(PeerRelay::Allocate { clients, generation: u32::from_be_bytes(body.take()?) })
}

fn decode_allocated(body: &[u8]) -> Option<PeerRelay> {
    let mut body = Reader(body);
    let generation = u32::from_be_bytes(body.take()?);
    Some(PeerRelay::Allocated { generation, offer: Offer::decode(body.0)? })
}

/// What is left to read of a body.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }
}
