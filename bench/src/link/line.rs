//! One direction of a link: when does which packet arrive? No socket, no clock; seeded chance.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::Conditions;

/// How much sending time an idle line saves up: the emulator itself wakes up late, and a line that had packets to send
/// meanwhile must not lose that time. The depth of the token bucket, in time.
const CREDIT: Duration = Duration::from_millis(1);

/// Packets on their way; only a line without a rate comes near it (1.5 GB at 1,500 bytes would be ten times that).
const IN_FLIGHT: usize = 100_000;

/// One direction of a link.
///
/// After each [`Line::handle_packet`], poll until there is nothing more; then come back at [`Line::poll_timeout`].
#[derive(Debug)]
pub(crate) struct Line {
    conditions: Conditions,
    rng: StdRng,
    /// When the sender has sent all that it took; in the past when it idles.
    free_at: Option<Instant>,
    in_flight: BinaryHeap<Reverse<Flying>>,
    taken: u64,
    counts: Counts,
}

/// What became of packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// They arrived, or will.
    pub(crate) passed: u64,
    /// The queue was full.
    pub(crate) overflowed: u64,
    /// Chance took them.
    pub(crate) lost: u64,
    /// They come late by chance; among those that pass.
    pub(crate) late: u64,
}

/// Ordered by arrival, then by entry.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flying {
    arrives: Instant,
    number: u64,
    packet: Vec<u8>,
}

impl Line {
    /// A line with nothing on it. The same seed and the same packets have the same fate.
    pub(crate) fn new(conditions: Conditions, seed: u64) -> Self {
        Self {
            conditions,
            rng: StdRng::seed_from_u64(seed),
            free_at: None,
            in_flight: BinaryHeap::new(),
            taken: 0,
            counts: Counts::default(),
        }
    }

    /// A packet enters. Answers whether [`Line::poll_timeout`] is earlier than before.
    pub(crate) fn handle_packet(&mut self, now: Instant, packet: Vec<u8>) -> bool {
        let Some(sent) = self.send(now, packet.len()) else {
            self.counts.overflowed += 1;
            return false;
        };
        // Lost on the way: it took its time at the sender all the same.
        if self.happens(self.conditions.loss) {
            self.counts.lost += 1;
            return false;
        }
        let mut arrives = sent + self.conditions.delay;
        if self.happens(self.conditions.late) {
            self.counts.late += 1;
            arrives += self.conditions.late_by;
        }
        self.counts.passed += 1;
        self.taken += 1;
        let before = self.poll_timeout();
        self.in_flight.push(Reverse(Flying { arrives, number: self.taken, packet }));
        before.is_none_or(|before| arrives < before)
    }

    /// The next packet that has arrived.
    pub(crate) fn poll_packet(&mut self, now: Instant) -> Option<Vec<u8>> {
        let Reverse(first) = self.in_flight.peek()?;
        if first.arrives > now {
            return None;
        }
        self.in_flight.pop().map(|Reverse(flying)| flying.packet)
    }

    /// When the next one arrives.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.in_flight.peek().map(|Reverse(first)| first.arrives)
    }

    /// What became of packets so far.
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// When a packet of this length has left the sender; `None` when its queue has no room.
    fn send(&mut self, now: Instant, length: usize) -> Option<Instant> {
        let Some(rate) = self.conditions.rate else {
            return (self.in_flight.len() < IN_FLIGHT).then_some(now);
        };
        // The clock may be younger than the credit, in theory.
        let earliest = now.checked_sub(CREDIT).unwrap_or(now);
        let begins = self.free_at.map_or(earliest, |free_at| free_at.max(earliest));
        let waiting = bytes_in(begins.saturating_duration_since(now), rate);
        if waiting + length as u64 > self.conditions.queue as u64 {
            return None;
        }
        let free_at = begins + time_of(length, rate);
        self.free_at = Some(free_at);
        Some(free_at.max(now))
    }

    fn happens(&mut self, share: f64) -> bool {
        share > 0.0 && self.rng.random_bool(share.min(1.0))
    }
}

fn time_of(bytes: usize, rate: u64) -> Duration {
    Duration::from_nanos(u64::try_from(bytes as u128 * 8_000_000_000 / u128::from(rate.max(1))).unwrap_or(u64::MAX))
}

fn bytes_in(time: Duration, rate: u64) -> u64 {
    u64::try_from(time.as_nanos() * u128::from(rate) / 8_000_000_000).unwrap_or(u64::MAX)
}
