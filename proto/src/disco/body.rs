//! The plain text of disco messages, byte by byte.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::{DiscoError, MAX_ENDPOINTS, Message, PeerRelay, TransactionId};
use crate::key::{KEY_LEN, NodePublic};

const PING: u8 = 1;
const PONG: u8 = 2;
const CALL_ME_MAYBE: u8 = 3;

const VERSION: u8 = 0;
/// Type and version.
const HEADER_LEN: usize = 2;
const TXID_LEN: usize = 12;
/// An address: 16 bytes (IPv4 mapped into IPv6) and a port.
pub(super) const ENDPOINT_LEN: usize = 18;

impl Message {
    /// Bytes that [`Self::encode`] writes.
    pub(super) fn encoded_len(&self) -> usize {
        HEADER_LEN
            + match self {
                Self::Ping { node_key, padding, .. } => TXID_LEN + sent_key(node_key).map_or(0, |_| KEY_LEN) + padding,
                Self::Pong { .. } => TXID_LEN + ENDPOINT_LEN,
                Self::CallMeMaybe { endpoints } => ENDPOINT_LEN * endpoints.len().min(MAX_ENDPOINTS),
                Self::PeerRelay(message) => message.encoded_len(),
            }
    }

    /// Writes the message over `out`, which is [`Self::encoded_len`] long.
    pub(super) fn encode(&self, out: &mut [u8]) {
        let mut writer = Writer(out);
        match self {
            Self::Ping { txid, node_key, .. } => {
                writer.put(&[PING, VERSION]);
                writer.put(&txid.0);
                if let Some(key) = sent_key(node_key) {
                    writer.put(key.as_bytes());
                }
                writer.0.fill(0);
            }
            Self::Pong { txid, observed } => {
                writer.put(&[PONG, VERSION]);
                writer.put(&txid.0);
                writer.put(&encode_endpoint(*observed));
            }
            Self::CallMeMaybe { endpoints } => {
                writer.put(&[CALL_ME_MAYBE, VERSION]);
                for endpoint in endpoints.iter().take(MAX_ENDPOINTS) {
                    writer.put(&encode_endpoint(*endpoint));
                }
            }
            Self::PeerRelay(message) => message.encode(&mut writer),
        }
    }

    /// Reads what was in the box. Longer bodies than expected are fine, as Go has it, for the sake of later versions.
    pub(super) fn decode(text: &[u8]) -> Result<Self, DiscoError> {
        let Some((&[kind, version], body)) = text.split_first_chunk() else {
            return Err(DiscoError::Short { kind: text.first().copied().unwrap_or(0) });
        };
        let short = DiscoError::Short { kind };
        match kind {
            PING => decode_ping(body).ok_or(short),
            PONG => decode_pong(body).ok_or(short),
            CALL_ME_MAYBE => Ok(Self::CallMeMaybe { endpoints: decode_endpoints(version, body) }),
            kind => match PeerRelay::decode(kind, version, body) {
                Some(decoded) => decoded.map(Self::PeerRelay),
                None => Err(DiscoError::UnknownType { kind }),
            },
        }
    }
}

/// The zero key is the mark of none: it isn't sent.
fn sent_key(key: &Option<NodePublic>) -> Option<&NodePublic> {
    key.as_ref().filter(|key| !key.is_zero())
}

fn decode_ping(body: &[u8]) -> Option<Message> {
    let (txid, rest) = body.split_first_chunk()?;
    let key = rest.split_first_chunk().map(|(key, rest)| (NodePublic::from_bytes(*key), rest));
    // A zero key is the beginning of the padding.
    let (node_key, padding) = match key {
        Some((key, padding)) if !key.is_zero() => (Some(key), padding.len()),
        _ => (None, rest.len()),
    };
    Some(Message::Ping { txid: TransactionId(*txid), node_key, padding })
}

fn decode_pong(body: &[u8]) -> Option<Message> {
    let (txid, rest) = body.split_first_chunk()?;
    let observed = decode_endpoint(rest.first_chunk()?);
    Some(Message::Pong { txid: TransactionId(*txid), observed })
}

/// As Go does it, a version or length that makes no sense is a message without endpoints.
fn decode_endpoints(version: u8, body: &[u8]) -> Vec<SocketAddr> {
    let (endpoints, rest) = body.as_chunks::<ENDPOINT_LEN>();
    if version != VERSION || !rest.is_empty() {
        return Vec::new();
    }
    endpoints.iter().take(MAX_ENDPOINTS).map(decode_endpoint).collect()
}

pub(super) fn encode_endpoint(endpoint: SocketAddr) -> [u8; ENDPOINT_LEN] {
    let ip = match endpoint.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut bytes = [0; ENDPOINT_LEN];
    bytes[..16].copy_from_slice(&ip.octets());
    bytes[16..].copy_from_slice(&endpoint.port().to_be_bytes());
    bytes
}

pub(super) fn decode_endpoint(bytes: &[u8; ENDPOINT_LEN]) -> SocketAddr {
    let [ip @ .., high, low] = *bytes;
    SocketAddr::new(Ipv6Addr::from(ip).to_canonical(), u16::from_be_bytes([high, low]))
}

/// What is left to write of a buffer.
pub(super) struct Writer<'a>(&'a mut [u8]);

impl Writer<'_> {
    pub(super) fn put(&mut self, bytes: &[u8]) {
        if let Some((here, rest)) = std::mem::take(&mut self.0).split_at_mut_checked(bytes.len()) {
            here.copy_from_slice(bytes);
            self.0 = rest;
        }
    }
}
