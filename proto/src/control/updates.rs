//! Telling control what changed of us: one request at a time, the newest state wins.

use std::time::{Duration, Instant};

use rand_core::CryptoRng;

use super::Backoff;

/// Brings the newest state to control. `T` is what control is to know.
#[derive(Debug)]
pub struct LiteUpdates<T> {
    wanted: Option<T>,
    in_flight: Option<T>,
    known: Option<T>,
    backoff: Backoff,
    not_before: Option<Instant>,
}

impl<T> Default for LiteUpdates<T> {
    fn default() -> Self {
        Self { wanted: None, in_flight: None, known: None, backoff: Backoff::default(), not_before: None }
    }
}

impl<T: Clone + PartialEq> LiteUpdates<T> {
    /// Control is to know this; what waited is replaced.
    pub fn handle_wanted(&mut self, state: T) {
        self.wanted = Some(state);
    }

    /// What to send now, if anything: to be followed by one of the calls below.
    pub fn poll_request(&mut self, now: Instant) -> Option<T> {
        if self.in_flight.is_some() || self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        let state = self.wanted.take()?;
        if self.known.as_ref() == Some(&state) {
            return None;
        }
        self.in_flight = Some(state.clone());
        Some(state)
    }

    /// Control has it.
    pub fn handle_done(&mut self) {
        self.known = self.in_flight.take();
        self.backoff.reset();
        self.not_before = None;
    }

    /// It failed: tried again after a while, `least` or longer, unless something newer waits then.
    pub fn handle_failed(&mut self, now: Instant, least: Duration, rng: &mut dyn CryptoRng) {
        let failed = self.in_flight.take();
        self.wanted = self.wanted.take().or(failed);
        self.known = None;
        self.not_before = Some(now + self.backoff.next(rng).max(least));
    }

    /// When to poll again.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.not_before.filter(|_| self.in_flight.is_none() && self.wanted.is_some())
    }
}
