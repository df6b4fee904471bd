//! The little TCP that needs no connection: a header's numbers, and segments without data (RFC 9293 §3.1, §3.10.7.1).

use std::net::SocketAddr;

use super::parse::{IPV4_HEADER, IPV6_HEADER};
use super::{Packet, Transport, build, protocol};

/// No more data from the sender.
pub const FIN: u8 = 0x01;
/// Opens a connection.
pub const SYN: u8 = 0x02;
/// Ends a connection at once.
pub const RST: u8 = 0x04;
/// What came so far should be read.
pub const PSH: u8 = 0x08;
/// The acknowledgement number counts.
pub const ACK: u8 = 0x10;

/// A TCP header without options, and how much data follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number of the first byte (or of the SYN).
    pub sequence: u32,
    /// Next byte that the sender expects; counts only with [`ACK`].
    pub acknowledgement: u32,
    /// [`FIN`], [`SYN`], [`RST`], [`ACK`] and others.
    pub flags: u8,
    /// The window field, unscaled.
    pub window: u16,
    /// Bytes of data.
    pub length: u32,
}

impl Segment {
    /// Reads the TCP header of `packet`; `None` if it isn't TCP or its data offset is wrong.
    pub fn parse(packet: &Packet<'_>) -> Option<Self> {
        let Transport::Tcp { flags, .. } = packet.transport else {
            return None;
        };
        let header = packet.payload.first_chunk::<20>()?;
        let [_, _, _, _, a, b, c, d, e, f, g, h, offset, _, i, j, ..] = *header;
        let offset = usize::from(offset >> 4) * 4;
        if offset < 20 {
            return None;
        }
        let length = packet.payload.len().checked_sub(offset)?;
        Some(Self {
            sequence: u32::from_be_bytes([a, b, c, d]),
            acknowledgement: u32::from_be_bytes([e, f, g, h]),
            flags,
            window: u16::from_be_bytes([i, j]),
            length: u32::try_from(length).ok()?,
        })
    }

    /// Whether it opens a connection from the other side (SYN without ACK; Go: `packet.IsTCPSyn`).
    pub fn is_first(&self) -> bool {
        self.flags & (SYN | ACK) == SYN
    }

    /// How much of the sequence space it takes: its data, and one each for SYN and FIN.
    pub fn sequence_length(&self) -> u32 {
        let syn = u32::from(self.flags & SYN != 0);
        let fin = u32::from(self.flags & FIN != 0);
        self.length.wrapping_add(syn).wrapping_add(fin)
    }

    /// The whole packet for this segment, without options or data. `None` if the addresses are of two families.
    pub fn build(&self, source: SocketAddr, destination: SocketAddr) -> Option<Vec<u8>> {
        let mut header = Vec::with_capacity(20);
        header.extend_from_slice(&source.port().to_be_bytes());
        header.extend_from_slice(&destination.port().to_be_bytes());
        header.extend_from_slice(&self.sequence.to_be_bytes());
        header.extend_from_slice(&self.acknowledgement.to_be_bytes());
        header.extend_from_slice(&[5 << 4, self.flags]);
        header.extend_from_slice(&self.window.to_be_bytes());
        header.extend_from_slice(&[0, 0, 0, 0]);
        let (from, to) = (source.ip(), destination.ip());
        let check = build::pseudo_checksum(from, to, protocol::TCP, &header);
        header.get_mut(16..18)?.copy_from_slice(&check.to_be_bytes());
        build::ip(from, to, protocol::TCP, &header)
    }
}

/// Whether one sequence number comes before another, around the corner, too (RFC 9293 §3.4).
pub fn is_before(one: u32, other: u32) -> bool {
    one.wrapping_sub(other) > u32::MAX / 2
}

/// Puts another sequence number into a packet that is TCP, and mends its checksum. Anything else stays as it is.
pub fn renumber(packet: &mut [u8], sequence: u32) {
    let header = Packet::parse(packet).ok().filter(|packet| matches!(packet.transport, Transport::Tcp { .. }));
    let begins = header.and_then(|header| packet.len().checked_sub(header.payload.len()));
    let Some(segment) = begins.and_then(|begins| packet.get_mut(begins..)?.first_chunk_mut::<20>()) else {
        return;
    };
    let (old, new) = ([segment[4], segment[5], segment[6], segment[7]], sequence.to_be_bytes());
    let check = build::amended_checksum(u16::from_be_bytes([segment[16], segment[17]]), old, new);
    segment[4..8].copy_from_slice(&new);
    segment[16..18].copy_from_slice(&check.to_be_bytes());
}

/// What options of a segment say, as far as a sender of data must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// The shift of the window field (RFC 7323 §2).
    pub window_scale: Option<u8>,
    /// The peer says what it has beyond what it acknowledges (RFC 2018 §2).
    pub sack_permitted: bool,
    /// From where to where the peer has data beyond what it acknowledges; no more fit (RFC 2018 §3).
    pub selected: [Option<(u32, u32)>; 4],
}

impl Options {
    /// Reads the options of `packet`; what makes no sense ends them.
    pub fn parse(packet: &Packet<'_>) -> Self {
        let header = packet.payload.get(12).map_or(0, |offset| usize::from(offset >> 4) * 4);
        let mut rest = packet.payload.get(20..header).unwrap_or_default();
        let mut options = Self::default();
        loop {
            rest = match *rest {
                [1, ref rest @ ..] => rest,
                [kind, length, ref more @ ..] if kind != 0 && length >= 2 => {
                    let Some((option, rest)) = more.split_at_checked(usize::from(length) - 2) else { return options };
                    options.read(kind, option);
                    rest
                }
                _ => return options,
            };
        }
    }

    fn read(&mut self, kind: u8, option: &[u8]) {
        match (kind, option) {
            (3, [shift]) => self.window_scale = Some(*shift),
            (4, []) => self.sack_permitted = true,
            (5, blocks) => {
                for (selected, block) in self.selected.iter_mut().zip(blocks.as_chunks::<8>().0) {
                    let [a, b, c, d, e, f, g, h] = *block;
                    *selected = Some((u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h])));
                }
            }
            _ => {}
        }
    }
}

/// The headers of a TCP packet without IP extensions, as if it had been sent without data and options: an acknowledgement behind
/// whatever it held. Its checksums aren't right.
pub fn bare(packet: &[u8], segment: &Segment) -> Bare {
    let ip_header = if packet.first().is_some_and(|first| first >> 4 == 4) { IPV4_HEADER } else { IPV6_HEADER };
    let mut bare = Bare { bytes: [0; IPV6_HEADER + 20], ip_header };
    let length = ip_header + 20;
    if let (Some(into), Some(from)) = (bare.bytes.get_mut(..length), packet.get(..length)) {
        into.copy_from_slice(from);
        build::set_length(into);
        if let Some(header) = into.get_mut(ip_header..).and_then(<[u8]>::first_chunk_mut::<20>) {
            let sequence = segment.sequence.wrapping_add(segment.sequence_length());
            header[4..8].copy_from_slice(&sequence.to_be_bytes());
            header[12] = 5 << 4;
            header[13] = ACK;
        }
    }
    bare
}

impl Bare {
    /// With this acknowledgement number and window field.
    pub fn with(&mut self, acknowledgement: u32, window: u16) -> &[u8] {
        if let Some(header) = self.bytes.get_mut(self.ip_header..).and_then(<[u8]>::first_chunk_mut::<20>) {
            header[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
            header[14..16].copy_from_slice(&window.to_be_bytes());
        }
        self.bytes.get(..self.ip_header + 20).unwrap_or_default()
    }
}

/// See [`bare`].
#[derive(Debug, Clone)]
pub struct Bare {
    bytes: [u8; IPV6_HEADER + 20],
    ip_header: usize,
}

/// Writes the checksum of a packet that is TCP without IP extensions. Anything else stays as it is.
pub fn fill_checksum(packet: &mut [u8]) {
    match packet.first() {
        Some(0x45) => build::set_tcp_checksum(packet, IPV4_HEADER),
        Some(first) if first >> 4 == 6 => build::set_tcp_checksum(packet, IPV6_HEADER),
        _ => {}
    }
}

/// The answer to a segment for which there is no connection: a RST, or `None` if it is a RST itself, isn't whole TCP,
/// or must not be answered.
pub fn reset_for(packet: &Packet<'_>) -> Option<Vec<u8>> {
    let Transport::Tcp { source, destination, .. } = packet.transport else {
        return None;
    };
    let segment = Segment::parse(packet)?;
    if packet.fragment || segment.flags & RST != 0 {
        return None;
    }
    let reset = if segment.flags & ACK != 0 {
        Segment { sequence: segment.acknowledgement, acknowledgement: 0, flags: RST, window: 0, length: 0 }
    } else {
        Segment {
            sequence: 0,
            acknowledgement: segment.sequence.wrapping_add(segment.sequence_length()),
            flags: RST | ACK,
            window: 0,
            length: 0,
        }
    };
    reset.build((packet.destination, destination).into(), (packet.source, source).into())
}
