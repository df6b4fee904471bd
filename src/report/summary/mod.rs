//! What came of a coordinator's run: who was there, who built what when, what it cost and what went wrong.
//!
//! [`Summary`] is the data, the same for people and programs: `nixtail summary --json`, `summary.json`. The modules beside
//! it write it as a table for a terminal, as Markdown, as a Mermaid chart and as an SVG picture.

mod folder;
mod markdown;
mod mermaid;
mod svg;
mod text;
mod timeline;

use std::time::{Duration, Instant};

use nixtail_proto::run::Standing;
use nixtail_proto::run::record::{self, Record, Tally};
use nixtail_proto::tailcfg::Timestamp;
use serde::{Deserialize, Serialize};

use crate::agent::Path;

pub use folder::{FolderError, write};
pub use markdown::markdown;
pub use mermaid::mermaid;
pub use svg::svg;
pub use text::lines;

/// What came of a run until now, or until its end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The coordinator's name in the tailnet.
    pub coordinator: String,
    /// How Nix was told of builders, as `nixtail coordinator --mode` takes it.
    #[serde(default)]
    pub mode: String,
    /// The version of nixtail.
    pub version: String,
    /// When the run began.
    pub began: Timestamp,
    /// How long it lasts or lasted.
    pub lasted_ms: u64,
    /// Every builder that was ever ready, by name.
    pub builders: Vec<BuilderSummary>,
    /// The builders' sums added up.
    pub totals: Sums,
    /// Builders that were wanted and never ready, with the reason.
    pub missing: Vec<Missing>,
    /// What was built when, in the order in which it began.
    pub builds: Vec<Build>,
    /// Ended builds that are counted and don't stand in `builds`.
    pub builds_left_out: u64,
    /// What went wrong between the two ends, as it was told at that time.
    pub errors: Vec<RunError>,
    /// Errors that don't stand in `errors`.
    pub errors_left_out: u64,
}

/// One builder of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuilderSummary {
    /// Its name in the tailnet.
    pub name: String,
    /// Nix's name of its system.
    pub system: String,
    /// Its processors.
    pub cores: u32,
    /// The path to it, as it was last.
    pub path: Path,
    /// Round-trip time of that path in milliseconds, as last measured.
    pub rtt_ms: Option<f64>,
    /// When it was ready.
    pub stays: Vec<Stay>,
    /// Its sums.
    #[serde(flatten)]
    pub sums: Sums,
}

/// A time in which a builder was ready. Times are milliseconds since the run began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stay {
    /// When it was ready.
    pub from_ms: u64,
    /// When it was gone; none while it is there.
    pub until_ms: Option<u64>,
    /// Why it went.
    pub reason: Option<String>,
}

/// Sums over one builder, or over all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// How long it was ready.
    pub present_ms: u64,
    /// How long of that at least one build ran.
    pub busy_ms: u64,
    /// How long of that nothing ran.
    pub wait_ms: u64,
    /// The builds' own times added up.
    pub building_ms: u64,
    /// Builds begun.
    pub started: u64,
    /// Builds under way.
    pub running: u64,
    /// Builds whose outputs are there.
    pub built: u64,
    /// Builds that failed.
    pub failed: u64,
    /// Builds whose builder went.
    pub lost: u64,
    /// Builds that Nix gave up, mostly because another had failed or was lost.
    #[serde(default)]
    pub abandoned: u64,
    /// Bytes that it took in.
    pub bytes_in: u64,
    /// Bytes that it gave out.
    pub bytes_out: u64,
}

/// A builder that was wanted and never ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Its name.
    pub name: String,
    /// How it stands, in words.
    pub standing: String,
}

/// One build. Times are milliseconds since the run began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// Who built it.
    pub builder: String,
    /// The lowest number that no other build had at this builder then: a timeline's row.
    pub slot: usize,
    /// The derivation's name, without its hash and `.drv`.
    pub derivation: String,
    /// When it began.
    pub started_ms: u64,
    /// When it ended; when this was written, for one under way.
    pub ended_ms: u64,
    /// How it ended, if it has.
    pub outcome: Outcome,
}

/// How a build stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Its outputs are there.
    Built,
    /// The builder says that it failed.
    Failed,
    /// Its builder went before it ended.
    Lost,
    /// Nix gave it up before it ended.
    Abandoned,
    /// It is under way.
    Running,
}

/// Something that went wrong on the way to a builder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunError {
    /// When, in milliseconds since the run began.
    pub at_ms: u64,
    /// With which builder.
    pub builder: String,
    /// What, in words.
    pub message: String,
}

/// What a [`Record`] doesn't know of its run.
#[derive(Debug, Clone, Default)]
pub struct Surroundings<'a> {
    /// The coordinator's name in the tailnet.
    pub coordinator: String,
    /// How Nix was told of builders.
    pub mode: &'static str,
    /// The time of day, in seconds since 1970.
    pub unix_now: i64,
    /// The last known path to each builder and its round trip in milliseconds.
    pub paths: &'a [(String, Path, Option<f64>)],
    /// Builders that were wanted, with how they stand; those that were ever ready are left out here.
    pub standings: Vec<Missing>,
    /// What went wrong, with the builder, oldest first.
    pub errors: Vec<(Instant, String, String)>,
    /// Errors that weren't kept.
    pub errors_left_out: u64,
}

impl Summary {
    /// What `record` says as of `now`.
    pub fn of(record: &Record, now: Instant, surroundings: Surroundings<'_>) -> Self {
        let since = |at: Instant| milliseconds(at.saturating_duration_since(record.began()));
        let Surroundings { coordinator, mode, unix_now, paths, mut standings, errors, errors_left_out } = surroundings;
        standings.retain(|missing| record.builder(&missing.name).is_none());
        let lasted = now.saturating_duration_since(record.began());
        let builders = record.builders().map(|(name, builder)| {
            let path = paths.iter().find(|(known, ..)| known == name);
            BuilderSummary {
                name: name.to_owned(),
                system: builder.facts().system.clone(),
                cores: builder.facts().cores,
                path: path.map_or(Path::None, |(_, path, _)| *path),
                rtt_ms: path.and_then(|(.., rtt)| *rtt),
                stays: builder.stays().map(|stay| Stay::of(stay, since)).collect(),
                sums: builder.tally(now).into(),
            }
        });
        let ended = record.spans().map(|span| Build::of(span, since));
        let running = record.builders().flat_map(|(name, builder)| {
            builder.running().map(|running| Build {
                builder: name.to_owned(),
                slot: running.slot,
                derivation: running.derivation.clone(),
                started_ms: since(running.started),
                ended_ms: since(now).max(since(running.started)),
                outcome: Outcome::Running,
            })
        });
        let mut builds: Vec<Build> = ended.chain(running).collect();
        builds.sort_by_key(|build| build.started_ms);
        Self {
            coordinator,
            mode: mode.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            began: Timestamp::from_unix(unix_now - i64::try_from(lasted.as_secs()).unwrap_or_default()),
            lasted_ms: milliseconds(lasted),
            builders: builders.collect(),
            totals: record.totals(now).into(),
            missing: standings,
            builds,
            builds_left_out: record.dropped_spans(),
            errors: errors
                .into_iter()
                .map(|(at, builder, message)| RunError { at_ms: since(at), builder, message })
                .collect(),
            errors_left_out,
        }
    }

    /// One line: what was built by how many in which time.
    pub fn headline(&self) -> String {
        use super::words::{count, duration};
        let builders = count(self.builders.len() as u64, "builder");
        let time = duration(Duration::from_millis(self.lasted_ms));
        format!("{} on {builders} in {time}", count(self.totals.started, "build"))
    }

    /// The counts that aren't zero, in words: `98 built, 1 failed`.
    fn outcomes(&self) -> String {
        let Sums { built, failed, lost, abandoned, running, .. } = self.totals;
        let all =
            [(built, "built"), (failed, "failed"), (lost, "lost"), (abandoned, "abandoned"), (running, "under way")];
        let some = all.iter().filter(|(number, _)| *number > 0);
        some.map(|(number, words)| format!("{number} {words}")).collect::<Vec<_>>().join(", ")
    }

    /// How many builds ran at one time on the average, while any builder was there.
    fn at_once(&self) -> f64 {
        self.totals.building_ms as f64 / self.lasted_ms.max(1) as f64
    }

    /// The builds that ended badly, in the order in which they began; not those that Nix gave up because of them.
    fn mishaps(&self) -> impl Iterator<Item = &Build> {
        self.builds.iter().filter(|build| matches!(build.outcome, Outcome::Failed | Outcome::Lost))
    }

    /// The builders that went, with when and why.
    fn departures(&self) -> impl Iterator<Item = (&BuilderSummary, u64, &str)> {
        self.builders.iter().flat_map(|builder| {
            builder
                .stays
                .iter()
                .filter(|stay| stay.ended_badly())
                .filter_map(move |stay| Some((builder, stay.until_ms?, stay.reason.as_deref().unwrap_or_default())))
        })
    }
}

impl BuilderSummary {
    /// Whether it is gone, and not because it was told to.
    fn is_gone(&self) -> bool {
        self.stays.last().is_some_and(Stay::ended_badly)
    }
}

impl Stay {
    /// Whether it is over, and not because the builder was told to end.
    fn ended_badly(&self) -> bool {
        self.until_ms.is_some() && self.reason.as_deref() != Some(Standing::Stopped.to_string().as_str())
    }

    fn of(stay: &record::Stay, since: impl Fn(Instant) -> u64) -> Self {
        Self {
            from_ms: since(stay.since),
            until_ms: stay.gone.as_ref().map(|(at, _)| since(*at)),
            reason: stay.gone.as_ref().map(|(_, reason)| reason.clone()),
        }
    }
}

impl Sums {
    /// How long at least one build ran.
    pub(crate) fn busy(&self) -> Duration {
        Duration::from_millis(self.busy_ms)
    }

    /// How long nothing ran.
    pub(crate) fn wait(&self) -> Duration {
        Duration::from_millis(self.wait_ms)
    }

    fn present(&self) -> Duration {
        Duration::from_millis(self.present_ms)
    }
}

impl From<Tally> for Sums {
    fn from(tally: Tally) -> Self {
        Self {
            present_ms: milliseconds(tally.present),
            busy_ms: milliseconds(tally.busy),
            wait_ms: milliseconds(tally.wait()),
            building_ms: milliseconds(tally.building),
            started: tally.started,
            running: tally.running,
            built: tally.built,
            failed: tally.failed,
            lost: tally.lost,
            abandoned: tally.abandoned,
            bytes_in: tally.bytes_in,
            bytes_out: tally.bytes_out,
        }
    }
}

impl From<record::Outcome> for Outcome {
    fn from(outcome: record::Outcome) -> Self {
        match outcome {
            record::Outcome::Built => Self::Built,
            record::Outcome::Failed => Self::Failed,
            record::Outcome::Lost => Self::Lost,
            record::Outcome::Abandoned => Self::Abandoned,
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Built => "built",
            Self::Failed => "failed",
            Self::Lost => "lost",
            Self::Abandoned => "abandoned",
            Self::Running => "under way",
        })
    }
}

impl Build {
    fn of(span: &record::Span, since: impl Fn(Instant) -> u64) -> Self {
        Self {
            builder: span.builder.clone(),
            slot: span.slot,
            derivation: span.derivation.clone(),
            started_ms: since(span.started),
            ended_ms: since(span.ended),
            outcome: span.outcome.into(),
        }
    }

    /// The builds of `record` that ended after the one with number `after`, in the order in which they did.
    pub fn ended_after(record: &Record, after: u64) -> Vec<Self> {
        let since = |at: Instant| milliseconds(at.saturating_duration_since(record.began()));
        record.spans().filter(|span| span.number > after).map(|span| Self::of(span, since)).collect()
    }

    /// How long it took, or has taken until now.
    pub fn length(&self) -> Duration {
        Duration::from_millis(self.ended_ms.saturating_sub(self.started_ms))
    }
}

/// `2026-11-22 01:27:59 UTC`.
fn time_of_day(at: Timestamp) -> String {
    at.to_string().replace('T', " ").replace('Z', " UTC")
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
