//! A coordinator's builders: who is wanted, how far each one is, when to try again, and when the waiting is over.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

/// The first pause between two tries of one builder. A netmap takes about a second to get round.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause: a builder that comes late is noticed within this.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The builders that a coordinator was given by name.
#[derive(Debug)]
pub struct Builders {
    deadline: Instant,
    wanted: BTreeMap<String, Wanted>,
}

#[derive(Debug)]
struct Wanted {
    standing: Standing,
    present: bool,
    /// When to try it next; `None` while a try is under way or none is due.
    next: Option<Instant>,
    pause: Duration,
}

/// How a wanted builder stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Not in the netmap yet.
    Awaited,
    /// In the netmap; being tried, or about to be again after the failure.
    Trying(Option<Failure>),
    /// Claimed, proved and in the machines list.
    Ready,
    /// Was ready and is gone; it is tried again when it comes back.
    Gone,
}

/// How far a try came, and in which words it failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What didn't work.
    pub stage: Stage,
    /// Why.
    pub reason: String,
}

/// The steps of proving a builder, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// A connection through the tunnel.
    Connect,
    /// The SSH host key, as control gave it.
    HostKey,
    /// The SSH policy.
    Policy,
    /// Its facts.
    Facts,
    /// The claim.
    Claim,
    /// A probe build with Nix.
    ProbeBuild,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "no answer",
            Self::HostKey => "host key",
            Self::Policy => "refused by policy",
            Self::Facts => "facts",
            Self::Claim => "claim",
            Self::ProbeBuild => "probe build failed",
        })
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Awaited => f.write_str("not in the netmap"),
            Self::Trying(None) => f.write_str("being tried"),
            Self::Trying(Some(failure)) => write!(f, "{}: {}", failure.stage, failure.reason),
            Self::Ready => f.write_str("ready"),
            Self::Gone => f.write_str("gone"),
        }
    }
}

/// Whether the waiting is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// Not yet.
    Waiting,
    /// All wanted builders are ready.
    Ready,
    /// The deadline passed; these are missing, each with the reason.
    Missing(Vec<(String, Standing)>),
}

impl Builders {
    /// The wanted builders, who have until `now + wait`.
    #[must_use]
    pub fn new(now: Instant, wait: Duration, names: impl IntoIterator<Item = String>) -> Self {
        let fresh = || Wanted { standing: Standing::Awaited, present: false, next: None, pause: FIRST_PAUSE };
        Self { deadline: now + wait, wanted: names.into_iter().map(|name| (name, fresh())).collect() }
    }

    /// What a netmap says: `present` tells whether a builder of that name is in it, and not known to be offline.
    pub fn handle_netmap(&mut self, now: Instant, present: impl Fn(&str) -> bool) {
        for (name, wanted) in &mut self.wanted {
            let (was, is) = (wanted.present, present(name));
            wanted.present = is;
            match (was, is) {
                (false, true) => {
                    wanted.standing = Standing::Trying(None);
                    wanted.next = Some(now);
                    wanted.pause = FIRST_PAUSE;
                }
                (true, false) => {
                    wanted.next = None;
                    wanted.standing =
                        if wanted.standing == Standing::Ready { Standing::Gone } else { Standing::Awaited };
                }
                _ => {}
            }
        }
    }

    /// The next builder that wants a try, which the caller starts now.
    pub fn poll_try(&mut self, now: Instant) -> Option<String> {
        let due = |wanted: &Wanted| wanted.next.is_some_and(|next| next <= now);
        let (name, wanted) = self.wanted.iter_mut().find(|(_, wanted)| due(wanted))?;
        wanted.next = None;
        Some(name.clone())
    }

    /// How a try ended.
    pub fn handle_tried(&mut self, now: Instant, name: &str, result: Result<(), Failure>) {
        let Some(wanted) = self.wanted.get_mut(name) else { return };
        match result {
            // It left while it was being tried: the next netmap with it in it starts anew.
            _ if !wanted.present => {}
            Ok(()) => wanted.standing = Standing::Ready,
            Err(failure) => {
                wanted.standing = Standing::Trying(Some(failure));
                wanted.next = Some(now + wanted.pause);
                wanted.pause = (wanted.pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    /// A builder that was ready answers no more, though the netmap has it still.
    pub fn handle_lost(&mut self, now: Instant, name: &str) {
        if let Some(wanted) = self.wanted.get_mut(name).filter(|wanted| wanted.standing == Standing::Ready) {
            wanted.standing = Standing::Gone;
            wanted.pause = FIRST_PAUSE;
            wanted.next = Some(now + FIRST_PAUSE);
        }
    }

    /// When something is due: a try, or the end of the waiting.
    #[must_use]
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let deadline = (self.settled(now) == Settled::Waiting).then_some(self.deadline);
        self.wanted.values().filter_map(|wanted| wanted.next).chain(deadline).min()
    }

    /// Whether the waiting is over. Only the first answer that isn't `Waiting` ends it: builders may go and come later.
    #[must_use]
    pub fn settled(&self, now: Instant) -> Settled {
        let missing: Vec<_> = self
            .wanted
            .iter()
            .filter(|(_, wanted)| wanted.standing != Standing::Ready)
            .map(|(name, wanted)| (name.clone(), wanted.standing.clone()))
            .collect();
        match (missing.is_empty(), now < self.deadline) {
            (true, _) => Settled::Ready,
            (false, true) => Settled::Waiting,
            (false, false) => Settled::Missing(missing),
        }
    }

    /// Each wanted builder and how it stands.
    pub fn standings(&self) -> impl Iterator<Item = (&str, &Standing)> {
        self.wanted.iter().map(|(name, wanted)| (name.as_str(), &wanted.standing))
    }
}
