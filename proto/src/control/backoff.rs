//! How long to wait before the next try.

use std::time::Duration;

use rand_core::CryptoRng;

/// The first wait.
const FIRST: Duration = Duration::from_millis(250);
/// The longest: as in Go's auth and map loops.
const LONGEST: Duration = Duration::from_secs(30);

/// Waits that double from a quarter of a second to 30 s, each shortened at random by up to half, so that many nodes
/// that lost control together don't come back together.
#[derive(Debug, Clone, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// It worked: the next failure is the first again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// It failed: how long to wait now.
    pub fn next(&mut self, rng: &mut dyn CryptoRng) -> Duration {
        let wait = FIRST.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        between(wait / 2, wait, rng)
    }
}

/// A duration at random.
pub(super) fn between(least: Duration, most: Duration, rng: &mut dyn CryptoRng) -> Duration {
    least + most.saturating_sub(least).mul_f64(f64::from(rng.next_u32()) / f64::from(u32::MAX))
}
