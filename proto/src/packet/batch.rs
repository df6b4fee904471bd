//! A reusable flat buffer of IP packets, each with the peer it goes to or came from.

use std::ops::Range;

use super::cut::Cut;
use super::join::join;
use super::trim::trim;

/// IP packets, back to back in one buffer that is kept between uses, so that no packet costs an allocation.
///
/// `P` is an opaque tag: whom a packet goes to, or through whose WireGuard session it came.
/// The batch itself has no bound: who fills it stops at a budget (see [`PacketBatch::bytes`] and [`PacketBatch::len`]).
///
/// A packet may be a TCP super-segment, of up to 64 KiB: [`PacketBatch::first`] shows it cut into packets.
#[derive(Debug, Clone)]
pub struct PacketBatch<P> {
    /// As long as all that was ever in it at once: what is written anew need not be zeroed first.
    bytes: Vec<u8>,
    /// How many of them are in use.
    used: usize,
    packets: Vec<Entry<P>>,
    /// How many packets they are when all are cut.
    count: usize,
    /// How many of `packets` were taken from the front.
    taken: usize,
    first: First,
}

#[derive(Debug, Clone)]
struct Entry<P> {
    peer: P,
    place: Range<usize>,
    /// Bytes of data in each segment of a super-segment; 0 for what is one packet.
    segment: usize,
}

/// How far the first entry is taken apart.
#[derive(Debug, Clone, Default)]
enum First {
    /// Nobody looked at it yet.
    #[default]
    Whole,
    /// It can't, or need not be.
    Single,
    /// The segment whose turn it is stands at `place` of the entry.
    Segment { cut: Cut, place: Range<usize> },
}

impl<P> Default for PacketBatch<P> {
    fn default() -> Self {
        Self { bytes: Vec::new(), used: 0, packets: Vec::new(), count: 0, taken: 0, first: First::Whole }
    }
}

impl<P: Copy> PacketBatch<P> {
    /// An empty batch that has allocated nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a packet of exactly `length` bytes, which `fill` writes into a slice that may hold anything. Returns what `fill`
    /// returns.
    pub fn push<R>(&mut self, peer: P, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        self.push_super(peer, length, 0, fill)
    }

    /// As [`PacketBatch::push`], for a TCP super-segment that is to be cut into segments with this many bytes of data each.
    pub fn push_super<R>(&mut self, peer: P, length: usize, segment: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let result = fill(self.room(length));
        self.count += pieces(length, segment);
        self.add(peer, length, segment);
        result
    }

    /// Adds a packet of at most `capacity` bytes: `fill` gets a slice that may hold anything, and returns how many of its first
    /// bytes are the packet, or `None` to add nothing. Says whether a packet was added.
    ///
    /// This is what opening a sealed packet needs: its length is known only afterwards.
    pub fn push_up_to(&mut self, peer: P, capacity: usize, fill: impl FnOnce(&mut [u8]) -> Option<usize>) -> bool {
        let Some(length) = fill(self.room(capacity)) else { return false };
        self.count += 1;
        self.add(peer, length.min(capacity), 0);
        true
    }

    /// Adds a copy of `packet`.
    pub fn push_slice(&mut self, peer: P, packet: &[u8]) {
        self.push(peer, packet.len(), |room| room.copy_from_slice(packet));
    }

    /// Adds the last packet again, so many times.
    pub fn repeat_last(&mut self, times: usize) {
        let Some(Entry { peer, place, segment: 0 }) = self.packets.last().cloned() else { return };
        for _ in 0..times {
            let length = place.len();
            self.room(length);
            self.bytes.copy_within(place.clone(), self.used);
            self.count += 1;
            self.add(peer, length, 0);
        }
    }

    /// Keeps of the last packet, a TCP super-segment, only these parts of what it has of the sequence space, each as one of its own.
    pub fn keep_of_last(&mut self, parts: &[Range<usize>]) {
        let Some(entry) = self.packets.pop() else { return };
        // One that is to be cut gets its lengths and checksums then.
        let segment = if entry.segment > 0 { entry.segment } else { entry.place.len() };
        self.used = entry.place.start;
        self.count -= pieces(entry.place.len(), entry.segment);
        let packet = self.bytes.get_mut(entry.place).unwrap_or_default();
        for length in trim(packet, parts) {
            self.count += pieces(length, segment);
            self.add(entry.peer, length, segment);
        }
    }

    /// The packets in the order in which they were added, taken or not; super-segments whole.
    pub fn iter(&self) -> impl Iterator<Item = (P, &[u8])> + Clone {
        self.packets.iter().map(|entry| (entry.peer, self.bytes.get(entry.place.clone()).unwrap_or_default()))
    }

    /// The first packet that isn't taken yet; of a super-segment, the segment whose turn it is.
    pub fn first(&mut self) -> Option<(P, &mut [u8])> {
        let entry = self.packets.get(self.taken)?;
        let packet = self.bytes.get_mut(entry.place.clone()).unwrap_or_default();
        if let First::Whole = self.first {
            self.first = match Cut::begin(packet, entry.segment) {
                Some(cut) => First::Segment { place: cut.place(packet), cut },
                None => First::Single,
            };
        }
        let packet = match &self.first {
            First::Segment { place, .. } => packet.get_mut(place.clone()).unwrap_or_default(),
            First::Whole | First::Single => packet,
        };
        Some((entry.peer, packet))
    }

    /// Takes the packet that [`PacketBatch::first`] shows.
    pub fn take_first(&mut self) {
        let Some(entry) = self.packets.get(self.taken) else { return };
        if let First::Segment { cut, place } = &mut self.first
            && cut.advance()
        {
            *place = cut.place(self.bytes.get_mut(entry.place.clone()).unwrap_or_default());
        } else {
            self.first = First::Whole;
            self.taken += 1;
        }
    }

    /// Joins TCP segments that follow each other in the batch and in their connection. Their checksums are no longer right.
    pub fn join_segments(&mut self)
    where
        P: PartialEq,
    {
        let bytes = &mut self.bytes;
        self.packets.dedup_by(|next, kept| next.peer == kept.peer && join(bytes, &mut kept.place, &next.place));
    }

    /// How many packets there are, taken or not. Of a super-segment, about as many as it will be cut into.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is no packet, or all are taken.
    pub fn is_empty(&self) -> bool {
        self.taken >= self.packets.len()
    }

    /// How many bytes all packets have together.
    pub fn bytes(&self) -> usize {
        self.used
    }

    /// Forgets the packets and keeps the memory.
    pub fn clear(&mut self) {
        (self.used, self.count, self.taken, self.first) = (0, 0, 0, First::Whole);
        self.packets.clear();
    }

    fn room(&mut self, length: usize) -> &mut [u8] {
        let end = self.used.saturating_add(length);
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes.get_mut(self.used..end).unwrap_or_default()
    }

    fn add(&mut self, peer: P, length: usize, segment: usize) {
        let place = self.used..self.used + length;
        self.used = place.end;
        self.packets.push(Entry { peer, place, segment });
    }
}

/// About as many packets a super-segment of so many bytes will be cut into.
fn pieces(length: usize, segment: usize) -> usize {
    length.checked_div(segment).unwrap_or(0).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_back_in_order_with_their_peer() {
        let mut batch = PacketBatch::new();
        batch.push(1, 3, |buffer| buffer.copy_from_slice(b"abc"));
        assert!(batch.push_up_to(2, 10, |buffer| {
            buffer[..2].copy_from_slice(b"de");
            Some(2)
        }));
        assert!(!batch.push_up_to(2, 10, |_| None));
        batch.push_slice(1, b"");
        batch.push_slice(3, b"f");
        let all: Vec<(i32, &[u8])> = batch.iter().collect();
        assert_eq!(all, [(1, &b"abc"[..]), (2, b"de"), (1, b""), (3, b"f")]);
        assert_eq!((batch.len(), batch.bytes()), (4, 6));
    }

    #[test]
    fn a_cleared_batch_is_empty_and_shows_nothing_old() {
        let mut batch = PacketBatch::new();
        batch.push_slice(1, b"secret");
        batch.clear();
        assert!(batch.is_empty());
        batch.push_slice(2, b"public");
        assert!(batch.push_up_to(2, 4, |_| Some(400)), "a length beyond the buffer is cut");
        assert_eq!(batch.iter().map(|(_, packet)| packet.len()).collect::<Vec<_>>(), [6, 4]);
    }
}
