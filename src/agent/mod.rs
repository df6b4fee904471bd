//! The public API: join a tailnet, dial and listen there (TCP only), and leave.
//!
//! ```no_run
//! # async fn example(config: nixtail::agent::Config) -> Result<(), Box<dyn std::error::Error>> {
//! use nixtail::agent::{Agent, LEAVE_DEADLINE};
//!
//! let agent = Agent::join(config).await?;
//! let stream = agent.dial("builder-1", 22).await?;
//! # drop(stream);
//! agent.leave(LEAVE_DEADLINE).await?;
//! # Ok(())
//! # }
//! ```

mod config;
mod error;
mod membership;
mod stages;
mod status;
mod stream;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nixtail_proto::control::{Standing, standing, time_left};
use nixtail_proto::key::{DiscoPrivate, MachinePrivate, NodePrivate, NodePublic};
use nixtail_proto::names::{self, NameError};
use nixtail_proto::netmap::Netmap;
use nixtail_proto::node;
use nixtail_proto::tailcfg;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

pub use config::{Config, DIAL_DEADLINE, JOIN_DEADLINE, LEAVE_DEADLINE};
pub use error::{DialError, JoinError, LeaveError, ListenError, PingError};
pub use stages::{Stage, StageTime, Stages};
pub use status::{Network, OwnNode, Path, Peer, PingKind, Pong, State, Status};
pub use stream::{Listener, Stream};

use crate::control::{Control, ControlConfig};
use crate::net::dataplane::{Command, Dataplane, Facts, PongFact, Setup};
use membership::Membership;

/// How long a join waits for a relay where peers may be reached directly, too: a relay that is there answers within a
/// second, and one that isn't mustn't keep us off the tailnet.
const RELAY_PATIENCE: Duration = Duration::from_secs(5);
/// What a person is told where no relay answers.
const NO_RELAY: &str = "no relay (DERP) could be reached; check that its TLS port and UDP 3478 are let out";

/// This part of the time to leave is the dataplane's, a logout may use the rest: 2 of [`LEAVE_DEADLINE`]'s 10 s.
const DATAPLANE_SHARE: u32 = 5;
/// An admin who approves machines by hand isn't waited for longer than this without a word.
const APPROVAL_SILENCE: Duration = Duration::from_secs(3);
/// What a person is told of a machine that isn't approved.
const AWAITS_APPROVAL: &str = "an admin must approve this machine before it can be used: in the admin console under \
                               Machines; auth keys that are pre-approved (OAuth: `?preauthorized=true`) don't need that";
/// How long a login that nobody wants any more is waited for, so that it can be undone.
const CANCEL_DEADLINE: Duration = Duration::from_secs(3);

/// A node on a tailnet. Clones are handles of the same node. When the last one goes without [`Agent::leave`], the node
/// stops without telling control.
#[derive(Clone, Debug)]
pub struct Agent {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    login_server: String,
    /// Whether relays may be used.
    derp: bool,
    stages: Stages,
    node_key: NodePublic,
    /// Whether control is to know the node when it comes again: then it leaves without a logout.
    is_kept: AtomicBool,
    dataplane: Dataplane,
    membership: Membership,
    netmap: watch::Receiver<Option<Arc<Netmap>>>,
    facts: watch::Receiver<Facts>,
}

impl Agent {
    /// Joins a tailnet. Answers when peers can use this node: control has said who they are, knows where we are, and
    /// our home relay is connected.
    ///
    /// # Errors
    /// What refused it, or what was still missing when [`Config::join_deadline`] had passed. Nothing is left behind, unless
    /// control doesn't answer any more: then it may know the node until it finds it gone.
    pub async fn join(config: Config) -> Result<Self, JoinError> {
        Self::join_until(config, CancellationToken::new()).await
    }

    /// As [`Self::join`], and gives up, logged out again, when `cancel` is.
    ///
    /// # Errors
    /// As [`Self::join`], or [`JoinError::Cancelled`].
    pub async fn join_until(config: Config, cancel: CancellationToken) -> Result<Self, JoinError> {
        let stages = Stages::default();
        let deadline = Instant::now() + config.join_deadline;
        let after = config.join_deadline;
        let (login_server, direct, derp) = (config.login_server.clone(), config.direct, config.derp);
        let (machine_key, node_key) = match &config.identity {
            Some(kept) => (kept.machine_key(), kept.node_key()),
            None => (MachinePrivate::generate(&mut rand::rng()), NodePrivate::generate(&mut rand::rng())),
        };
        let disco_key = DiscoPrivate::generate(&mut rand::rng());
        let (mut own_key, own_disco_key) = (node_key.public(), disco_key.public());
        let setup = |node_key| Setup {
            node_key,
            disco_key: disco_key.clone(),
            port: config.port,
            direct: config.direct,
            derp: config.derp,
            proxies: config.proxies.clone(),
        };
        let mut dataplane = Dataplane::start(setup(node_key)).await?;
        let is_kept = config.identity.is_some();
        let has_person = config.person.is_some() && config.credential.is_none();
        let login = Control::login(ControlConfig {
            url: config.login_server,
            auth: config.credential,
            hostname: config.hostname,
            tags: config.tags,
            ephemeral: config.ephemeral,
            machine_key,
            node_key: own_key,
            disco_key: own_disco_key,
            ssh_host_keys: config.ssh_host_keys,
            proxies: config.proxies.clone(),
            identity: config.identity,
            person: config.person,
            deadline: config.join_deadline,
            stages: stages.clone(),
        });
        tokio::pin!(login);
        let control = tokio::select! {
            control = &mut login => control?,
            () = cancel.cancelled() => {
                // Control may have let the node in already. Only a login that is seen to its end can be undone.
                match tokio::time::timeout(CANCEL_DEADLINE, login).await {
                    Ok(Ok(control)) if is_kept => control.close().await,
                    Ok(Ok(control)) => {
                        if let Err(error) = control.logout(LEAVE_DEADLINE).await {
                            tracing::warn!(%error, "logging out after a join that was stopped");
                        }
                    }
                    Ok(Err(_)) | Err(_) => {}
                }
                return Err(JoinError::Cancelled);
            }
        };
        if let Some(node_key) = control.new_node_key().cloned() {
            // Control wanted another key than the one that was kept. Nothing has been said with that one.
            own_key = node_key.public();
            dataplane.stop(LEAVE_DEADLINE).await;
            dataplane = Dataplane::start(setup(node_key)).await?;
        }
        // A person's time isn't the network's.
        let deadline = if has_person { Instant::now() + after } else { deadline };
        let facts = dataplane.facts();
        let membership = Membership::start(control, dataplane.sender(), facts.clone());
        let netmap = membership.netmap();
        let agent = Self {
            inner: Arc::new(Inner {
                login_server,
                derp,
                stages,
                node_key: own_key,
                is_kept: AtomicBool::new(is_kept),
                dataplane,
                membership,
                netmap,
                facts,
            }),
        };
        let unready = tokio::select! {
            ready = tokio::time::timeout_at(deadline.into(), agent.until_ready(direct, derp)) => match ready {
                Ok(()) => {
                    agent.inner.stages.mark(Stage::Ready);
                    return Ok(agent);
                }
                Err(_) => agent.unready(derp, after),
            },
            reason = agent.refused() => JoinError::Refused(reason),
            () = cancel.cancelled() => JoinError::Cancelled,
        };
        if let Err(error) = agent.leave(LEAVE_DEADLINE).await {
            tracing::warn!(%error, "leaving after a join that failed");
        }
        Err(unready)
    }

    /// Opens a stream to a port of a peer, by its name, full name, or tailnet address.
    ///
    /// # Errors
    /// Tells apart: nobody has that name, the peer is silent, it refuses, the policy forbids.
    pub async fn dial(&self, host: &str, port: u16) -> Result<Stream, DialError> {
        let (address, peer) = self.resolve(host)?;
        let (reply, answer) = oneshot::channel();
        if !self.inner.dataplane.send(Command::Connect { remote: SocketAddr::new(address, port), reply }).await {
            return Err(DialError::NotRunning);
        }
        match tokio::time::timeout(DIAL_DEADLINE, answer).await {
            Ok(Ok(Ok(parts))) => Ok(Stream::new(parts)),
            Ok(Ok(Err(failure))) => Err(DialError::new(failure, host, port, self.is_offline(peer))),
            Ok(Err(_)) => Err(DialError::NotRunning),
            Err(_) => Err(DialError::Silent { host: host.to_owned(), port, offline: self.is_offline(peer) }),
        }
    }

    /// Takes streams from peers to a port of this node, as far as the tailnet's policy lets them through.
    ///
    /// # Errors
    /// A port that is listened to already.
    pub async fn listen(&self, port: u16) -> Result<Listener, ListenError> {
        let (reply, answer) = oneshot::channel();
        if !self.inner.dataplane.send(Command::Listen { port, reply }).await {
            return Err(ListenError::NotRunning);
        }
        let listening = answer.await.map_err(|_| ListenError::NotRunning)?;
        listening.map(|streams| Listener::new(port, streams)).map_err(|source| ListenError::Port { port, source })
    }

    /// Ends all streams with a peer at once, in either direction: whoever reads or writes one gets an error, and the peer a
    /// reset if it can hear it. For a peer that was found dead or frozen, long before TCP finds it.
    pub async fn reset_streams(&self, peer: &NodePublic) {
        // Where the dataplane runs no more, there are no streams.
        self.inner.dataplane.send(Command::ResetStreams { peer: *peer }).await;
    }

    /// Asks a peer for an answer, and tells how long it took and over which path.
    ///
    /// # Errors
    /// Nobody has that name, or no answer within `deadline`.
    pub async fn ping(&self, host: &str, kind: PingKind, deadline: Duration) -> Result<Pong, PingError> {
        let (address, peer) = self.resolve(host)?;
        let peer = peer.ok_or_else(|| PingError::NoNode(host.to_owned()))?;
        let kind = match kind {
            PingKind::Disco => node::PingKind::Disco,
            PingKind::Tsmp => node::PingKind::Tsmp,
            PingKind::Icmp => node::PingKind::Icmp,
        };
        let asked = tokio::time::timeout(deadline, self.ask(peer, kind)).await;
        let silent = || PingError::Silent { host: host.to_owned(), after: deadline };
        match asked.map_err(|_| silent())?.ok_or(PingError::NotRunning)? {
            Ok(pong) => Ok(Pong {
                name: self.peer_name(&peer).unwrap_or_else(|| host.to_owned()),
                address,
                latency_ms: pong.latency.as_secs_f64() * 1e3,
                path: pong.path.into(),
            }),
            Err(error) => Err(PingError::Failed { host: host.to_owned(), reason: error.to_string() }),
        }
    }

    /// Asks a peer until it answers, or can't be asked. `None`: the dataplane has ended.
    async fn ask(&self, peer: NodePublic, kind: node::PingKind) -> Option<Result<PongFact, node::PingError>> {
        loop {
            let (reply, answer) = oneshot::channel();
            if !self.inner.dataplane.send(Command::Ping { peer, kind, reply }).await {
                return None;
            }
            match answer.await.ok()? {
                // Whoever asks here may have more patience than the node.
                Err(node::PingError::TimedOut) => {}
                answered => return Some(answered),
            }
        }
    }

    /// The netmap, and how it changes. `None` never comes after a join.
    pub fn netmap(&self) -> watch::Receiver<Option<Arc<Netmap>>> {
        self.inner.netmap.clone()
    }

    /// Waits until control has taken this node off the tailnet for good, and says why in words that are fit to be shown.
    /// The node has no peers from then on, and lets nobody in; it remains to [`Self::leave`].
    pub async fn refused(&self) -> String {
        let mut refused = self.inner.membership.refused();
        let reason = refused.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        match reason {
            Some(reason) => reason,
            // It has left before that could happen.
            None => std::future::pending().await,
        }
    }

    /// The DERP map, as control sends it.
    pub fn derp_map(&self) -> tailcfg::DerpMap {
        let netmap = self.inner.netmap.borrow().clone().unwrap_or_default();
        let regions = netmap.derp_map.iter().map(|(id, region)| (*id, Some(region.clone()))).collect();
        tailcfg::DerpMap { regions: Some(regions), ..tailcfg::DerpMap::default() }
    }

    /// This node's key.
    pub fn node_key(&self) -> NodePublic {
        self.inner.node_key
    }

    /// Tells peers, through control, of other SSH host keys, in OpenSSH's one-line form.
    pub async fn set_ssh_host_keys(&self, keys: Vec<String>) {
        self.inner.membership.set_ssh_host_keys(keys).await;
    }

    /// How this node and its peers are doing.
    pub async fn status(&self) -> Status {
        let (reply, answer) = oneshot::channel();
        let asked = self.inner.dataplane.send(Command::Peers { reply }).await;
        let peers = if asked { answer.await.unwrap_or_default() } else { Vec::new() };
        let paths: HashMap<NodePublic, node::PeerStatus> = peers.into_iter().map(|peer| (peer.key, peer)).collect();
        let netmap = self.inner.netmap.borrow().clone().unwrap_or_default();
        let facts = self.inner.facts.borrow().clone();
        let mut health = netmap.health.clone();
        health.extend(self.inner.membership.trouble());
        health.extend(standing_in_words(&netmap));
        if !self.is_relay_ready(self.inner.derp) {
            health.push(NO_RELAY.to_owned());
        }
        let mut peers: Vec<Peer> = netmap.peers.values().map(|peer| describe(peer, paths.get(&peer.key))).collect();
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        let own = &netmap.self_node;
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: self.inner.membership.state(),
            login_server: self.inner.login_server.clone(),
            own: OwnNode {
                name: own.short_name().to_owned(),
                dns_name: own.dns_name().to_owned(),
                addresses: netmap.addresses().collect(),
                node_key: self.inner.node_key,
                tags: own.tags.clone(),
                endpoints: facts.endpoints.unwrap_or_default().into_iter().map(|(address, _)| address).collect(),
                home_region: facts.home_region,
            },
            peers,
            health,
            start: self.inner.stages.reached(),
            relays: facts.connected_regions,
            key_ends_in_s: time_left(&netmap, crate::control::clock()).map(|left| left.as_secs()),
            clock_offset_s: netmap.clock_offset,
            network: facts.net_info.map(Into::into),
        }
    }

    /// Over which path packets to a peer go; where none went lately, over which the last ones did.
    pub async fn path_to(&self, peer: &NodePublic) -> Path {
        let (reply, answer) = oneshot::channel();
        let asked = self.inner.dataplane.send(Command::Peers { reply }).await;
        let peers = if asked { answer.await.unwrap_or_default() } else { Vec::new() };
        peers.iter().find(|known| known.key == *peer).map_or(Path::None, |known| known.path.into())
    }

    /// Makes [`Self::leave`] log out a node whose identity is kept, and remove what is kept of it: the next start is
    /// another node's.
    pub fn forget_identity(&self) {
        self.inner.is_kept.store(false, Ordering::Relaxed);
    }

    /// Ends all streams, and waits for everything that was started. Logs out before, so that control forgets an ephemeral
    /// node at once; a node whose identity is kept goes without that, and may come back. A second call has nothing to do.
    ///
    /// # Errors
    /// What didn't work. The node is down all the same.
    pub async fn leave(&self, deadline: Duration) -> Result<(), LeaveError> {
        let begun = Instant::now();
        // Control may be silent, and streams want to be closed all the same.
        let log_out = !self.inner.is_kept.load(Ordering::Relaxed);
        let logout = self.inner.membership.end(deadline.saturating_sub(deadline / DATAPLANE_SHARE), log_out).await;
        let rest = deadline.saturating_sub(begun.elapsed()).max(Duration::from_millis(200));
        let stopped = self.inner.dataplane.stop(rest).await;
        logout?;
        if stopped { Ok(()) } else { Err(LeaveError::Dataplane) }
    }

    fn resolve(&self, host: &str) -> Result<(IpAddr, Option<NodePublic>), NameError> {
        let netmap = self.inner.netmap.borrow().clone().unwrap_or_default();
        names::resolve(&netmap, host)
    }

    fn is_offline(&self, peer: Option<NodePublic>) -> bool {
        let netmap = self.inner.netmap.borrow();
        let peer = netmap.as_ref().zip(peer).and_then(|(netmap, key)| netmap.peer_by_key(&key));
        peer.is_some_and(|peer| peer.online == Some(false))
    }

    fn peer_name(&self, key: &NodePublic) -> Option<String> {
        let netmap = self.inner.netmap.borrow();
        netmap.as_ref().and_then(|netmap| netmap.peer_by_key(key)).map(|peer| peer.short_name().to_owned())
    }

    async fn until_ready(&self, direct: bool, derp: bool) {
        let (mut netmap, mut facts) = (self.inner.netmap.clone(), self.inner.facts.clone());
        let mut told = self.inner.membership.told();
        // The channels live as long as the agent.
        let is_approved = |netmap: &Option<Arc<Netmap>>| netmap.as_ref().is_some_and(|map| !awaits_approval(map));
        if tokio::time::timeout(APPROVAL_SILENCE, netmap.wait_for(is_approved)).await.is_err()
            && netmap.borrow().is_some()
        {
            tracing::warn!("{AWAITS_APPROVAL}");
        }
        let _ = netmap.wait_for(is_approved).await;
        let told = async {
            let _ = told.wait_for(|told| *told).await;
            self.inner.stages.mark(Stage::Told);
        };
        let relay = async {
            while !self.is_relay_ready(derp) {
                tokio::select! {
                    _ = facts.changed() => {}
                    _ = netmap.changed() => {}
                }
                if facts.borrow_and_update().home_region.is_some() {
                    self.inner.stages.mark(Stage::HomeRegion);
                }
            }
            self.inner.stages.mark(Stage::HomeRelay);
        };
        let relay_or_patience = async {
            if !direct {
                relay.await;
            } else if tokio::time::timeout(RELAY_PATIENCE, relay).await.is_err() {
                tracing::warn!("{NO_RELAY}; peers are reached directly or not at all until one is");
            }
        };
        tokio::join!(told, relay_or_patience);
    }

    fn is_relay_ready(&self, derp: bool) -> bool {
        let no_relay = self.inner.netmap.borrow().as_ref().is_some_and(|netmap| netmap.derp_map.is_empty());
        let facts = self.inner.facts.borrow();
        !derp || no_relay || facts.home_region.is_some_and(|home| facts.connected_regions.contains(&home))
    }

    fn unready(&self, derp: bool, after: Duration) -> JoinError {
        let netmap = self.inner.netmap.borrow().clone();
        match netmap.filter(|netmap| awaits_approval(netmap)) {
            Some(netmap) => JoinError::Unapproved { after, name: netmap.self_node.short_name().to_owned() },
            None => JoinError::Deadline { after, missing: self.missing(derp) },
        }
    }

    fn missing(&self, derp: bool) -> &'static str {
        if self.inner.netmap.borrow().is_none() {
            "control hasn't sent a netmap"
        } else if !self.is_relay_ready(derp) {
            NO_RELAY
        } else {
            "control hasn't taken this node's endpoints"
        }
    }
}

/// Whether an admin must approve this machine before it can be used.
fn awaits_approval(netmap: &Netmap) -> bool {
    standing(netmap, crate::control::clock()) == Standing::Unapproved
}

/// What is wrong with this node's place in the tailnet.
fn standing_in_words(netmap: &Netmap) -> Option<String> {
    if awaits_approval(netmap) {
        return Some(AWAITS_APPROVAL.to_owned());
    }
    if !netmap.is_locked() {
        return None;
    }
    // Without its own signature, peers that check theirs are silent towards this node.
    let unsigned = netmap.self_node.key_signature.is_empty();
    let own = if unsigned { ", and this node's own key is not signed, so that peers refuse it, too" } else { "" };
    Some(format!(
        "tailnet lock is on, and nixtail can't check its signatures: no peer is used{own}; switch tailnet lock off for \
         this tailnet, or use tailscaled here"
    ))
}

impl From<node::Path> for Path {
    fn from(path: node::Path) -> Self {
        match path {
            node::Path::None => Self::None,
            node::Path::Direct(address) => Self::Direct { address },
            node::Path::Derp(region) => Self::Derp { region },
        }
    }
}

fn describe(peer: &tailcfg::Node, known: Option<&node::PeerStatus>) -> Peer {
    Peer {
        name: peer.short_name().to_owned(),
        dns_name: peer.dns_name().to_owned(),
        addresses: peer.addresses.iter().map(|network| network.addr()).collect(),
        node_key: peer.key,
        tags: peer.tags.clone(),
        online: peer.online,
        path: known.map_or(Path::None, |known| known.path.into()),
        active: known.is_some_and(|known| known.is_active),
        rtt_ms: known.and_then(|known| known.rtt).map(|rtt| rtt.as_secs_f64() * 1e3),
        bytes_sent: known.map_or(0, |known| known.bytes_sent),
        bytes_received: known.map_or(0, |known| known.bytes_received),
        last_handshake_s: known.and_then(|known| known.last_handshake).map(|at| at.elapsed().as_secs_f64()),
    }
}
