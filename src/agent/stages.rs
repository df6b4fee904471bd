//! When each stage of a start was reached: what a slow start was slow in.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// What a node goes through until it is ready, in the usual order. Some overlap: relays are looked for while control is
/// told where we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// There is an auth key: it was given, or the credential was exchanged for one.
    AuthKey,
    /// Control has told its key.
    ServerKey,
    /// The connection to control stands, its handshake done.
    Connected,
    /// Control has let the node in.
    Registered,
    /// The first netmap is here: peers may be talked to.
    FirstMap,
    /// A home relay was chosen.
    HomeRegion,
    /// The home relay is connected: peers may talk to us.
    HomeRelay,
    /// Control has acknowledged where we are.
    Told,
    /// All of it: the join is over.
    Ready,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AuthKey => "auth key",
            Self::ServerKey => "control's key",
            Self::Connected => "connected",
            Self::Registered => "registered",
            Self::FirstMap => "first netmap",
            Self::HomeRegion => "home chosen",
            Self::HomeRelay => "home relay",
            Self::Told => "control told",
            Self::Ready => "ready",
        })
    }
}

/// A stage and when it was reached.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageTime {
    /// Which.
    pub stage: Stage,
    /// Milliseconds from the beginning of the join.
    pub ms: f64,
}

/// The times of one start. Clones write to the same.
#[derive(Clone, Debug)]
pub struct Stages {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    begun: Instant,
    reached: Mutex<BTreeMap<Stage, Duration>>,
}

impl Default for Stages {
    /// A start that begins now.
    fn default() -> Self {
        Self { inner: Arc::new(Inner { begun: Instant::now(), reached: Mutex::default() }) }
    }
}

impl Stages {
    /// The stage is reached. Only the first time counts: what comes again belongs to no start any more.
    pub fn mark(&self, stage: Stage) {
        let after = self.inner.begun.elapsed();
        let mut reached = self.inner.reached.lock().unwrap_or_else(PoisonError::into_inner);
        if let std::collections::btree_map::Entry::Vacant(entry) = reached.entry(stage) {
            entry.insert(after);
            tracing::info!(%stage, ms = milliseconds(after), "start");
        }
    }

    /// What was reached so far, in the order of time.
    #[must_use]
    pub fn reached(&self) -> Vec<StageTime> {
        let reached = self.inner.reached.lock().unwrap_or_else(PoisonError::into_inner);
        let mut times: Vec<_> =
            reached.iter().map(|(stage, after)| StageTime { stage: *stage, ms: milliseconds(*after) }).collect();
        times.sort_by(|one, other| one.ms.total_cmp(&other.ms));
        times
    }
}

/// With microseconds, and no more digits than that.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_time_counts_and_times_are_in_order() {
        let stages = Stages::default();
        stages.mark(Stage::Connected);
        std::thread::sleep(Duration::from_millis(2));
        stages.mark(Stage::ServerKey);
        let first = stages.reached();
        stages.mark(Stage::Connected);
        assert_eq!(stages.reached(), first);
        assert_eq!(first.iter().map(|time| time.stage).collect::<Vec<_>>(), [Stage::Connected, Stage::ServerKey]);
        assert_eq!(serde_json::to_value(Stage::HomeRelay).unwrap(), "home-relay");
    }
}
