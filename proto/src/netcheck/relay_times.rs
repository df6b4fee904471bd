//! How far the regions are by TCP, which decides where UDP reaches none of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::FULL_INTERVAL;
use super::round::MIN_GRACE;
use crate::tailcfg::RegionId;

/// How long a node without a home waits for a first relay's answer. TCP, TLS and a question are four round trips, or more
/// through a proxy; then any relay is better than none.
pub(super) const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// For how long an answer shows that the network works: a relay that fails is dialled again every few seconds, and each time it is
/// looked whether others answer.
const ANSWER_FRESH: Duration = Duration::from_secs(60);

/// One measurement of all regions, and what came of it.
#[derive(Debug, Default)]
pub(super) struct RelayTimes {
    begun: Option<Instant>,
    /// Those that haven't answered or failed.
    open: BTreeSet<RegionId>,
    times: BTreeMap<RegionId, Duration>,
    /// When each region last answered.
    answered: BTreeMap<RegionId, Instant>,
    /// Until when a choice waits for (further) answers.
    wait: Option<Instant>,
}

impl RelayTimes {
    /// Whether the last measurement is too old.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.begun.is_none_or(|begun| now.saturating_duration_since(begun) >= FULL_INTERVAL)
    }

    /// Whether to measure out of turn, because the home region's relays hold no connection.
    pub(super) fn is_worth_repeating(&self, now: Instant) -> bool {
        self.begun.is_none_or(|begun| now.saturating_duration_since(begun) >= ANSWER_FRESH / 2)
    }

    /// These regions are being measured. Until one has answered or failed, what it was before stands: else home would go to
    /// whoever answers first, and back again.
    pub(super) fn begin(&mut self, now: Instant, regions: impl Iterator<Item = RegionId>) {
        (self.begun, self.open, self.wait) = (Some(now), regions.collect(), Some(now + FIRST_ANSWER_TIMEOUT));
    }

    /// Takes a region's round trip, or that it can't be reached. Says whether that was the last one.
    pub(super) fn handle(&mut self, now: Instant, region: RegionId, time: Option<Duration>) -> bool {
        if !self.open.remove(&region) {
            return false;
        }
        if let Some(time) = time {
            self.times.insert(region, time);
            self.answered.insert(region, now);
            self.wait = self.wait.map(|until| until.min(now + time.max(MIN_GRACE)));
        } else {
            self.times.remove(&region);
        }
        if self.open.is_empty() {
            self.wait = None;
        }
        self.open.is_empty()
    }

    /// Ends the wait for answers when its time has come. `true` once.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> bool {
        self.wait.take_if(|until| *until <= now).is_some()
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.wait
    }

    /// Whether a choice had better wait.
    pub(super) fn is_waiting(&self) -> bool {
        self.wait.is_some()
    }

    /// Whether this region's answer is still to come.
    pub(super) fn is_open(&self, region: RegionId) -> bool {
        self.open.contains(&region)
    }

    /// Whether another region than this one has just answered, so that it isn't the network that is gone.
    pub(super) fn another_answers(&self, now: Instant, region: RegionId) -> bool {
        let fresh =
            |(other, at): (&RegionId, &Instant)| *other != region && now.saturating_duration_since(*at) < ANSWER_FRESH;
        self.answered.iter().any(fresh)
    }

    /// The round trip to each region that answered.
    pub(super) fn known(&self) -> &BTreeMap<RegionId, Duration> {
        &self.times
    }
}
