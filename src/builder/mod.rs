//! A builder: serves the SSH endpoint and the direct lane inside the tunnel until it is stopped, idle too long, or its
//! claimer is lost.
//!
//! When it ends is decided in [`nixtail_proto::run::Builder`]; here it is put to work.

mod listening;
mod places;
mod report;
pub mod sessions;
mod verbs;
mod watching;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nixtail_proto::direct::Protocol;
use nixtail_proto::key::NodePublic;
use nixtail_proto::netmap::Netmap;
use nixtail_proto::run::{End, Presence, Told};
use nixtail_proto::ssh_policy::PrincipalFacts;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agent::{Agent, ListenError, Listener, Stream};
use crate::direct::{self, DirectEndpoint};
use crate::nix::daemon::{DAEMON_SOCKET, NixHost, StoreConfig};
use crate::nix::facts::Facts;
use crate::report::plain;
use crate::ssh::{
    AdmissionControl, AllowedCommands, Endpoint, EndpointConfig, HostKey, Limits, NetmapAuthorizer, Peer,
};
use listening::Listening;
use places::{MAX_CONNECTIONS, MAX_CONNECTIONS_OF_NODE, Places};
pub use report::{BuilderStatus, MAX_REPORT_LINE, REPORT_SCHEMA, Report, ReportEvent, RunningBuild, SessionStatus};
pub(crate) use verbs::Holder;
use verbs::Verbs;

/// The port of the SSH endpoint and of the direct lane inside the tunnel: a client's first bytes tell which it wants.
pub const SSH_PORT: u16 = 22;
/// How long connections may go on at the end: the answer to the stop that ended us is on its way.
const FAREWELL: Duration = Duration::from_secs(1);
/// How often the tunnel is asked whether a claimer that control calls offline still talks to us.
const LISTEN_FOR_CLAIMER: Duration = Duration::from_secs(10);

/// How often the machine is looked at: as often as it is reported on.
const LOOK_AROUND: Duration = Duration::from_secs(5);
/// The same while something is built: a disk may run full within seconds.
const LOOK_AROUND_AT_WORK: Duration = Duration::from_secs(1);

/// What a builder is made of.
#[derive(Debug)]
pub struct Options {
    /// The user that coordinators log in as: the operator's word that this process is that user.
    pub login: String,
    /// How long it waits to be claimed; `None` is for ever.
    pub idle_timeout: Option<Duration>,
    /// How long its claimer may be silent; see [`nixtail_proto::run::CLAIMER_SILENCE`].
    pub claimer_silence: Duration,
    /// It takes no builds while fewer bytes are free where the store is.
    pub min_free_disk: u64,
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
        let daemon_socket = daemon_socket(&options.nix, &options.facts);
        let verbs = Arc::new(Verbs::new(&options));
        let authorizer = NetmapAuthorizer::new(agent.netmap(), SSH_PORT);
        let admission = AdmissionControl::new(options.login, Arc::new(authorizer));
        let commands = AllowedCommands {
            daemon: options.nix.daemon(),
            serve: options.nix.serve(),
            published_store: options.nix.store.published(),
        };
        let doors = Doors {
            direct: Arc::new(DirectEndpoint {
                admission: Arc::clone(&admission),
                commands: commands.clone(),
                daemon_socket,
                sessions: Arc::clone(verbs.sessions()),
                answer_deadline: sessions::ANSWER_DEADLINE,
                control: Arc::<Verbs>::clone(&verbs) as _,
            }),
            ssh: Endpoint::new(EndpointConfig {
                host_key: options.host_key,
                admission: Arc::clone(&admission),
                commands,
                sessions: Arc::clone(verbs.sessions()),
                control: Arc::<Verbs>::clone(&verbs) as _,
                limits: Limits::default(),
            }),
        };
        let listener = agent.listen(SSH_PORT).await?;
        let builder = Self {
            agent: agent.clone(),
            verbs,
            admission,
            connections: TaskTracker::new(),
            accepting: CancellationToken::new(),
            cancel: CancellationToken::new(),
        };
        let accepting = accept(listener, doors, agent.netmap(), builder.connections.clone(), builder.cancel.clone());
        builder.connections.spawn(builder.accepting.clone().run_until_cancelled_owned(accepting));
        Ok(builder)
    }

    /// Waits until the builder must end, and says why. It takes no new sessions from then on. Cancel safe.
    pub async fn ended(&self) -> End {
        let mut care = Care::new(self);
        loop {
            if let Some(end) = self.verbs.end() {
                self.verbs.heed_end();
                return end;
            }
            self.step(&mut care).await;
        }
    }

    /// Whoever runs the builder ends it: it takes no new sessions, and what runs may go on for `drain`. Then
    /// [`Self::stop`] it.
    pub fn end(&self, told: Told, drain: Duration) {
        self.verbs.handle_told(told, drain);
    }

    /// How many builds are under way.
    #[must_use]
    pub fn running(&self) -> usize {
        self.verbs.sessions().running().len()
    }

    /// What tells how the builder is, wherever it is asked.
    pub fn status_source(&self) -> impl Fn() -> BuilderStatus + Send + Sync + use<> {
        let verbs = Arc::clone(&self.verbs);
        move || verbs.status()
    }

    /// Ends all connections and waits for their children; those that may go on for a while have it first.
    pub async fn stop(&self) {
        self.verbs.heed_end();
        let mut care = Care::new(self);
        while self.verbs.end().is_some() && !self.verbs.is_over() && self.verbs.sessions().open() > 0 {
            self.step(&mut care).await;
        }
        self.verbs.finish();
        self.accepting.cancel();
        self.connections.close();
        // What takes longer is a build, which its coordinator has given up or loses now.
        let _ = tokio::time::timeout(FAREWELL, self.connections.wait()).await;
        self.cancel.cancel();
        self.connections.wait().await;
    }

    /// Heeds the next thing that happens.
    async fn step(&self, care: &mut Care) {
        let deadline = self.verbs.poll_timeout().unwrap_or_else(|| Instant::now() + LOOK_AROUND);
        let look = if self.verbs.sessions().is_building() { LOOK_AROUND_AT_WORK } else { LOOK_AROUND };
        tokio::select! {
            () = self.verbs.changed() => {}
            () = tokio::time::sleep_until(deadline.into()) => self.verbs.handle_timeout(Instant::now()),
            () = tokio::time::sleep_until((care.looked + look).into()) => {
                care.looked = Instant::now();
                self.verbs.look_around();
            }
            // The sender lives as long as the verbs.
            _ = care.sessions.changed() => self.verbs.handle_sessions(Instant::now()),
            changed = care.netmap.changed() => {
                if changed.is_err() {
                    // The agent is ending, and this builder with it.
                    std::future::pending::<()>().await;
                }
                self.admission.policy_changed();
                self.look_for_claimer(&care.netmap);
            }
            () = care.listening.due(), if self.verbs.claimer().is_some() => {
                self.listen_for_claimer(&mut care.listening).await;
            }
        }
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

/// What a builder listens to while it serves.
struct Care {
    netmap: watch::Receiver<Option<Arc<Netmap>>>,
    sessions: watch::Receiver<u64>,
    listening: Listening,
    looked: Instant,
}

impl Care {
    fn new(builder: &Builder) -> Self {
        Self {
            netmap: builder.agent.netmap(),
            sessions: builder.verbs.sessions().changes(),
            listening: Listening::new(LISTEN_FOR_CLAIMER),
            looked: Instant::now(),
        }
    }
}

/// The two ways in, behind one port.
#[derive(Clone)]
struct Doors {
    ssh: Arc<Endpoint>,
    direct: Arc<DirectEndpoint>,
}

impl Doors {
    /// Serves a connection in whatever it turns out to speak.
    async fn serve(&self, stream: Stream, peer: Peer, cancel: CancellationToken) {
        let name = peer.name.clone();
        let opened = tokio::select! {
            opened = direct::open(stream) => opened,
            () = cancel.cancelled() => return,
        };
        match opened {
            Ok((Protocol::Direct, stream)) => {
                let report = self.direct.serve(stream, peer, &cancel).await;
                tracing::debug!(peer = %name, ?report, "a session of the direct lane ended");
            }
            Ok((Protocol::Ssh, stream)) => match self.ssh.serve(stream, peer, cancel).await {
                Ok(report) => tracing::debug!(peer = %name, ?report, "connection ended"),
                Err(error) => tracing::info!(peer = %name, %error, "connection failed"),
            },
            Err(error) => tracing::debug!(peer = %name, %error, "a connection broke before it said anything"),
        }
    }
}

/// The socket that stands, on the direct lane, for `nix-daemon --stdio`: where this user isn't trusted there, or where a process of our own would
/// bring its settings to a build, that process does better.
fn daemon_socket(nix: &NixHost, facts: &Facts) -> Option<PathBuf> {
    let stands =
        nix.store == StoreConfig::System && facts.trusted == Some(true) && facts.settings_reach_builds == Some(false);
    let socket = Some(PathBuf::from(DAEMON_SOCKET)).filter(|socket| stands && socket.exists());
    match &socket {
        Some(socket) => tracing::info!(socket = %socket.display(), "the direct lane joins the daemon's socket"),
        None => tracing::info!("the direct lane starts a `nix-daemon --stdio` for each session"),
    }
    socket
}

async fn accept(
    mut listener: Listener,
    doors: Doors,
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
        let (doors, cancel) = (doors.clone(), cancel.clone());
        connections.spawn(async move {
            doors.serve(stream, peer, cancel).await;
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
