//! Why a run fails, and how a person is told.

use std::io;

use super::plan::PlanError;
use super::{DEADLINES, SCHEMA, SILENCE};
use crate::agent::DialError;
use crate::report::{Exit, Failure, plain};

/// Why a run ended early, or didn't begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// What was asked for is out of bounds: ours.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// No connection to the other side.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The other side measures as much as it can already.
    #[error("it is busy: {0}")]
    Busy(String),
    /// The other side doesn't take part in such a run.
    #[error("it refuses this run: {0}")]
    Refused(String),
    /// The other side speaks another version.
    #[error("it speaks version {theirs} of the bench protocol, this side version {SCHEMA}")]
    Version {
        /// The other side's [`SCHEMA`].
        theirs: u32,
    },
    /// The other side said something that isn't of this protocol.
    #[error("what it says isn't this version's `nixtail bench`: {0}")]
    Protocol(&'static str),
    /// The other side ended a connection of the run.
    #[error("it ended the run in mid-course")]
    Ended,
    /// A connection of the run broke.
    #[error("a stream broke: {0}")]
    Stream(#[from] io::Error),
    /// The other side fell silent.
    #[error("it has been silent for {} s", SILENCE.as_secs())]
    Silent,
    /// The other side took the connection and says nothing.
    #[error("it took the connection and says nothing")]
    NoAnswer,
    /// The connections of the run didn't come about.
    #[error("the run's connections didn't come about within {} s", DEADLINES.setup.as_secs())]
    Setup,
    /// The other side goes on without end.
    #[error("the run isn't over {} s after its time", DEADLINES.grace.as_secs())]
    Overdue,
    /// Told to stop before anything was measured.
    #[error("interrupted before anything was measured")]
    Interrupted,
}

impl BenchError {
    /// What a person is told whose run against `host` failed.
    #[must_use]
    pub fn failure(self, host: &str) -> Failure {
        const SAME: &str =
            "look whether `nixtail bench serve` runs there and `nixtail version` says the same on both sides";
        let (exit, next) = match self {
            Self::Dial(error) => return error.into(),
            Self::Plan(error) => return Failure::new(Exit::Usage, error),
            Self::Interrupted => return Failure::new(Exit::General, self),
            Self::Busy(_) => (Exit::TryAgain, "try again when the others are done, or run a `bench serve` of your own"),
            Self::Refused(_) | Self::Version { .. } | Self::Protocol(_) | Self::Ended => (Exit::Unavailable, SAME),
            Self::Stream(_) => {
                (Exit::Unavailable, "`nixtail ping HOST` tells whether the node is still there, and by which path")
            }
            Self::Silent | Self::Overdue => {
                (Exit::Timeout, "`nixtail ping HOST` tells whether the node is still there, and by which path")
            }
            Self::NoAnswer | Self::Setup => (Exit::Timeout, SAME),
        };
        Failure::new(exit, format!("measuring against {} failed: {self}", plain(host))).next(next)
    }
}
