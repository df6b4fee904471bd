//! Writes IP headers and Internet checksums (RFC 791, RFC 8200, RFC 1071).

use std::net::IpAddr;

use super::parse::{IPV4_HEADER, IPV6_HEADER};
use super::protocol;

/// Hop limit of the packets that we write ourselves (the IANA default).
const HOP_LIMIT: u8 = 64;

/// An IP packet without options around `payload`. `None` if the addresses are of two families or the payload is too long.
pub fn ip(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Option<Vec<u8>> {
    let mut packet = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let total = u16::try_from(payload.len().checked_add(IPV4_HEADER)?).ok()?;
            let mut header = Vec::with_capacity(usize::from(total));
            header.extend_from_slice(&[0x45, 0]);
            header.extend_from_slice(&total.to_be_bytes());
            // No identification is needed: don't-fragment is set (RFC 6864).
            header.extend_from_slice(&[0, 0, 0x40, 0, HOP_LIMIT, protocol, 0, 0]);
            header.extend_from_slice(&source.octets());
            header.extend_from_slice(&destination.octets());
            let check = fold(sum(0, &header)).to_be_bytes();
            if let Some(field) = header.get_mut(10..12) {
                field.copy_from_slice(&check);
            }
            header
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let length = u16::try_from(payload.len()).ok()?;
            let mut header = Vec::with_capacity(IPV6_HEADER + payload.len());
            header.extend_from_slice(&[0x60, 0, 0, 0]);
            header.extend_from_slice(&length.to_be_bytes());
            header.extend_from_slice(&[protocol, HOP_LIMIT]);
            header.extend_from_slice(&source.octets());
            header.extend_from_slice(&destination.octets());
            header
        }
        _ => return None,
    };
    packet.extend_from_slice(payload);
    Some(packet)
}

/// The Internet checksum of `payload`, whose checksum field must be zero.
pub fn checksum(payload: &[u8]) -> u16 {
    fold(sum(0, payload))
}

/// The Internet checksum of `payload` with the pseudo header of TCP, UDP and ICMPv6.
pub fn pseudo_checksum(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> u16 {
    let mut total = 0;
    for address in [source, destination] {
        total = match address {
            IpAddr::V4(address) => sum(total, &address.octets()),
            IpAddr::V6(address) => sum(total, &address.octets()),
        };
    }
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    total = sum(total, &length.to_be_bytes());
    total = sum(total, &[0, protocol]);
    fold(sum(total, payload))
}

/// The checksum of something in which `old`, at an even offset, becomes `new` (RFC 1624).
pub fn amended_checksum(check: u16, old: [u8; 4], new: [u8; 4]) -> u16 {
    let total = sum(u64::from(!check), &old.map(|byte| !byte));
    fold(sum(total, &new))
}

/// Writes the length of an IP packet without extensions into its header.
pub(super) fn set_length(packet: &mut [u8]) {
    let (field, length) = match packet.first().map(|first| first >> 4) {
        Some(4) => (2..4, packet.len()),
        _ => (4..6, packet.len().saturating_sub(IPV6_HEADER)),
    };
    let length = u16::try_from(length).unwrap_or(u16::MAX);
    if let Some(field) = packet.get_mut(field) {
        field.copy_from_slice(&length.to_be_bytes());
    }
}

/// Writes length and checksums of a whole TCP packet, whose IP header is `ip_header` bytes long and has no extensions.
pub(super) fn seal_headers(packet: &mut [u8], ip_header: usize) {
    set_length(packet);
    if ip_header == IPV4_HEADER
        && let Some(header) = packet.first_chunk_mut::<IPV4_HEADER>()
    {
        header[10..12].fill(0);
        let check = checksum(header).to_be_bytes();
        header[10..12].copy_from_slice(&check);
    }
    set_tcp_checksum(packet, ip_header);
}

/// Writes the checksum of a whole TCP packet, whose IP header is `ip_header` bytes long and has no extensions.
pub(super) fn set_tcp_checksum(packet: &mut [u8], ip_header: usize) {
    let addresses = if ip_header == IPV4_HEADER { 12..IPV4_HEADER } else { 8..IPV6_HEADER };
    let pseudo = sum(0, packet.get(addresses).unwrap_or_default());
    let Some(segment) = packet.get_mut(ip_header..).filter(|segment| segment.len() >= 20) else { return };
    segment[16..18].fill(0);
    let length = u32::try_from(segment.len()).unwrap_or(u32::MAX);
    let total = sum(sum(pseudo, &length.to_be_bytes()), &[0, protocol::TCP]);
    let check = fold(sum(total, segment)).to_be_bytes();
    segment[16..18].copy_from_slice(&check);
}

/// Adds the 16-bit words of `bytes`. It takes eight bytes at a time, in this machine's order, which makes no difference to
/// such a sum but for the order of its own two bytes (RFC 1071 §2).
fn sum(start: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let halves = |word: u64| (word & 0xffff_ffff) + (word >> 32);
    let mut total: u64 = words.iter().map(|word| halves(u64::from_ne_bytes(*word))).sum();
    let mut last = [0; 8];
    if let Some(last) = last.get_mut(..rest.len()) {
        last.copy_from_slice(rest);
    }
    total += halves(u64::from_ne_bytes(last));
    start + u64::from(u16::from_be_bytes(shorten(total).to_ne_bytes()))
}

fn fold(total: u64) -> u16 {
    !shorten(total)
}

/// Adds what doesn't fit into 16 bits to what does.
fn shorten(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    // `total` is at most 0xffff here.
    u16::try_from(total).unwrap_or(u16::MAX)
}
