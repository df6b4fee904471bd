//! A builder: serves the SSH endpoint inside the tunnel until it is stopped, idle too long, or its claimer is lost.
//!
//! When it ends is decided in [`nixtail_proto::run::Builder`]; here it is put to work.

mod listening;
mod places;
mod verbs;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nixtail_proto::key::NodePublic;
use nixtail_proto::netmap::Netmap;
use nixtail_proto::run::{End, Presence};
use nixtail_proto::ssh_policy::{Decision, PrincipalFacts, evaluate};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agent::{Agent, ListenError, Listener, Stream};
use crate::nix::daemon::NixHost;
use crate::nix::facts::Facts;
use crate::report::plain;
use crate::ssh::{AdmissionControl, AllowedCommands, Endpoint, EndpointConfig, HostKey, Limits, Peer};
use listening::Listening;
use places::{MAX_CONNECTIONS, MAX_CONNECTIONS_OF_NODE, Places};
use verbs::Verbs;

/// The port of the SSH endpoint inside the tunnel.
pub const SSH_PORT: u16 = 22;
/// How long connections may go on at the end: the answer to the stop that ended us is on its way.
const FAREWELL: Duration = Duration::from_secs(1);
/// How often the tunnel is asked whether a claimer that control calls offline still talks to us.
const LISTEN_FOR_CLAIMER: Duration = Duration::from_secs(10);

/// What a builder is made of.
#[derive(Debug)]
pub struct Options {
    /// The user that coordinators log in as: the operator's word that this process is that user.
    pub login: String,
    /// How long it waits to be claimed; `None` is for ever.
    pub idle_timeout: Option<Duration>,
    /// The Nix that it serves.
    pub nix: NixHost,
    /// What that Nix can do, as found before joining.
    pub facts: Facts,
    /// The endpoint's key, which control must have been told of.
    pub host_key: HostKey,
}

/// A builder at work.
pub struct Builder {
    agent: Agent,
    verbs: Arc<Verbs>,
    admission: Arc<AdmissionControl>,
    endpoint: Arc<Endpoint>,
    connections: TaskTracker,
    accepting: CancellationToken,
    cancel: CancellationToken,
}

impl Builder {
    /// Begins to serve.
    ///
    /// # Errors
    /// When the port inside the tunnel is taken.
    pub async fn start(agent: &Agent, options: Options) -> Result<Self, ListenError> {
        let verbs = Arc::new(Verbs::new(options.facts, options.idle_timeout));
        let netmap = agent.netmap();
        let authorizer = move |peer: &Peer, user: &str| authorize(&netmap, peer, user);
        let admission = AdmissionControl::new(options.login, Arc::new(authorizer));
        let endpoint = Endpoint::new(EndpointConfig {
            host_key: options.host_key,
            admission: Arc::clone(&admission),
            commands: AllowedCommands {
                daemon: options.nix.daemon(),
                serve: options.nix.serve(),
                published_store: options.nix.store.published(),
            },
            control: Arc::<Verbs>::clone(&verbs) as _,
            limits: Limits::default(),
        });
        let listener = agent.listen(SSH_PORT).await?;
        let builder = Self {
            agent: agent.clone(),
            verbs,
            admission,
            endpoint,
            connections: TaskTracker::new(),
            accepting: CancellationToken::new(),
            cancel: CancellationToken::new(),
        };
        let accepting = accept(
            listener,
            Arc::clone(&builder.endpoint),
            agent.netmap(),
            builder.connections.clone(),
            builder.cancel.clone(),
        );
        builder.connections.spawn(builder.accepting.clone().run_until_cancelled_owned(accepting));
        Ok(builder)
    }

    /// Waits until the builder must end, and says why. Cancel safe.
    pub async fn ended(&self) -> End {
        let mut netmap = self.agent.netmap();
        let mut listening = Listening::new(LISTEN_FOR_CLAIMER);
        loop {
            if let Some(end) = self.verbs.end() {
                return end;
            }
            let deadline = self.verbs.poll_timeout().unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                () = self.verbs.changed() => {}
                () = tokio::time::sleep_until(deadline.into()) => self.verbs.handle_timeout(Instant::now()),
                changed = netmap.changed() => {
                    if changed.is_err() {
                        // The agent is ending, and this builder with it.
                        std::future::pending::<()>().await;
                    }
                    self.admission.policy_changed();
                    self.look_for_claimer(&netmap);
                }
                () = listening.due(), if self.verbs.claimer().is_some() => {
                    self.listen_for_claimer(&mut listening).await;
                }
            }
        }
    }

    /// Ends all connections and waits for their children.
    pub async fn stop(&self) {
        self.accepting.cancel();
        self.connections.close();
        // What takes longer is a build, which its coordinator has given up or loses now.
        let _ = tokio::time::timeout(FAREWELL, self.connections.wait()).await;
        self.cancel.cancel();
        self.connections.wait().await;
    }

    fn look_for_claimer(&self, netmap: &watch::Receiver<Option<Arc<Netmap>>>) {
        let (Some(claimer), Some(netmap)) = (self.verbs.claimer(), netmap.borrow().clone()) else { return };
        let presence = match netmap.peer_by_key(&claimer) {
            None => Presence::Absent,
            Some(peer) if peer.online == Some(false) => Presence::Offline,
            Some(_) => Presence::Online,
        };
        self.verbs.handle_presence(Instant::now(), presence);
    }

    async fn listen_for_claimer(&self, listening: &mut Listening) {
        let Some(claimer) = self.verbs.claimer() else { return };
        let status = self.agent.status().await;
        let received = status.peers.iter().find(|peer| peer.node_key == claimer).map_or(0, |peer| peer.bytes_received);
        if listening.handle_received(received) {
            self.verbs.handle_heard(Instant::now());
        }
    }
}

async fn accept(
    mut listener: Listener,
    endpoint: Arc<Endpoint>,
    netmap: watch::Receiver<Option<Arc<Netmap>>>,
    connections: TaskTracker,
    cancel: CancellationToken,
) {
    let places = Arc::new(Places::default());
    loop {
        let Ok(stream) = listener.accept().await else { return };
        let Some(place) = places.take(stream.peer()) else {
            tracing::warn!(
                peer = ?stream.peer(),
                "refused a connection: {MAX_CONNECTIONS_OF_NODE} of this node or {MAX_CONNECTIONS} in all are open"
            );
            stream.abort();
            continue;
        };
        let Some(peer) = known(&netmap, &stream) else {
            tracing::info!(peer = ?stream.peer(), "refused a connection from a node that is in the netmap no more");
            stream.abort();
            continue;
        };
        let (endpoint, cancel) = (Arc::clone(&endpoint), cancel.clone());
        connections.spawn(async move {
            let name = peer.name.clone();
            match endpoint.serve(stream, peer, cancel).await {
                Ok(report) => tracing::debug!(peer = %name, ?report, "connection ended"),
                Err(error) => tracing::info!(peer = %name, %error, "connection failed"),
            }
            drop(place);
        });
    }
}

/// Who a stream comes from, as the netmap of this moment has it.
fn known(netmap: &watch::Receiver<Option<Arc<Netmap>>>, stream: &Stream) -> Option<Peer> {
    let netmap = netmap.borrow().clone()?;
    let node = netmap.peer_by_key(&stream.peer())?;
    Some(Peer {
        node_key: stream.peer(),
        name: plain(node.dns_name()),
        facts: facts_of(&netmap, &stream.peer())?,
        source: stream.remote_addr(),
    })
}

fn facts_of(netmap: &Netmap, key: &NodePublic) -> Option<PrincipalFacts> {
    let node = netmap.peer_by_key(key)?;
    let owner = netmap.users.get(&node.user).filter(|_| node.tags.is_empty());
    Some(PrincipalFacts {
        stable_id: node.stable_id.clone(),
        addresses: node.addresses.iter().map(|network| network.addr()).collect(),
        login_name: owner.map(|user| user.login_name.clone()),
    })
}

/// The policy of this moment, about the peer of this moment: both may have changed since it connected.
fn authorize(netmap: &watch::Receiver<Option<Arc<Netmap>>>, peer: &Peer, user: &str) -> Decision {
    let netmap = netmap.borrow().clone();
    let facts = netmap.as_ref().and_then(|netmap| facts_of(netmap, &peer.node_key));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let policy = netmap.as_ref().filter(|_| facts.is_some()).and_then(|netmap| netmap.ssh_policy.as_deref());
    evaluate(policy, facts.as_ref().unwrap_or(&peer.facts), user, i64::try_from(now).unwrap_or(i64::MAX))
}
