//! Joins TCP segments of one train that follow each other into one, as Linux' GRO does: a connection then takes a burst in
//! one step instead of one for each packet.

use std::ops::Range;

use super::parse::{IPV4_HEADER, IPV6_HEADER};
use super::{build, protocol, tcp};

/// What the total length of an IPv4 packet can say.
const LONGEST: usize = 65_535;

/// Puts the data of the packet at `next` behind that of the packet at `kept`, and mends the headers but for their checksums,
/// which nobody reads any more: WireGuard has authenticated both. Answers whether they could be joined; if not, nothing changed.
///
/// They can when both are plain data of the same connection, the one right behind the other.
pub(super) fn join(bytes: &mut [u8], kept: &mut Range<usize>, next: &Range<usize>) -> bool {
    let (Some(first), Some(second)) = (bytes.get(kept.clone()), bytes.get(next.clone())) else { return false };
    let (Some(one), Some(two)) = (Headers::read(first), Headers::read(second)) else { return false };
    let data = second.len() - two.length;
    let follows = one.sequence.wrapping_add((first.len() - one.length) as u32) == two.sequence;
    if !follows || !one.is_of_the_connection(first, &two, second) || first.len() + data > LONGEST {
        return false;
    }
    // The later one tells what the peer has, and how much it takes; PSH stands where either had it.
    let newer = (two.acknowledgement, two.window, one.flags | two.flags);
    let from = next.start + two.length..next.end;
    bytes.copy_within(from, kept.end);
    kept.end += data;
    if let Some(joined) = bytes.get_mut(kept.clone()) {
        build::set_length(joined);
        if let Some(header) = joined.get_mut(one.ip..).and_then(<[u8]>::first_chunk_mut::<20>) {
            header[8..12].copy_from_slice(&newer.0);
            header[14..16].copy_from_slice(&newer.1);
            header[13] = newer.2;
        }
    }
    true
}

/// Headers of a packet that may be joined: TCP with data and no flag but ACK and PSH, without IP options or fragments.
struct Headers {
    ip: usize,
    /// IP and TCP.
    length: usize,
    sequence: u32,
    acknowledgement: [u8; 4],
    flags: u8,
    window: [u8; 2],
}

impl Headers {
    fn read(packet: &[u8]) -> Option<Self> {
        let (ip, length) = match packet.first()? {
            0x45 => {
                let header = packet.first_chunk::<IPV4_HEADER>()?;
                // Any fragment but "don't".
                let whole = header[6] & 0x3f == 0 && header[7] == 0 && header[9] == protocol::TCP;
                let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
                whole.then_some((IPV4_HEADER, length))?
            }
            first if first >> 4 == 6 => {
                let header = packet.first_chunk::<IPV6_HEADER>()?;
                let length = IPV6_HEADER + usize::from(u16::from_be_bytes([header[4], header[5]]));
                (header[6] == protocol::TCP).then_some((IPV6_HEADER, length))?
            }
            _ => return None,
        };
        let header = packet.get(ip..)?.first_chunk::<20>()?;
        let [_, _, _, _, a, b, c, d, e, f, g, h, offset, flags, i, j, ..] = *header;
        let both = ip + usize::from(offset >> 4) * 4;
        let plain = flags & !tcp::PSH == tcp::ACK && offset >> 4 >= 5;
        (plain && length == packet.len() && both < length).then_some(Self {
            ip,
            length: both,
            sequence: u32::from_be_bytes([a, b, c, d]),
            acknowledgement: [e, f, g, h],
            flags,
            window: [i, j],
        })
    }

    /// Whether both have the same addresses, ports and TCP options.
    fn is_of_the_connection(&self, packet: &[u8], other: &Self, others: &[u8]) -> bool {
        let addresses = if self.ip == IPV4_HEADER { 12..IPV4_HEADER + 4 } else { 8..IPV6_HEADER + 4 };
        let options = self.ip + 20..self.length;
        (self.ip, self.length) == (other.ip, other.length)
            && packet.get(addresses.clone()) == others.get(addresses)
            && packet.get(options.clone()) == others.get(options)
    }
}
