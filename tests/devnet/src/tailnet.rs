//! The state that control's connections share, behind one lock, and the bell that rings when it changed.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nixtail_proto::key::{MachinePublic, NodePublic};
use nixtail_proto::secret::Secret;
use nixtail_proto::tailcfg::{
    DerpMap, MapRequest, Node, NodeId, RegisterRequest, RegisterResponse, Timestamp, TkaInfo,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::auth_key::{AuthKeyOptions, AuthKeys};
use crate::misbehaviour::Conduct;
use crate::netmap::View;
use crate::policy::Policy;
use crate::registry::Registry;

/// Everything that control knows.
#[derive(Debug)]
pub(crate) struct Tailnet {
    state: Mutex<State>,
    conduct: Conduct,
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    registry: Registry,
    keys: AuthKeys,
    policy: Policy,
    derp_map: DerpMap,
    /// Nothing as long as tailnet lock was never switched on.
    lock: Option<TkaInfo>,
    /// Seconds that control's clock is before that of this machine.
    clock_shift: i64,
}

impl Tailnet {
    /// `url` is control's own.
    pub(crate) fn new(url: String, policy: Policy, derp_map: DerpMap, ephemeral_grace: Duration) -> Self {
        let registry = Registry::new(ephemeral_grace, url);
        let state = State { registry, keys: AuthKeys::default(), policy, derp_map, lock: None, clock_shift: 0 };
        Self { state: Mutex::new(state), conduct: Conduct::default(), changed: watch::Sender::new(()) }
    }

    /// What control does wrong.
    pub(crate) fn conduct(&self) -> &Conduct {
        &self.conduct
    }

    /// Rings whenever what anybody may know has changed.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(crate) fn add_auth_key(&self, random: [u8; 16], options: AuthKeyOptions) -> Option<Secret> {
        self.lock().keys.add(Instant::now(), random, options)
    }

    /// Looks at the nodes.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Registry) -> T) -> T {
        look(&self.lock().registry)
    }

    /// Changes something about the nodes; everybody is told.
    pub(crate) fn administer<T>(&self, change: impl FnOnce(&mut Registry, Instant) -> T) -> T {
        let changed = change(&mut self.lock().registry, Instant::now());
        self.ring();
        changed
    }

    pub(crate) fn set_lock(&self, info: TkaInfo) {
        self.lock().lock = Some(info);
        self.ring();
    }

    /// Puts control's clock so many seconds before that of this machine.
    pub(crate) fn shift_clock(&self, seconds: i64) {
        self.lock().clock_shift = seconds;
    }

    /// Control's clock.
    pub(crate) fn time(&self) -> Timestamp {
        self.lock().time()
    }

    pub(crate) fn set_policy(&self, policy: Policy) {
        self.lock().policy = policy;
        self.ring();
    }

    /// All nodes, with whether they are ephemeral.
    pub(crate) fn nodes(&self) -> Vec<(Node, bool)> {
        self.lock().registry.nodes().collect()
    }

    /// `None`: a person has yet to log in; ask again when something changed.
    pub(crate) fn register(&self, machine: MachinePublic, request: &RegisterRequest) -> Option<RegisterResponse> {
        let mut state = self.lock();
        let time = state.time();
        let State { registry, keys, .. } = &mut *state;
        let registered = registry.register(Instant::now(), time, machine, request, keys);
        drop(state);
        if registered.changed {
            self.ring();
        }
        registered.response
    }

    pub(crate) fn find(&self, machine: MachinePublic, key: NodePublic) -> Option<NodeId> {
        self.lock().registry.find(machine, key)
    }

    pub(crate) fn update(&self, id: NodeId, request: &MapRequest) {
        if self.lock().registry.update(id, request) {
            self.ring();
        }
    }

    /// The relays of this tailnet.
    pub(crate) fn derp_map(&self) -> DerpMap {
        self.lock().derp_map.clone()
    }

    /// What a node may know now; `None` when it is gone.
    pub(crate) fn view(&self, id: NodeId) -> Option<View> {
        let state = self.lock();
        View::new(id, &state.registry, &state.policy, &state.derp_map, state.lock.as_ref())
    }

    /// Marks a node online for as long as the stream lives.
    pub(crate) fn open_stream(&self, id: NodeId) -> OpenStream<'_> {
        let stream = self.lock().registry.handle_stream_opened(id);
        // What waited was for an earlier stream.
        self.conduct.take_queued(id);
        self.ring();
        OpenStream { tailnet: self, id, stream }
    }

    /// Lets ephemeral nodes vanish when their time has come, until `stop`.
    pub(crate) async fn run_timeouts(&self, stop: CancellationToken) {
        let mut changed = self.subscribe();
        loop {
            let next = self.lock().registry.poll_timeout();
            let timeout = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                _ = changed.changed() => {}
                () = timeout => {
                    if self.lock().registry.handle_timeout(Instant::now()) {
                        self.ring();
                    }
                }
            }
        }
    }

    /// Lets everybody look for what is new.
    pub(crate) fn ring(&self) {
        self.changed.send_replace(());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while it was held failed a test already; what is there is whole enough to report it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A map stream that is open.
pub(crate) struct OpenStream<'a> {
    tailnet: &'a Tailnet,
    id: NodeId,
    stream: u64,
}

impl OpenStream<'_> {
    /// Whether no later stream of the node took its place.
    pub(crate) fn is_newest(&self) -> bool {
        self.tailnet.lock().registry.is_newest_stream(self.id, self.stream)
    }
}

impl Drop for OpenStream<'_> {
    fn drop(&mut self) {
        let mut state = self.tailnet.lock();
        let time = state.time();
        let closed = state.registry.handle_stream_closed(Instant::now(), time, self.id, self.stream);
        drop(state);
        if closed {
            self.tailnet.ring();
        }
    }
}

impl State {
    fn time(&self) -> Timestamp {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Timestamp::from_unix(i64::try_from(seconds).unwrap_or(i64::MAX).saturating_add(self.clock_shift))
    }
}
