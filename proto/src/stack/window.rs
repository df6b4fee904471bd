//! How much of a connection may be under way: a model of the path, as BBR has one, rather than a count of what was lost.
//!
//! A path that loses one packet in a thousand by itself is no reason to send less. What the path delivered lately, times the
//! shortest round trip, is what fits into it; a quarter more keeps it busy. Only losses beyond what paths have by themselves lower that,
//! or a queue that grows as the window opens. (Cardwell et al., "BBR: Congestion-Based Congestion Control"; the 2 % of
//! draft-ietf-ccwg-bbr; RFC 9406 for the end of the slow start.) Acknowledgements are the clock; where a round trip is long, what may go
//! out at once is bounded, too, because a window that opens all at once overflows the queue behind it.

use std::collections::VecDeque;
use std::time::Duration;

/// Segments that a new connection may send at once (RFC 6928).
const INITIAL_SEGMENTS: usize = 10;
/// The window never gets smaller: what makes a peer that lost something say so thrice, and one more.
const LEAST_SEGMENTS: usize = 4;
/// Rounds in which the path may have delivered the most that it can.
const RATE_ROUNDS: usize = 10;
/// For so long the shortest round trip counts; then it is measured again with a smaller window.
const ROUND_TRIP_FOR: Duration = Duration::from_secs(10);
/// Slow start ends when so many rounds brought no quarter more.
const FLAT_ROUNDS: u8 = 3;
/// How much longer than the shortest a round trip must be for a queue to be growing: an eighth, within these (RFC 9406 §4.3).
const QUEUE_TIME: (Duration, Duration) = (Duration::from_millis(4), Duration::from_millis(16));
/// Acknowledgements come in trains, and whoever sends them has to be woken: so much more may be under way.
const TRAIN_TIME: Duration = Duration::from_millis(2);
const TRAIN_BYTES: usize = 64 << 10;
/// A path that is busy is rarely quicker than this, however short: four threads take turns, and a relay's two more.
const BUSY_PATH: Duration = Duration::from_millis(6);
/// One in so many lost is the path's own doing; more is too much sent.
const BEARABLE: usize = 50;

/// Over a path that is shorter, nothing is paced: what a whole window is goes out in the time that a timer takes.
const PACED_FROM: Duration = Duration::from_millis(3);
/// What goes out at once when it is paced: what the path delivers in this time. Timers are no finer than a millisecond.
const BURST_TIME: Duration = Duration::from_millis(1);

/// The model of one connection's path.
#[derive(Debug, Clone)]
pub(super) struct Window {
    segment: usize,
    /// Bytes that may be under way.
    size: usize,
    /// It doubles with each round trip still.
    is_starting: bool,
    /// What losses have taught: no more than this.
    ceiling: usize,
    /// Bytes per second that arrived in each of the latest rounds.
    rates: VecDeque<u64>,
    flat_rounds: u8,
    shortest: Option<(Duration, Duration)>,
    /// The shortest round trip is being measured anew.
    is_measuring: bool,
}

impl Window {
    /// Nothing is known of the path. `segment` is the length of a full segment's data.
    pub(super) fn new(segment: usize) -> Self {
        Self {
            segment,
            size: INITIAL_SEGMENTS * segment,
            is_starting: true,
            ceiling: usize::MAX,
            rates: VecDeque::with_capacity(RATE_ROUNDS),
            flat_rounds: 0,
            shortest: None,
            is_measuring: false,
        }
    }

    /// Bytes that may be under way.
    pub(super) fn size(&self) -> usize {
        let size = if self.is_measuring { self.size / 2 } else { self.size };
        size.min(self.ceiling).max(LEAST_SEGMENTS * self.segment)
    }

    /// Bytes per second that may go out, and how many at once; `None` as long as nothing is known that is worth it.
    pub(super) fn pace(&self) -> Option<(u64, usize)> {
        let rate = self.rate();
        self.shortest.filter(|(shortest, _)| *shortest >= PACED_FROM && rate > 0)?;
        // What makes room for the window to double with each round trip, or else to find out that the path became faster.
        let rate = if self.is_starting { rate.saturating_mul(3) } else { rate.saturating_mul(5) / 4 };
        let burst = usize::try_from(u128::from(rate) * BURST_TIME.as_micros() / 1_000_000).unwrap_or(usize::MAX);
        Some((rate, burst.max(INITIAL_SEGMENTS * self.segment)))
    }

    /// The shortest round trip that was measured lately.
    pub(super) fn round_trip(&self) -> Option<Duration> {
        self.shortest.map(|(shortest, _)| shortest)
    }

    /// So many bytes arrived. `is_full`: more would have been sent if the window had let it.
    pub(super) fn handle_delivered(&mut self, bytes: usize, is_full: bool) {
        if self.is_starting && is_full {
            self.size = self.size.saturating_add(bytes);
        }
    }

    /// Something that was sent once took this long to be acknowledged.
    pub(super) fn handle_round_trip(&mut self, now: Duration, took: Duration) {
        match self.shortest {
            Some((shortest, _)) if took <= shortest => self.shortest = Some((took, now)),
            Some((_, at)) if now.saturating_sub(at) > ROUND_TRIP_FOR => {
                if self.is_measuring {
                    self.shortest = Some((took, now));
                }
                self.is_measuring = !self.is_measuring;
            }
            Some((shortest, _)) => {
                let queue = (shortest / 8).clamp(QUEUE_TIME.0, QUEUE_TIME.1);
                if self.is_starting && took > shortest + queue {
                    self.settle();
                }
            }
            None => self.shortest = Some((took, now)),
        }
    }

    /// All that was under way at a moment is acknowledged after `took`; in that time so many bytes arrived. `is_full`: as much was
    /// under way as the window let.
    pub(super) fn handle_round(&mut self, bytes: u64, took: Duration, is_full: bool) {
        let micros = took.as_micros().max(1);
        let rate = u64::try_from(u128::from(bytes) * 1_000_000 / micros).unwrap_or(u64::MAX);
        let most = self.rate();
        // What wasn't there to be sent says nothing of the path.
        if !is_full && rate <= most {
            return;
        }
        if self.rates.len() == RATE_ROUNDS {
            self.rates.pop_front();
        }
        self.rates.push_back(rate);
        if self.is_starting {
            self.flat_rounds = if rate > most + most / 4 { 0 } else { self.flat_rounds + 1 };
            if self.flat_rounds >= FLAT_ROUNDS {
                self.settle();
            }
            return;
        }
        self.size = self.fitting();
        if self.ceiling < self.size / 2 {
            // As after a timeout: far from what the path is known to take (RFC 5681 §3.1).
            self.ceiling *= 2;
        } else {
            let more = (self.ceiling / 16).max(LEAST_SEGMENTS * self.segment);
            self.ceiling = self.ceiling.saturating_add(more);
        }
    }

    /// Of `sent` bytes that were under way, `lost` didn't arrive. Answers whether too much was sent.
    pub(super) fn handle_loss(&mut self, sent: usize, lost: usize) -> bool {
        if lost < LEAST_SEGMENTS * self.segment || lost.saturating_mul(BEARABLE) < sent {
            return false;
        }
        // CUBIC's share (RFC 9438 §4.6).
        self.ceiling = (sent / 10 * 7).max(LEAST_SEGMENTS * self.segment);
        self.settle();
        true
    }

    /// The slow start is over.
    fn settle(&mut self) {
        if std::mem::take(&mut self.is_starting) && !self.rates.is_empty() {
            self.size = self.fitting();
        }
    }

    /// A quarter more than fits into the path, and what trains take.
    fn fitting(&self) -> usize {
        let Some((shortest, _)) = self.shortest else { return self.size };
        let within = |time: Duration| u128::from(self.rate()) * time.as_micros() / 1_000_000;
        let fits = within((shortest * 5 / 4 + TRAIN_TIME).max(BUSY_PATH));
        usize::try_from(fits).unwrap_or(usize::MAX).saturating_add(TRAIN_BYTES)
    }

    fn rate(&self) -> u64 {
        self.rates.iter().copied().max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
