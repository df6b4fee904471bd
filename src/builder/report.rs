//! What a builder says of itself to the coordinator that watches it: one line of JSON at once, then every
//! [`REPORT_INTERVAL`](nixtail_proto::run::REPORT_INTERVAL) and whenever something happens.
//!
//! All times are milliseconds on the builder's own clock since it began ([`Report::uptime_ms`] is now): the two machines'
//! clocks needn't agree.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::sessions::{Lane, Outcome, Sessions};

/// The version of what stands in a report. Fields are added without a new one.
pub const REPORT_SCHEMA: u32 = 1;
/// The longest line, in bytes. `MAX_RUNNING` and `MAX_EVENTS` with the longest names come to less.
pub const MAX_REPORT_LINE: usize = 64 * 1024;
/// Builds under way that one report names; the counts are of all.
const MAX_RUNNING: usize = 80;
/// Events of one report; what is left over comes in the next, at once.
const MAX_EVENTS: usize = 80;

/// How a builder is, and what happened since the last report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`REPORT_SCHEMA`].
    pub schema: u32,
    /// How long the builder has been there.
    pub uptime_ms: u64,
    /// Load of the machine, averaged over a minute.
    pub load: f64,
    /// Processors for builds.
    pub cores: u32,
    /// Bytes of memory that new work can have.
    pub memory_available_bytes: u64,
    /// Bytes free where the store is; `None` where the disk can't be looked at.
    pub free_disk_bytes: Option<u64>,
    /// The builds under way, the oldest first.
    pub running: Vec<RunningBuild>,
    /// How many builds there are under way.
    pub running_count: u64,
    /// Nix sessions that are open, whether they build or copy.
    pub sessions: u64,
    /// Builds whose outputs are there.
    pub done: u64,
    /// Builds that failed.
    pub failed: u64,
    /// Builds whose session ended before they did.
    pub unfinished: u64,
    /// Bytes of all sessions from clients.
    pub bytes_in: u64,
    /// Bytes of all sessions to clients.
    pub bytes_out: u64,
    /// Why it is ending, if it is: it takes no new session.
    pub ending: Option<String>,
    /// Why it takes no new session for now, if so: it comes back by itself.
    pub resting: Option<String>,
    /// What happened since the last report, oldest first.
    pub events: Vec<ReportEvent>,
}

/// A build under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningBuild {
    /// Its number, unique on this builder.
    pub build: u64,
    /// The derivation's name, without its hash and `.drv`.
    pub derivation: String,
    /// When it began, on the builder's clock.
    pub since_ms: u64,
    /// Over which lane it was asked for.
    pub lane: Lane,
}

/// A build that began or ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportEvent {
    /// Counted from 1 on; a watcher that comes back says which was the last that it heard.
    pub number: u64,
    /// The build's number.
    pub build: u64,
    /// The derivation's name.
    pub derivation: String,
    /// When it began, on the builder's clock; only where it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_ms: Option<u64>,
    /// When it ended, on the builder's clock; only where it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_ms: Option<u64>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// What the builder knows of why, such as a full disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub words: Option<String>,
}

/// A builder for `nixtail status` at its own socket, as `GET /builder` gives it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuilderStatus {
    /// The coordinator that has claimed it, as the netmap calls it.
    pub claimed_by: Option<String>,
    /// A [`Report`] as its claimer gets it, without events, and without the number of its version: the local API has its own.
    #[serde(flatten)]
    pub report: serde_json::Map<String, serde_json::Value>,
    /// The Nix sessions that ended last, and those that are open.
    #[serde(rename = "session_list")]
    pub sessions: Vec<SessionStatus>,
}

/// One Nix session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// Its lane.
    pub lane: Lane,
    /// The client's node, as the netmap calls it.
    pub peer: String,
    /// How long it has gone on or had.
    pub lasted_ms: u64,
    /// How it ended, in words; `None` while it goes on.
    pub ended: Option<String>,
    /// Bytes from the client.
    pub bytes_in: u64,
    /// Bytes to the client.
    pub bytes_out: u64,
}

/// What a report says besides what the sessions say.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Surroundings {
    pub(super) began: Instant,
    pub(super) cores: u32,
    pub(super) load: f64,
    pub(super) memory_available_bytes: u64,
    pub(super) free_disk_bytes: Option<u64>,
    pub(super) ending: Option<String>,
    pub(super) resting: Option<String>,
}

impl Report {
    /// A report with what happened after event `after`.
    pub(super) fn make(sessions: &Sessions, around: Surroundings, after: u64) -> Self {
        let since_start =
            |at: Instant| u64::try_from(at.saturating_duration_since(around.began).as_millis()).unwrap_or(u64::MAX);
        // First the counts, then the events: what happens in between is told of once more rather than not at all.
        let (tally, running, open) = (sessions.tally(), sessions.running(), sessions.open());
        let events = sessions.events_after(after, MAX_EVENTS).into_iter().map(|event| {
            let at = since_start(event.at);
            let (started_ms, finished_ms) = if event.outcome.is_none() { (Some(at), None) } else { (None, Some(at)) };
            ReportEvent {
                number: event.number,
                build: event.build,
                derivation: event.derivation,
                started_ms,
                finished_ms,
                outcome: event.outcome,
                words: event.words,
            }
        });
        Self {
            schema: REPORT_SCHEMA,
            uptime_ms: since_start(Instant::now()),
            load: around.load,
            cores: around.cores,
            memory_available_bytes: around.memory_available_bytes,
            free_disk_bytes: around.free_disk_bytes,
            running_count: running.len() as u64,
            running: running
                .into_iter()
                .take(MAX_RUNNING)
                .map(|(build, running)| RunningBuild {
                    build,
                    derivation: running.derivation,
                    since_ms: since_start(running.since),
                    lane: running.lane,
                })
                .collect(),
            sessions: open as u64,
            done: tally.done,
            failed: tally.failed,
            unfinished: tally.unfinished,
            bytes_in: tally.bytes_in,
            bytes_out: tally.bytes_out,
            ending: around.ending,
            resting: around.resting,
            events: events.collect(),
        }
    }

    /// Whether more events may be waiting than one report takes.
    pub(super) fn is_full(&self) -> bool {
        self.events.len() >= MAX_EVENTS
    }

    /// As one line.
    pub(super) fn line(&self) -> Vec<u8> {
        // Only a map with keys that are no texts can't be written, and there is none.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }

    /// Reads a line of a builder's.
    ///
    /// # Errors
    /// What is wrong with it: another version of nixtail at the other end, most likely.
    pub fn read(line: &[u8]) -> Result<Self, String> {
        let report: Self = serde_json::from_slice(line).map_err(|error| format!("unreadable report: {error}"))?;
        if report.schema != REPORT_SCHEMA {
            return Err(format!("its reports are of version {}, here {REPORT_SCHEMA}", report.schema));
        }
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_report_fits_a_line() {
        let longest = Report {
            schema: REPORT_SCHEMA,
            uptime_ms: u64::MAX,
            load: f64::MIN_POSITIVE,
            cores: u32::MAX,
            memory_available_bytes: u64::MAX,
            free_disk_bytes: Some(u64::MAX),
            running: vec![
                RunningBuild {
                    build: u64::MAX,
                    derivation: "x".repeat(211),
                    since_ms: u64::MAX,
                    lane: Lane::Direct
                };
                MAX_RUNNING
            ],
            running_count: u64::MAX,
            sessions: u64::MAX,
            done: u64::MAX,
            failed: u64::MAX,
            unfinished: u64::MAX,
            bytes_in: u64::MAX,
            bytes_out: u64::MAX,
            ending: Some("x".repeat(512)),
            resting: Some("x".repeat(512)),
            events: vec![
                ReportEvent {
                    number: u64::MAX,
                    build: u64::MAX,
                    derivation: "x".repeat(211),
                    started_ms: None,
                    finished_ms: Some(u64::MAX),
                    outcome: Some(Outcome::Unfinished),
                    words: None,
                };
                MAX_EVENTS
            ],
        };
        let line = longest.line();
        assert!(line.len() < MAX_REPORT_LINE - 4096, "{}", line.len());
        assert_eq!(Report::read(&line), Ok(longest.clone()));
        assert!(Report::read(b"{}").is_err());
        assert!(Report::read(&Report { schema: 2, ..longest }.line()).is_err());
    }
}
