//! `nixtail bench`: what streams through the tunnel move, what they cost at both ends, and what packets beside them wait.
//!
//! A run has one connection for words, one for each stream and each way, and one for pings where latency is asked for
//! (`wire.rs`). The client ([`run()`]) opens all of them to a [`Server`]. The figures of a way are those of the side that receives.

mod bulk;
mod client;
mod error;
pub mod loopback;
mod plan;
mod progress;
mod report;
mod round_trips;
mod server;
mod target;
mod usage;
mod wire;
pub mod words;

use std::time::Duration;

pub use client::run;
pub use error::BenchError;
pub use plan::{Direction, MAX_DURATION, MAX_STREAMS, Plan, PlanError, Way};
pub use progress::Live;
pub use report::{Conditions, Flow, Interval, PathChange, Report, StreamRate, gbit_per_s, per_gb};
pub use round_trips::{Latency, RoundTrips};
pub use server::{MAX_RUNS, Served, Server, TOLD};
pub use target::{Target, Through};
pub use usage::{Cost, Usage};
#[cfg(feature = "cli")]
pub(crate) use wire::{Lines, write_line};

/// The port that `bench serve` listens on inside the tunnel, unless told otherwise: iperf3's, which people open for such
/// things.
pub const DEFAULT_PORT: u16 = 5201;
/// The version of what client and server say to each other, and of the report.
pub const SCHEMA: u32 = 2;

/// Bytes that are written or read at once: as much as the dataplane's own queues carry in one piece.
const CHUNK: usize = 64 * 1024;
/// How long the other side may be silent before the run is given up: longer than a freeze that a stream survives.
const SILENCE: Duration = Duration::from_secs(45);
/// How long a side waits for what may take some time.
#[derive(Debug, Clone, Copy)]
struct Deadlines {
    /// For a word that needs no time: who somebody is, or the answer to that.
    answer: Duration,
    /// For the connections of a run. Each has a deadline of its own, and they are dialled in turns.
    setup: Duration,
    /// For the end of a run, beyond its duration: one [`SILENCE`] before the last chunk, and one before the costs are told. With it
    /// a sender that never ends, or trickles, is given up too.
    grace: Duration,
}

const DEADLINES: Deadlines =
    Deadlines { answer: Duration::from_secs(15), setup: Duration::from_secs(60), grace: SILENCE.saturating_mul(2) };

/// How long a run that was interrupted may take for its figures. Without them the report holds what is known on one side.
const WRAP_UP_TIME: Duration = Duration::from_secs(3);
/// How long the tunnel is looked at before there is load, where latency is asked for.
const IDLE_TIME: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
