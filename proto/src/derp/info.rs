//! What node and relay tell each other of themselves: JSON in a NaCl box between their keys.

use rand_core::CryptoRng;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{DerpError, Frame, PROTOCOL_VERSION};
use crate::key::{NodePrivate, NodePublic};
use crate::nacl::{NaclBox, OVERHEAD};

/// The longest [`ClientInfo`] or [`ServerInfo`] that is read, in bytes (what Go's relay takes of a client).
const MAX_INFO_LEN: usize = 256 << 10;

/// What a node says of itself (`derp.ClientInfo`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientInfo {
    /// The version of the protocol.
    #[serde(rename = "version")]
    pub version: u32,
    /// It answers [`Frame::Ping`].
    #[serde(rename = "CanAckPings")]
    pub can_ack_pings: bool,
    /// It is a monitoring probe.
    #[serde(rename = "IsProber", skip_serializing_if = "std::ops::Not::not")]
    pub is_prober: bool,
}

impl Default for ClientInfo {
    fn default() -> Self {
        Self { version: PROTOCOL_VERSION, can_ack_pings: true, is_prober: false }
    }
}

impl ClientInfo {
    /// Appends the [`Frame::ClientInfo`] that a node with the key `own` sends to the relay with the key `server`.
    ///
    /// # Errors
    /// None in practice: what is written is of a fixed size.
    pub fn write(
        &self,
        own: &NodePrivate,
        server: &NodePublic,
        rng: &mut dyn CryptoRng,
        out: &mut Vec<u8>,
    ) -> Result<(), DerpError> {
        let sealed = seal(self, own, server, rng)?;
        Frame::ClientInfo { key: own.public(), sealed: &sealed }.write(out)
    }

    /// Opens what a node with the key `client` sent to the relay with the key `own`; it proves that the node has that
    /// key.
    ///
    /// # Errors
    /// When the box doesn't open, is too long, or holds something else.
    pub fn open(sealed: &[u8], own: &NodePrivate, client: &NodePublic) -> Result<Self, DerpError> {
        open(sealed, own, client)
    }
}

/// What a relay says of itself (`derp.ServerInfo`). The rates are informative: the relay enforces them by reading no
/// faster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerInfo {
    /// The version of the protocol.
    #[serde(rename = "version")]
    pub version: u32,
    /// Bytes a second that it takes; 0 isn't said.
    #[serde(rename = "TokenBucketBytesPerSecond", skip_serializing_if = "is_zero")]
    pub token_bucket_bytes_per_second: u64,
    /// How many bytes it takes at once; 0 isn't said.
    #[serde(rename = "TokenBucketBytesBurst", skip_serializing_if = "is_zero")]
    pub token_bucket_bytes_burst: u64,
}

impl Default for ServerInfo {
    fn default() -> Self {
        Self { version: PROTOCOL_VERSION, token_bucket_bytes_per_second: 0, token_bucket_bytes_burst: 0 }
    }
}

impl ServerInfo {
    /// Appends the [`Frame::ServerInfo`] that a relay with the key `own` sends to the node with the key `client`.
    ///
    /// # Errors
    /// None in practice: what is written is of a fixed size.
    pub fn write(
        &self,
        own: &NodePrivate,
        client: &NodePublic,
        rng: &mut dyn CryptoRng,
        out: &mut Vec<u8>,
    ) -> Result<(), DerpError> {
        let sealed = seal(self, own, client, rng)?;
        Frame::ServerInfo { sealed: &sealed }.write(out)
    }

    /// Opens what a relay with the key `server` sent to the node with the key `own`; it proves that the relay has that
    /// key.
    ///
    /// # Errors
    /// When the box doesn't open, is too long, or holds something else.
    pub fn open(sealed: &[u8], own: &NodePrivate, server: &NodePublic) -> Result<Self, DerpError> {
        open(sealed, own, server)
    }
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

fn seal<T: Serialize>(
    info: &T,
    own: &NodePrivate,
    other: &NodePublic,
    rng: &mut dyn CryptoRng,
) -> Result<Vec<u8>, DerpError> {
    let mut sealed = vec![0; OVERHEAD];
    serde_json::to_writer(&mut sealed, info).map_err(|_| DerpError::Information)?;
    NaclBox::new(own.expose_bytes(), other.as_bytes()).seal_in_place(rng, &mut sealed).ok_or(DerpError::Sealed)?;
    Ok(sealed)
}

fn open<T: DeserializeOwned>(sealed: &[u8], own: &NodePrivate, other: &NodePublic) -> Result<T, DerpError> {
    if sealed.len() > OVERHEAD + MAX_INFO_LEN {
        return Err(DerpError::Information);
    }
    let json = NaclBox::new(own.expose_bytes(), other.as_bytes()).open(sealed).ok_or(DerpError::Sealed)?;
    serde_json::from_slice(&json).map_err(|_| DerpError::Information)
}
