//! Cuts a TCP super-segment into the segments that go onto the wire, where it lies: what a network card does that offloads
//! segmentation.
//!
//! A segment's headers are written over the end of the data before it, which must have been sent by then. So the data is
//! never moved.

use std::ops::Range;

use super::parse::{IPV4_HEADER, IPV6_HEADER};
use super::{build, protocol, tcp};

/// An IPv6 header and the longest TCP header (RFC 9293 §3.1).
const LONGEST_HEADERS: usize = IPV6_HEADER + 60;

/// How far a super-segment is cut.
#[derive(Debug, Clone)]
pub(super) struct Cut {
    headers: [u8; LONGEST_HEADERS],
    ip_header: usize,
    /// Both headers.
    header: usize,
    /// Bytes of data in all.
    data: usize,
    /// Bytes of data in each segment but the last.
    segment: usize,
    /// Bytes of data before the segment whose turn it is.
    before: usize,
}

impl Cut {
    /// Begins with the first segment of `packet`, which has `segment` bytes of data as all others, but the last one. `None` if
    /// it isn't TCP without fragments or IP options: it can't be cut.
    pub(super) fn begin(packet: &[u8], segment: usize) -> Option<Self> {
        let ip_header = match packet.first()? {
            0x45 if packet.get(9) == Some(&protocol::TCP) => IPV4_HEADER,
            first if first >> 4 == 6 && packet.get(6) == Some(&protocol::TCP) => IPV6_HEADER,
            _ => return None,
        };
        let header = ip_header + usize::from(packet.get(ip_header + 12)? >> 4) * 4;
        let mut headers = [0; LONGEST_HEADERS];
        headers.get_mut(..header)?.copy_from_slice(packet.get(..header)?);
        let data = packet.len() - header;
        (header >= ip_header + 20 && segment > 0).then_some(Self {
            headers,
            ip_header,
            header,
            data,
            segment,
            before: 0,
        })
    }

    /// Writes the headers of the segment whose turn it is, and answers where in `packet` the whole segment is.
    pub(super) fn place(&self, packet: &mut [u8]) -> Range<usize> {
        let data = self.segment.min(self.data - self.before);
        let place = self.before..self.before + self.header + data;
        let Some(segment) = packet.get_mut(place.clone()) else { return 0..0 };
        if let Some(headers) = segment.get_mut(..self.header) {
            headers.copy_from_slice(self.headers.get(..self.header).unwrap_or_default());
        }
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
        if self.before + self.segment < self.data {
            header[13] &= !(tcp::FIN | tcp::PSH);
        }
    }
}
