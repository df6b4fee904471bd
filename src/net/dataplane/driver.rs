//! The dataplane's loop: what came in goes to the node, and what the node wants goes out, until there is nothing more.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nixtail_proto::node::{Destination, Event, Node, NodeConfig, PingError, PingId};
use nixtail_proto::tailcfg::EndpointType;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::command::{Command, PongFact};
use super::moments::Moments;
use super::relays::{RelayInput, Relays};
use super::streams::Streams;
use super::{Facts, Setup};
use crate::net::interfaces::local_endpoints;
use crate::net::link_watch::LinkWatch;
use crate::net::socket::{Blocked, MAX_SEGMENTS, ReceiveBuffers, Sent, Sockets, TRANSMIT_BUFFER};
use crate::report::told::MOMENT;

/// Sends of one turn. Then what came in meanwhile has its turn: acknowledgements wait there.
const SENDS_PER_TURN: usize = 16;
/// Receive batches of one turn, each up to eight trains of 64 KiB from either socket.
const RECEIVES_PER_TURN: usize = 4;
/// Relay inputs of one turn.
const RELAY_INPUTS_PER_TURN: usize = 64;
/// Events of one turn. A read of 64 KiB may follow from each.
const EVENTS_PER_TURN: usize = 64;
/// How often the interfaces are looked at, and what applications dropped is swept up.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// How long after news of the network the interfaces are looked at: changes come in swarms.
const SETTLE_TIME: Duration = Duration::from_millis(200);
/// Pings that wait for their answer.
const MAX_PINGS: usize = 256;
/// Turns at the end, for the peers to be told that their streams are over.
const LAST_TURNS: usize = 64;
/// The longest sleep; the runtime's clock has a far end.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

pub(super) struct Driver {
    node: Node,
    sockets: Sockets,
    streams: Streams,
    relays: Relays,
    moments: Moments,
    pings: HashMap<PingId, oneshot::Sender<Result<PongFact, PingError>>>,
    facts: watch::Sender<Facts>,
    direct: bool,
    endpoints: Vec<SocketAddr>,
    /// When to look at the interfaces, because the network has changed.
    look_at: Option<Instant>,
    buffers: ReceiveBuffers,
    outgoing: Outgoing,
}

/// The send buffer, and what of it the kernel hasn't taken yet.
struct Outgoing {
    data: Vec<u8>,
    waiting: Option<Waiting>,
}

struct Waiting {
    destination: SocketAddr,
    from: usize,
    to: usize,
    segment_size: usize,
}

/// What woke the dataplane.
enum Wake {
    Stop,
    Command(Option<Command>),
    Rung,
    Readable,
    Writable,
    Relay(Option<RelayInput>),
    Timer,
    Sweep,
    LinkChanged,
    More,
}

impl Driver {
    pub(super) fn new(setup: Setup, facts: watch::Sender<Facts>, outer: Handle) -> io::Result<Self> {
        let sockets = Sockets::bind(setup.port)?;
        let config = NodeConfig {
            node_key: setup.node_key.clone(),
            disco_key: setup.disco_key,
            direct: setup.direct,
            derp: setup.derp,
        };
        let rng = Box::new(StdRng::from_rng(&mut rand::rng()));
        let mut node = Node::new(config, Instant::now(), rng);
        if setup.port != 0 {
            node.set_fixed_port(setup.port);
        }
        Ok(Self {
            node,
            sockets,
            streams: Streams::new(),
            relays: Relays::new(setup.node_key, setup.proxies, outer),
            moments: Moments::default(),
            pings: HashMap::new(),
            facts,
            direct: setup.direct,
            endpoints: Vec::new(),
            look_at: None,
            buffers: ReceiveBuffers::default(),
            outgoing: Outgoing { data: vec![0; TRANSMIT_BUFFER], waiting: None },
        })
    }

    /// Runs until `stop` is cancelled or everyone who could send commands is gone.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>, stop: CancellationToken) {
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let doorbell = self.streams.doorbell();
        let mut link_watch = LinkWatch::start();
        let sleep = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(sleep);
        loop {
            let now = Instant::now();
            let more = self.turn(now);
            let timeouts = [self.node.poll_timeout(), self.look_at, Some(now + LONGEST_SLEEP)];
            let wake_at = timeouts.into_iter().flatten().min().unwrap_or(now);
            sleep.as_mut().reset(wake_at.into());
            let blocked = self.outgoing.waiting.as_ref().map(|waiting| waiting.destination);
            let wake = tokio::select! {
                () = stop.cancelled() => Wake::Stop,
                command = commands.recv() => Wake::Command(command),
                () = doorbell.rung() => Wake::Rung,
                () = poll_fn(|cx| self.sockets.poll_readable(cx)) => Wake::Readable,
                () = poll_fn(|cx| match blocked {
                    Some(destination) => self.sockets.poll_writable(cx, destination),
                    None => std::task::Poll::Pending,
                }), if blocked.is_some() => Wake::Writable,
                input = self.relays.next() => Wake::Relay(input),
                () = &mut sleep => Wake::Timer,
                _ = sweep.tick() => Wake::Sweep,
                () = link_watch.changed() => Wake::LinkChanged,
                () = tokio::task::yield_now(), if more => Wake::More,
            };
            let now = Instant::now();
            match wake {
                Wake::Stop | Wake::Command(None) => break,
                Wake::Command(Some(command)) => self.handle_command(now, command),
                Wake::Rung => self.streams.handle_rung(&mut self.node, now),
                Wake::Readable => self.receive(now),
                Wake::Writable => self.send_waiting(),
                Wake::Relay(input) => self.handle_relays(now, input),
                Wake::Sweep => self.sweep(now),
                Wake::LinkChanged => {
                    self.look_at.get_or_insert(now + SETTLE_TIME);
                }
                // Timers run at each turn; the others only wake it.
                Wake::Timer | Wake::More => {}
            }
        }
        self.finish().await;
    }

    /// One pass of timers, events and sends. Answers whether there is more to do at once.
    fn turn(&mut self, now: Instant) -> bool {
        if self.node.poll_timeout().is_some_and(|at| at <= now) {
            self.node.handle_timeout(now);
        }
        if self.look_at.take_if(|at| *at <= now).is_some() && !self.look_at_interfaces(now) {
            self.node.handle_routes_changed(now);
        }
        let mut events = 0;
        let mut sends = 0;
        loop {
            let before = (events, sends);
            while events < EVENTS_PER_TURN
                && let Some(event) = self.node.poll_event()
            {
                events += 1;
                self.handle_event(now, event);
            }
            while sends < SENDS_PER_TURN && self.send_next(now) {
                sends += 1;
            }
            if events == EVENTS_PER_TURN || sends == SENDS_PER_TURN {
                return true;
            }
            if (events, sends) == before {
                return false;
            }
        }
    }

    fn send_next(&mut self, now: Instant) -> bool {
        if self.outgoing.waiting.is_some() {
            return false;
        }
        let Some(transmit) = self.node.poll_transmit(now, &mut self.outgoing.data, MAX_SEGMENTS) else { return false };
        let data = self.outgoing.data.get(..transmit.len).unwrap_or_default();
        match transmit.destination {
            Destination::Udp(destination) => match self.sockets.send(destination, data, transmit.segment_size) {
                Ok(Sent::Out) => {}
                Ok(Sent::Unreachable) => self.node.handle_unreachable(now, destination),
                Err(Blocked { sent }) => {
                    let (from, to, segment_size) = (sent, transmit.len, transmit.segment_size);
                    self.outgoing.waiting = Some(Waiting { destination, from, to, segment_size });
                }
            },
            Destination::Derp { region, peer } => self.relays.send(region, &peer, data, transmit.segment_size),
        }
        true
    }

    fn send_waiting(&mut self) {
        let Some(mut waiting) = self.outgoing.waiting.take() else { return };
        let data = self.outgoing.data.get(waiting.from..waiting.to).unwrap_or_default();
        if let Err(Blocked { sent }) = self.sockets.send(waiting.destination, data, waiting.segment_size) {
            waiting.from += sent;
            self.outgoing.waiting = Some(waiting);
        }
    }

    fn receive(&mut self, now: Instant) {
        for _ in 0..RECEIVES_PER_TURN {
            let node = &mut self.node;
            let any = self.sockets.receive(&mut self.buffers, |from, train, segment_size| {
                node.handle_datagrams(now, from, train, segment_size);
            });
            if !any {
                return;
            }
        }
    }

    fn handle_relays(&mut self, now: Instant, first: Option<RelayInput>) {
        let mut input = first;
        for _ in 0..RELAY_INPUTS_PER_TURN {
            match input {
                Some(input) => self.relays.handle(&mut self.node, &mut self.moments, now, input),
                None => break,
            }
            input = self.relays.try_next();
        }
        // The last one taken isn't lost when the turn's share is used up.
        if let Some(input) = input {
            self.relays.handle(&mut self.node, &mut self.moments, now, input);
        }
        let connected = self.relays.connected();
        self.facts.send_if_modified(|facts| replace(&mut facts.connected_regions, connected));
    }

    fn handle_command(&mut self, now: Instant, command: Command) {
        match command {
            Command::Netmap(netmap) => {
                self.relays.handle_map(&netmap);
                self.moments.handle_netmap(&netmap);
                self.node.handle_netmap(now, &netmap);
            }
            Command::HasControl(connected) => self.node.handle_control(now, connected),
            Command::StunServers(servers) => self.node.handle_stun_servers(now, servers),
            Command::Connect { remote, reply } => self.streams.connect(&mut self.node, now, remote, reply),
            Command::Listen { port, reply } => {
                // A listener whose asker went away is swept up.
                let _ = reply.send(self.streams.listen(&mut self.node, now, port));
            }
            Command::Ping { peer, kind, reply } => {
                if self.pings.len() >= MAX_PINGS {
                    // An asker that went away doesn't want to know.
                    let _ = reply.send(Err(PingError::TooMany));
                    return;
                }
                match self.node.ping(now, peer, kind) {
                    Ok(id) => drop(self.pings.insert(id, reply)),
                    Err(error) => drop(reply.send(Err(error))),
                }
            }
            Command::ResetStreams { peer } => self.node.reset_streams(now, &peer),
            Command::Peers { reply } => drop(reply.send(self.node.peer_status(now).collect())),
        }
    }

    fn handle_event(&mut self, now: Instant, event: Event) {
        match event {
            Event::DialDerp { region } => self.relays.dial(&mut self.node, now, region),
            Event::CloseDerp { region } => self.relays.close(region),
            Event::CheckDerp { region } => self.relays.check(region),
            Event::DerpHealth { region, problem } if problem.is_empty() => {
                tracing::info!(target: MOMENT, region, "the relay is well again");
            }
            Event::DerpHealth { region, problem } => {
                tracing::warn!(target: MOMENT, region, problem, "the relay has something to say");
            }
            Event::MeasureRelay { region } => self.relays.measure(&mut self.node, now, region),
            Event::Endpoints(endpoints) => {
                self.facts.send_if_modified(|facts| replace(&mut facts.endpoints, Some(endpoints)));
            }
            Event::HomeRegion(region) => {
                self.relays.set_home(region);
                self.moments.handle_home(now, region);
                self.facts.send_if_modified(|facts| replace(&mut facts.home_region, Some(region)));
            }
            Event::NetInfo(info) => {
                self.facts.send_if_modified(|facts| replace(&mut facts.net_info, Some(info)));
            }
            Event::Accepted { port } => self.streams.handle_accepted(&mut self.node, now, port),
            Event::Connected { id, peer, local } => self.streams.handle_connected(&mut self.node, now, id, peer, local),
            Event::Readable { id } => self.streams.handle_readable(&mut self.node, now, id),
            Event::Writable { id } => self.streams.handle_writable(&mut self.node, now, id),
            Event::Closed { id, error } => self.streams.handle_closed(&mut self.node, now, id, error),
            Event::PingReply { id, latency, path, .. } => self.answer_ping(id, Ok(PongFact { latency, path })),
            Event::PingFailed { id, error } => self.answer_ping(id, Err(error)),
            Event::PathChanged { peer, path } => self.moments.handle_path(now, peer, path),
            // The enum may grow; what it grows by is for those who know of it.
            _ => {}
        }
    }

    fn answer_ping(&mut self, id: PingId, answer: Result<PongFact, PingError>) {
        if let Some(reply) = self.pings.remove(&id) {
            // An asker that went away doesn't want to know.
            let _ = reply.send(answer);
        }
    }

    fn sweep(&mut self, now: Instant) {
        self.streams.sweep(&mut self.node, now);
        self.moments.sweep(now);
        self.pings.retain(|_, reply| !reply.is_closed());
        self.look_at_interfaces(now);
    }

    /// Tells the node the addresses of the interfaces, if they are others than before. Answers whether they are.
    fn look_at_interfaces(&mut self, now: Instant) -> bool {
        let endpoints =
            if self.direct { local_endpoints(self.sockets.port_v4(), self.sockets.port_v6()) } else { Vec::new() };
        let first = self.facts.borrow().endpoints.is_none();
        let changed = first || endpoints != self.endpoints;
        if changed {
            let typed: Vec<_> = endpoints.iter().map(|endpoint| (*endpoint, EndpointType::Local)).collect();
            self.node.handle_local_endpoints(now, &typed);
            self.endpoints = endpoints;
        }
        changed
    }

    /// Tells the peers that their streams are over, and closes the relays.
    async fn finish(mut self) {
        self.streams.end_all(&mut self.node, Instant::now());
        for _ in 0..LAST_TURNS {
            let more = self.turn(Instant::now());
            self.send_waiting();
            if !more {
                break;
            }
        }
        self.relays.close_all().await;
    }
}

/// Replaces a value and says whether that changed it.
fn replace<T: PartialEq>(old: &mut T, new: T) -> bool {
    let changed = *old != new;
    *old = new;
    changed
}
