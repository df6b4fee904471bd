//! A coordinator: finds its builders, proves and claims them, and tells Nix of them while they are there.
//!
//! When a builder is tried, and when the waiting is over, is decided in [`nixtail_proto::run::Builders`].

mod board;
pub mod borrowed;
mod chronicle;
mod claims;
pub mod mode;
mod options;
mod prove;
mod status;
pub mod verbs;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nixtail_proto::netmap::Netmap;
use nixtail_proto::run::{Builders, Failure, Settled, Standing};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::agent::Agent;
use borrowed::PlaceError;
use claims::Claims;
use mode::{Layout, Told};
use prove::{Acquaintance, Prover};

pub use board::{Board, BuilderStatus};
pub use chronicle::Chronicle;
pub use options::Options;
pub use status::{BuilderView, CoordinatorStatus, EndedBuilds, Live, RunningBuild};

/// Nothing is due for so long that looking again is free.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

/// How long the builders may take to hear, at the end, that they shall end.
const STOP_BUILDERS: Duration = Duration::from_secs(4);

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

/// A coordinator at work. [`Coordinator::work`] must be polled for anything to happen.
pub struct Coordinator {
    prover: Arc<Prover>,
    wait: Duration,
    told: Option<Told>,
    builders: Builders,
    known: BTreeMap<String, Acquaintance>,
    tries: JoinSet<Tried>,
    /// The number of each builder's latest try. What an earlier one comes to is of a builder that has gone since.
    latest: BTreeMap<String, u64>,
    /// Ready builders that control calls offline, being asked whether they live.
    watched: BTreeSet<String>,
    netmap: watch::Receiver<Option<Arc<Netmap>>>,
    board: Board,
}

/// How a step of a try ended.
struct Tried {
    name: String,
    number: u64,
    result: Result<Acquaintance, Failure>,
    step: TryStep,
}

/// The two steps of a try, between which ssh's files are written; and the watch over one that control calls offline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TryStep {
    Met,
    Probed,
    Watched,
}

impl Coordinator {
    /// Takes over the places that it writes, and begins to look for builders.
    ///
    /// # Errors
    /// When a place can't be written.
    pub fn begin(agent: &Agent, options: Options, uid: u32) -> Result<Self, CoordinatorError> {
        let socket_folder = options.socket.parent().map(PathBuf::from).unwrap_or_default();
        let told = Told::begin(options.mode, options.layout.clone(), uid, &[&options.nixtail, &socket_folder])?;
        if let Err(error) = told.write_ssh("", "").and_then(|()| told.write_machines("")) {
            told.end_after(&error);
            return Err(error.into());
        }
        let (wait, builders) = (options.wait, options.builders.clone());
        let prover = Arc::new(Prover { agent: agent.clone(), options, claims: Claims::default() });
        let mut netmap = agent.netmap();
        // The first look must not wait for a change.
        netmap.mark_changed();
        Ok(Self {
            board: Board::new(Arc::clone(&prover)),
            prover,
            wait,
            told: Some(told),
            builders: Builders::new(Instant::now(), wait, builders),
            known: BTreeMap::new(),
            tries: JoinSet::new(),
            latest: BTreeMap::new(),
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
            let number = self.latest.entry(name.clone()).or_default();
            *number += 1;
            let number = *number;
            self.tries.spawn(async move {
                let result = prover.meet(&name).await;
                Tried { name, number, result, step: TryStep::Met }
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
                if let Ok(tried) = tried {
                    self.handle_tried(tried)?;
                }
            }
            () = tokio::time::sleep_until(due.into()) => {}
        }
        self.show();
        Ok(())
    }

    fn handle_netmap(&mut self) -> Result<(), CoordinatorError> {
        let Some(netmap) = self.netmap.borrow_and_update().clone() else { return Ok(()) };
        self.prover.claims.keep(|key| netmap.peer_by_key(key).is_some());
        let gone = heed(&netmap, &mut self.builders, &mut self.known, Instant::now());
        for name in &gone {
            tracing::warn!(builder = %name, "left the tailnet; Nix is told of it no more");
            // What its tries and its watch come to is of no use; the next try counts on.
            self.watched.remove(name);
            *self.latest.entry(name.clone()).or_default() += 1;
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
                let number = self.latest.get(&name).copied().unwrap_or_default();
                self.tries.spawn(async move {
                    let result = prover.watch(&name, &known).await.map(|()| known);
                    Tried { name, number, result, step: TryStep::Watched }
                });
            }
        }
    }

    fn handle_tried(&mut self, tried: Tried) -> Result<(), CoordinatorError> {
        let Tried { name, number, result, step } = tried;
        if self.latest.get(&name) != Some(&number) {
            return Ok(());
        }
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
                    let result = prover.probe(&name).await.map(|()| met);
                    Tried { name, number, result, step: TryStep::Probed }
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
        self.board.show(statuses.collect());
    }
}

/// Tells `builders` who is in the netmap, and takes those that left it from `known`, whose names it returns.
fn heed(
    netmap: &Netmap,
    builders: &mut Builders,
    known: &mut BTreeMap<String, Acquaintance>,
    now: Instant,
) -> Vec<String> {
    let present = |known: &BTreeMap<String, Acquaintance>, name: &str| {
        let found = nixtail_proto::names::resolve(netmap, name).ok().and_then(|(_, key)| key);
        let Some(node) = found.and_then(|key| netmap.peer_by_key(&key)) else { return false };
        match known.get(name) {
            // A ready builder that control calls offline may still answer; one with a new key is another one.
            Some(known) => known.node_key == node.key,
            None => node.online != Some(false),
        }
    };
    builders.handle_netmap(now, |name| present(known, name));
    let is_gone = |standing: &Standing| matches!(standing, Standing::Gone | Standing::Awaited);
    let standings = builders.standings().filter(|(name, standing)| is_gone(standing) && known.contains_key(*name));
    let gone: Vec<String> = standings.map(|(name, _)| name.to_owned()).collect();
    for name in &gone {
        known.remove(name);
    }
    if !gone.is_empty() {
        // Another one of the same name may be there already; no further netmap need come for it.
        builders.handle_netmap(now, |name| present(known, name));
    }
    gone
}

fn list(missing: &[(String, Standing)]) -> String {
    let words: Vec<String> = missing.iter().map(|(name, standing)| format!("{name} ({standing})")).collect();
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use nixtail_proto::key::NodePublic;
    use nixtail_proto::tailcfg::Node;

    use super::*;

    fn netmap(key: Option<u8>) -> Netmap {
        let node = |key: u8| Node {
            name: "b.example.net.".into(),
            key: NodePublic::from_bytes([key; 32]),
            addresses: vec!["100.64.0.9/32".parse().unwrap()],
            online: Some(true),
            ..Node::default()
        };
        let self_node = Node {
            name: "c.example.net.".into(),
            addresses: vec!["100.64.0.1/32".parse().unwrap()],
            ..Node::default()
        };
        Netmap {
            self_node: Arc::new(self_node),
            peers: key.map(|key| (Default::default(), Arc::new(node(key)))).into_iter().collect(),
            ..Netmap::default()
        }
    }

    #[test]
    fn a_builder_replaced_in_one_change_is_tried_at_once() {
        let now = Instant::now();
        let mut builders = Builders::new(now, Duration::from_secs(9), ["b".to_owned()]);
        let mut known = BTreeMap::new();
        assert!(heed(&netmap(Some(1)), &mut builders, &mut known, now).is_empty());
        assert_eq!(builders.poll_try(now).as_deref(), Some("b"));
        known.insert("b".to_owned(), prove::tests::acquaintance(NodePublic::from_bytes([1; 32])));
        builders.handle_tried(now, "b", Ok(()));
        assert!(heed(&netmap(Some(1)), &mut builders, &mut known, now).is_empty());
        assert_eq!(builders.poll_try(now), None);

        assert_eq!(heed(&netmap(Some(2)), &mut builders, &mut known, now), ["b"]);
        assert!(known.is_empty());
        assert_eq!(builders.poll_try(now).as_deref(), Some("b"));

        assert!(heed(&netmap(None), &mut builders, &mut known, now).is_empty());
        assert_eq!(builders.poll_try(now), None);
    }
}
