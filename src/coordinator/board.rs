//! What others may see of a coordinator, and ask of its builders, while it works.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use nixtail_proto::run::{BuilderFacts, Progress};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::chronicle::Chronicle;
use super::mode::Mode;
use super::prove::Prover;
use crate::agent::Agent;
use crate::report::plain;

/// How a builder stands, for people and scripts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuilderStatus {
    /// Its name.
    pub name: String,
    /// In words: `ready`, or why not.
    pub standing: String,
    /// Whether Nix is told of it.
    pub ready: bool,
    /// Nix's name of its system, once known.
    pub system: Option<String>,
    /// Its processors, once known.
    pub cores: Option<u32>,
    /// How Nix reaches it: `direct` or `ssh`; for one that isn't ready yet, what is tried.
    #[serde(default)]
    pub lane: Option<String>,
}

/// What others may see of a coordinator, and ask of its builders, while it works.
#[derive(Clone)]
pub struct Board {
    prover: Arc<Prover>,
    shown: Arc<Mutex<Vec<BuilderStatus>>>,
    chronicle: Chronicle,
    progress: watch::Sender<String>,
    stopping: CancellationToken,
}

/// A line of progress, fit to be shown: each builder's part is bounded by itself, so that no long one hides the others.
pub(super) fn line(progress: &Progress) -> String {
    progress.to_string().split("; ").map(plain).collect::<Vec<_>>().join("; ")
}

impl Board {
    pub(super) fn new(prover: Arc<Prover>, chronicle: Chronicle) -> Self {
        let (progress, _) = watch::channel(String::new());
        Self { prover, shown: Arc::default(), chronicle, progress, stopping: CancellationToken::new() }
    }

    /// What is remembered of the run: to be told of builds and errors, and asked about them.
    #[must_use]
    pub fn chronicle(&self) -> &Chronicle {
        &self.chronicle
    }

    pub(super) fn agent(&self) -> &Agent {
        &self.prover.agent
    }

    pub(super) fn mode(&self) -> Mode {
        self.prover.options.mode
    }

    pub(super) fn show(&self, statuses: Vec<BuilderStatus>, progress: String) {
        self.remember(&statuses);
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = statuses;
        self.progress.send_if_modified(|shown| {
            let is_new = *shown != progress;
            *shown = progress;
            is_new
        });
    }

    /// Cancelled when the builders are told to end: from then on none is tried or listed.
    pub(super) fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// How the waiting goes: one line, fit to be shown, whenever it changes.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<String> {
        self.progress.subscribe()
    }

    /// Whoever becomes ready or is ready no more is so from now on, unless somebody who knew better said so before.
    fn remember(&self, statuses: &[BuilderStatus]) {
        let now = Instant::now();
        for status in statuses {
            match (status.ready, &status.system, status.cores) {
                (true, Some(system), Some(cores)) => {
                    let facts = BuilderFacts { system: system.clone(), cores };
                    self.chronicle.record(|record| record.handle_ready(now, &status.name, &facts));
                }
                _ => self.chronicle.handle_gone(now, &status.name, &status.standing),
            }
        }
    }

    /// Each wanted builder and how it stands.
    #[must_use]
    pub fn builders(&self) -> Vec<BuilderStatus> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells every claimed builder to end, those that never became ready, too; no other one is claimed from then on. Returns
    /// each one's name with what kept it from hearing, if anything did. Those that were told before aren't among them.
    pub async fn stop_builders(&self) -> Vec<(String, Result<(), String>)> {
        self.stopping.cancel();
        let stops = self.prover.claims.all().into_iter().map(|(name, claim)| {
            let prover = Arc::clone(&self.prover);
            async move {
                let stopped = prover.stop(&name, &claim).await;
                (name, stopped.map_err(|failure| format!("{}: {}", failure.stage, failure.reason)))
            }
        });
        futures::future::join_all(stops).await
    }
}
