//! A coordinator as others see it: `nixtail status`, `nixtail summary`.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::mode::Mode;
use super::{Board, BuilderStatus};
use crate::agent::{Path, Status};
use crate::report::summary::{Build, Summary, Sums};

/// How old the last known way to a builder that has left may be.
const PATHS_INTERVAL: Duration = Duration::from_secs(10);

/// What `GET /status` of a coordinator answers: the node's status, and its builders.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CoordinatorStatus {
    /// The node's.
    #[serde(flatten)]
    pub node: Status,
    /// How Nix is told of builders.
    #[serde(default)]
    pub mode: Option<Mode>,
    /// The builders that are wanted, by name.
    pub builders: Vec<BuilderView>,
    /// All builders' sums, those that went included.
    pub totals: Sums,
    /// How long the run has gone on.
    pub lasted_ms: u64,
}

/// One builder, for people and scripts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuilderView {
    /// Its name and how it stands.
    #[serde(flatten)]
    pub standing: BuilderStatus,
    /// What it says of itself.
    #[serde(flatten)]
    pub live: Live,
    /// Over which path packets to it go now.
    pub path: Path,
    /// Round-trip time of that path in milliseconds, as last measured.
    pub rtt_ms: Option<f64>,
    /// What it builds now, the longest first.
    pub running_builds: Vec<RunningBuild>,
    /// Its sums since the run began.
    #[serde(flatten)]
    pub sums: Sums,
}

/// What a builder says of itself, as of its last report. Unknown until there was one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Live {
    /// Processes that run or wait to run, averaged over a minute.
    pub load: Option<f64>,
    /// Bytes of memory that new work can have.
    pub memory_available_bytes: Option<u64>,
    /// Bytes free where its store is.
    pub free_disk_bytes: Option<u64>,
    /// Why it is ending, if it is.
    pub ending: Option<String>,
    /// Why it takes no new build for now, if so.
    pub resting: Option<String>,
}

/// A build that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningBuild {
    /// The derivation's name, without its hash and `.drv`.
    pub derivation: String,
    /// For how long.
    pub for_ms: u64,
}

/// What `POST /ended-builds` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedBuilds {
    /// How many builds have ended since the run began: what to ask with next.
    pub ended: u64,
    /// Those that weren't told of before.
    pub builds: Vec<Build>,
}

impl Board {
    /// The coordinator as it is now.
    pub async fn status(&self) -> CoordinatorStatus {
        let node = self.look().await;
        let now = Instant::now();
        let builders = self.builders().into_iter();
        let builders = builders.map(|standing| self.chronicle().view(now, standing, &node)).collect();
        let (totals, began) = self.chronicle().record(|record| (record.totals(now), record.began()));
        let lasted = now.saturating_duration_since(began);
        let lasted_ms = u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX);
        CoordinatorStatus { node, mode: Some(self.mode()), builders, totals: totals.into(), lasted_ms }
    }

    /// The builds that have ended after the one with number `after`, and the number of the last one.
    #[must_use]
    pub fn ended_after(&self, after: u64) -> EndedBuilds {
        self.chronicle()
            .record(|record| EndedBuilds { ended: record.ended(), builds: Build::ended_after(record, after) })
    }

    /// What came of the run until now.
    pub async fn summary(&self) -> Summary {
        let node = self.look().await;
        self.chronicle().summary(Instant::now(), &node, self.mode(), &self.builders())
    }

    /// The agent's status, and what it says of the ways to the builders remembered: a builder that has left by the end is
    /// shown with its last one.
    async fn look(&self) -> Status {
        let status = self.agent().status().await;
        self.chronicle().handle_status(&status);
        status
    }

    /// Looks at the ways to the builders from time to time. Never ends.
    pub(super) async fn follow_paths(&self) -> Infallible {
        loop {
            tokio::time::sleep(PATHS_INTERVAL).await;
            self.look().await;
        }
    }
}
