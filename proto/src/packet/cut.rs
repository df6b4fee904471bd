//! Cuts a TCP super-segment into the segments that go onto the wire, where it lies: what a network card does that offloads
//! segmentation.
//!
//! A segment's headers are written over the end of the data before it, which must have been sent by then. So the data is
//! never moved.

use std::ops::Range;

use super::parse::{IPV4_HEADER, IPV6_HEADER};
use super::{build, protocol, tcp};

/// How far a super-segment is cut.
#[derive(Debug, Clone)]
pub(super) struct Cut {
    ip_header: usize,
    /// Both headers.
    header: usize,
    /// Flags that only the last segment has.
    last_flags: u8,
    /// Bytes of data in all.
    data: usize,
    /// Bytes of data in each segment but the last.
    segment: usize,
    /// Bytes of data before the segment whose turn it is.
    before: usize,
}

impl Cut {
    /// Begins with the first segment of `packet`, which has `segment` bytes of data as all others, but the last one. `None` if it
    /// can't be cut: it isn't TCP without IP options, or segments would be shorter than their headers.
    pub(super) fn begin(packet: &[u8], segment: usize) -> Option<Self> {
        let ip_header = match packet.first()? {
            0x45 if packet.get(9) == Some(&protocol::TCP) => IPV4_HEADER,
            first if first >> 4 == 6 && packet.get(6) == Some(&protocol::TCP) => IPV6_HEADER,
            _ => return None,
        };
        let tcp_header = packet.get(ip_header..)?.first_chunk::<20>()?;
        let header = ip_header + usize::from(tcp_header[12] >> 4) * 4;
        let data = packet.len().checked_sub(header)?;
        let last_flags = tcp_header[13] & (tcp::FIN | tcp::PSH);
        let fits = header >= ip_header + 20 && segment >= header;
        fits.then_some(Self { ip_header, header, last_flags, data, segment, before: 0 })
    }

    /// Writes the headers of the segment whose turn it is, and answers where in `packet` the whole segment is. Those of the first
    /// one stay where they are, and are what all others are made from.
    pub(super) fn place(&self, packet: &mut [u8]) -> Range<usize> {
        let data = self.segment.min(self.data - self.before);
        let place = self.before..self.before + self.header + data;
        if self.before > 0 && place.end <= packet.len() {
            packet.copy_within(..self.header, self.before);
        }
        let Some(segment) = packet.get_mut(place.clone()) else { return 0..0 };
        self.number(segment);
        build::seal_headers(segment, self.ip_header);
        place
    }

    /// Goes on to the next segment. Answers whether there is one.
    pub(super) fn advance(&mut self) -> bool {
        self.before += self.segment.min(self.data - self.before);
        self.before < self.data
    }

    /// What differs from segment to segment, other than lengths and checksums.
    fn number(&self, segment: &mut [u8]) {
        let Some(header) = segment.get_mut(self.ip_header..).and_then(<[u8]>::first_chunk_mut::<20>) else { return };
        let first = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        // Sequence numbers wrap by design.
        let sequence = first.wrapping_add(self.before as u32);
        header[4..8].copy_from_slice(&sequence.to_be_bytes());
        header[13] &= !self.last_flags;
        if self.before + self.segment >= self.data {
            header[13] |= self.last_flags;
        }
    }
}
