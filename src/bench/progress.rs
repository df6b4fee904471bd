//! How a run goes: what its streams have moved so far, second by second.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::plan::Way;
use super::report::{Interval, PathChange};
use super::round_trips::Samples;
use super::wire::Arrived;
use crate::agent::Path;

/// What is left at the end and shorter than this isn't worth an interval of its own.
const SHORTEST_INTERVAL: f64 = 0.05;

/// How a run goes, as it does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Live {
    /// The streams begin to send.
    Begins {
        /// The path at this moment.
        path: Path,
    },
    /// About a second has passed.
    Interval(Interval),
    /// The path is another one.
    PathChange(PathChange),
}

/// What every stream has moved so far.
pub(super) struct Counters {
    pub(super) began: Instant,
    pub(super) streams: Vec<(Way, u16, Arc<AtomicU64>)>,
}

impl Counters {
    fn sum(&self, way: Way) -> u64 {
        let streams = self.streams.iter().filter(|(of, ..)| *of == way);
        streams.map(|(_, _, bytes)| bytes.load(Ordering::Relaxed)).sum()
    }

    /// What is known here alone: bytes that the tunnel has taken, or that have come, from the begin until now.
    pub(super) fn so_far(&self, way: Way) -> Vec<Arrived> {
        let to_s = self.began.elapsed().as_secs_f64();
        let streams = self.streams.iter().filter(|(of, ..)| *of == way);
        streams
            .map(|(_, number, bytes)| Arrived {
                number: *number,
                bytes: bytes.load(Ordering::Relaxed),
                from_s: 0.0,
                to_s,
            })
            .collect()
    }
}

/// The seconds of a run, as they pass.
pub(super) struct Seconds {
    began: Instant,
    pub(super) all: Vec<Interval>,
    moved: [u64; 2],
    round_trips: usize,
}

impl Seconds {
    pub(super) fn new(began: Instant) -> Self {
        Self { began, all: Vec::new(), moved: [0; 2], round_trips: 0 }
    }

    /// One more has passed.
    pub(super) fn next(
        &mut self,
        counters: &Counters,
        samples: Option<&Samples>,
        tell: &mut (impl FnMut(Live) + Send),
    ) {
        let moved = [Way::Upload, Way::Download].map(|way| counters.sum(way));
        let [upload_bytes, download_bytes] = [0, 1].map(|way: usize| moved[way] - self.moved[way]);
        let (p50_ms, round_trips) = samples.map_or((None, 0), |samples| samples.recent(self.round_trips));
        let from_s = self.all.last().map_or(0.0, |last| last.to_s);
        let to_s = self.began.elapsed().as_secs_f64();
        (self.moved, self.round_trips) = (moved, round_trips);
        let interval = Interval { from_s, to_s, upload_bytes, download_bytes, p50_ms };
        self.all.push(interval);
        tell(Live::Interval(interval));
    }

    /// The rest, where there is one.
    pub(super) fn last(
        &mut self,
        counters: &Counters,
        samples: Option<&Samples>,
        tell: &mut (impl FnMut(Live) + Send),
    ) {
        let since = self.began.elapsed().as_secs_f64() - self.all.last().map_or(0.0, |last| last.to_s);
        if since >= SHORTEST_INTERVAL || self.all.is_empty() {
            self.next(counters, samples, tell);
        }
    }
}
