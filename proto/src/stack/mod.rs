//! TCP connections of one node over batches of IP packets, and the small answers that every host owes: RST, ICMP echo, TSMP.
//!
//! Each connection has an engine of its own, found by its 4-tuple and peer. It is made only for a SYN to a port that is
//! listened to, or by [`Stack::connect`]; a listener is nothing but a queue. So the backlog is real, no rings lie idle, and a
//! packet costs one look-up however many connections there are. Polling costs as much as there is to do: connections with
//! something to send stand in a queue, those that wait for the time in an ordered set.
//!
//! Packets given to [`Stack::handle_packets`] have passed [`crate::filter`]. After each call that takes `now`, poll
//! packets and events until there are none.

mod connection;
mod engine;
mod inbound;
mod lifecycle;
mod scoreboard;
mod sender;
mod time_wait;
mod types;
mod window;

#[cfg(test)]
mod tests;

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand_core::CryptoRng;

use self::connection::{Connection, End, Flow, Life, Stage};
use self::engine::{Clock, Engine, Opening, Received};
use self::time_wait::TimeWaits;
pub use self::types::{
    Accepted, Config, ConnectError, ConnectionError, ConnectionId, DEFAULT_BUFFER, DEFAULT_MTU, ListenError, Read,
    StackEvent,
};
use crate::packet::icmp::{self, Echo};
use crate::packet::{PacketBatch, tsmp};

/// Connections of all kinds that one node has at the most: its memory is bounded by this times
/// [`MAX_CONNECTION_MEMORY`], though a ring costs only what it has held.
pub const MAX_CONNECTIONS: usize = 1024;
/// What a connection may cost besides its two buffers: engine, socket, table entries, and a list of what is under way.
pub const CONNECTION_OVERHEAD: usize = 4096 + scoreboard::MOST_STRETCHES * 32;
/// What a connection with default buffers may cost.
pub const MAX_CONNECTION_MEMORY: usize = 2 * DEFAULT_BUFFER + CONNECTION_OVERHEAD;
/// Unfinished handshakes that one peer may have on all ports: an honest one has as many as it dials within a round trip.
pub const MAX_HALF_OPEN_PER_PEER: usize = 128;
/// The part of a listener's backlog that one peer may fill, so that it can't shut the others out.
const PEER_SHARE_OF_BACKLOG: usize = 4;
/// How often a silent connection asks the peer for a sign of life. With [`SILENCE_TIMEOUT`], a peer that froze right
/// before the question may stay so for 30 seconds and more.
pub const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How long a lone segment may wait for its acknowledgement, which most often rides on the answer: a packet less to seal, to
/// send and to wake the peer with for each question and each answer. Every second full one is acknowledged with its batch.
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_millis(5);
/// What isn't acknowledged is repeated after this long at the latest, as handshakes and pings are. TCP's own pauses double up to a minute
/// (RFC 6298): a stream would stand still for as long again as the outage was that has just ended. Linux has the same knob,
/// `tcp_rto_max_ms`.
pub const REPEAT_WITHIN: Duration = Duration::from_secs(5);
/// A peer that sent nothing for so long is gone.
pub const SILENCE_TIMEOUT: Duration = Duration::from_secs(45);
/// Who was silent for so long is back when it is heard, and its connections are looked after ([`Stack::handle_peer_back`]): longer
/// than the first repetition takes by itself.
pub const PEER_SILENCE: Duration = Duration::from_secs(2);
/// How long our own SYN may stay unanswered.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(45);
/// How long a peer may take for its handshake (SYN-ACKs go out after 0, 1, 3, 7, 12 and 17 seconds).
pub const HALF_OPEN_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a released connection may take to send what is queued and close; a RST ends it then.
pub const RELEASE_TIMEOUT: Duration = Duration::from_secs(60);
/// Answers that wait to be polled; beyond it strangers' packets go unanswered (they will be repeated).
const MAX_REPLIES: usize = 1024;
/// Answers to our pings that wait to be polled.
const MAX_PING_EVENTS: usize = 64;
/// Packets that one connection may send before it is another's turn.
const QUANTUM: usize = 32;
/// When the owner calls so much later than it was asked to, the process itself was frozen.
const OWN_FREEZE: Duration = Duration::from_secs(2);
/// Local ports of connections that we open (RFC 6335 §6, dynamic ports).
const FIRST_DYNAMIC_PORT: u16 = 49152;
/// A connection that has nothing to send now but says that it has is asked again after this.
const RETRY: Duration = Duration::from_millis(1);

struct Listener<P> {
    backlog: usize,
    /// How many connections of each peer `accept` hasn't taken yet, established or not. No peer has 0.
    unaccepted: HashMap<P, usize>,
    ready: VecDeque<ConnectionId>,
}

/// TCP connections of one node. `P` says who a peer is: the node key of its WireGuard session.
pub struct Stack<P> {
    config: Config,
    rng: Box<dyn CryptoRng + Send>,
    clock: Clock,
    listeners: HashMap<u16, Listener<P>>,
    connections: HashMap<ConnectionId, Connection<P>>,
    by_flow: HashMap<Flow<P>, ConnectionId>,
    half_open: HashMap<P, usize>,
    time_waits: TimeWaits<Flow<P>>,
    next_id: u64,
    /// Connections that may have something to send.
    dirty: VecDeque<ConnectionId>,
    timers: BTreeSet<(Instant, ConnectionId)>,
    /// Packets that belong to no connection's turn.
    replies: PacketBatch<P>,
    replies_polled: usize,
    events: VecDeque<StackEvent<P>>,
    ping_events: usize,
}

impl<P: Copy + Eq + Hash> Stack<P> {
    /// A stack without connections. `rng` gives ports and initial sequence numbers.
    pub fn new(mut config: Config, rng: Box<dyn CryptoRng + Send>) -> Self {
        config.addresses.retain(|address| engine::is_usable(*address));
        config.mtu = config.mtu.max(DEFAULT_MTU);
        // A ring of nothing could never move a byte; one beyond a GiB has no window scale.
        config.receive_buffer = config.receive_buffer.clamp(4096, 1 << 28);
        config.send_buffer = config.send_buffer.clamp(4096, 1 << 28);
        Self {
            config,
            rng,
            clock: Clock::default(),
            listeners: HashMap::new(),
            connections: HashMap::new(),
            by_flow: HashMap::new(),
            half_open: HashMap::new(),
            time_waits: TimeWaits::new(),
            next_id: 0,
            dirty: VecDeque::new(),
            timers: BTreeSet::new(),
            replies: PacketBatch::new(),
            replies_polled: 0,
            events: VecDeque::new(),
            ping_events: 0,
        }
    }

    /// Changes our addresses. Connections from an address that isn't ours any more fail without a packet.
    pub fn set_addresses(&mut self, now: Instant, addresses: Vec<IpAddr>) {
        self.config.addresses = addresses;
        self.config.addresses.retain(|address| engine::is_usable(*address));
        let kept = &self.config.addresses;
        self.time_waits.retain(|flow| kept.contains(&flow.local.ip()));
        for id in self.ids(|connection| !kept.contains(&connection.flow.local.ip())) {
            self.finish(now, id, End::Failed(ConnectionError::AddressLost));
        }
    }

    /// Takes connections to `port` on all our addresses. `backlog` bounds those that `accept` hasn't taken yet,
    /// established or not; a quarter of it (at least 1) those of one peer.
    ///
    /// # Errors
    /// Port 0, or a port that is listened to already.
    pub fn listen(&mut self, port: u16, backlog: usize) -> Result<(), ListenError> {
        if port == 0 {
            return Err(ListenError::PortZero);
        }
        if self.listeners.contains_key(&port) {
            return Err(ListenError::InUse);
        }
        let backlog = backlog.clamp(1, MAX_CONNECTIONS);
        let listener = Listener { backlog, unaccepted: HashMap::new(), ready: VecDeque::new() };
        self.listeners.insert(port, listener);
        Ok(())
    }

    /// Takes no more connections to `port`; those that nobody has accepted are reset.
    pub fn unlisten(&mut self, now: Instant, port: u16) {
        let unaccepted = self.ids(|connection| {
            connection.flow.local.port() == port && matches!(connection.stage, Stage::HalfOpen | Stage::Waiting)
        });
        for id in unaccepted {
            self.reset(now, id, ConnectionError::Aborted);
        }
        self.listeners.remove(&port);
    }

    /// Opens a connection to `remote` through `peer`, from `local_ip` or else our first address of its family.
    /// [`StackEvent::Connected`] or [`StackEvent::Closed`] tells how it went.
    ///
    /// # Errors
    /// If no attempt can be made.
    pub fn connect(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        local_ip: Option<IpAddr>,
        peer: P,
    ) -> Result<ConnectionId, ConnectError> {
        if remote.port() == 0 || !engine::is_usable(remote.ip()) {
            return Err(ConnectError::BadRemote);
        }
        if self.connections.len() >= MAX_CONNECTIONS {
            return Err(ConnectError::TooMany);
        }
        let mut ours = self.config.addresses.iter().copied();
        let local_ip = ours
            .find(|address| address.is_ipv4() == remote.is_ipv4() && local_ip.is_none_or(|wanted| wanted == *address))
            .ok_or(ConnectError::NoAddress)?;
        let flow = self.free_flow(peer, local_ip, remote).ok_or(ConnectError::NoPort)?;
        let opening = self.opening(&flow);
        let engine_now = self.clock.engine_time(now);
        let engine = Engine::dialling(opening, engine_now).ok_or(ConnectError::BadRemote)?;
        Ok(self.insert(now, flow, Stage::Dialling, engine))
    }

    /// The next established connection to `port`.
    pub fn accept(&mut self, port: u16) -> Option<Accepted<P>> {
        let listener = self.listeners.get_mut(&port)?;
        let id = listener.ready.pop_front()?;
        let connection = self.connections.get_mut(&id)?;
        connection.stage = Stage::Owned;
        let flow = connection.flow;
        count_down(&mut listener.unaccepted, flow.peer);
        self.notify(id);
        Some(Accepted { id, peer: flow.peer, local: flow.local, remote: flow.remote })
    }

    /// Queues bytes for sending and says how many were taken: 0 when full or not connected yet.
    /// [`StackEvent::Writable`] follows whenever fewer were taken than given.
    ///
    /// # Errors
    /// Why the connection can't send any more.
    pub fn write(&mut self, _now: Instant, id: ConnectionId, bytes: &[u8]) -> Result<usize, ConnectionError> {
        let connection = self.owned(id)?;
        if connection.shut_down {
            return Err(ConnectionError::Shutdown);
        }
        let taken = match &mut connection.life {
            Life::Running(engine) => engine.write(bytes).unwrap_or(0),
            Life::Ended { end, .. } => return Err(end.error()),
        };
        connection.wants_write = taken < bytes.len();
        if taken > 0 {
            self.mark(id);
        }
        Ok(taken)
    }

    /// Takes received bytes. They come first even if the connection has failed since.
    ///
    /// # Errors
    /// Why the connection failed.
    pub fn read(&mut self, _now: Instant, id: ConnectionId, into: &mut [u8]) -> Result<Read, ConnectionError> {
        let connection = self.owned(id)?;
        let received = match &mut connection.life {
            Life::Running(engine) => engine.read(into),
            Life::Ended { end, leftover } => match (leftover.read(into), *end) {
                (0, _) if !leftover.is_empty() => Received::Nothing,
                (0, End::Clean) => Received::End,
                (0, End::Failed(error)) => return Err(error),
                (length, _) => Received::Bytes(length),
            },
        };
        Ok(match received {
            Received::Bytes(length) => {
                // The window may be worth announcing again.
                self.mark(id);
                Read::Bytes(length)
            }
            Received::End => Read::Eof,
            Received::Nothing => {
                connection.wants_read = true;
                Read::Empty
            }
        })
    }

    /// Closes our way of the connection after what is queued (FIN); reading goes on.
    ///
    /// # Errors
    /// If there is no such connection.
    pub fn shutdown(&mut self, now: Instant, id: ConnectionId) -> Result<(), ConnectionError> {
        let connection = self.owned(id)?;
        connection.shut_down = true;
        if let Some(engine) = connection.engine() {
            engine.shutdown();
        }
        self.mark(id);
        self.settle(now, id);
        Ok(())
    }

    /// Ends the connection at once (RST). Its owner reads `reason` from it until `release`.
    pub fn abort(&mut self, now: Instant, id: ConnectionId, reason: ConnectionError) {
        self.reset(now, id, reason);
    }

    /// The owner forgets the connection. What is queued is still sent, what arrives is thrown away, and it closes by
    /// itself within [`RELEASE_TIMEOUT`].
    pub fn release(&mut self, now: Instant, id: ConnectionId) {
        let Ok(connection) = self.owned(id) else {
            return;
        };
        connection.stage = Stage::Released { until: now + RELEASE_TIMEOUT };
        match connection.engine() {
            None => {
                self.remove(id);
            }
            Some(engine) => {
                drop(engine.drain());
                engine.shutdown();
                self.mark(id);
                self.settle(now, id);
            }
        }
    }

    /// Ends all connections with `peer`, whose owners read `reason`.
    pub fn abort_peer(&mut self, now: Instant, peer: P, reason: ConnectionError) {
        self.time_waits.retain(|flow| flow.peer != peer);
        for id in self.ids(|connection| connection.flow.peer == peer) {
            self.reset(now, id, reason);
        }
    }

    /// Asks `destination` for an ICMP echo through `peer`. Says whether the question could be asked.
    pub fn send_echo(&mut self, peer: P, destination: IpAddr, echo: Echo, data: &[u8]) -> bool {
        let packet = self.source_for(destination).and_then(|source| icmp::request(source, destination, echo, data));
        self.reply(peer, packet)
    }

    /// Asks the node `peer` for a TSMP pong. Says whether the question could be asked.
    pub fn send_tsmp_ping(&mut self, peer: P, destination: IpAddr, data: [u8; 8]) -> bool {
        let packet = self.source_for(destination).and_then(|source| tsmp::ping(source, destination, data));
        self.reply(peer, packet)
    }

    /// Sends a ready-made packet (such as [`tsmp::rejection`]) with the next ones. Says whether there was room for it.
    pub fn send_packet(&mut self, peer: P, packet: Vec<u8>) -> bool {
        self.reply(peer, Some(packet))
    }

    /// Writes packets to send to `out`, about `budget` of them at the most, those of one connection together.
    /// Says whether there are more.
    pub fn poll_packets(&mut self, now: Instant, out: &mut PacketBatch<P>, budget: usize) -> bool {
        let mut left = budget;
        for (peer, packet) in self.replies.iter().skip(self.replies_polled).take(left) {
            out.push_slice(peer, packet);
            self.replies_polled += 1;
            left -= 1;
        }
        if self.replies_polled >= self.replies.len() {
            self.replies.clear();
            self.replies_polled = 0;
        }
        while left > 0
            && let Some(id) = self.dirty.pop_front()
        {
            let before = out.len();
            self.transmit(now, id, out, left.min(QUANTUM));
            left = left.saturating_sub(out.len() - before);
        }
        !self.dirty.is_empty() || !self.replies.is_empty()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<StackEvent<P>> {
        let event = self.events.pop_front()?;
        if matches!(event, StackEvent::EchoReply { .. } | StackEvent::TsmpPong { .. }) {
            self.ping_events -= 1;
        }
        Some(event)
    }

    /// When [`Stack::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let timer = self.timers.first().map(|(at, _)| *at);
        [timer, self.time_waits.next_end()].into_iter().flatten().min()
    }

    /// Whom a connection is with, and our end of it. `None` if there is no such connection (any more).
    pub fn ends(&self, id: ConnectionId) -> Option<(P, SocketAddr)> {
        self.connections.get(&id).map(|connection| (connection.flow.peer, connection.flow.local))
    }

    /// How many connections there are, in whatever state.
    pub fn connection_count(&self) -> usize {
        self.connections.len()
    }

    fn owned(&mut self, id: ConnectionId) -> Result<&mut Connection<P>, ConnectionError> {
        self.connections
            .get_mut(&id)
            .filter(|connection| matches!(connection.stage, Stage::Owned | Stage::Dialling))
            .ok_or(ConnectionError::Unknown)
    }

    fn ids(&self, wanted: impl Fn(&Connection<P>) -> bool) -> Vec<ConnectionId> {
        let chosen = self.connections.iter().filter(|(_, one)| wanted(one));
        let mut ids: Vec<ConnectionId> = chosen.map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    fn source_for(&self, destination: IpAddr) -> Option<IpAddr> {
        let mut ours = self.config.addresses.iter().copied();
        ours.find(|address| address.is_ipv4() == destination.is_ipv4())
    }

    fn free_flow(&mut self, peer: P, local_ip: IpAddr, remote: SocketAddr) -> Option<Flow<P>> {
        let ports = u16::MAX - FIRST_DYNAMIC_PORT + 1;
        // The remainder of a division by `ports` fits.
        let start = u16::try_from(self.rng.next_u32() % u32::from(ports)).unwrap_or(0);
        (0..ports)
            .map(|step| Flow {
                peer,
                local: (local_ip, FIRST_DYNAMIC_PORT + start.wrapping_add(step) % ports).into(),
                remote,
            })
            .find(|flow| !self.by_flow.contains_key(flow) && self.time_waits.get(flow).is_none())
    }

    fn opening(&mut self, flow: &Flow<P>) -> Opening {
        Opening {
            local: flow.local,
            remote: flow.remote,
            mtu: self.config.mtu,
            receive_buffer: self.config.receive_buffer,
            send_buffer: self.config.send_buffer,
            seed: self.rng.next_u64(),
        }
    }

    fn insert(&mut self, now: Instant, flow: Flow<P>, stage: Stage, engine: Engine) -> ConnectionId {
        let id = ConnectionId(self.next_id);
        self.next_id += 1;
        self.by_flow.insert(flow, id);
        self.connections.insert(id, Connection::new(flow, stage, engine, now));
        self.mark(id);
        id
    }

    fn reply(&mut self, peer: P, packet: Option<Vec<u8>>) -> bool {
        let Some(packet) = packet.filter(|_| self.replies.len() < MAX_REPLIES) else {
            return false;
        };
        self.replies.push_slice(peer, &packet);
        true
    }
}

impl<P: Copy + Eq + Hash> Listener<P> {
    /// Whether one more connection of `peer` may wait.
    fn has_room_for(&self, peer: P) -> bool {
        let share = (self.backlog / PEER_SHARE_OF_BACKLOG).max(1);
        self.unaccepted.values().sum::<usize>() < self.backlog
            && self.unaccepted.get(&peer).is_none_or(|count| *count < share)
    }
}

/// One connection less of `peer`; who has none isn't remembered.
fn count_down<P: Eq + Hash>(counts: &mut HashMap<P, usize>, peer: P) {
    if let Entry::Occupied(mut count) = counts.entry(peer) {
        *count.get_mut() = count.get().saturating_sub(1);
        if *count.get() == 0 {
            count.remove();
        }
    }
}
