//! Connections that are over, remembered for a while to acknowledge the peer's last FIN again (RFC 9293 §3.6.1).
//!
//! A memory of a hundred bytes each: the connection with its rings is gone by then.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

use crate::packet::tcp::Segment;

/// How long a peer may go on repeating its FIN: a handful of retransmissions.
const TIME_WAIT: Duration = Duration::from_secs(10);
/// Beyond so many, the oldest are forgotten; a peer that repeats its FIN then gets a RST, which loses nothing.
const MAX_TIME_WAIT: usize = 4096;

/// All of them, oldest first.
#[derive(Debug)]
pub(super) struct TimeWaits<F> {
    last_segments: HashMap<F, (Segment, Instant)>,
    by_age: VecDeque<(Instant, F)>,
}

impl<F: Copy + Eq + Hash> TimeWaits<F> {
    pub(super) fn new() -> Self {
        Self { last_segments: HashMap::new(), by_age: VecDeque::new() }
    }

    /// Remembers `flow`, whose last acknowledgement was `segment`.
    pub(super) fn insert(&mut self, now: Instant, flow: F, segment: Segment) {
        if self.by_age.len() >= MAX_TIME_WAIT
            && let Some((end, oldest)) = self.by_age.pop_front()
        {
            self.forget(end, oldest);
        }
        let end = now + TIME_WAIT;
        self.by_age.push_back((end, flow));
        self.last_segments.insert(flow, (segment, end));
    }

    pub(super) fn get(&self, flow: &F) -> Option<Segment> {
        self.last_segments.get(flow).map(|(segment, _)| *segment)
    }

    pub(super) fn remove(&mut self, flow: &F) {
        self.last_segments.remove(flow);
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&F) -> bool) {
        self.last_segments.retain(|flow, _| keep(flow));
    }

    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((end, flow)) = self.by_age.pop_front_if(|(end, _)| *end <= now) {
            self.forget(end, flow);
        }
    }

    pub(super) fn next_end(&self) -> Option<Instant> {
        self.by_age.front().map(|(end, _)| *end)
    }

    /// The flow may have been removed and inserted anew since.
    fn forget(&mut self, end: Instant, flow: F) {
        if self.last_segments.get(&flow).is_some_and(|(_, at)| *at == end) {
            self.last_segments.remove(&flow);
        }
    }
}
