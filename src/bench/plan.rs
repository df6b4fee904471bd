//! What a run is asked to be.

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The longest run that a server takes part in.
pub const MAX_DURATION: Duration = Duration::from_secs(600);
/// The most streams that a run has each way: more than these share a tunnel in real use, and 128 connections of one peer with their
/// rings are 256 MiB at the worst.
pub const MAX_STREAMS: u16 = 64;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Which way the bytes go.
    pub direction: Direction,
    /// Streams each way, 1 to [`MAX_STREAMS`].
    pub streams: u16,
    /// For how long, in milliseconds.
    pub duration_ms: u64,
    /// Whether there are pings beside the streams.
    pub latency: bool,
}

/// Which way the bytes of a run go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The client sends.
    Upload,
    /// The server sends.
    Download,
    /// Both send, each over streams of its own.
    Both,
}

/// Which way the bytes of one stream go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// From the client to the server.
    Upload,
    /// From the server to the client.
    Download,
}

/// Why a run can't be as it was asked to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// None, or too many.
    #[error("a run has 1 to {MAX_STREAMS} streams each way, not {0}")]
    Streams(u16),
    /// It would go on for longer than a server is kept busy.
    #[error("a run lasts {} s at most", MAX_DURATION.as_secs())]
    TooLong,
    /// Nothing could be measured.
    #[error("a run of no time measures nothing")]
    NoTime,
}

impl Plan {
    /// A run without pings.
    #[must_use]
    pub fn new(direction: Direction, streams: u16, duration: Duration) -> Self {
        let duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self { direction, streams, duration_ms, latency: false }
    }

    /// For how long.
    #[must_use]
    pub fn duration(&self) -> Duration {
        Duration::from_millis(self.duration_ms)
    }

    /// Looks whether such a run is possible. Both sides do.
    ///
    /// # Errors
    /// What is out of bounds.
    pub fn check(&self) -> Result<(), PlanError> {
        if self.streams == 0 || self.streams > MAX_STREAMS {
            return Err(PlanError::Streams(self.streams));
        }
        if self.duration_ms == 0 {
            return Err(PlanError::NoTime);
        }
        if self.duration() > MAX_DURATION {
            return Err(PlanError::TooLong);
        }
        Ok(())
    }

    /// The ways and numbers of all streams.
    pub(super) fn streams(&self) -> impl Iterator<Item = (Way, u16)> {
        let streams = self.streams;
        self.direction.ways().iter().flat_map(move |way| (0..streams).map(|number| (*way, number)))
    }
}

impl Direction {
    /// All of them, as they are written.
    pub const NAMES: [&str; 3] = ["upload", "download", "both"];

    /// The ways that bytes go.
    #[must_use]
    pub fn ways(self) -> &'static [Way] {
        match self {
            Self::Upload => &[Way::Upload],
            Self::Download => &[Way::Download],
            Self::Both => &[Way::Upload, Way::Download],
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Upload => "upload",
            Self::Download => "download",
            Self::Both => "both ways",
        }
    }
}

impl FromStr for Direction {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "upload" => Ok(Self::Upload),
            "download" => Ok(Self::Download),
            "both" => Ok(Self::Both),
            _ => Err(format!("{text:?} is no direction; write {}", Self::NAMES.join(", "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_has_bounds() {
        let plan = |streams, milliseconds| Plan::new(Direction::Both, streams, Duration::from_millis(milliseconds));
        assert_eq!(plan(1, 1).check(), Ok(()));
        assert_eq!(plan(64, 600_000).check(), Ok(()));
        assert_eq!(plan(0, 1).check(), Err(PlanError::Streams(0)));
        assert_eq!(plan(65, 1).check(), Err(PlanError::Streams(65)));
        assert_eq!(plan(1, 0).check(), Err(PlanError::NoTime));
        assert_eq!(plan(1, 600_001).check(), Err(PlanError::TooLong));
        assert_eq!(plan(1, u64::MAX).check(), Err(PlanError::TooLong));
    }

    #[test]
    fn both_ways_are_streams_each_way() {
        let ways = |direction| Plan::new(direction, 2, Duration::from_secs(1)).streams().collect::<Vec<_>>();
        assert_eq!(ways(Direction::Upload), [(Way::Upload, 0), (Way::Upload, 1)]);
        assert_eq!(ways(Direction::Both).len(), 4);
        assert_eq!(ways(Direction::Both)[3], (Way::Download, 1));
    }

    #[test]
    fn directions_are_read_as_they_are_written() {
        for (name, direction) in Direction::NAMES.iter().zip([Direction::Upload, Direction::Download, Direction::Both])
        {
            assert_eq!(name.parse(), Ok(direction));
            assert_eq!(serde_json::to_value(direction).unwrap(), *name);
        }
        assert!("sideways".parse::<Direction>().unwrap_err().contains("upload, download, both"));
    }
}
