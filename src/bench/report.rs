//! What a run comes to: sums and rates of what was counted.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::plan::{Direction, Plan};
use super::round_trips::Latency;
use super::usage::Cost;
use super::wire::Arrived;
use super::{BenchError, DEADLINES, SCHEMA};
use crate::agent::Path;

/// What `bench run --json` prints. Keys are stable under one `schema` number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Whom it was measured against, as it was named.
    pub host: String,
    /// Which way the bytes went.
    pub direction: Direction,
    /// Streams each way.
    pub streams: u16,
    /// Somebody ended the run before its time.
    pub interrupted: bool,
    /// The other side has told what arrived there and what it cost. Without that (only where interrupted), `upload` is what was
    /// handed to the tunnel here.
    pub confirmed: bool,
    /// The path as the streams began to send.
    pub path: Path,
    /// The path when they had ended.
    pub path_at_end: Path,
    /// How it changed in between, as seen once a second.
    pub path_changes: Vec<PathChange>,
    /// Bytes that arrived, both ways together.
    pub bytes: u64,
    /// From the first that arrived to the last: of the way that took longer.
    pub seconds: f64,
    /// Both ways together, in 10⁹ bits a second.
    pub gbit_per_s: f64,
    /// CPU seconds of this side's process for each 10⁹ bytes, both ways together.
    pub cpu_s_per_gb: f64,
    /// The same of the other side.
    pub remote_cpu_s_per_gb: Option<f64>,
    /// Resident memory of this side's process at the end.
    pub rss_bytes: Option<u64>,
    /// The same of the other side.
    pub remote_rss_bytes: Option<u64>,
    /// What went from here to there.
    pub upload: Option<Flow>,
    /// What came from there.
    pub download: Option<Flow>,
    /// Round trips beside the streams, where they were asked for.
    pub latency: Option<Latency>,
    /// Second by second. Uploads count as they are handed to the tunnel, so that they may be ahead of what arrives.
    pub intervals: Vec<Interval>,
}

/// All streams of one way, as the receiving side saw them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// Bytes of all streams.
    pub bytes: u64,
    /// From the first byte of any stream to the last of any.
    pub seconds: f64,
    /// In 10⁹ bits a second.
    pub gbit_per_s: f64,
    /// Each of them.
    pub streams: Vec<StreamRate>,
}

/// One stream.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StreamRate {
    /// Its bytes.
    pub bytes: u64,
    /// From its first byte to its last.
    pub seconds: f64,
    /// In 10⁹ bits a second.
    pub gbit_per_s: f64,
}

/// What happened in about a second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Its begin, in seconds after that of the run.
    pub from_s: f64,
    /// Its end.
    pub to_s: f64,
    /// Bytes that were handed to the tunnel here.
    pub upload_bytes: u64,
    /// Bytes that arrived here.
    pub download_bytes: u64,
    /// The median round trip, where there were pings and answers.
    pub p50_ms: Option<f64>,
}

/// The path became another one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PathChange {
    /// When that was seen, in seconds after the run's begin.
    pub at_s: f64,
    /// The path until then.
    pub before: Path,
    /// The path from then on.
    pub path: Path,
}

/// What else is known of a run than what its streams moved.
#[derive(Debug, Clone, PartialEq)]
pub struct Conditions {
    /// Whether it was ended before its time.
    pub interrupted: bool,
    /// The path at the begin.
    pub path: Path,
    /// The path at the end.
    pub path_at_end: Path,
    /// How it changed.
    pub path_changes: Vec<PathChange>,
    /// What it cost here.
    pub local: Cost,
    /// What it cost there, where that was told.
    pub remote: Option<Cost>,
    /// Round trips.
    pub latency: Option<Latency>,
    /// Second by second.
    pub intervals: Vec<Interval>,
}

impl Report {
    /// Sums up a run.
    #[must_use]
    pub fn new(host: &str, plan: &Plan, upload: Option<Flow>, download: Option<Flow>, run: Conditions) -> Self {
        let flows = || upload.iter().chain(&download);
        let bytes = flows().map(|flow| flow.bytes).sum();
        let seconds = flows().map(|flow| flow.seconds).fold(0.0, f64::max);
        Self {
            schema: SCHEMA,
            host: host.to_owned(),
            direction: plan.direction,
            streams: plan.streams,
            interrupted: run.interrupted,
            confirmed: run.remote.is_some(),
            path: run.path,
            path_at_end: run.path_at_end,
            path_changes: run.path_changes,
            bytes,
            seconds,
            gbit_per_s: gbit_per_s(bytes, seconds),
            cpu_s_per_gb: per_gb(run.local.cpu_s, bytes),
            remote_cpu_s_per_gb: run.remote.map(|cost| per_gb(cost.cpu_s, bytes)),
            rss_bytes: run.local.rss_bytes,
            remote_rss_bytes: run.remote.and_then(|cost| cost.rss_bytes),
            upload,
            download,
            latency: run.latency,
            intervals: run.intervals,
        }
    }
}

impl Flow {
    /// Sums up what arrived of each stream.
    pub(super) fn of(mut arrived: Vec<Arrived>) -> Self {
        arrived.sort_by_key(|stream| stream.number);
        let used = || arrived.iter().filter(|stream| stream.bytes > 0);
        let from = used().map(|stream| stream.from_s).fold(f64::INFINITY, f64::min);
        let to = used().map(|stream| stream.to_s).fold(0.0, f64::max);
        let bytes = arrived.iter().map(|stream| stream.bytes).fold(0, u64::saturating_add);
        let seconds = (to - from).max(0.0);
        let streams = arrived.iter().map(|stream| {
            let seconds = stream.to_s - stream.from_s;
            StreamRate { bytes: stream.bytes, seconds, gbit_per_s: gbit_per_s(stream.bytes, seconds) }
        });
        Self { bytes, seconds, gbit_per_s: gbit_per_s(bytes, seconds), streams: streams.collect() }
    }
}

/// Looks whether what the other side says of streams can be.
///
/// # Errors
/// Other streams than there were, or times outside of the run.
pub(super) fn check_arrived(plan: &Plan, expected: usize, arrived: &[Arrived]) -> Result<(), BenchError> {
    let longest = (plan.duration() + DEADLINES.grace).as_secs_f64();
    let is_time = |seconds: f64| (0.0..=longest).contains(&seconds);
    let mut numbers: Vec<u16> = arrived.iter().map(|stream| stream.number).collect();
    numbers.sort_unstable();
    let all =
        numbers.len() == expected && numbers.iter().enumerate().all(|(index, number)| index == usize::from(*number));
    let sound =
        arrived.iter().all(|stream| is_time(stream.from_s) && is_time(stream.to_s) && stream.from_s <= stream.to_s);
    if all && sound { Ok(()) } else { Err(BenchError::Protocol("figures that can't be of this run")) }
}

/// A rate in 10⁹ bits a second; 0 of no time.
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "figures for people: 53 bits of bytes are enough")]
pub fn gbit_per_s(bytes: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { bytes as f64 * 8.0 / seconds / 1e9 } else { 0.0 }
}

/// CPU seconds for each 10⁹ bytes; 0 of none.
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "figures for people: 53 bits of bytes are enough")]
pub fn per_gb(cpu_s: f64, bytes: u64) -> f64 {
    if bytes > 0 { cpu_s / (bytes as f64 / 1e9) } else { 0.0 }
}

impl Interval {
    /// How long it was.
    #[must_use]
    pub fn length(&self) -> Duration {
        Duration::try_from_secs_f64(self.to_s - self.from_s).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrived(number: u16, bytes: u64, from_s: f64, to_s: f64) -> Arrived {
        Arrived { number, bytes, from_s, to_s }
    }

    fn conditions(remote: Option<Cost>) -> Conditions {
        Conditions {
            interrupted: false,
            path: Path::None,
            path_at_end: Path::None,
            path_changes: Vec::new(),
            local: Cost { cpu_s: 3.0, rss_bytes: Some(7) },
            remote,
            latency: None,
            intervals: Vec::new(),
        }
    }

    #[test]
    fn a_flow_is_timed_from_its_first_byte_to_its_last() {
        let flow = Flow::of(vec![
            arrived(1, 1_000_000_000, 0.5, 4.5),
            arrived(0, 250_000_000, 1.0, 3.0),
            // Nothing came: its times say nothing.
            arrived(2, 0, 0.0, 0.0),
        ]);
        assert_eq!((flow.bytes, flow.seconds, flow.gbit_per_s), (1_250_000_000, 4.0, 2.5));
        assert_eq!(flow.streams[0], StreamRate { bytes: 250_000_000, seconds: 2.0, gbit_per_s: 1.0 });
        assert_eq!(flow.streams[1].gbit_per_s, 2.0);
        assert_eq!(flow.streams[2], StreamRate { bytes: 0, seconds: 0.0, gbit_per_s: 0.0 });
        let nothing = Flow::of(vec![arrived(0, 0, 0.0, 0.0)]);
        assert_eq!((nothing.bytes, nothing.seconds, nothing.gbit_per_s), (0, 0.0, 0.0));
    }

    #[test]
    fn both_ways_are_summed() {
        let plan = Plan::new(Direction::Both, 1, Duration::from_secs(4));
        let up = Flow::of(vec![arrived(0, 1_000_000_000, 0.0, 4.0)]);
        let down = Flow::of(vec![arrived(0, 500_000_000, 0.0, 3.0)]);
        let remote = Some(Cost { cpu_s: 1.5, rss_bytes: None });
        let report = Report::new("b", &plan, Some(up.clone()), Some(down), conditions(remote));
        assert_eq!((report.bytes, report.seconds, report.gbit_per_s), (1_500_000_000, 4.0, 3.0));
        assert_eq!((report.cpu_s_per_gb, report.remote_cpu_s_per_gb), (2.0, Some(1.0)));
        assert_eq!((report.rss_bytes, report.remote_rss_bytes), (Some(7), None));
        assert!(report.confirmed);
        let alone = Report::new("b", &plan, Some(up), None, conditions(None));
        assert!(!alone.confirmed && alone.remote_cpu_s_per_gb.is_none() && alone.download.is_none());
    }

    #[test]
    fn nothing_is_no_rate() {
        assert_eq!((gbit_per_s(0, 0.0), gbit_per_s(9, 0.0), per_gb(1.0, 0)), (0.0, 0.0, 0.0));
    }

    #[test]
    fn what_a_server_tells_must_be_of_the_run() {
        let plan = Plan::new(Direction::Upload, 2, Duration::from_secs(1));
        let good = [arrived(1, 5, 0.1, 0.2), arrived(0, 0, 0.0, 0.0)];
        assert!(check_arrived(&plan, 2, &good).is_ok());
        for bad in [
            &good[..1],
            &[arrived(0, 1, 0.0, 1.0), arrived(0, 1, 0.0, 1.0)],
            &[arrived(0, 1, 0.0, 1.0), arrived(7, 1, 0.0, 1.0)],
            &[arrived(0, 1, 2.0, 1.0), arrived(1, 1, 0.0, 1.0)],
            &[arrived(0, 1, -1.0, 1.0), arrived(1, 1, 0.0, 1.0)],
            &[arrived(0, 1, 0.0, 1e9), arrived(1, 1, 0.0, 1.0)],
        ] {
            assert!(check_arrived(&plan, 2, bad).is_err(), "{bad:?}");
        }
        assert!(check_arrived(&plan, 0, &[]).is_ok());
    }
}
