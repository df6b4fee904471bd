//! A coordinator: finds its builders, proves and claims them, and tells Nix of them while they are there.
//!
//! Who is tried when, who is claimed, and when the waiting is over is decided in [`nixtail_proto::run::Builders`].

mod board;
pub mod borrowed;
mod chronicle;
mod claims;
pub mod mode;
mod monitor;
mod options;
mod probe_build;
mod prove;
pub mod situation;
mod status;
pub mod verbs;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nixtail_proto::key::NodePublic;
use nixtail_proto::netmap::Netmap;
use nixtail_proto::run::{
    Action, Attempt, Builders, ClaimRefusal, Failure, Met, Outcome, Progress, Settled, Speed, Standing, Step,
    speed_factors,
};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::agent::Agent;
use crate::direct::{Lane, LaneError, SshLinks};
use crate::report::plain;
use borrowed::PlaceError;
use claims::Claims;
use mode::{Layout, Mode, Told};
use monitor::{Finding, Monitor};
use prove::{Acquaintance, Prover, Via};

pub use board::{Board, BuilderStatus};
pub use chronicle::Chronicle;
pub use options::{Offer, Options, OptionsError, Transport};
pub use status::{BuilderView, CoordinatorStatus, EndedBuilds, Live, RunningBuild};

/// Nothing is due for so long that looking again is free.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

/// How long the builders may take to hear, at the end, that they shall end.
const STOP_BUILDERS: Duration = Duration::from_secs(4);

/// How many failed builds are named.
const SHOWN_FAILURES: usize = 5;

/// How long a build's end may be on its way here: builders put into one report what happens within 50 ms.
const SHORTEST_CATCH_UP: Duration = Duration::from_millis(150);
const LONGEST_CATCH_UP: Duration = Duration::from_secs(2);
/// How often it is looked whether all has ended.
const CATCH_UP_STEP: Duration = Duration::from_millis(25);

/// How many losses are remembered for whoever asks.
const MAX_LOSSES: usize = 256;

/// Why a coordinator couldn't begin or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CoordinatorError {
    /// A file couldn't be written.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A lane can't be, and no other may be used.
    #[error("the way to the builders can't be served: {0}")]
    Lane(#[from] LaneError),
    /// The waiting is over and some are missing.
    #[error("builders are missing after {} s: {}", waited.as_secs(), board::line(missing))]
    Missing {
        /// How long it waited.
        waited: Duration,
        /// Who, and why.
        missing: Progress,
    },
}

/// A coordinator at work. [`Coordinator::work`] must be polled for anything to happen.
pub struct Coordinator {
    prover: Arc<Prover>,
    begun: Instant,
    told: Option<Told>,
    builders: Builders,
    known: BTreeMap<String, Acquaintance>,
    tries: JoinSet<Tried>,
    netmap: watch::Receiver<Option<Arc<Netmap>>>,
    /// What was written last: ssh's files and the machines list.
    written: Option<[String; 4]>,
    /// Who was ready at the last look.
    listed: BTreeSet<String>,
    /// Who was lost since somebody asked last.
    losses: Vec<String>,
    /// Watches those that are ready.
    monitor: Monitor,
    /// Lost builders whose streams are yet to be reset.
    resets: Vec<NodePublic>,
    board: Board,
}

/// A step that has ended.
struct Tried {
    attempt: Attempt,
    end: StepEnd,
}

enum StepEnd {
    Met(Result<Box<Acquaintance>, Failure>),
    Claimed(Result<(), ClaimRefusal>),
    Probed(Result<Via, Failure>),
    Released,
    Watched(Result<(), Failure>),
}

impl Coordinator {
    /// Takes over the places that it writes, and begins to look for builders.
    ///
    /// # Errors
    /// When a place can't be written.
    pub fn begin(agent: &Agent, options: Options, uid: u32) -> Result<Self, CoordinatorError> {
        let socket_folder = options.socket.parent().map(std::path::PathBuf::from).unwrap_or_default();
        let mut told =
            Some(Told::begin(options.mode, options.layout.clone(), uid, &[&options.nixtail, &socket_folder])?);
        let begun = Instant::now();
        let chronicle = Chronicle::begin(begun);
        let lanes = start_lane(agent, &options, &chronicle).and_then(|lane| Ok((lane, start_ssh_links(&options)?)));
        let (lane, ssh_links) = match lanes {
            Ok(lanes) => lanes,
            Err(error) => {
                if let Some(told) = told.take() {
                    told.end_after(&error);
                }
                return Err(error);
            }
        };
        let builders = Builders::new(begun, options.wanted.clone(), agent.node_key());
        let prover = Arc::new(Prover { agent: agent.clone(), options, claims: Claims::default(), lane, ssh_links });
        let mut netmap = agent.netmap();
        // The first look must not wait for a change.
        netmap.mark_changed();
        let board = Board::new(Arc::clone(&prover), chronicle);
        let silence = prover.options.builder_silence;
        let mut coordinator = Self {
            monitor: Monitor::new(Arc::clone(&prover), silence, board.chronicle().clone()),
            resets: Vec::new(),
            board,
            prover,
            begun,
            told,
            builders,
            known: BTreeMap::new(),
            tries: JoinSet::new(),
            netmap,
            written: None,
            listed: BTreeSet::new(),
            losses: Vec::new(),
        };
        if let Err(error) = coordinator.write() {
            if let Some(told) = coordinator.told.take() {
                told.end_after(&error);
            }
            return Err(error.into());
        }
        Ok(coordinator)
    }

    /// What others may see and ask.
    #[must_use]
    pub fn board(&self) -> Board {
        self.board.clone()
    }

    /// Works until enough builders are ready. Cancel safe, like [`Self::work`].
    ///
    /// # Errors
    /// When the waiting is over before that, or a file can't be written.
    pub async fn ready(&mut self) -> Result<(), CoordinatorError> {
        loop {
            match self.builders.poll_settled(Instant::now()) {
                Some(Settled::Ready) => return Ok(()),
                Some(Settled::Missing(missing)) => {
                    return Err(CoordinatorError::Missing { waited: self.begun.elapsed(), missing });
                }
                None => self.step().await?,
            }
        }
    }

    /// Keeps Nix's list true: builders that go leave it, those that come are proved and join it. Ends only with an error.
    ///
    /// # Errors
    /// When a file can't be written.
    pub async fn work(&mut self) -> Result<(), CoordinatorError> {
        let board = self.board();
        let steps = async {
            loop {
                self.step().await?;
            }
        };
        tokio::select! {
            ended = steps => ended,
            never = board.follow_paths() => match never {},
        }
    }

    /// Asks every builder in the list for a sign of life, now, and says who was lost since the last call: also who answers
    /// no more at this moment.
    ///
    /// # Errors
    /// When a file can't be written.
    pub async fn take_losses(&mut self) -> Result<Vec<String>, CoordinatorError> {
        let asked = self.listed.iter().filter_map(|name| self.known.get_key_value(name));
        let questions = asked.map(|(name, known)| {
            let prover = Arc::clone(&self.prover);
            async move { (name.clone(), prover.sign_of_life(name, known).await) }
        });
        for (name, answer) in futures::future::join_all(questions).await {
            if let Err(failure) = answer {
                tracing::warn!(builder = %name, reason = %failure.reason, "answers no more");
                self.builders.handle_lost(Instant::now(), &name);
            }
        }
        self.settle()?;
        self.reset_streams().await;
        Ok(std::mem::take(&mut self.losses))
    }

    /// Works until the builders' reports have told of what has just ended: for a moment, then until no build is under way, for
    /// `LONGEST_CATCH_UP` at the most. Others may use the builders too, so it isn't waited for longer. Cancel safe.
    ///
    /// # Errors
    /// When a file can't be written.
    pub async fn catch_up(&mut self) -> Result<(), CoordinatorError> {
        let begun = Instant::now();
        loop {
            if let Ok(stepped) = tokio::time::timeout(CATCH_UP_STEP, self.step()).await {
                stepped?;
            }
            let waited = begun.elapsed();
            let running = self.board.chronicle().record(|record| record.totals(Instant::now()).running);
            if waited >= LONGEST_CATCH_UP || (running == 0 && waited >= SHORTEST_CATCH_UP) {
                return Ok(());
            }
        }
    }

    /// The derivations whose build failed by itself after the first `known` builds of the record had ended, a few of them.
    #[must_use]
    pub fn failed_builds_after(&self, known: u64) -> Vec<String> {
        self.board.chronicle().record(|record| {
            let failed = record.spans().filter(|span| span.number > known && span.outcome == Outcome::Failed);
            failed.take(SHOWN_FAILURES).map(|span| span.derivation.clone()).collect()
        })
    }

    /// How many builds of the record have ended.
    #[must_use]
    pub fn ended_builds(&self) -> u64 {
        self.board.chronicle().record(|record| record.ended())
    }

    /// Forgets who was lost until now.
    pub fn forget_losses(&mut self) {
        self.losses.clear();
    }

    /// Works until a builder for each wanted system is ready again, `patience` at the most; says whether they are. Cancel safe.
    ///
    /// # Errors
    /// When a file can't be written.
    pub async fn ready_again(&mut self, patience: Duration) -> Result<bool, CoordinatorError> {
        let waiting = async {
            while self.listed.is_empty() || !self.builders.covers_systems() {
                self.step().await?;
            }
            Ok(true)
        };
        tokio::time::timeout(patience, waiting).await.unwrap_or(Ok(false))
    }

    /// How Nix is told.
    #[must_use]
    pub fn told(&self) -> Option<&Told> {
        self.told.as_ref()
    }

    /// Where the files for Nix are.
    #[must_use]
    pub fn layout(&self) -> Option<&Layout> {
        self.told.as_ref().map(Told::layout)
    }

    /// Ends all work, tells the builders to end, and puts every file back.
    ///
    /// # Errors
    /// When a file couldn't be put back.
    pub async fn end(&mut self) -> Result<(), CoordinatorError> {
        self.tries.shutdown().await;
        self.monitor.stop().await;
        // They would notice our leaving, too; but not at once, and not where control keeps a ghost of us.
        let stops = tokio::time::timeout(STOP_BUILDERS, self.board.stop_builders()).await;
        for (name, result) in stops.unwrap_or_default() {
            if let Err(reason) = result {
                tracing::info!(builder = %name, %reason, "couldn't be told to end; it will notice that we left");
            }
        }
        if let Some(lane) = &self.prover.lane {
            lane.stop().await;
        }
        if let Some(links) = &self.prover.ssh_links {
            links.end();
        }
        match self.told.take() {
            Some(told) => Ok(told.end()?),
            None => Ok(()),
        }
    }

    async fn step(&mut self) -> Result<(), CoordinatorError> {
        let now = Instant::now();
        if self.board.stopping().is_cancelled() {
            self.builders.handle_stopped();
        }
        while let Some(action) = self.builders.poll_action(now) {
            self.start(action)?;
        }
        self.settle()?;
        let due = self.builders.poll_timeout().unwrap_or(now + LOOK_AGAIN);
        let stopping = self.board.stopping().clone();
        tokio::select! {
            changed = self.netmap.changed() => match changed {
                Ok(()) => self.handle_netmap(),
                // The agent is ending, and whoever runs us with it.
                Err(_) => std::future::pending().await,
            },
            Some(tried) = self.tries.join_next(), if !self.tries.is_empty() => {
                // One that broke off is given up in time.
                if let Ok(tried) = tried {
                    self.handle_tried(tried);
                }
            }
            () = tokio::time::sleep_until(due.into()) => {}
            () = stopping.cancelled(), if !self.builders.is_stopped() => self.builders.handle_stopped(),
            finding = self.monitor.next() => match finding {
                Finding::Lost { name, reason } => {
                    tracing::warn!(builder = %name, %reason, "is lost");
                    // Whoever asks why it went is told this, not merely that it did.
                    self.board.chronicle().handle_gone(Instant::now(), &name, &reason);
                    self.prover.withdraw(&name, &no_longer_ready(&reason));
                    self.builders.handle_lost(Instant::now(), &name);
                }
                // The list is made anew below.
                Finding::Withheld => {}
            },
        }
        self.settle()?;
        self.reset_streams().await;
        Ok(())
    }

    /// Ends the streams to lost builders, so that whoever waits for one of them waits no longer.
    async fn reset_streams(&mut self) {
        for node in std::mem::take(&mut self.resets) {
            self.prover.agent.reset_streams(&node).await;
        }
    }

    /// Sets one step going. Each has a deadline of its own.
    fn start(&mut self, Action { step, attempt }: Action) -> Result<(), CoordinatorError> {
        let name = attempt.name.clone();
        let known = self.known.get(&name).cloned();
        if step == Step::Probe {
            // Nix comes by ssh's files.
            self.write()?;
        }
        let prover = Arc::clone(&self.prover);
        self.tries.spawn(async move {
            let end = match (step, known) {
                (Step::Meet, _) => StepEnd::Met(prover.meet(&name).await.map(Box::new)),
                (Step::Claim, Some(known)) => StepEnd::Claimed(prover.claim(&name, &known).await),
                (Step::Watch, Some(known)) => StepEnd::Watched(prover.watch(&name, &known).await),
                (Step::Probe, Some(known)) => StepEnd::Probed(prover.probe(&name, &known).await),
                (Step::Release, _) => {
                    prover.release(&name).await;
                    StepEnd::Released
                }
                // It left in between: what comes of this is of no interest.
                (Step::Claim | Step::Watch | Step::Probe, None) => StepEnd::Released,
            };
            Tried { attempt, end }
        });
        Ok(())
    }

    fn handle_netmap(&mut self) {
        let Some(netmap) = self.netmap.borrow_and_update().clone() else { return };
        self.prover.claims.keep(|key| netmap.peer_by_key(key).is_some());
        self.builders.handle_netmap(Instant::now(), self.prover.options.wanted.sightings(&netmap));
        let builders = &self.builders;
        self.known.retain(|name, known| builders.key_of(name) == Some(known.node_key));
    }

    fn handle_tried(&mut self, Tried { attempt, end }: Tried) {
        let (now, name) = (Instant::now(), attempt.name.as_str());
        let failed = |failure: &Failure| {
            tracing::info!(builder = %name, stage = %failure.stage, reason = %failure.reason, "not ready");
        };
        match end {
            StepEnd::Met(result) => {
                let result = result.inspect_err(failed).map(|known| {
                    let systems = std::iter::once(&known.facts.system).chain(&known.facts.extra_platforms).cloned();
                    let met = Met { systems: systems.collect(), run: known.facts.run.clone() };
                    if self.builders.key_of(name) == Some(known.node_key) {
                        self.known.insert(name.to_owned(), *known);
                    }
                    met
                });
                self.builders.handle_met(now, &attempt, result);
            }
            StepEnd::Claimed(result) => self.builders.handle_claimed(now, &attempt, result),
            StepEnd::Probed(result) => {
                let result = result.inspect_err(failed).map(|via| {
                    if let Some(known) = self.known.get_mut(name) {
                        known.via = via;
                    }
                });
                self.builders.handle_probed(now, &attempt, result);
            }
            StepEnd::Released => self.builders.handle_released(&attempt),
            StepEnd::Watched(result) => {
                let reason = result.as_ref().err().map(|failure| failure.reason.clone());
                self.builders.handle_watched(now, &attempt, result.inspect_err(failed));
                if let Some(reason) = reason.filter(|_| !self.builders.ready().any(|ready| ready == name)) {
                    self.prover.withdraw(name, &no_longer_ready(&reason));
                }
            }
        }
    }

    /// Brings everything in line with how the builders stand now.
    fn settle(&mut self) -> Result<(), CoordinatorError> {
        while let Some(name) = self.builders.poll_lost() {
            self.resets.extend(self.monitor.end(&name, "it is lost"));
            self.losses.push(name);
            self.losses.truncate(MAX_LOSSES);
        }
        let listed: BTreeSet<String> = self.builders.ready().map(str::to_owned).collect();
        for name in self.listed.difference(&listed) {
            let standing =
                self.builders.standings().find(|(other, _)| *other == name).map(|(_, standing)| standing.to_string());
            let standing = standing.unwrap_or_default();
            if self.builders.is_stopped() {
                // What was told to end hasn't gone wrong.
                tracing::info!(builder = %name, "was told to end; Nix is told of it no more");
                self.monitor.end(name, &standing);
            } else {
                tracing::warn!(builder = %name, "is gone; Nix is told of it no more");
                self.monitor.end(name, "it is ready no more");
            }
            self.prover.withdraw(name, &no_longer_ready(&standing));
        }
        for name in listed.difference(&self.listed) {
            let known = self.known.get(name);
            tracing::info!(builder = %name, lane = known.map_or("", |known| known.via.as_str()), "ready");
            if let Some(known) = known {
                self.monitor.begin(name, known);
            }
        }
        self.listed = listed;
        self.write()?;
        self.show();
        Ok(())
    }

    /// Writes ssh's files for all that are known, and Nix's list of those that are ready, where they have changed.
    fn write(&mut self) -> Result<(), PlaceError> {
        let ssh: String = self.known.values().map(|known| known.ssh_host.as_str()).collect();
        let known_hosts: String = self.known.values().map(|known| known.known_hosts.as_str()).collect();
        let by_ssh = self.known.values().filter(|known| known.via == Via::Ssh);
        let of_system: String = by_ssh.map(|known| known.ssh_host.as_str()).collect();
        let files = [ssh, known_hosts, of_system, self.machines()];
        let Some(told) = &mut self.told else { return Ok(()) };
        if self.written.as_ref() == Some(&files) {
            return Ok(());
        }
        let [ssh, known_hosts, of_system, machines] = &files;
        told.write_ssh(ssh, known_hosts, of_system)?;
        told.write_machines(machines)?;
        self.written = Some(files);
        Ok(())
    }

    fn machines(&self) -> String {
        let offered = self.builders.ready().filter(|name| self.monitor.withheld(name).is_none());
        let ready: Vec<&Acquaintance> = offered.filter_map(|name| self.known.get(name)).collect();
        let speeds: Vec<Speed> =
            ready.iter().map(|known| Speed { speed: known.facts.speed, max_jobs: known.machine.max_jobs }).collect();
        let factors =
            speed_factors(&speeds).into_iter().map(|found| self.prover.options.offer.speed_factor.unwrap_or(found));
        let lines = ready.into_iter().zip(factors).filter_map(|(known, speed_factor)| {
            // Checked when it was met.
            known.machine(speed_factor).line().ok()
        });
        lines.map(|line| format!("{line}\n")).collect()
    }

    fn show(&self) {
        let statuses = self.builders.standings().map(|(name, standing)| {
            let facts = self.known.get(name).map(|known| &known.facts);
            BuilderStatus {
                name: name.to_owned(),
                standing: match self.monitor.withheld(name) {
                    Some(reason) => format!("ready, but takes no build: {reason}"),
                    None => plain(&standing.to_string()),
                },
                ready: *standing == Standing::Ready,
                system: facts.map(|facts| facts.system.clone()),
                cores: facts.map(|facts| facts.cores),
                lane: self.known.get(name).map(|known| known.via.as_str().to_owned()),
            }
        });
        self.board.show(statuses.collect(), board::line(&self.builders.progress()));
    }
}

/// The direct lane, if it may be used; where SSH may be used too, it needn't work.
fn start_lane(agent: &Agent, options: &Options, chronicle: &Chronicle) -> Result<Option<Lane>, CoordinatorError> {
    if options.transport == Transport::Ssh {
        return Ok(None);
    }
    let chronicle = chronicle.clone();
    let on_trouble = Box::new(move |builder: &str, words: &str| chronicle.handle_error(Instant::now(), builder, words));
    match Lane::start(agent, &options.layout.run, &options.nixtail, &options.login, on_trouble) {
        Ok(lane) => Ok(Some(lane)),
        Err(error) if options.transport == Transport::Auto => {
            tracing::warn!(%error, "there is no direct lane; builders are reached over SSH");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// What a daemon's Nix starts instead of ssh, where SSH may be used.
fn start_ssh_links(options: &Options) -> Result<Option<SshLinks>, CoordinatorError> {
    if options.mode != Mode::TrustedUser || options.transport == Transport::Direct {
        return Ok(None);
    }
    Ok(Some(SshLinks::start(&options.layout.run, &options.nixtail)?))
}

/// For whoever's build goes to such a builder.
fn no_longer_ready(reason: &str) -> String {
    format!("it is no longer ready ({})", plain(reason))
}
