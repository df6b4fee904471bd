//! STUN binding requests and answers (RFC 5389), as Tailscale's servers want them (`tailscale/tailscale`
//! `net/stun/stun.go`).
//!
//! A request must carry SOFTWARE "tailnode" and end with a FINGERPRINT, else those servers are silent. Both directions
//! are here: a node asks, and the test network's server answers.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rand_core::CryptoRng;

#[cfg(test)]
mod tests;

/// Bytes of the header that every STUN message begins with.
const HEADER_LEN: usize = 20;
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const BINDING_REQUEST: [u8; 2] = [0x00, 0x01];
const BINDING_SUCCESS: [u8; 2] = [0x01, 0x01];
/// What Tailscale's servers want to read in SOFTWARE; eight bytes, so no padding follows it.
const SOFTWARE: &[u8; 8] = b"tailnode";

const MAPPED_ADDRESS: u16 = 0x0001;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
/// XOR-MAPPED-ADDRESS from before RFC 5389 had a number for it; some servers still send it.
const XOR_MAPPED_ADDRESS_DRAFT: u16 = 0x8020;
const SOFTWARE_ATTRIBUTE: u16 = 0x8022;
const FINGERPRINT: u16 = 0x8028;
/// A FINGERPRINT with its header.
const FINGERPRINT_LEN: usize = 8;
/// What the CRC is XORed with (RFC 5389 §15.5).
const FINGERPRINT_XOR: u32 = 0x5354_554e;

const FAMILY_IPV4: u8 = 1;
const FAMILY_IPV6: u8 = 2;

/// Bytes of a [`request`].
pub const REQUEST_LEN: usize = HEADER_LEN + 4 + SOFTWARE.len() + FINGERPRINT_LEN;

/// What pairs an answer with its request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransactionId(pub [u8; 12]);

impl TransactionId {
    /// A new one, which nobody off the path can guess.
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

/// Why a datagram isn't the STUN message that was looked for. All of it is the sender's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StunError {
    /// Not STUN at all.
    #[error("not a STUN message")]
    NotStun,
    /// Not a binding request.
    #[error("a STUN message that is no binding request")]
    NotBindingRequest,
    /// Not a binding's success: an error answer, or another method.
    #[error("a STUN message that is no successful binding response")]
    NotSuccess,
    /// An attribute is longer than the message or doesn't hold what its type says.
    #[error("a STUN message with malformed attributes")]
    Malformed,
    /// A success that names no address.
    #[error("a STUN response without a mapped address")]
    NoAddress,
    /// A request that isn't a Tailscale node's: other SOFTWARE.
    #[error("a STUN request of other software")]
    WrongSoftware,
    /// A request whose last attribute isn't the right FINGERPRINT.
    #[error("a STUN request without a right fingerprint at its end")]
    WrongFingerprint,
}

/// Whether `datagram` is a STUN message: at least a header, with two zero bits and the magic cookie.
#[must_use]
pub fn is_stun(datagram: &[u8]) -> bool {
    datagram.len() >= HEADER_LEN
        && datagram.first().is_some_and(|first| first & 0xc0 == 0)
        && datagram.get(4..8) == Some(&MAGIC_COOKIE)
}

/// A binding request.
#[must_use]
pub fn request(txid: TransactionId) -> Vec<u8> {
    let mut message = header(BINDING_REQUEST, txid, REQUEST_LEN - HEADER_LEN);
    put_attribute(&mut message, SOFTWARE_ATTRIBUTE, SOFTWARE);
    let fingerprint = fingerprint(&message);
    put_attribute(&mut message, FINGERPRINT, &fingerprint.to_be_bytes());
    message
}

/// Reads a binding's success: which request it answers, and where that request came from. XOR-MAPPED-ADDRESS counts
/// before MAPPED-ADDRESS.
///
/// # Errors
/// When it is something else, or names no address.
pub fn parse_response(datagram: &[u8]) -> Result<(TransactionId, SocketAddr), StunError> {
    let (kind, txid, attributes) = split(datagram)?;
    if kind != BINDING_SUCCESS {
        return Err(StunError::NotSuccess);
    }
    let (mut xored, mut plain) = (None, None);
    for attribute in Attributes(attributes) {
        let (kind, value) = attribute?;
        match kind {
            XOR_MAPPED_ADDRESS | XOR_MAPPED_ADDRESS_DRAFT => xored = Some(parse_address(value, &xor_key(txid))?),
            MAPPED_ADDRESS => plain = Some(parse_address(value, &[0; 16])?),
            _ => {}
        }
    }
    xored.or(plain).map(|address| (txid, address)).ok_or(StunError::NoAddress)
}

/// Reads a binding request of a Tailscale node, as a server does.
///
/// # Errors
/// When it is no binding request, or not a Tailscale node's.
pub fn parse_request(datagram: &[u8]) -> Result<TransactionId, StunError> {
    let (kind, txid, attributes) = split(datagram)?;
    if kind != BINDING_REQUEST {
        return Err(StunError::NotBindingRequest);
    }
    let (mut software, mut last) = (false, None);
    for attribute in Attributes(attributes) {
        let (kind, value) = attribute?;
        software |= kind == SOFTWARE_ATTRIBUTE && value == SOFTWARE;
        last = Some((kind, value));
    }
    if !software {
        return Err(StunError::WrongSoftware);
    }
    let end = (HEADER_LEN + attributes.len()).saturating_sub(FINGERPRINT_LEN);
    let wanted = fingerprint(datagram.get(..end).unwrap_or_default()).to_be_bytes();
    if last != Some((FINGERPRINT, wanted.as_slice())) {
        return Err(StunError::WrongFingerprint);
    }
    Ok(txid)
}

/// The answer to a request that came from `source`.
#[must_use]
pub fn response(txid: TransactionId, source: SocketAddr) -> Vec<u8> {
    let (family, mut address) = match source.ip().to_canonical() {
        IpAddr::V4(ip) => (FAMILY_IPV4, ip.octets().to_vec()),
        IpAddr::V6(ip) => (FAMILY_IPV6, ip.octets().to_vec()),
    };
    let key = xor_key(txid);
    address.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
    let [high, low] = source.port().to_be_bytes();
    let mut value = vec![0, family, high ^ key[0], low ^ key[1]];
    value.extend_from_slice(&address);
    let mut message = header(BINDING_SUCCESS, txid, 4 + value.len());
    put_attribute(&mut message, XOR_MAPPED_ADDRESS, &value);
    message
}

fn header(kind: [u8; 2], txid: TransactionId, attributes: usize) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER_LEN + attributes);
    message.extend_from_slice(&kind);
    // Lengths here are ours: some dozens of bytes.
    message.extend_from_slice(&u16::try_from(attributes).unwrap_or(u16::MAX).to_be_bytes());
    message.extend_from_slice(&MAGIC_COOKIE);
    message.extend_from_slice(&txid.0);
    message
}

/// Appends an attribute whose length needs no padding.
fn put_attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend_from_slice(&kind.to_be_bytes());
    message.extend_from_slice(&u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes());
    message.extend_from_slice(value);
}

/// Type, transaction and attributes. Bytes after the message's length are cut off.
fn split(datagram: &[u8]) -> Result<([u8; 2], TransactionId, &[u8]), StunError> {
    if !is_stun(datagram) {
        return Err(StunError::NotStun);
    }
    let (header, rest) = datagram.split_first_chunk::<HEADER_LEN>().ok_or(StunError::NotStun)?;
    let [a, b, high, low, _, _, _, _, txid @ ..] = *header;
    let length = usize::from(u16::from_be_bytes([high, low]));
    let attributes = rest.get(..length).ok_or(StunError::Malformed)?;
    Ok(([a, b], TransactionId(txid), attributes))
}

/// The attributes of a message, by type.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<(u16, &'a [u8]), StunError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let attribute = self.split();
        if attribute.is_none() {
            self.0 = &[];
        }
        Some(attribute.ok_or(StunError::Malformed))
    }
}

impl<'a> Attributes<'a> {
    fn split(&mut self) -> Option<(u16, &'a [u8])> {
        let (&[k0, k1, l0, l1], rest) = self.0.split_first_chunk()?;
        let length = usize::from(u16::from_be_bytes([l0, l1]));
        let (padded, rest) = rest.split_at_checked(length.next_multiple_of(4))?;
        self.0 = rest;
        Some((u16::from_be_bytes([k0, k1]), padded.get(..length)?))
    }
}

/// What XOR-MAPPED-ADDRESS is XORed with: the cookie, then the transaction (RFC 5389 §15.2).
fn xor_key(txid: TransactionId) -> [u8; 16] {
    let mut key = [0; 16];
    key[..4].copy_from_slice(&MAGIC_COOKIE);
    key[4..].copy_from_slice(&txid.0);
    key
}

fn parse_address(value: &[u8], key: &[u8; 16]) -> Result<SocketAddr, StunError> {
    let (&[_, family, high, low], address) = value.split_first_chunk().ok_or(StunError::Malformed)?;
    let ip = match family {
        FAMILY_IPV4 => unmask::<4>(address, key).map(|ip| IpAddr::V4(Ipv4Addr::from(ip))),
        FAMILY_IPV6 => unmask::<16>(address, key).map(|ip| Ipv6Addr::from(ip).to_canonical()),
        _ => None,
    };
    let port = u16::from_be_bytes([high ^ key[0], low ^ key[1]]);
    ip.map(|ip| SocketAddr::new(ip, port)).ok_or(StunError::Malformed)
}

fn unmask<const N: usize>(address: &[u8], key: &[u8; 16]) -> Option<[u8; N]> {
    let mut bytes: [u8; N] = *address.first_chunk()?;
    bytes.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
    Some(bytes)
}

/// The value of a FINGERPRINT over what stands before it: CRC-32 (the one of ITU V.42), XORed.
fn fingerprint(message: &[u8]) -> u32 {
    // Bit by bit: it is 32 bytes, every 20 seconds.
    let crc = message.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    });
    !crc ^ FINGERPRINT_XOR
}
