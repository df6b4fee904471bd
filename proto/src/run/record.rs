//! What a coordinator remembers of its run: which builders it had and for how long, and who built what when.
//!
//! Pure bookkeeping in virtual time. Builders' own reports feed it; status, summary and timeline are read from it, and
//! so is whether a build was lost or failed. All of it is bounded: counts go on where details are dropped.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// The most builders that are remembered. A tailnet that had more in one run shows only the first ones.
pub const MAX_BUILDERS: usize = 1024;
/// The most ended builds that are kept one by one, about a megabyte. Beyond it the shortest of those that were built go
/// first: they tell the least in a timeline.
pub const MAX_SPANS: usize = 4096;
/// The most builds of one builder at one time. Nix sends no more than `maxJobs`; a report that says more is wrong.
pub const MAX_RUNNING: usize = 256;
/// The most stays of one builder that are kept one by one; of more, the oldest are dropped.
pub const MAX_STAYS: usize = 64;
/// The longest name or reason that is kept, in characters. Nix allows 211 in a store path's name.
pub const MAX_TEXT: usize = 256;

/// A coordinator's record of its run. Feed it what happens; it counts.
#[derive(Debug, Clone)]
pub struct Record {
    began: Instant,
    builders: BTreeMap<String, BuilderRecord>,
    spans: VecDeque<Span>,
    /// How many builds have ended.
    ended: u64,
    dropped_spans: u64,
    dropped_builders: u64,
}

/// What is told of a builder once it is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuilderFacts {
    /// Nix's name of its system.
    pub system: String,
    /// Its processors.
    pub cores: u32,
}

/// How a build ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Its outputs are there.
    Built,
    /// The builder says that the build failed.
    Failed,
    /// The builder was gone before the build ended.
    Lost,
    /// Its session ended before it did, and the builder is still there: Nix gave it up, as it does with all others once one has
    /// failed or was lost. It says nothing about the build.
    Abandoned,
}

/// One ended build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The builds that have ended, counted from 1 on: the order in which they did.
    pub number: u64,
    /// Who built it.
    pub builder: String,
    /// The lowest number that no other build of this builder had at that time; a timeline's row.
    pub slot: usize,
    /// The derivation's name, without its hash and `.drv`.
    pub derivation: String,
    /// When it began.
    pub started: Instant,
    /// When it ended, never before it began.
    pub ended: Instant,
    /// How it ended.
    pub outcome: Outcome,
}

/// A build that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// As in [`Span::slot`].
    pub slot: usize,
    /// The derivation's name, without its hash and `.drv`.
    pub derivation: String,
    /// When it began.
    pub started: Instant,
}

/// A time in which a builder was ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stay {
    /// When it was ready.
    pub since: Instant,
    /// When it was gone, and in which words; `None` while it is there.
    pub gone: Option<(Instant, String)>,
}

/// Sums over one builder or all. Times of several builders add up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// How long it was ready.
    pub present: Duration,
    /// How long of that at least one build ran.
    pub busy: Duration,
    /// The builds' own times added up, those under way included.
    pub building: Duration,
    /// Builds begun: always `running + built + failed + lost + abandoned`.
    pub started: u64,
    /// Builds under way.
    pub running: u64,
    /// Builds whose outputs are there.
    pub built: u64,
    /// Builds that failed.
    pub failed: u64,
    /// Builds whose builder went.
    pub lost: u64,
    /// Builds that Nix gave up.
    pub abandoned: u64,
    /// Bytes that it took in, as it counts them.
    pub bytes_in: u64,
    /// Bytes that it gave out, as it counts them.
    pub bytes_out: u64,
}

/// A moment of a [`Record`], to ask later what came after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    failed: u64,
    lost: u64,
}

/// What is remembered of one builder.
#[derive(Debug, Clone)]
pub struct BuilderRecord {
    facts: BuilderFacts,
    stays: VecDeque<Stay>,
    running: BTreeMap<u64, Running>,
    /// The stays that are over, and all counts.
    tally: Tally,
    /// Since when at least one build runs.
    busy_since: Option<Instant>,
    /// The latest time that was told of. Busy time is counted only after it, so that no second counts twice.
    latest: Instant,
    /// The counters of the node that it is now; one that comes back begins at 0.
    counted: (u64, u64),
}

impl Record {
    /// An empty record that begins now.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            began: now,
            builders: BTreeMap::new(),
            spans: VecDeque::new(),
            ended: 0,
            dropped_spans: 0,
            dropped_builders: 0,
        }
    }

    /// `builder` is ready, with these facts. Said again of one that is, it changes only the facts.
    pub fn handle_ready(&mut self, now: Instant, builder: &str, facts: &BuilderFacts) {
        let facts = BuilderFacts { system: bounded(&facts.system), cores: facts.cores };
        let no_room = self.builders.len() >= MAX_BUILDERS || builder.len() > MAX_TEXT;
        match self.builders.get_mut(builder) {
            Some(known) => known.handle_ready(now, facts),
            None if no_room => self.dropped_builders += 1,
            None => {
                self.builders.insert(builder.to_owned(), BuilderRecord::new(now, facts));
            }
        }
    }

    /// `builder` is ready no more. What it was building is lost.
    pub fn handle_gone(&mut self, now: Instant, builder: &str, reason: &str) {
        let Some(known) = self.builders.get_mut(builder) else { return };
        let now = known.advance(now);
        for running in known.handle_gone(now, reason) {
            self.keep(builder, running, now, Outcome::Lost);
        }
    }

    /// `builder` began to build `derivation` (a `.drv`'s path or its name) at `now`, under a number of its own. Heeded
    /// only of a builder that was ready at that time, and once for each number until that build has ended. It may be told
    /// of late, after its end even: then the end is told of right after it.
    pub fn handle_started(&mut self, now: Instant, builder: &str, build: u64, derivation: &str) {
        if let Some(known) = self.builders.get_mut(builder) {
            known.handle_started(now, build, derivation);
        }
    }

    /// The build that `builder` gave this number has ended. Heeded only while it runs.
    pub fn handle_finished(&mut self, now: Instant, builder: &str, build: u64, outcome: Outcome) {
        let Some(known) = self.builders.get_mut(builder) else { return };
        if let Some(running) = known.handle_finished(now, build, outcome) {
            self.keep(builder, running, now, outcome);
        }
    }

    /// `builder`'s counters as they stand now. One that is lower than before has begun anew.
    pub fn handle_traffic(&mut self, builder: &str, bytes_in: u64, bytes_out: u64) {
        if let Some(known) = self.builders.get_mut(builder) {
            known.handle_traffic(bytes_in, bytes_out);
        }
    }

    /// When the record began.
    #[must_use]
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Each builder that was ever ready, by name.
    pub fn builders(&self) -> impl Iterator<Item = (&str, &BuilderRecord)> {
        self.builders.iter().map(|(name, builder)| (name.as_str(), builder))
    }

    /// One builder, if it was ever ready.
    #[must_use]
    pub fn builder(&self, name: &str) -> Option<&BuilderRecord> {
        self.builders.get(name)
    }

    /// The ended builds that are kept, in the order in which they ended.
    pub fn spans(&self) -> impl Iterator<Item = &Span> {
        self.spans.iter()
    }

    /// How many builds have ended: the number of the last [`Span`].
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.ended
    }

    /// How many ended builds were counted and aren't kept one by one.
    #[must_use]
    pub fn dropped_spans(&self) -> u64 {
        self.dropped_spans
    }

    /// How often a builder came that there was no room for.
    #[must_use]
    pub fn dropped_builders(&self) -> u64 {
        self.dropped_builders
    }

    /// All builders' tallies added up.
    #[must_use]
    pub fn totals(&self, now: Instant) -> Tally {
        self.builders.values().fold(Tally::default(), |sum, builder| sum.plus(builder.tally(now)))
    }

    /// A moment to ask [`Self::lost_since`] and [`Self::failed_since`] about.
    #[must_use]
    pub fn mark(&self) -> Mark {
        let totals = self.totals(self.began);
        Mark { failed: totals.failed, lost: totals.lost }
    }

    /// How many builds were lost with their builder since then.
    #[must_use]
    pub fn lost_since(&self, mark: Mark) -> u64 {
        self.mark().lost.saturating_sub(mark.lost)
    }

    /// How many builds failed by themselves since then, as their builders say: those that Nix gave up aren't among them.
    #[must_use]
    pub fn failed_since(&self, mark: Mark) -> u64 {
        self.mark().failed.saturating_sub(mark.failed)
    }

    fn keep(&mut self, builder: &str, running: Running, now: Instant, outcome: Outcome) {
        let Running { slot, derivation, started } = running;
        let builder = builder.to_owned();
        self.ended += 1;
        let number = self.ended;
        self.spans.push_back(Span { number, builder, slot, derivation, started, ended: now.max(started), outcome });
        if self.spans.len() > MAX_SPANS {
            self.dropped_spans += 1;
            let weight = |span: &Span| (span.outcome != Outcome::Built, span.length());
            let lightest = self.spans.iter().enumerate().min_by_key(|(_, span)| weight(span));
            if let Some(index) = lightest.map(|(index, _)| index) {
                self.spans.remove(index);
            }
        }
    }
}

impl BuilderRecord {
    fn new(now: Instant, facts: BuilderFacts) -> Self {
        Self {
            facts,
            stays: VecDeque::from([Stay { since: now, gone: None }]),
            running: BTreeMap::new(),
            tally: Tally::default(),
            busy_since: None,
            latest: now,
            counted: (0, 0),
        }
    }

    /// What it is.
    #[must_use]
    pub fn facts(&self) -> &BuilderFacts {
        &self.facts
    }

    /// Whether it is ready now.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.stays.back().is_some_and(|stay| stay.gone.is_none())
    }

    /// When it was ready, oldest first.
    pub fn stays(&self) -> impl Iterator<Item = &Stay> {
        self.stays.iter()
    }

    /// What it builds now, the oldest number first.
    pub fn running(&self) -> impl Iterator<Item = &Running> {
        self.running.values()
    }

    /// Its sums as of `now`.
    #[must_use]
    pub fn tally(&self, now: Instant) -> Tally {
        let mut tally = self.tally;
        let present = self.stays.back().filter(|stay| stay.gone.is_none());
        tally.present += present.map(|stay| now.saturating_duration_since(stay.since)).unwrap_or_default();
        tally.busy += self.busy_since.map(|since| now.saturating_duration_since(since)).unwrap_or_default();
        tally.building +=
            self.running.values().map(|running| now.saturating_duration_since(running.started)).sum::<Duration>();
        tally
    }

    fn handle_ready(&mut self, now: Instant, facts: BuilderFacts) {
        self.facts = facts;
        let now = self.advance(now);
        if self.is_present() {
            return;
        }
        self.stays.push_back(Stay { since: now, gone: None });
        if self.stays.len() > MAX_STAYS {
            self.stays.pop_front();
        }
        self.counted = (0, 0);
    }

    fn handle_gone(&mut self, now: Instant, reason: &str) -> Vec<Running> {
        if !self.is_present() {
            return Vec::new();
        }
        let lost: Vec<Running> = std::mem::take(&mut self.running).into_values().collect();
        self.tally.running = 0;
        self.tally.lost += lost.len() as u64;
        self.tally.building += lost.iter().map(|lost| now.saturating_duration_since(lost.started)).sum::<Duration>();
        self.settle_busy(now);
        if let Some(stay) = self.stays.back_mut() {
            self.tally.present += now.saturating_duration_since(stay.since);
            stay.gone = Some((now, bounded(reason)));
        }
        lost
    }

    fn handle_started(&mut self, now: Instant, build: u64, derivation: &str) {
        let told = self.advance(now);
        let Some(stay) = self.stays.back().filter(|stay| stay.gone.is_none()) else { return };
        // What began before the builder was ready is the probe, or was counted as lost in an earlier stay.
        if now < stay.since || self.running.len() >= MAX_RUNNING || self.running.contains_key(&build) {
            return;
        }
        let taken = |slot: usize| self.running.values().any(|running| running.slot == slot);
        let slot = (0..MAX_RUNNING).find(|slot| !taken(*slot)).unwrap_or_default();
        self.running.insert(build, Running { slot, derivation: bounded(derivation_name(derivation)), started: now });
        self.tally.started += 1;
        self.tally.running += 1;
        self.busy_since.get_or_insert(told);
    }

    fn handle_finished(&mut self, now: Instant, build: u64, outcome: Outcome) -> Option<Running> {
        let told = self.advance(now);
        let running = self.running.remove(&build)?;
        self.tally.building += now.saturating_duration_since(running.started);
        self.tally.running -= 1;
        match outcome {
            Outcome::Built => self.tally.built += 1,
            Outcome::Failed => self.tally.failed += 1,
            Outcome::Lost => self.tally.lost += 1,
            Outcome::Abandoned => self.tally.abandoned += 1,
        }
        if self.running.is_empty() {
            self.settle_busy(told);
        }
        Some(running)
    }

    fn handle_traffic(&mut self, bytes_in: u64, bytes_out: u64) {
        let grown = |counted: u64, counter: u64| counter.checked_sub(counted).unwrap_or(counter);
        self.tally.bytes_in = self.tally.bytes_in.saturating_add(grown(self.counted.0, bytes_in));
        self.tally.bytes_out = self.tally.bytes_out.saturating_add(grown(self.counted.1, bytes_out));
        self.counted = (bytes_in, bytes_out);
    }

    fn settle_busy(&mut self, now: Instant) {
        if let Some(since) = self.busy_since.take() {
            self.tally.busy += now.saturating_duration_since(since);
        }
    }

    /// The time that this event counts for: never before the one that was told of last.
    fn advance(&mut self, now: Instant) -> Instant {
        self.latest = self.latest.max(now);
        self.latest
    }
}

impl Span {
    /// How long it took.
    #[must_use]
    pub fn length(&self) -> Duration {
        self.ended.saturating_duration_since(self.started)
    }
}

impl Tally {
    /// How long it was ready and nothing ran.
    #[must_use]
    pub fn wait(&self) -> Duration {
        self.present.saturating_sub(self.busy)
    }

    fn plus(self, other: Self) -> Self {
        Self {
            present: self.present + other.present,
            busy: self.busy + other.busy,
            building: self.building + other.building,
            started: self.started + other.started,
            running: self.running + other.running,
            built: self.built + other.built,
            failed: self.failed + other.failed,
            lost: self.lost + other.lost,
            abandoned: self.abandoned + other.abandoned,
            bytes_in: self.bytes_in.saturating_add(other.bytes_in),
            bytes_out: self.bytes_out.saturating_add(other.bytes_out),
        }
    }
}

/// A derivation's name without what people don't read: `/nix/store/HASH-hello-2.12.drv` is `hello-2.12`. The hash is 32
/// characters of Nix's base 32, as in every store path.
#[must_use]
pub fn derivation_name(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    let named = match file.split_once('-') {
        Some((hash, name)) if hash.len() == 32 && hash.bytes().all(|byte| byte.is_ascii_alphanumeric()) => name,
        _ => file,
    };
    named.strip_suffix(".drv").unwrap_or(named)
}

fn bounded(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests;
