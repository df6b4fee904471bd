//! One registration, from its first request to its end: which keys it names, when it needs an auth key, a new node key or
//! a person, and what an answer means that never came (`doLogin` in `control/controlclient/direct.go`, `authRoutine` in
//! `auto.go`).
//!
//! Poll for a step, do it, tell how it went, and poll again. The deadline over all of it is the caller's.

mod error;

use std::time::{Duration, Instant};

use rand_core::CryptoRng;

pub use error::RegisterError;

use super::{AnswerError, Backoff, RegisterOutcome, printable, register_outcome};
use crate::key::NodePublic;
use crate::secret::Secret;
use crate::tailcfg::RegisterResponse;

/// Logins by a person that are begun again, because control forgot the one before or names another page for it.
const MAX_LOGINS: u32 = 5;
/// How long a made auth key is used, at most: half of what it is made for.
const MADE_KEY_LIFE: Duration = Duration::from_secs(1800);
/// The beginning of an auth key that may be shown when control quotes a part of one: no more than its kind.
const SHOWN_KEY: usize = 10;

/// With what a registration begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Keys that control has never seen.
    New,
    /// Keys that control has let in before: they may be enough, without a credential.
    Known,
    /// Keys that were sent with an auth key once, and no answer is known: control may have let them in.
    Unanswered,
    /// Keys that control has let in before and knows no more: they need a credential again.
    Forgotten,
}

/// What a node has to be let in with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Means {
    /// Nothing.
    Nothing,
    /// An auth key. It may be good for one registration only.
    AuthKey,
    /// Something that new auth keys are made from: an OAuth client's secret, or a workload's identity.
    KeyMaker,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Get an auth key: the one that there is, or a new one. Then [`Registration::handle_auth_key`].
    AuthKey,
    /// Make a new node key, keep both where keys are kept, then [`Registration::handle_node_key`].
    NodeKey,
    /// Send this. Then one of the calls that tell of an answer.
    Register(Claim),
    /// Ask control by a map request whether it knows the node, then [`Registration::handle_known`].
    AskWhetherKnown,
    /// Tell a person to log in at this URL, and go on. Comes once a URL.
    ShowLogin(String),
    /// Nothing, until then.
    Wait(Instant),
    /// Control has let the node in.
    Done(Registered),
    /// It won't, and trying again changes nothing.
    Failed(RegisterError),
}

/// What a registration says, beside the node's description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The node key that is to be let in.
    pub node_key: NodePublic,
    /// The one that it takes the place of.
    pub old_node_key: Option<NodePublic>,
    /// What entitles us to it.
    pub auth_key: Option<Secret>,
    /// The login of a person that is awaited. Control may answer only when that is done, minutes later.
    pub followup: Option<String>,
}

/// How a node was let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registered {
    /// `Some(false)`: an admin must approve the machine first. `None`: the netmap says it.
    pub machine_authorized: Option<bool>,
}

/// See the module.
#[derive(Debug)]
pub struct Registration {
    means: Means,
    /// Whether there is a person who can log in.
    has_person: bool,
    was_known: bool,
    node_key: NodePublic,
    old_node_key: Option<NodePublic>,
    /// Whether requests carry an auth key. Kept keys are tried without one first.
    uses_means: bool,
    auth_key: Option<Secret>,
    auth_key_since: Option<Instant>,
    /// A new auth key was got already because control wouldn't take the one before.
    has_renewed: bool,
    /// A request with an auth key may have been taken by control, unknown to us.
    is_unanswered: bool,
    has_rotated: bool,
    followup: Option<String>,
    logins_begun: u32,
    to_show: Option<String>,
    backoff: Backoff,
    not_before: Option<Instant>,
    next: Next,
}

/// The state behind [`Step`].
#[derive(Debug, Clone, PartialEq, Eq)]
enum Next {
    NodeKey,
    Register,
    /// With the words of the refusal that made us ask.
    AskWhetherKnown(String),
    Done(Registered),
    Failed(RegisterError),
}

impl Registration {
    /// Begins one for `node_key`. `old_node_key` is the one that it takes the place of, where that isn't done yet.
    #[must_use]
    pub fn new(
        entry: Entry,
        means: Means,
        has_person: bool,
        node_key: NodePublic,
        old_node_key: Option<NodePublic>,
    ) -> Self {
        let was_known = matches!(entry, Entry::Known | Entry::Forgotten);
        Self {
            means,
            has_person,
            was_known,
            node_key,
            old_node_key,
            uses_means: means != Means::Nothing && entry != Entry::Known,
            auth_key: None,
            auth_key_since: None,
            has_renewed: false,
            is_unanswered: entry == Entry::Unanswered,
            has_rotated: false,
            followup: None,
            logins_begun: 0,
            to_show: None,
            backoff: Backoff::default(),
            not_before: None,
            next: Next::Register,
        }
    }

    /// What to do now.
    pub fn poll_step(&mut self, now: Instant) -> Step {
        if let Some(url) = self.to_show.take() {
            return Step::ShowLogin(url);
        }
        if let Some(at) = self.not_before.filter(|at| now < *at) {
            return Step::Wait(at);
        }
        self.drop_old_auth_key(now);
        match &self.next {
            Next::NodeKey => Step::NodeKey,
            Next::Register if self.uses_means && self.auth_key.is_none() => Step::AuthKey,
            Next::Register => Step::Register(self.claim()),
            Next::AskWhetherKnown(_) => Step::AskWhetherKnown,
            Next::Done(registered) => Step::Done(*registered),
            Next::Failed(error) => Step::Failed(error.clone()),
        }
    }

    /// Whether control may have let the node in without our knowing.
    #[must_use]
    pub fn is_unanswered(&self) -> bool {
        self.is_unanswered
    }

    /// An auth key to be let in with.
    pub fn handle_auth_key(&mut self, now: Instant, key: Secret) {
        self.auth_key = Some(key);
        self.auth_key_since = Some(now);
    }

    /// A new node key, to take the place of the one before.
    pub fn handle_node_key(&mut self, key: NodePublic) {
        self.old_node_key = Some(self.node_key);
        self.node_key = key;
        self.next = Next::Register;
    }

    /// Control answered the request.
    pub fn handle_answer(&mut self, now: Instant, mut response: RegisterResponse, rng: &mut dyn CryptoRng) {
        self.not_before = None;
        // Before it is cut: control may quote the key that it refuses.
        response.error = self.redact(&response.error);
        match register_outcome(response) {
            RegisterOutcome::Registered { machine_authorized, .. } => {
                self.next = Next::Done(Registered { machine_authorized: Some(machine_authorized) });
            }
            RegisterOutcome::Refused { reason } => self.handle_refusal(now, reason, rng),
            RegisterOutcome::NeedsSignature => self.next = Next::Failed(RegisterError::TailnetLock),
            RegisterOutcome::NodeKeyExpired if self.has_rotated => {
                self.next = Next::Failed(RegisterError::Expired);
            }
            RegisterOutcome::NodeKeyExpired => {
                self.has_rotated = true;
                self.uses_means = self.means != Means::Nothing;
                self.followup = None;
                self.next = Next::NodeKey;
            }
            // What is there is better than a person.
            RegisterOutcome::NeedsLogin { .. } | RegisterOutcome::BadLoginUrl if self.has_means_left() => {
                self.uses_means = true;
            }
            RegisterOutcome::BadLoginUrl => self.next = Next::Failed(RegisterError::BadLoginUrl),
            RegisterOutcome::NeedsLogin { url } if !self.has_person => {
                let had_key = self.uses_means;
                self.next = Next::Failed(RegisterError::NeedsLogin { url, had_key });
            }
            // Control doesn't hold the request until the person is done: ask now and then.
            RegisterOutcome::NeedsLogin { url } if self.followup.as_ref() == Some(&url) => self.wait(now, rng),
            RegisterOutcome::NeedsLogin { url } => {
                if self.followup.is_some() {
                    // Control that names one page after the other mustn't keep us, or the person, busy.
                    self.logins_begun += 1;
                    if self.logins_begun > MAX_LOGINS {
                        let reason = "it names one login page after the other".to_owned();
                        self.next = Next::Failed(RegisterError::Refused { reason, was_known: self.was_known });
                        return;
                    }
                    self.wait(now, rng);
                }
                self.to_show = Some(url.clone());
                self.followup = Some(url);
            }
        }
    }

    /// Control answered with an HTTP status that is no success.
    pub fn handle_status(&mut self, now: Instant, error: &AnswerError, rng: &mut dyn CryptoRng) {
        match error {
            // Nor at once, whatever it says.
            AnswerError::Later(wait) => self.not_before = now.checked_add(self.backoff.next(rng).max(*wait)),
            AnswerError::Refused { status, text } => {
                let reason = format!("HTTP {status}: {}", self.redact(text));
                self.handle_refusal(now, reason, rng);
            }
            // Something between us may have failed after control had done it.
            AnswerError::Failed { .. } => self.handle_no_answer(now, rng),
            // Whoever doesn't know the path isn't control, or is just being put up.
            AnswerError::NotRegistered => self.wait(now, rng),
        }
    }

    /// The request was sent, and no answer came: control may have done what it says.
    pub fn handle_no_answer(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        self.is_unanswered |= self.claim().auth_key.is_some();
        self.wait(now, rng);
    }

    /// A step couldn't be done now, and nothing reached control.
    pub fn handle_undone(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        self.wait(now, rng);
    }

    /// Whether control knows our node key.
    pub fn handle_known(&mut self, is_known: bool) {
        let Next::AskWhetherKnown(reason) = &self.next else { return };
        self.is_unanswered = false;
        self.next = if is_known {
            Next::Done(Registered { machine_authorized: None })
        } else if self.means == Means::KeyMaker && !self.has_renewed {
            // The key was spent on a registration that came to nothing.
            self.has_renewed = true;
            self.auth_key = None;
            Next::Register
        } else {
            Next::Failed(RegisterError::Refused { reason: reason.clone(), was_known: self.was_known })
        };
    }

    /// A key that was made and not used for long is made anew. Not one that control may have taken: it is to be recognised.
    fn drop_old_auth_key(&mut self, now: Instant) {
        let is_old = self.auth_key_since.is_some_and(|since| now.saturating_duration_since(since) > MADE_KEY_LIFE);
        if is_old && self.means == Means::KeyMaker && !self.is_unanswered {
            (self.auth_key, self.auth_key_since) = (None, None);
        }
    }

    fn handle_refusal(&mut self, now: Instant, reason: String, rng: &mut dyn CryptoRng) {
        if self.followup.take().is_some() && self.logins_begun < MAX_LOGINS && reason.starts_with("HTTP ") {
            // The login was forgotten, as headscale does after some minutes: begin another.
            self.logins_begun += 1;
            self.wait(now, rng);
        } else if self.is_unanswered {
            // A key that can be used once was, by ourselves.
            self.next = Next::AskWhetherKnown(reason);
        } else if self.has_means_left() {
            self.uses_means = true;
        } else {
            self.next = Next::Failed(RegisterError::Refused { reason, was_known: self.was_known });
        }
    }

    /// Whether there is something to be let in with that wasn't tried yet.
    fn has_means_left(&self) -> bool {
        self.means != Means::Nothing && !self.uses_means
    }

    fn claim(&self) -> Claim {
        // A person's login needs no key beside it.
        let auth_key = self.auth_key.clone().filter(|_| self.uses_means && self.followup.is_none());
        Claim { node_key: self.node_key, old_node_key: self.old_node_key, auth_key, followup: self.followup.clone() }
    }

    fn wait(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        self.not_before = now.checked_add(self.backoff.next(rng));
    }

    /// Takes our auth key out of a text of control, also the beginning of one that was cut off.
    fn redact(&self, text: &str) -> String {
        let Some(key) = self.auth_key.as_ref().map(Secret::expose).filter(|key| !key.is_empty()) else {
            return printable(text.as_bytes());
        };
        let mut text = text.replace(key, "(the auth key)");
        let cut = key.char_indices().map(|(at, _)| at).rev().take_while(|at| *at > SHOWN_KEY);
        if let Some(beginning) = cut.filter_map(|at| key.get(..at)).find(|beginning| text.ends_with(beginning)) {
            text.truncate(text.len() - beginning.len());
            text.push_str("(the auth key)");
        }
        printable(text.as_bytes())
    }
}

#[cfg(test)]
mod tests;
