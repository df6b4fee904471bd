//! What a link does to packets: delay, jitter, loss in bursts, reordering, duplication.

use std::time::{Duration, Instant};

use rand::RngExt as _;
use rand::rngs::StdRng;

use crate::world::MILLISECOND;

const MILLION: u32 = 1_000_000;

/// What a link is like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Link {
    pub(crate) delay: Duration,
    /// Each packet takes up to this much longer. Small values keep the order of packets that are farther apart.
    pub(crate) jitter: Duration,
    /// Of a million packets, so many are lost, or begin a burst of loss.
    pub(crate) lost_ppm: u32,
    /// How long the link is dead at most after a lost packet.
    pub(crate) burst: Duration,
    /// Of a million packets, so many come some milliseconds late: others overtake them.
    pub(crate) late_ppm: u32,
    /// Of a million packets, so many come twice.
    pub(crate) twice_ppm: u32,
    /// Until when it is dead.
    pub(crate) dead_until: Option<Instant>,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            delay: MILLISECOND,
            jitter: Duration::ZERO,
            lost_ppm: 0,
            burst: Duration::ZERO,
            late_ppm: 0,
            twice_ppm: 0,
            dead_until: None,
        }
    }
}

impl Link {
    /// A link that does nothing at all.
    pub(crate) fn none() -> Self {
        Self { delay: Duration::ZERO, ..Self::default() }
    }

    /// Whether each packet arrives, once.
    pub(crate) fn is_reliable(&self) -> bool {
        self.lost_ppm == 0
    }

    /// Lets copies of a packet pass, each with the time that it has taken so far.
    pub(crate) fn carry(&mut self, now: Instant, rng: &mut StdRng, copies: &mut Vec<Duration>) {
        for at in 0..copies.len() {
            copies[at] += self.delay;
            if !self.jitter.is_zero() {
                copies[at] += self.jitter.mul_f64(rng.random_range(0.0..1.0));
            }
            if happens(rng, self.late_ppm) {
                copies[at] += Duration::from_micros(rng.random_range(500..5000));
            }
            if happens(rng, self.twice_ppm) {
                copies.push(copies[at] + Duration::from_micros(rng.random_range(0..20_000)));
            }
        }
        if self.dead_until.is_some_and(|until| now < until) {
            copies.clear();
        } else if happens(rng, self.lost_ppm) {
            self.dead_until = Some(now + self.burst.mul_f64(rng.random_range(0.0..1.0)));
            copies.clear();
        }
    }
}

fn happens(rng: &mut StdRng, ppm: u32) -> bool {
    ppm > 0 && rng.random_range(0..MILLION) < ppm
}
