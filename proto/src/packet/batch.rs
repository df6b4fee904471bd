//! A reusable flat buffer of IP packets, each with the peer it goes to or came from.

use std::ops::Range;

/// IP packets, back to back in one buffer that is kept between uses, so that no packet costs an allocation.
///
/// `P` is an opaque tag: whom a packet goes to, or through whose WireGuard session it came.
/// The batch itself has no bound: who fills it stops at a budget (see [`PacketBatch::bytes`] and [`PacketBatch::len`]).
#[derive(Debug, Clone)]
pub struct PacketBatch<P> {
    bytes: Vec<u8>,
    packets: Vec<(P, Range<usize>)>,
}

impl<P> Default for PacketBatch<P> {
    fn default() -> Self {
        Self { bytes: Vec::new(), packets: Vec::new() }
    }
}

impl<P: Copy> PacketBatch<P> {
    /// An empty batch that has allocated nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty batch with room for `packets` packets of `bytes` bytes together.
    pub fn with_capacity(packets: usize, bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), packets: Vec::with_capacity(packets) }
    }

    /// Adds a packet of exactly `length` bytes, which `fill` writes into a zeroed slice. Returns what `fill` returns.
    pub fn push<R>(&mut self, peer: P, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let start = self.bytes.len();
        let end = start.saturating_add(length);
        self.bytes.resize(end, 0);
        let result = fill(self.bytes.get_mut(start..end).unwrap_or_default());
        self.packets.push((peer, start..end));
        result
    }

    /// Adds a packet of at most `capacity` bytes: `fill` gets a zeroed slice and returns how many of its first bytes are
    /// the packet, or `None` to add nothing. Says whether a packet was added.
    ///
    /// This is what opening a sealed packet needs: its length is known only afterwards.
    pub fn push_up_to(&mut self, peer: P, capacity: usize, fill: impl FnOnce(&mut [u8]) -> Option<usize>) -> bool {
        let start = self.bytes.len();
        self.bytes.resize(start.saturating_add(capacity), 0);
        let written = fill(self.bytes.get_mut(start..).unwrap_or_default());
        let end = start.saturating_add(written.unwrap_or(0).min(capacity));
        self.bytes.truncate(end);
        if written.is_some() {
            self.packets.push((peer, start..end));
        }
        written.is_some()
    }

    /// Adds a copy of `packet`.
    pub fn push_slice(&mut self, peer: P, packet: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(packet);
        self.packets.push((peer, start..self.bytes.len()));
    }

    /// The packets in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = (P, &[u8])> + Clone {
        self.packets.iter().map(|(peer, range)| {
            let packet = self.bytes.get(range.clone()).unwrap_or_default();
            (*peer, packet)
        })
    }

    /// How many packets there are.
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// Whether there is no packet.
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// How many bytes all packets have together.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Shows each packet to `visit`, in order, to be opened where it lies.
    pub fn for_each_mut(&mut self, mut visit: impl FnMut(P, &mut [u8])) {
        for (peer, range) in &self.packets {
            visit(*peer, self.bytes.get_mut(range.clone()).unwrap_or_default());
        }
    }

    /// Forgets the packets and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.packets.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_can_be_changed_where_they_lie() {
        let mut batch = PacketBatch::new();
        batch.push_slice(1, b"one");
        batch.push_slice(2, b"three");
        batch.for_each_mut(|peer, packet| packet[0] = peer);
        assert_eq!(batch.iter().collect::<Vec<_>>(), [(1, &b"\x01ne"[..]), (2, &b"\x02hree"[..])]);
    }

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
        batch.push(2, 6, |buffer| assert_eq!(buffer, [0; 6]));
        assert!(batch.push_up_to(2, 4, |_| Some(400)), "a length beyond the buffer is cut");
        assert_eq!(batch.iter().map(|(_, packet)| packet.len()).collect::<Vec<_>>(), [6, 4]);
    }
}
