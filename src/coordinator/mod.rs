//! A coordinator: finds its builders, proves and claims them, and tells Nix of them while they are there.
//!
//! When a builder is tried, and when the waiting is over, is decided in [`nixtail_proto::run::Builders`].

pub mod borrowed;
pub mod mode;
mod prove;
pub mod verbs;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nixtail_proto::netmap::Netmap;
use nixtail_proto::run::{Builders, Failure, Settled, Standing};
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::agent::Agent;
use crate::builder::SSH_PORT;
use crate::nix::config::{ConfigError, SshHost};
use borrowed::PlaceError;
use mode::{Layout, Mode, Told};
use prove::{Acquaintance, Prover};

/// Nothing is due for so long that looking again is free.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

/// How long the builders may take to hear, at the end, that they shall end.
const STOP_BUILDERS: Duration = Duration::from_secs(4);

/// What a coordinator is made of.
#[derive(Debug, Clone)]
pub struct Options {
    /// The builders' names in the tailnet.
    pub builders: Vec<String>,
    /// The user to log in as at each of them.
    pub login: String,
    /// How long to wait until all are ready.
    pub wait: Duration,
    /// How Nix is told.
    pub mode: Mode,
    /// Where the files are.
    pub layout: Layout,
    /// This program, which ssh starts.
    pub nixtail: PathBuf,
    /// The socket of this agent.
    pub socket: PathBuf,
    /// `nix-build`, for probes.
    pub nix_build: PathBuf,
    /// The store that Nix is used with, if it isn't the default one.
    pub store: Option<String>,
}

impl Options {
    /// Whether what is known before the login can stand in ssh's configuration at all.
    ///
    /// # Errors
    /// The first path, name or login that can't.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.builders.iter().try_for_each(|name| self.ssh_host(name).block().map(drop))
    }

    fn ssh_host(&self, name: &str) -> SshHost {
        SshHost {
            alias: name.to_owned(),
            node: name.to_owned(),
            port: SSH_PORT,
            user: self.login.clone(),
            nixtail: self.nixtail.clone(),
            socket: self.socket.clone(),
            known_hosts: self.layout.known_hosts(),
        }
    }
}

/// Why a coordinator couldn't begin or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CoordinatorError {
    /// A file couldn't be written.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The waiting is over and these are missing.
    #[error("builders are missing after {} s: {}", waited.as_secs(), list(missing))]
    Missing {
        /// How long it waited.
        waited: Duration,
        /// Who, and why.
        missing: Vec<(String, Standing)>,
    },
}

/// How a builder stands, for people and scripts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
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
}

/// A coordinator at work. [`Coordinator::work`] must be polled for anything to happen.
pub struct Coordinator {
    prover: Arc<Prover>,
    wait: Duration,
    told: Option<Told>,
    builders: Builders,
    known: BTreeMap<String, Acquaintance>,
    tries: JoinSet<(String, Result<Acquaintance, Failure>, TryStep)>,
    /// Ready builders that control calls offline, being asked whether they live.
    watched: BTreeSet<String>,
    netmap: watch::Receiver<Option<Arc<Netmap>>>,
    board: Board,
}

/// The two steps of a try, between which ssh's files are written; and the watch over one that control calls offline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TryStep {
    Met,
    Probed,
    Watched,
}

/// What others may see of a coordinator, and ask of its builders, while it works.
#[derive(Clone)]
pub struct Board {
    prover: Arc<Prover>,
    shown: Arc<Mutex<Shown>>,
}

#[derive(Default)]
struct Shown {
    statuses: Vec<BuilderStatus>,
    known: BTreeMap<String, Acquaintance>,
}

impl Coordinator {
    /// Takes over the places that it writes, and begins to look for builders.
    ///
    /// # Errors
    /// When a place can't be written.
    pub fn begin(agent: &Agent, options: Options, uid: u32) -> Result<Self, CoordinatorError> {
        let socket_folder = options.socket.parent().map(PathBuf::from).unwrap_or_default();
        let told = Told::begin(options.mode, options.layout, uid, &[&options.nixtail, &socket_folder])?;
        told.write_ssh("", "")?;
        told.write_machines("")?;
        let prover = Arc::new(Prover {
            agent: agent.clone(),
            login: options.login,
            nixtail: options.nixtail,
            socket: options.socket,
            ssh_config: told.layout().ssh_config(),
            known_hosts: told.layout().known_hosts(),
            nix_build: options.nix_build,
            store: options.store,
        });
        let mut netmap = agent.netmap();
        // The first look must not wait for a change.
        netmap.mark_changed();
        Ok(Self {
            board: Board { prover: Arc::clone(&prover), shown: Arc::default() },
            prover,
            wait: options.wait,
            told: Some(told),
            builders: Builders::new(Instant::now(), options.wait, options.builders),
            known: BTreeMap::new(),
            tries: JoinSet::new(),
            watched: BTreeSet::new(),
            netmap,
        })
    }

    /// What others may see and ask.
    #[must_use]
    pub fn board(&self) -> Board {
        self.board.clone()
    }

    /// Works until all builders are ready. Cancel safe, like [`Self::work`].
    ///
    /// # Errors
    /// When the waiting is over before that, or a file can't be written.
    pub async fn ready(&mut self) -> Result<(), CoordinatorError> {
        loop {
            match self.builders.settled(Instant::now()) {
                Settled::Ready => return Ok(()),
                Settled::Missing(missing) => return Err(CoordinatorError::Missing { waited: self.wait, missing }),
                Settled::Waiting => self.step().await?,
            }
        }
    }

    /// Keeps Nix's list true: builders that go leave it, those that come back are proved again. Ends only with an error.
    ///
    /// # Errors
    /// When a file can't be written.
    pub async fn work(&mut self) -> Result<(), CoordinatorError> {
        loop {
            self.step().await?;
        }
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
        // They would notice our leaving, too; but not at once, and not where control keeps a ghost of us.
        let stops = tokio::time::timeout(STOP_BUILDERS, self.board.stop_builders()).await;
        for (name, result) in stops.unwrap_or_default() {
            if let Err(reason) = result {
                tracing::info!(builder = %name, %reason, "couldn't be told to end; it will notice that we left");
            }
        }
        match self.told.take() {
            Some(told) => Ok(told.end()?),
            None => Ok(()),
        }
    }

    async fn step(&mut self) -> Result<(), CoordinatorError> {
        let now = Instant::now();
        while let Some(name) = self.builders.poll_try(now) {
            let prover = Arc::clone(&self.prover);
            self.tries.spawn(async move {
                let met = prover.meet(&name).await;
                (name, met, TryStep::Met)
            });
        }
        let due = self.builders.poll_timeout(now).unwrap_or(now + LOOK_AGAIN);
        tokio::select! {
            changed = self.netmap.changed() => match changed {
                Ok(()) => self.handle_netmap()?,
                // The agent is ending, and whoever runs us with it.
                Err(_) => std::future::pending().await,
            },
            Some(tried) = self.tries.join_next(), if !self.tries.is_empty() => {
                if let Ok((name, result, step)) = tried {
                    self.handle_tried(name, result, step)?;
                }
            }
            () = tokio::time::sleep_until(due.into()) => {}
        }
        self.show();
        Ok(())
    }

    fn handle_netmap(&mut self) -> Result<(), CoordinatorError> {
        let Some(netmap) = self.netmap.borrow_and_update().clone() else { return Ok(()) };
        let known = &self.known;
        let present = |name: &str| {
            let found = nixtail_proto::names::resolve(&netmap, name).ok().and_then(|(_, key)| key);
            let Some(node) = found.and_then(|key| netmap.peer_by_key(&key)) else { return false };
            match known.get(name) {
                // A ready builder that control calls offline may still answer; one with a new key is another one.
                Some(known) => known.node_key == node.key,
                None => node.online != Some(false),
            }
        };
        self.builders.handle_netmap(Instant::now(), present);
        let gone: Vec<String> = self
            .builders
            .standings()
            .filter(|(name, standing)| {
                matches!(standing, Standing::Gone | Standing::Awaited) && known.contains_key(*name)
            })
            .map(|(name, _)| name.to_owned())
            .collect();
        for name in &gone {
            tracing::warn!(builder = %name, "left the tailnet; Nix is told of it no more");
            self.known.remove(name);
        }
        self.watch_offline(&netmap);
        if gone.is_empty() { Ok(()) } else { self.write() }
    }

    /// Nix asks its builders one after the other and waits for each: one that is dead must leave its list, whereas one that
    /// only control has lost from sight goes on building.
    fn watch_offline(&mut self, netmap: &Netmap) {
        let offline =
            |known: &Acquaintance| netmap.peer_by_key(&known.node_key).is_some_and(|node| node.online == Some(false));
        let ready = self.builders.standings().filter(|(_, standing)| **standing == Standing::Ready);
        for (name, known) in ready.filter_map(|(name, _)| self.known.get_key_value(name)) {
            if offline(known) && self.watched.insert(name.clone()) {
                let (prover, name, known) = (Arc::clone(&self.prover), name.clone(), known.clone());
                self.tries.spawn(async move {
                    let watched = prover.watch(&name, &known).await.map(|()| known);
                    (name, watched, TryStep::Watched)
                });
            }
        }
    }

    fn handle_tried(
        &mut self,
        name: String,
        result: Result<Acquaintance, Failure>,
        step: TryStep,
    ) -> Result<(), CoordinatorError> {
        let now = Instant::now();
        match (step, result) {
            (TryStep::Watched, result) => {
                self.watched.remove(&name);
                let Err(failure) = result else { return Ok(()) };
                tracing::warn!(builder = %name, reason = %failure.reason, "answers no more; Nix is told of it no more");
                self.known.remove(&name);
                self.builders.handle_lost(now, &name);
                self.write()
            }
            (_, Err(failure)) => {
                tracing::info!(builder = %name, stage = %failure.stage, reason = %failure.reason, "not ready");
                self.known.remove(&name);
                self.builders.handle_tried(now, &name, Err(failure));
                Ok(())
            }
            (TryStep::Met, Ok(met)) => {
                self.known.insert(name.clone(), met.clone());
                self.write()?;
                let prover = Arc::clone(&self.prover);
                self.tries.spawn(async move {
                    let probed = prover.probe(&name).await.map(|()| met);
                    (name, probed, TryStep::Probed)
                });
                Ok(())
            }
            (TryStep::Probed, Ok(_)) => {
                self.builders.handle_tried(now, &name, Ok(()));
                tracing::info!(builder = %name, "ready");
                self.write()
            }
        }
    }

    /// Writes ssh's files for all that are known, and Nix's list of those that are ready.
    fn write(&mut self) -> Result<(), CoordinatorError> {
        let Some(told) = &self.told else { return Ok(()) };
        let ssh: String = self.known.values().map(|known| known.ssh_host.as_str()).collect();
        let known_hosts: String = self.known.values().map(|known| known.known_hosts.as_str()).collect();
        told.write_ssh(&ssh, &known_hosts)?;
        let ready = self.builders.standings().filter(|(_, standing)| **standing == Standing::Ready);
        let machines: String =
            ready.filter_map(|(name, _)| self.known.get(name)).map(|known| format!("{}\n", known.machine)).collect();
        Ok(told.write_machines(&machines)?)
    }

    fn show(&self) {
        let statuses = self.builders.standings().map(|(name, standing)| {
            let facts = self.known.get(name).map(|known| &known.facts);
            BuilderStatus {
                name: name.to_owned(),
                standing: crate::report::plain(&standing.to_string()),
                ready: *standing == Standing::Ready,
                system: facts.map(|facts| facts.system.clone()),
                cores: facts.map(|facts| facts.cores),
            }
        });
        let mut shown = self.board.shown.lock().unwrap_or_else(PoisonError::into_inner);
        *shown = Shown { statuses: statuses.collect(), known: self.known.clone() };
    }
}

impl Board {
    /// Each wanted builder and how it stands.
    #[must_use]
    pub fn builders(&self) -> Vec<BuilderStatus> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).statuses.clone()
    }

    /// Tells every claimed builder to end. Returns each one's name with what kept it from hearing, if anything did.
    pub async fn stop_builders(&self) -> Vec<(String, Result<(), String>)> {
        let known = self.shown.lock().unwrap_or_else(PoisonError::into_inner).known.clone();
        let stops = known.into_iter().map(|(name, known)| {
            let prover = Arc::clone(&self.prover);
            async move {
                let stopped = prover.stop(&name, &known).await;
                (name, stopped.map_err(|failure| format!("{}: {}", failure.stage, failure.reason)))
            }
        });
        futures::future::join_all(stops).await
    }
}

fn list(missing: &[(String, Standing)]) -> String {
    let words: Vec<String> = missing.iter().map(|(name, standing)| format!("{name} ({standing})")).collect();
    words.join(", ")
}
