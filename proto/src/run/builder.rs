//! A builder's life: unclaimed until a coordinator claims it, and the reasons for which it ends.

use std::fmt;
use std::time::{Duration, Instant};

use super::freeze::OwnFreeze;
use crate::key::NodePublic;

/// How long a claimer may be silent before it counts as lost: while control calls it offline, or while it doesn't watch us,
/// as each claimer does that is alive. Three of the netmap's usual delays, and longer than a frozen coordinator, or a network
/// that is down, may take to come back.
pub const CLAIMER_SILENCE: Duration = Duration::from_secs(90);

/// The same for a builder that was told to end and only waits for its last builds: nobody waits for those of a claimer that
/// is gone. Longer than a claimer that lives may say nothing, since it acknowledges our reports ([`super::REPORT_INTERVAL`]).
const CLAIMER_SILENCE_AT_END: Duration = Duration::from_secs(15);

/// A builder's life. Feed it what happens; it says when, and why, the builder must end.
#[derive(Debug)]
pub struct Builder {
    /// The run that it is for; without one it is for whoever comes.
    run: Option<String>,
    idle_timeout: Option<Duration>,
    claimer_silence: Duration,
    /// Since when nobody has claimed it, and nobody uses it unclaimed.
    idle_since: Option<Instant>,
    claim: Option<Claim>,
    ending: Option<Ending>,
    freeze: OwnFreeze,
}

#[derive(Debug)]
struct Claim {
    claimer: NodePublic,
    /// When an authenticated packet last came from it.
    heard: Instant,
    /// Since when control calls it offline, if it does. Silence before that counts for nothing: an idle coordinator may
    /// say nothing for minutes, and a control server that restarts calls everybody offline for a moment.
    offline_since: Option<Instant>,
    /// The claimer's watches that are open.
    watches: usize,
    /// Since when it doesn't watch us, as each claimer does soon after its claim.
    unwatched_since: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Ending {
    end: End,
    /// Until when what runs may go on.
    until: Instant,
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
    /// Whoever runs it ends it.
    Told(Told),
}

/// How a claimer was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimerLoss {
    /// It is in the netmap no more.
    LoggedOut,
    /// For so long, control has called it offline and nothing came from it.
    Silent(Duration),
    /// For so long, it hasn't watched us, whatever control says of it.
    Unwatched(Duration),
}

/// How a builder was told to end by its own side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// SIGTERM.
    Terminate,
    /// SIGINT.
    Interrupt,
    /// SIGHUP.
    HangUp,
    /// `nixtail down`.
    Down,
    /// The process that it is bound to is gone.
    Unbound,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle(after) => write!(f, "no coordinator claimed it within {} s", after.as_secs()),
            Self::Stopped => f.write_str("its coordinator stopped it"),
            Self::ClaimerLost(ClaimerLoss::LoggedOut) => f.write_str("its coordinator left the tailnet"),
            Self::ClaimerLost(ClaimerLoss::Silent(after)) => {
                write!(f, "its coordinator is offline and silent for {} s", after.as_secs())
            }
            Self::ClaimerLost(ClaimerLoss::Unwatched(after)) => {
                write!(f, "its coordinator hasn't asked after it for {} s", after.as_secs())
            }
            Self::Told(Told::Terminate) => f.write_str("it got SIGTERM"),
            Self::Told(Told::Interrupt) => f.write_str("it got SIGINT"),
            Self::Told(Told::HangUp) => f.write_str("it got SIGHUP"),
            Self::Told(Told::Down) => f.write_str("`nixtail down` ended it"),
            Self::Told(Told::Unbound) => f.write_str("the process that it is bound to has ended"),
        }
    }
}

/// Why a claim is refused: the asking node's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// Another node has it.
    #[error("this builder is claimed by another coordinator")]
    Taken(NodePublic),
    /// It is for another run.
    #[error("this builder is of run {own}, not of {asked}")]
    OtherRun {
        /// The builder's.
        own: String,
        /// The claimer's.
        asked: String,
    },
    /// It is about to go.
    #[error("this builder is ending")]
    Ending,
}

/// Why only the claimer may do this: the asking node's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("only the coordinator that claimed this builder may {0} it")]
pub struct NotClaimer(&'static str);

impl Builder {
    /// A builder that nobody has claimed. Without an `idle_timeout` it waits for ever.
    #[must_use]
    pub fn new(now: Instant, idle_timeout: Option<Duration>) -> Self {
        Self {
            run: None,
            idle_timeout,
            claimer_silence: CLAIMER_SILENCE,
            idle_since: Some(now),
            claim: None,
            ending: None,
            freeze: OwnFreeze::new(now),
        }
    }

    /// The same builder, for one run only.
    #[must_use]
    pub fn of_run(self, run: Option<String>) -> Self {
        Self { run, ..self }
    }

    /// The same builder, with another [`CLAIMER_SILENCE`].
    #[must_use]
    pub fn with_claimer_silence(self, claimer_silence: Duration) -> Self {
        Self { claimer_silence, ..self }
    }

    /// `claimer` wants the builder for itself and its `run`. Claiming again what one has is fine, and a sign of life. A
    /// claimer without a run was given this builder's name.
    ///
    /// # Errors
    /// When another node has it, it is for another run, or the builder is ending.
    pub fn handle_claim(&mut self, now: Instant, claimer: NodePublic, run: Option<&str>) -> Result<(), ClaimError> {
        if self.ending.is_some() {
            return Err(ClaimError::Ending);
        }
        if let (Some(own), Some(asked)) = (&self.run, run)
            && own != asked
        {
            return Err(ClaimError::OtherRun { own: own.clone(), asked: asked.to_owned() });
        }
        match &mut self.claim {
            Some(claim) if claim.claimer != claimer => Err(ClaimError::Taken(claim.claimer)),
            Some(claim) => {
                claim.heard = now;
                claim.unwatched_since = now;
                Ok(())
            }
            None => {
                self.freeze = OwnFreeze::new(now);
                self.claim = Some(Claim { claimer, heard: now, offline_since: None, watches: 0, unwatched_since: now });
                Ok(())
            }
        }
    }

    /// `from` wants the builder to end.
    ///
    /// # Errors
    /// Unless `from` has claimed it.
    pub fn handle_stop(&mut self, now: Instant, from: NodePublic) -> Result<(), NotClaimer> {
        if self.claimer() != Some(from) {
            return Err(NotClaimer("stop"));
        }
        self.begin_ending(End::Stopped, now);
        Ok(())
    }

    /// `from` gives its claim back. The builder waits for another one, as long as it would have at first.
    ///
    /// # Errors
    /// Unless `from` has claimed it.
    pub fn handle_release(&mut self, now: Instant, from: NodePublic) -> Result<(), NotClaimer> {
        if self.claimer() != Some(from) {
            return Err(NotClaimer("release"));
        }
        self.claim = None;
        self.idle_since = self.idle_since.map(|_| now);
        Ok(())
    }

    /// Whoever runs the builder tells it to end. What runs may go on for `drain`.
    pub fn handle_told(&mut self, now: Instant, told: Told, drain: Duration) {
        self.begin_ending(End::Told(told), now + drain);
    }

    /// Whether `from` may watch.
    ///
    /// # Errors
    /// Unless `from` has claimed it.
    pub fn may_watch(&self, from: NodePublic) -> Result<(), NotClaimer> {
        if self.claimer() == Some(from) { Ok(()) } else { Err(NotClaimer("watch")) }
    }

    /// What runs has come to its end, or may go on no longer.
    pub fn handle_finished(&mut self, now: Instant) {
        if let Some(ending) = &mut self.ending {
            ending.until = ending.until.min(now);
        }
    }

    /// `from` watches from now on, until [`Self::handle_watch_ended`].
    ///
    /// # Errors
    /// Unless `from` has claimed it.
    pub fn handle_watch_began(&mut self, from: NodePublic) -> Result<(), NotClaimer> {
        let claim = self.claim.as_mut().filter(|claim| claim.claimer == from).ok_or(NotClaimer("watch"))?;
        claim.watches += 1;
        Ok(())
    }

    /// A watch of `from`'s ended.
    pub fn handle_watch_ended(&mut self, now: Instant, from: NodePublic) {
        if let Some(claim) = self.claim.as_mut().filter(|claim| claim.claimer == from) {
            claim.watches = claim.watches.saturating_sub(1);
            claim.unwatched_since = now;
        }
    }

    /// Whether any Nix session is open. A stranger's counts, too: a builder that is in use isn't idle.
    pub fn handle_sessions(&mut self, now: Instant, any: bool) {
        match (any, self.idle_since) {
            (true, _) => self.idle_since = None,
            (false, None) => self.idle_since = Some(now),
            (false, Some(_)) => {}
        }
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
            Presence::Absent => self.begin_ending(End::ClaimerLost(ClaimerLoss::LoggedOut), now),
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
        if self.freeze.handle_look(now)
            && let Some(claim) = &mut self.claim
        {
            // We could hear nobody.
            claim.heard = now;
            claim.unwatched_since = now;
            claim.offline_since = claim.offline_since.map(|_| now);
        }
        let due = self.deadlines().filter(|(deadline, _)| *deadline <= now).min_by_key(|(deadline, _)| *deadline);
        if let Some((_, end)) = due {
            self.begin_ending(end, now);
        }
    }

    /// When [`Self::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let until = self.ending.map(|ending| ending.until);
        let look = self.claim.as_ref().map(|_| self.freeze.next_look());
        self.deadlines().map(|(deadline, _)| deadline).chain(until).chain(look).min()
    }

    /// Why the builder ends, once it does. It takes nothing new from then on.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        self.ending.map(|ending| ending.end)
    }

    /// Whether what still runs must end, too, so that the builder is over.
    #[must_use]
    pub fn is_over(&self, now: Instant) -> bool {
        self.ending.is_some_and(|ending| ending.until <= now)
    }

    /// Who has claimed it.
    #[must_use]
    pub fn claimer(&self) -> Option<NodePublic> {
        self.claim.as_ref().map(|claim| claim.claimer)
    }

    /// The first reason counts; a later one can only hurry what runs.
    fn begin_ending(&mut self, end: End, until: Instant) {
        let ending = self.ending.get_or_insert(Ending { end, until });
        ending.until = ending.until.min(until);
    }

    /// What ends it by when.
    fn deadlines(&self) -> impl Iterator<Item = (Instant, End)> {
        let open = self.ending.is_none();
        let silence = if open { self.claimer_silence } else { self.claimer_silence.min(CLAIMER_SILENCE_AT_END) };
        let idle = self.idle_since.zip(self.idle_timeout).filter(|_| open && self.claim.is_none());
        let claim = self.claim.as_ref();
        let silent = claim.and_then(|claim| Some(claim.heard.max(claim.offline_since?)));
        let unwatched = claim.filter(|claim| claim.watches == 0).map(|claim| claim.unwatched_since);
        let lost = |loss| End::ClaimerLost(loss);
        [
            idle.map(|(since, after)| (since + after, End::Idle(after))),
            silent.map(|since| (since + silence, lost(ClaimerLoss::Silent(silence)))),
            unwatched.map(|since| (since + silence, lost(ClaimerLoss::Unwatched(silence)))),
        ]
        .into_iter()
        .flatten()
    }
}

#[cfg(test)]
mod tests;
