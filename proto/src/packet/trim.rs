//! Takes parts out of a TCP super-segment, where it lies: what of it has arrived already need not be sent again.

use std::ops::Range;

use super::parse::{IPV4_HEADER, IPV6_HEADER};
use super::tcp;

/// Makes of `packet` one super-segment for each part, back to back from its beginning, and answers how long they are. A part is a range of
/// what it has of the sequence space, of which a FIN is the last. Lengths and checksums are left to who cuts them.
pub(super) fn trim(packet: &mut [u8], parts: &[Range<usize>]) -> Vec<usize> {
    let ip_header = if packet.first().is_some_and(|first| first >> 4 == 4) { IPV4_HEADER } else { IPV6_HEADER };
    let Some(tcp_header) = packet.get(ip_header..).and_then(<[u8]>::first_chunk::<20>) else { return Vec::new() };
    let header = ip_header + usize::from(tcp_header[12] >> 4) * 4;
    let sequence = u32::from_be_bytes([tcp_header[4], tcp_header[5], tcp_header[6], tcp_header[7]]);
    let Some(headers) = packet.get(..header).map(<[u8]>::to_vec) else { return Vec::new() };
    let data = packet.len() - header;
    let (mut end, mut lengths) = (0, Vec::with_capacity(parts.len()));
    for part in apart(parts, header) {
        let (from, to) = (part.start.min(data), part.end.min(data));
        // The headers take the place of what nobody wants.
        packet.copy_within(header + from..header + to, end + header);
        let whole = end..end + header + to - from;
        end = whole.end;
        lengths.push(whole.len());
        let Some(first) = packet.get_mut(whole).and_then(|part| part.get_mut(..header)) else { continue };
        first.copy_from_slice(&headers);
        if let Some(tcp_header) = first.get_mut(ip_header..).and_then(<[u8]>::first_chunk_mut::<20>) {
            // Sequence numbers wrap by design.
            tcp_header[4..8].copy_from_slice(&sequence.wrapping_add(part.start as u32).to_be_bytes());
            tcp_header[13] &= if part.end > data {
                !0
            } else if part.end == data {
                !tcp::FIN
            } else {
                !(tcp::FIN | tcp::PSH)
            };
        }
    }
    lengths
}

/// The parts, those that have no room for a header between them as one.
fn apart(parts: &[Range<usize>], header: usize) -> Vec<Range<usize>> {
    let mut apart: Vec<Range<usize>> = Vec::with_capacity(parts.len());
    for part in parts {
        match apart.last_mut() {
            Some(last) if part.start < last.end + header => last.end = part.end,
            _ => apart.push(part.clone()),
        }
    }
    apart
}
