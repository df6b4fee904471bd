//! A builder's life: unclaimed until a coordinator claims it, and the reasons for which it ends.

use std::time::{Duration, Instant};

use crate::key::NodePublic;

/// How long a claimer may be both silent and called offline by control before it counts as lost. Three of the netmap's
/// usual delays, and longer than a frozen coordinator may take to come back.
pub const CLAIMER_SILENCE: Duration = Duration::from_secs(90);

/// A builder's life. Feed it what happens; it says when, and why, the builder must end.
#[derive(Debug)]
pub struct Builder {
    idle_timeout: Option<Duration>,
    /// Since when nobody has claimed it.
    idle_since: Instant,
    claim: Option<Claim>,
    end: Option<End>,
}

#[derive(Debug)]
struct Claim {
    claimer: NodePublic,
    /// When an authenticated packet last came from it.
    heard: Instant,
    /// Since when control calls it offline, if it does. Silence before that counts for nothing: an idle coordinator may
    /// say nothing for minutes, and a control server that restarts calls everybody offline for a moment.
    offline_since: Option<Instant>,
}

/// What the netmap says of the claimer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Connected to control, or control doesn't say.
    Online,
    /// Known and not connected to control.
    Offline,
    /// Not in the netmap: it logged out, or was removed.
    Absent,
}

/// Why a builder ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// Nobody claimed it for as long as it was told to wait.
    Idle(Duration),
    /// Its claimer told it to stop.
    Stopped,
    /// Its claimer is gone.
    ClaimerLost(ClaimerLoss),
}

/// How a claimer was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimerLoss {
    /// It is in the netmap no more.
    LoggedOut,
    /// For [`CLAIMER_SILENCE`], control has called it offline and nothing came from it.
    Silent,
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Idle(after) => write!(f, "no coordinator claimed it within {} s", after.as_secs()),
            Self::Stopped => f.write_str("its coordinator stopped it"),
            Self::ClaimerLost(ClaimerLoss::LoggedOut) => f.write_str("its coordinator left the tailnet"),
            Self::ClaimerLost(ClaimerLoss::Silent) => {
                write!(f, "its coordinator is offline and silent for {} s", CLAIMER_SILENCE.as_secs())
            }
        }
    }
}

/// Why a claim is refused: the asking node's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// Another node has it.
    #[error("this builder is claimed by another coordinator")]
    Taken,
    /// It is about to go.
    #[error("this builder is ending")]
    Ending,
}

/// Why a stop is refused: the asking node's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("only the coordinator that claimed this builder may stop it")]
pub struct StopError;

impl Builder {
    /// A builder that nobody has claimed. Without an `idle_timeout` it waits for ever.
    #[must_use]
    pub fn new(now: Instant, idle_timeout: Option<Duration>) -> Self {
        Self { idle_timeout, idle_since: now, claim: None, end: None }
    }

    /// `claimer` wants the builder for itself. Claiming again what one has is fine.
    ///
    /// # Errors
    /// When another node has it, or the builder is ending.
    pub fn handle_claim(&mut self, now: Instant, claimer: NodePublic) -> Result<(), ClaimError> {
        if self.end.is_some() {
            return Err(ClaimError::Ending);
        }
        match &mut self.claim {
            Some(claim) if claim.claimer != claimer => Err(ClaimError::Taken),
            Some(claim) => {
                claim.heard = now;
                Ok(())
            }
            None => {
                self.claim = Some(Claim { claimer, heard: now, offline_since: None });
                Ok(())
            }
        }
    }

    /// `from` wants the builder to end.
    ///
    /// # Errors
    /// Unless `from` has claimed it.
    pub fn handle_stop(&mut self, from: NodePublic) -> Result<(), StopError> {
        if self.claimer() != Some(from) {
            return Err(StopError);
        }
        self.end.get_or_insert(End::Stopped);
        Ok(())
    }

    /// What a netmap says of the claimer. Not to be called for a netmap that is merely old: the loss of our own control
    /// stream says nothing of the claimer.
    pub fn handle_presence(&mut self, now: Instant, presence: Presence) {
        let Some(claim) = &mut self.claim else { return };
        match presence {
            Presence::Online => claim.offline_since = None,
            Presence::Offline => {
                claim.offline_since.get_or_insert(now);
            }
            Presence::Absent => {
                self.end.get_or_insert(End::ClaimerLost(ClaimerLoss::LoggedOut));
            }
        }
        self.handle_timeout(now);
    }

    /// An authenticated packet came from the claimer at `when`.
    pub fn handle_heard(&mut self, when: Instant) {
        if let Some(claim) = &mut self.claim {
            claim.heard = claim.heard.max(when);
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.end.is_some() || self.deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        self.end = match (&self.claim, self.idle_timeout) {
            (Some(_), _) => Some(End::ClaimerLost(ClaimerLoss::Silent)),
            (None, after) => after.map(End::Idle),
        };
    }

    /// When [`Self::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.end.is_some() { None } else { self.deadline() }
    }

    /// Why the builder must end, once it must.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// Who has claimed it.
    #[must_use]
    pub fn claimer(&self) -> Option<NodePublic> {
        self.claim.as_ref().map(|claim| claim.claimer)
    }

    fn deadline(&self) -> Option<Instant> {
        match &self.claim {
            None => self.idle_timeout.map(|after| self.idle_since + after),
            Some(claim) => claim.offline_since.map(|offline_since| claim.heard.max(offline_since) + CLAIMER_SILENCE),
        }
    }
}
