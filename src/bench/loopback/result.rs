//! What the stages come to: shares, sums, and which one is the limit.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::SCHEMA;
use crate::bench::report::{gbit_per_s, per_gb};

/// What `bench loopback --json` prints. Keys are stable under one `schema` number. Bytes are those of the application, without
/// headers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Loopback {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Processors that this process may use.
    pub cores: usize,
    /// Whether datagrams are handed to the system in trains, as long as it takes them (`NIXTAIL_GSO=0` forbids it).
    pub gso: bool,
    /// What every byte goes through, one after the other, in one thread at each end.
    pub stages: Vec<Stage>,
    /// All of these, added up.
    pub sum: Stage,
    /// What takes the place of a stage elsewhere, or comes on top: not in the sum.
    pub others: Vec<Stage>,
    /// Both ends in this process, over 127.0.0.1.
    pub together: Together,
    /// What to look at first.
    pub limit: Limit,
}

/// A stage, at both ends.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Which.
    pub name: StageName,
    /// At the end that sends.
    pub sending: Spent,
    /// At the end that receives.
    pub receiving: Spent,
}

/// What a stage takes at one end.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spent {
    /// What one core does of this stage alone, in 10⁹ bits a second; 0 where it takes nothing that could be told from noise.
    pub gbit_per_s: f64,
    /// CPU seconds for each 10⁹ bytes.
    pub cpu_s_per_gb: f64,
    /// Its part in all that this end spends, 0 to 1. `None`: it isn't in the sum.
    pub share: Option<f64>,
}

/// A stage's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageName {
    /// Segments, acknowledgements, windows.
    Tcp,
    /// Sealing and opening packets.
    Wireguard,
    /// What else the node does: filter, addresses, peers, paths.
    Node,
    /// Handing datagrams to the system and taking them from it.
    Syscalls,
    /// All stages of an end.
    Sum,
    /// The same without trains.
    SyscallsOneByOne,
    /// SSH's cipher AES-128-GCM, in packets of 32 KiB.
    SshAes128Gcm,
    /// SSH's cipher ChaCha20-Poly1305, in packets of 32 KiB.
    SshChacha20Poly1305,
}

/// One of the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// That which sends.
    Sending,
    /// That which receives.
    Receiving,
}

/// One stream between two whole dataplanes of this process, each on a thread of its own.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Together {
    /// In 10⁹ bits a second.
    pub gbit_per_s: f64,
    /// CPU seconds of both ends for each 10⁹ bytes.
    pub cpu_s_per_gb: f64,
}

/// The slowest stage at the slower end.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    /// Which stage.
    pub stage: StageName,
    /// At which end.
    pub end: End,
    /// Its part in all that this end spends.
    pub share: f64,
    /// What a core of that end could do, with all its stages.
    pub end_gbit_per_s: f64,
}

/// What was measured of a stage: bytes, and what either end spent on them.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Ends {
    /// Bytes of the application that went through.
    pub bytes: u64,
    /// CPU time of the end that sends.
    pub sending: Duration,
    /// CPU time of the end that receives.
    pub receiving: Duration,
}

/// Why a stage couldn't be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoopbackError {
    /// A part doesn't do here what it must.
    #[error("{0} can't be measured here: {1}")]
    Stage(&'static str, String),
    /// Told to stop.
    #[error("interrupted before all stages were measured")]
    Interrupted,
}

impl Ends {
    fn spent(&self, end: End) -> Duration {
        match end {
            End::Sending => self.sending,
            End::Receiving => self.receiving,
        }
    }

    fn per_gb(&self, end: End) -> f64 {
        per_gb(self.spent(end).as_secs_f64(), self.bytes)
    }

    /// What is left of this stage once another one, which is a part of it, is taken out. Not less than nothing, which noise could
    /// make it.
    pub(super) fn without(&self, part: &Self) -> Self {
        let less = |end| {
            #[allow(clippy::cast_precision_loss, reason = "53 bits of bytes are enough")]
            let part_s = part.per_gb(end) * self.bytes as f64 / 1e9;
            Duration::try_from_secs_f64(self.spent(end).as_secs_f64() - part_s).unwrap_or_default()
        };
        Self { bytes: self.bytes, sending: less(End::Sending), receiving: less(End::Receiving) }
    }

    fn stage(&self, name: StageName, whole: Option<[f64; 2]>) -> Stage {
        let spent = |end, whole: Option<f64>| {
            let cpu_s_per_gb = self.per_gb(end);
            let share = whole.map(|whole| if whole > 0.0 { cpu_s_per_gb / whole } else { 0.0 });
            Spent { gbit_per_s: gbit_per_s(self.bytes, self.spent(end).as_secs_f64()), cpu_s_per_gb, share }
        };
        let [sending, receiving] = whole.map_or([None; 2], |whole| whole.map(Some));
        Stage { name, sending: spent(End::Sending, sending), receiving: spent(End::Receiving, receiving) }
    }
}

impl Loopback {
    /// Sums up the stages of the path and puts the others beside them.
    pub(super) fn new(path: &[(StageName, Ends)], others: &[(StageName, Ends)], together: Together, gso: bool) -> Self {
        let whole = [End::Sending, End::Receiving].map(|end| path.iter().map(|(_, ends)| ends.per_gb(end)).sum());
        let stages: Vec<Stage> = path.iter().map(|(name, ends)| ends.stage(*name, Some(whole))).collect();
        let [sending, receiving] = whole.map(|cpu_s_per_gb| Spent {
            gbit_per_s: if cpu_s_per_gb > 0.0 { 8.0 / cpu_s_per_gb } else { 0.0 },
            cpu_s_per_gb,
            share: Some(1.0),
        });
        Self {
            schema: SCHEMA,
            cores: std::thread::available_parallelism().map_or(1, Into::into),
            gso,
            limit: limit(&stages, sending, receiving),
            sum: Stage { name: StageName::Sum, sending, receiving },
            stages,
            others: others.iter().map(|(name, ends)| ends.stage(*name, None)).collect(),
            together,
        }
    }
}

impl Stage {
    /// What it takes at one end.
    #[must_use]
    pub fn at(&self, end: End) -> Spent {
        match end {
            End::Sending => self.sending,
            End::Receiving => self.receiving,
        }
    }
}

fn limit(stages: &[Stage], sending: Spent, receiving: Spent) -> Limit {
    let (end, whole) = if sending.cpu_s_per_gb > receiving.cpu_s_per_gb {
        (End::Sending, sending)
    } else {
        (End::Receiving, receiving)
    };
    let cost = |stage: &&Stage| stage.at(end).cpu_s_per_gb;
    let slowest = stages.iter().max_by(|one, other| cost(one).total_cmp(&cost(other)));
    let share = slowest.and_then(|stage| stage.at(end).share).unwrap_or(0.0);
    Limit { stage: slowest.map_or(StageName::Sum, |stage| stage.name), end, share, end_gbit_per_s: whole.gbit_per_s }
}
