//! A coordinator's builders: who is wanted, how far each one is, what to try next, and when the waiting is over.
//!
//! Several coordinators may want the same builders. A builder takes one claim, whoever comes first, and tells later ones who
//! has it. So that two which both wait for more than is left don't wait for each other in vain, one gives way: of two
//! that wait, the one with the greater node key gives back what it holds, and claims again only when enough are free.

mod standing;
mod wanted;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

pub use standing::{Failure, Holder, Progress, Stage, Standing};
pub use wanted::{BUILDER_TAG, MAX_RUN_NAME, RunNameError, Sighting, Wanted, Who, carries_run, check_run_name};

use crate::key::NodePublic;

/// The first pause between two tries of one builder. A netmap takes about a second to get round.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause: a builder that comes late is noticed within this.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The longest pause where nothing says that the node is one of ours, which may be so for hundreds.
const LONGEST_PAUSE_OF_STRANGERS: Duration = Duration::from_secs(60);
/// How many steps are under way at once: each is a connection, and a probe is a process of Nix.
const MAX_STEPS: usize = 16;
/// After this long a step counts as failed, whatever became of it. Each has a shorter deadline of its own.
const STEP_DEADLINE: Duration = Duration::from_secs(120);

/// A coordinator's builders. Feed it netmaps and how steps ended; it says what to do next.
#[derive(Debug)]
pub struct Builders {
    wanted: Wanted,
    own_key: NodePublic,
    deadline: Instant,
    entries: BTreeMap<String, Entry>,
    /// The number of the latest attempt of all.
    attempts: u64,
    is_settled: bool,
    is_stopped: bool,
    lost: Vec<String>,
}

#[derive(Debug, Default)]
struct Entry {
    /// The node, while it is in the netmap.
    sighting: Option<Sighting>,
    standing: Standing,
    attempt: u64,
    /// What is under way, and when it is given up.
    doing: Option<(Step, Instant)>,
    /// When to go on; `None` while a step is under way or none is due.
    next: Option<Instant>,
    pause: Duration,
    met: Option<Met>,
    /// It has taken our claim.
    is_held: bool,
    /// It failed its probe, and another one may have its place.
    is_unfit: bool,
    is_watched: bool,
}

/// What to do with a builder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Ask who it is; answer with [`Builders::handle_met`].
    Meet,
    /// Claim it; answer with [`Builders::handle_claimed`].
    Claim,
    /// Let Nix build something through it; answer with [`Builders::handle_probed`].
    Probe,
    /// Give the claim back; answer with [`Builders::handle_released`].
    Release,
    /// Control calls a builder offline that is ready: look whether it lives until control sees it again; answer with
    /// [`Builders::handle_watched`].
    Watch,
}

/// A step that the caller starts now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    /// What to do.
    pub step: Step,
    /// With whom; goes back with the answer.
    pub attempt: Attempt,
}

/// One attempt at one builder. An answer of an earlier one says nothing any more: the node may be another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The builder.
    pub name: String,
    number: u64,
}

/// Who a builder is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Met {
    /// The systems that it builds for.
    pub systems: Vec<String>,
    /// The run that it says it is of.
    pub run: Option<String>,
}

/// Why a builder didn't take a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimRefusal {
    /// Another coordinator has it.
    Taken(Holder),
    /// Anything else.
    Failed(Failure),
}

/// How the waiting ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// Enough are ready.
    Ready,
    /// The deadline passed before that.
    Missing(Progress),
}

impl Builders {
    /// The wanted builders, which have until `now + wait`. `own_key` is what others call us by.
    #[must_use]
    pub fn new(now: Instant, wanted: Wanted, own_key: NodePublic) -> Self {
        let names = if let Who::Named(names) = &wanted.who { names.clone() } else { Vec::new() };
        Self {
            deadline: now + wanted.wait,
            wanted,
            own_key,
            entries: names.into_iter().map(|name| (name, Entry::default())).collect(),
            attempts: 0,
            is_settled: false,
            is_stopped: false,
            lost: Vec::new(),
        }
    }

    /// What a netmap says. A builder that is ours and merely called offline stays: it may still build.
    pub fn handle_netmap(&mut self, now: Instant, sightings: Vec<Sighting>) {
        let mut seen: BTreeMap<String, Sighting> =
            sightings.into_iter().map(|sighting| (sighting.name.clone(), sighting)).collect();
        for (name, entry) in &mut self.entries {
            let same = |new: &Sighting| entry.sighting.as_ref().is_some_and(|old| old.key == new.key);
            match seen.remove(name) {
                Some(new) if same(&new) && (entry.is_held || new.online != Some(false)) => entry.sighting = Some(new),
                new => {
                    leave(name, entry, &mut self.lost);
                    if let Some(new) = new.filter(|new| new.online != Some(false)) {
                        arrive(now, entry, new, self.is_stopped);
                    }
                }
            }
        }
        if let Who::Tagged { .. } = self.wanted.who {
            self.entries.retain(|_, entry| entry.sighting.is_some());
            for (name, new) in seen.into_iter().filter(|(_, new)| new.online != Some(false)) {
                let mut entry = Entry::default();
                arrive(now, &mut entry, new, self.is_stopped);
                self.entries.insert(name, entry);
            }
        }
    }

    /// The next step to take. Ask until there is none.
    pub fn poll_action(&mut self, now: Instant) -> Option<Action> {
        self.give_up(now);
        let (name, step) = self.due(now)?;
        let entry = self.entries.get_mut(&name)?;
        match step {
            Step::Watch => entry.is_watched = true,
            Step::Release => entry.hand_back(),
            Step::Claim if entry.standing == Standing::Spare => entry.standing = Standing::Trying(None),
            Step::Meet | Step::Claim | Step::Probe => {}
        }
        if step != Step::Watch {
            self.attempts += 1;
            entry.attempt = self.attempts;
            entry.doing = Some((step, now + STEP_DEADLINE));
        }
        Some(Action { step, attempt: Attempt { name, number: entry.attempt } })
    }

    /// How [`Step::Meet`] ended.
    pub fn handle_met(&mut self, now: Instant, attempt: &Attempt, result: Result<Met, Failure>) {
        let wanted = &self.wanted;
        let Some(entry) = current(&mut self.entries, attempt, Step::Meet) else { return };
        match result {
            Err(failure) => entry.fail(now, failure),
            Ok(met) => {
                let is_meant = entry.sighting.as_ref().is_some_and(|sighting| sighting.is_meant);
                if entry.is_held {
                    entry.next = Some(now);
                } else if wanted.takes_run(met.run.as_deref(), is_meant) {
                    entry.standing = Standing::Spare;
                } else {
                    entry.standing = Standing::Foreign(met.run.clone().unwrap_or_else(|| "none".to_owned()));
                }
                entry.met = Some(met);
            }
        }
    }

    /// How [`Step::Claim`] ended.
    pub fn handle_claimed(&mut self, now: Instant, attempt: &Attempt, result: Result<(), ClaimRefusal>) {
        let met = self.entries.get(&attempt.name).and_then(|entry| entry.met.as_ref());
        let has_place = met.is_some_and(|met| self.has_place(met, |entry| entry.is_held));
        let Some(entry) = current(&mut self.entries, attempt, Step::Claim) else { return };
        match result {
            Ok(()) => {
                entry.is_held = true;
                // Several that were another's may come free at once: what is too much is given back.
                entry.standing = if has_place { Standing::Trying(None) } else { Standing::Spare };
                entry.next = Some(now);
            }
            Err(ClaimRefusal::Taken(holder)) => {
                entry.standing = Standing::Taken(holder);
                entry.next = Some(now + LONGEST_PAUSE);
            }
            Err(ClaimRefusal::Failed(failure)) => entry.fail(now, failure),
        }
    }

    /// How [`Step::Probe`] ended.
    pub fn handle_probed(&mut self, now: Instant, attempt: &Attempt, result: Result<(), Failure>) {
        let has_others = self.wanted.most().is_some();
        let Some(entry) = current(&mut self.entries, attempt, Step::Probe) else { return };
        match result {
            Ok(()) => {
                entry.standing = Standing::Ready;
                entry.pause = FIRST_PAUSE;
            }
            Err(failure) => {
                entry.is_unfit = has_others;
                entry.fail(now, failure);
            }
        }
    }

    /// [`Step::Release`] is done, or has failed: then the builder notices our leaving.
    pub fn handle_released(&mut self, attempt: &Attempt) {
        let _ = current(&mut self.entries, attempt, Step::Release);
    }

    /// How [`Step::Watch`] ended: control sees the builder again, or it gave no sign of life.
    pub fn handle_watched(&mut self, now: Instant, attempt: &Attempt, result: Result<(), Failure>) {
        let Some(entry) = self.entries.get_mut(&attempt.name).filter(|entry| entry.attempt == attempt.number) else {
            return;
        };
        entry.is_watched = false;
        if result.is_err() {
            self.handle_lost(now, &attempt.name);
        }
    }

    /// A builder that was ready answers no more, though the netmap has it still.
    pub fn handle_lost(&mut self, now: Instant, name: &str) {
        let Some(entry) = self.entries.get_mut(name).filter(|entry| entry.standing == Standing::Ready) else { return };
        let sighting = entry.sighting.take();
        leave(name, entry, &mut self.lost);
        entry.sighting = sighting;
        entry.next = Some(now + FIRST_PAUSE);
    }

    /// The builders have been told to end: none is listed or tried any more.
    pub fn handle_stopped(&mut self) {
        self.is_stopped = true;
        for entry in self.entries.values_mut() {
            entry.doing = None;
            entry.next = None;
            entry.attempt = 0;
            if entry.is_held {
                entry.standing = Standing::Stopped;
            }
        }
    }

    /// A builder that was ready and is gone: each loss is told once.
    pub fn poll_lost(&mut self) -> Option<String> {
        self.lost.pop()
    }

    /// Whether the waiting is over. This is said once: what goes and comes later changes nothing of it.
    pub fn poll_settled(&mut self, now: Instant) -> Option<Settled> {
        if self.is_settled {
            return None;
        }
        self.is_settled = self.has_enough() || self.is_stopped || now >= self.deadline;
        if !self.is_settled {
            return None;
        }
        if self.has_enough() {
            return Some(Settled::Ready);
        }
        // What is claimed from here on would be in others' way.
        self.is_stopped = true;
        Some(Settled::Missing(self.progress()))
    }

    /// When something is due: a step, or the end of the waiting.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.is_stopped {
            return None;
        }
        let is_full = self.steps() >= MAX_STEPS;
        let due = self.entries.values().filter_map(|entry| match entry.doing {
            Some((_, deadline)) => Some(deadline),
            // What waits for a place goes on when a step ends.
            None => entry.next.filter(|_| !is_full && (entry.holder().is_none() || self.asks_again(entry))),
        });
        due.chain((!self.is_settled).then_some(self.deadline)).min()
    }

    /// The builders that Nix is to be told of, and no others.
    pub fn ready(&self) -> impl Iterator<Item = &str> {
        self.standings().filter(|(_, standing)| **standing == Standing::Ready).map(|(name, _)| name)
    }

    /// Each builder that is or may be wanted, and how it stands. Nodes of other runs aren't among them.
    pub fn standings(&self) -> impl Iterator<Item = (&str, &Standing)> {
        let is_ours = |entry: &Entry| match &entry.met {
            Some(_) => !matches!(entry.standing, Standing::Foreign(_)),
            None => entry.sighting.as_ref().is_none_or(|sighting| sighting.is_meant),
        };
        let ours = self.entries.iter().filter(move |(_, entry)| is_ours(entry));
        ours.map(|(name, entry)| (name.as_str(), &entry.standing))
    }

    /// The node that a name stands for now.
    #[must_use]
    pub fn key_of(&self, name: &str) -> Option<NodePublic> {
        self.entries.get(name)?.sighting.as_ref().map(|sighting| sighting.key)
    }

    /// Whether enough are ready now, and one for each wanted system.
    #[must_use]
    pub fn has_enough(&self) -> bool {
        self.ready().count() >= self.wanted.enough() && self.covers_systems()
    }

    /// Whether there is a ready one for each wanted system.
    #[must_use]
    pub fn covers_systems(&self) -> bool {
        self.systems_without(|entry| entry.standing == Standing::Ready).is_empty()
    }

    /// Whether [`Self::handle_stopped`] was called, or the waiting was in vain.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    /// How the waiting goes.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let ready = self.ready().count();
        let gives_way = self.gives_way();
        let rest: Vec<_> = self
            .standings()
            .filter(|(_, standing)| **standing != Standing::Ready && (gives_way || **standing != Standing::Spare))
            .map(|(name, standing)| (name.to_owned(), standing.clone()))
            .collect();
        let unseen = self.wanted.total().saturating_sub(self.standings().count());
        let is_found = matches!(self.wanted.who, Who::Tagged { .. });
        Progress {
            ready,
            total: self.wanted.total().max(ready),
            enough: self.wanted.enough(),
            rest,
            unseen: (is_found && unseen > 0).then(|| (unseen, self.wanted.description())),
            systems: self
                .systems_without(|entry| entry.standing == Standing::Ready)
                .into_iter()
                .map(str::to_owned)
                .collect(),
        }
    }

    /// A step that nobody answers for must not hold up its builder for ever.
    fn give_up(&mut self, now: Instant) {
        let has_others = self.wanted.most().is_some();
        for entry in self.entries.values_mut() {
            let Some((step, _)) = entry.doing.filter(|(_, deadline)| *deadline <= now) else { continue };
            entry.doing = None;
            let stage = match step {
                Step::Release => continue,
                Step::Meet | Step::Watch => Stage::Connect,
                Step::Claim => Stage::Claim,
                Step::Probe => Stage::ProbeBuild,
            };
            entry.attempt = 0;
            entry.is_unfit = entry.is_held && has_others;
            entry.fail(
                now,
                Failure { stage, reason: format!("nothing came of it within {} s", STEP_DEADLINE.as_secs()) },
            );
        }
    }

    /// The next builder and what it needs. Those that are meant go first.
    fn due(&self, now: Instant) -> Option<(String, Step)> {
        if self.is_stopped {
            return None;
        }
        let (gives_way, is_full) = (self.gives_way(), self.steps() >= MAX_STEPS);
        let is_meant = |entry: &Entry| entry.sighting.as_ref().is_some_and(|sighting| sighting.is_meant);
        let step = |entry: &Entry| {
            let sighting = entry.sighting.as_ref()?;
            if entry.doing.is_some() {
                return None;
            }
            if entry.is_held && (gives_way || entry.is_unfit || entry.standing == Standing::Spare) {
                return Some(Step::Release);
            }
            if entry.standing == Standing::Ready {
                return (sighting.online == Some(false) && !entry.is_watched).then_some(Step::Watch);
            }
            let is_due = entry.next.is_some_and(|next| next <= now);
            match &entry.met {
                _ if is_full => None,
                None => is_due.then_some(Step::Meet),
                Some(_) if entry.is_held => is_due.then_some(Step::Probe),
                Some(_) if entry.holder().is_some() => (is_due && self.asks_again(entry)).then_some(Step::Claim),
                Some(met) => (entry.standing == Standing::Spare && self.wants(entry, met)).then_some(Step::Claim),
            }
        };
        let of = |meant: bool| {
            self.entries
                .iter()
                .filter(move |(_, entry)| is_meant(entry) == meant)
                .find_map(|(name, entry)| Some((name.clone(), step(entry)?)))
        };
        of(true).or_else(|| of(false))
    }

    /// Whether one that is another coordinator's is asked whether it still is. One that gives way must know, too.
    fn asks_again(&self, entry: &Entry) -> bool {
        self.gives_way() || entry.met.as_ref().is_some_and(|met| self.wants(entry, met))
    }

    /// Whether this one, which isn't ours, should be.
    fn wants(&self, entry: &Entry, met: &Met) -> bool {
        if self.gives_way() || matches!(entry.standing, Standing::Foreign(_)) {
            return false;
        }
        self.has_place(met, |entry| entry.is_held || matches!(entry.doing, Some((Step::Claim, _))))
    }

    /// Whether this one may be had beside those that count.
    fn has_place(&self, met: &Met, counts: impl Fn(&Entry) -> bool) -> bool {
        let Some(most) = self.wanted.most() else { return true };
        let held = self.entries.values().filter(|entry| counts(entry)).count();
        let open = self.systems_without(counts);
        // Each wanted system keeps a place until one for it is ours.
        let kept = if met.systems.iter().any(|system| open.contains(system.as_str())) { 0 } else { open.len() };
        held + kept < most
    }

    /// Whether another coordinator goes first: one that has some of what we need, while what is left isn't enough for us.
    fn gives_way(&self) -> bool {
        let goes_first = |key: &NodePublic| *key < self.own_key;
        if self.is_settled || !self.entries.values().any(|entry| entry.holder().is_some_and(goes_first)) {
            return false;
        }
        let may_be_ours = |entry: &Entry| {
            let hopeful = !matches!(entry.standing, Standing::Trying(Some(_)) | Standing::Foreign(_));
            entry.is_held || (entry.sighting.is_some() && hopeful && entry.holder().is_none())
        };
        let left = || self.entries.values().filter(|entry| may_be_ours(entry));
        let all_are_known = left().all(|entry| entry.met.is_some());
        left().count() < self.wanted.enough() || (all_are_known && !self.systems_without(may_be_ours).is_empty())
    }

    /// The wanted systems that no builder of these builds for.
    fn systems_without(&self, counts: impl Fn(&Entry) -> bool) -> BTreeSet<&str> {
        let builds_for = |system: &String| {
            let has = |entry: &&Entry| entry.met.as_ref().is_some_and(|met| met.systems.contains(system));
            self.entries.values().filter(|entry| counts(entry)).any(|entry| has(&entry))
        };
        self.wanted.systems.iter().filter(|system| !builds_for(system)).map(String::as_str).collect()
    }

    fn steps(&self) -> usize {
        self.entries.values().filter(|entry| entry.doing.is_some()).count()
    }
}

impl Entry {
    /// Who else has it, as far as is known.
    fn holder(&self) -> Option<&NodePublic> {
        if let Standing::Taken(holder) = &self.standing { Some(&holder.key) } else { None }
    }

    fn fail(&mut self, now: Instant, failure: Failure) {
        let is_meant = self.sighting.as_ref().is_some_and(|sighting| sighting.is_meant);
        let longest = if is_meant { LONGEST_PAUSE } else { LONGEST_PAUSE_OF_STRANGERS };
        self.standing = Standing::Trying(Some(failure));
        self.next = Some(now + self.pause);
        self.pause = (self.pause * 2).min(longest);
        // From the start: what it is may have changed with what didn't work.
        self.met = None;
    }

    fn hand_back(&mut self) {
        self.is_held = false;
        // One that has failed goes on from its failure.
        if !std::mem::take(&mut self.is_unfit) && self.met.is_some() {
            self.standing = Standing::Spare;
            self.next = None;
        }
    }
}

/// The builder that an answer is about, unless the answer comes too late; the step is over then.
fn current<'a>(entries: &'a mut BTreeMap<String, Entry>, attempt: &Attempt, step: Step) -> Option<&'a mut Entry> {
    let entry = entries.get_mut(&attempt.name).filter(|entry| entry.attempt == attempt.number)?;
    entry.doing.take_if(|(doing, _)| *doing == step)?;
    if step != Step::Release {
        entry.next = None;
    }
    Some(entry)
}

fn leave(name: &str, entry: &mut Entry, lost: &mut Vec<String>) {
    let was_ready = entry.standing == Standing::Ready;
    if was_ready {
        lost.push(name.to_owned());
    }
    let standing = match &entry.standing {
        Standing::Ready | Standing::Gone => Standing::Gone,
        Standing::Stopped => Standing::Stopped,
        _ => Standing::Awaited,
    };
    *entry = Entry { standing, pause: FIRST_PAUSE, ..Entry::default() };
}

fn arrive(now: Instant, entry: &mut Entry, sighting: Sighting, is_stopped: bool) {
    entry.sighting = Some(sighting);
    entry.pause = FIRST_PAUSE;
    if !is_stopped {
        entry.standing = Standing::Trying(None);
        entry.next = Some(now);
    }
}

#[cfg(test)]
mod tests;
