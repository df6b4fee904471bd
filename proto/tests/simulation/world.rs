//! A network of whole nodes in one thread under virtual time: links with delay, loss and reordering, relays, and a
//! control plane that is a list of nodes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nixtail_proto::key::{DiscoPrivate, DiscoPublic, NodePrivate, NodePublic};
use nixtail_proto::netmap::Netmap;
use nixtail_proto::node::{Destination, Event, Node, NodeConfig, Path, PingId, PingKind};
use nixtail_proto::stack::{ConnectionError, ConnectionId, Read};
use nixtail_proto::stun;
use nixtail_proto::tailcfg::{self, DerpNode, DerpRegion, EndpointType, FilterRule, RegionId};
use rand::rngs::StdRng;
use rand::{Rng, RngExt as _, SeedableRng};

pub(crate) const REGION: RegionId = 1;
pub(crate) const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

/// What a path does to packets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    pub(crate) delay: Duration,
    /// Of a million packets, so many are lost.
    pub(crate) lost_ppm: u32,
    /// Of a million packets, so many come some milliseconds late.
    pub(crate) late_ppm: u32,
}

impl Default for Link {
    fn default() -> Self {
        Self { delay: MILLISECOND, lost_ppm: 0, late_ppm: 0 }
    }
}

/// A datagram under way, or something else that will happen.
enum Happening {
    Datagram { from: SocketAddr, to: SocketAddr, bytes: Vec<u8> },
    Relayed { host: usize, from: NodePublic, bytes: Vec<u8> },
    RelayConnected { host: usize },
}

/// Looks at a datagram (who sent it, which bytes) and says whether it may pass.
pub(crate) type Tap = Box<dyn FnMut(usize, &[u8]) -> bool>;

pub(crate) struct Host {
    pub(crate) node: Node,
    pub(crate) record: tailcfg::Node,
    pub(crate) address: SocketAddr,
    pub(crate) events: Vec<Event>,
    pub(crate) timeouts: u64,
    relay_connected: bool,
    config: NodeConfig,
}

impl Host {
    pub(crate) fn key(&self) -> NodePublic {
        self.record.key
    }

    /// What seals its disco messages.
    pub(crate) fn disco_key(&self) -> &DiscoPrivate {
        &self.config.disco_key
    }

    /// The address inside the tailnet with a port.
    pub(crate) fn tailnet(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.record.addresses[0].addr(), port)
    }
}

pub(crate) struct World {
    pub(crate) start: Instant,
    pub(crate) now: Instant,
    pub(crate) hosts: Vec<Host>,
    /// Between the hosts.
    pub(crate) udp: Link,
    /// Between a host and the relay.
    pub(crate) derp: Link,
    /// Who lets whom in: (from, to) pairs that the filter of `to` doesn't allow.
    pub(crate) denied: BTreeSet<(usize, usize)>,
    /// Peers that are in everybody's netmap and never there.
    pub(crate) absent: u32,
    pub(crate) tap: Option<Tap>,
    pub(crate) relayed_bytes: u64,
    pub(crate) direct_bytes: u64,
    rng: StdRng,
    under_way: BinaryHeap<Reverse<(Instant, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    next: u64,
    buffer: Vec<u8>,
}

impl World {
    #[expect(clippy::disallowed_methods, reason = "virtual time needs an origin")]
    pub(crate) fn new(seed: u64) -> Self {
        let start = Instant::now();
        Self {
            start,
            now: start,
            hosts: Vec::new(),
            udp: Link::default(),
            derp: Link { delay: 5 * MILLISECOND, ..Link::default() },
            denied: BTreeSet::new(),
            absent: 0,
            tap: None,
            relayed_bytes: 0,
            direct_bytes: 0,
            rng: StdRng::seed_from_u64(seed),
            under_way: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            next: 0,
            buffer: vec![0; 65536],
        }
    }

    /// Two nodes that know each other.
    pub(crate) fn pair(seed: u64) -> Self {
        let mut world = Self::new(seed);
        world.add(true, true);
        world.add(true, true);
        world.publish();
        world
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    /// Adds a host; nobody knows it before [`World::publish`].
    pub(crate) fn add(&mut self, direct: bool, derp: bool) -> usize {
        let number = u8::try_from(self.hosts.len() + 1).unwrap();
        let config = NodeConfig {
            node_key: NodePrivate::generate(&mut self.rng),
            disco_key: DiscoPrivate::generate(&mut self.rng),
            direct,
            derp,
        };
        let address: SocketAddr = ([192, 0, 2, number], 41641).into();
        let record = tailcfg::Node {
            id: i64::from(number),
            key: config.node_key.public(),
            disco_key: config.disco_key.public(),
            name: format!("host{number}.example.ts.net."),
            addresses: vec![
                format!("100.64.0.{number}/32").parse().unwrap(),
                format!("fd7a:115c:a1e0::{number}/128").parse().unwrap(),
            ],
            endpoints: if direct { vec![address] } else { Vec::new() },
            home_derp: if derp { REGION } else { 0 },
            machine_authorized: true,
            ..tailcfg::Node::default()
        };
        let node = self.make(&config);
        let timeouts = 0;
        self.hosts.push(Host { node, record, address, events: Vec::new(), timeouts, relay_connected: false, config });
        let host = self.hosts.len() - 1;
        self.tell_address(host);
        host
    }

    fn stun_server() -> SocketAddr {
        ([203, 0, 113, 1], 3478).into()
    }

    fn make(&mut self, config: &NodeConfig) -> Node {
        Node::new(config.clone(), self.now, Box::new(StdRng::seed_from_u64(self.rng.next_u64())))
    }

    fn tell_address(&mut self, host: usize) {
        let host = &mut self.hosts[host];
        host.node.handle_local_endpoints(self.now, &[(host.address, EndpointType::Local)]);
        host.node.handle_stun_servers(self.now, vec![(REGION, Self::stun_server())]);
    }

    /// The host's process ends and another begins, with a new node key if asked to. Nobody knows before
    /// [`World::publish`].
    pub(crate) fn restart(&mut self, host: usize, new_key: bool) {
        let mut config = self.hosts[host].config.clone();
        if new_key {
            config.node_key = NodePrivate::generate(&mut self.rng);
        }
        config.disco_key = DiscoPrivate::generate(&mut self.rng);
        let node = self.make(&config);
        let one = &mut self.hosts[host];
        one.record.key = config.node_key.public();
        one.record.disco_key = config.disco_key.public();
        one.node = node;
        one.config = config;
        one.events.clear();
        one.relay_connected = false;
        self.tell_address(host);
    }

    /// Gives every host the netmap as it is now.
    pub(crate) fn publish(&mut self) {
        for host in 0..self.hosts.len() {
            self.publish_to(host, |_| true);
        }
    }

    /// Gives a host a netmap with the peers that it may know.
    pub(crate) fn publish_to(&mut self, host: usize, knows: impl Fn(usize) -> bool) {
        let peers = (0..self.hosts.len()).filter(|peer| *peer != host && knows(*peer));
        let peers = peers.map(|peer| self.hosts[peer].record.clone()).chain((0..self.absent).map(absent_peer));
        let peers = peers.map(|peer| (peer.id, Arc::new(peer))).collect();
        let netmap = Netmap {
            self_node: Arc::new(self.hosts[host].record.clone()),
            peers,
            derp_map: Arc::new(BTreeMap::from([(REGION, region())])),
            filter_rules: Some(Arc::new(self.rules(host))),
            ..Netmap::default()
        };
        self.hosts[host].node.handle_netmap(self.now, &netmap);
        self.pump();
    }

    fn rules(&self, host: usize) -> Vec<FilterRule> {
        let allowed = (0..self.hosts.len()).filter(|from| !self.denied.contains(&(*from, host)));
        let sources: Vec<String> = allowed
            .flat_map(|from| self.hosts[from].record.addresses.iter().map(|net| net.addr().to_string()))
            .collect();
        let any = serde_json::json!([{
            "SrcIPs": sources,
            "DstPorts": [{ "IP": "*", "Ports": { "First": 0, "Last": 65535 } }],
        }]);
        serde_json::from_value(any).unwrap()
    }

    /// Lets all hosts say what they have to say.
    pub(crate) fn pump(&mut self) {
        for host in 0..self.hosts.len() {
            self.pump_host(host);
        }
    }

    fn pump_host(&mut self, host: usize) {
        loop {
            let mut any = false;
            while let Some(event) = self.hosts[host].node.poll_event() {
                any = true;
                self.handle_event(host, event);
            }
            let mut buffer = std::mem::take(&mut self.buffer);
            while let Some(transmit) = self.hosts[host].node.poll_transmit(self.now, &mut buffer, 64) {
                any = true;
                assert!(transmit.len > 0 && transmit.segment_size > 0 && transmit.len <= 64 * transmit.segment_size);
                for segment in buffer[..transmit.len].chunks(transmit.segment_size) {
                    self.carry(host, transmit.destination, segment);
                }
            }
            self.buffer = buffer;
            if !any {
                return;
            }
        }
    }

    fn handle_event(&mut self, host: usize, event: Event) {
        match event {
            Event::DialDerp { region } => {
                assert_eq!(region, REGION);
                let at = self.now + 2 * self.derp.delay;
                self.happen(at, Happening::RelayConnected { host });
            }
            Event::CloseDerp { .. } => self.hosts[host].relay_connected = false,
            event => self.hosts[host].events.push(event),
        }
    }

    fn carry(&mut self, host: usize, destination: Destination, bytes: &[u8]) {
        if let Some(tap) = &mut self.tap
            && !tap(host, bytes)
        {
            return;
        }
        let bytes = bytes.to_vec();
        let (link, happening) = match destination {
            Destination::Udp(to) => {
                self.direct_bytes += bytes.len() as u64;
                (self.udp, Happening::Datagram { from: self.hosts[host].address, to, bytes })
            }
            Destination::Derp { peer, .. } => {
                self.relayed_bytes += bytes.len() as u64;
                assert!(self.hosts[host].relay_connected, "a packet for a relay that isn't connected");
                let found = self.hosts.iter().position(|one| one.key() == peer && one.relay_connected);
                let Some(to) = found else {
                    self.hosts[host].node.handle_derp_peer_gone(self.now, REGION, peer);
                    return;
                };
                let twice = Link { delay: 2 * self.derp.delay, ..self.derp };
                (twice, Happening::Relayed { host: to, from: self.hosts[host].key(), bytes })
            }
        };
        if self.rng.random_range(0..1_000_000) < link.lost_ppm {
            return;
        }
        let mut at = self.now + link.delay;
        if self.rng.random_range(0..1_000_000) < link.late_ppm {
            at += Duration::from_micros(self.rng.random_range(500..5000));
        }
        self.happen(at, happening);
    }

    fn happen(&mut self, at: Instant, happening: Happening) {
        self.under_way.push(Reverse((at, self.next)));
        self.happenings.insert(self.next, happening);
        self.next += 1;
    }

    /// A datagram out of nowhere.
    pub(crate) fn inject(&mut self, from: SocketAddr, to: usize, bytes: Vec<u8>) {
        let to = self.hosts[to].address;
        self.happen(self.now, Happening::Datagram { from, to, bytes });
    }

    /// Goes on to the next thing that happens, but not beyond `end`. Says whether there was one.
    pub(crate) fn step(&mut self, end: Instant) -> bool {
        let arrival = self.under_way.peek().map(|Reverse((at, _))| *at);
        let timer = self.hosts.iter_mut().filter_map(|host| host.node.poll_timeout()).min();
        let Some(next) = arrival.into_iter().chain(timer).min().filter(|at| *at <= end) else {
            self.now = end;
            return false;
        };
        self.now = self.now.max(next);
        let mut touched = BTreeSet::new();
        while let Some(Reverse((at, id))) = self.under_way.peek().copied()
            && at <= self.now
        {
            self.under_way.pop();
            let happening = self.happenings.remove(&id).unwrap();
            touched.extend(self.arrive(happening));
        }
        for host in 0..self.hosts.len() {
            let one = &mut self.hosts[host];
            if one.node.poll_timeout().is_some_and(|at| at <= self.now) {
                one.node.handle_timeout(self.now);
                one.timeouts += 1;
                touched.insert(host);
            }
        }
        for host in touched {
            self.pump_host(host);
        }
        true
    }

    fn arrive(&mut self, happening: Happening) -> Option<usize> {
        match happening {
            Happening::Datagram { from, to, bytes } if to == Self::stun_server() => {
                let answer = stun::response(stun::parse_request(&bytes).unwrap(), from);
                self.happen(self.now + self.udp.delay, Happening::Datagram { from: to, to: from, bytes: answer });
                None
            }
            Happening::Datagram { from, to, mut bytes } => {
                let host = self.hosts.iter().position(|host| host.address == to)?;
                let size = bytes.len();
                self.hosts[host].node.handle_datagrams(self.now, from, &mut bytes, size);
                Some(host)
            }
            Happening::Relayed { host, from, mut bytes } => {
                if self.hosts[host].relay_connected {
                    self.hosts[host].node.handle_derp_packet(self.now, REGION, from, &mut bytes);
                }
                Some(host)
            }
            Happening::RelayConnected { host } => {
                self.hosts[host].relay_connected = true;
                self.hosts[host].node.handle_derp_connected(self.now, REGION);
                Some(host)
            }
        }
    }

    /// Lets time pass.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        self.pump();
        while self.step(end) {}
    }

    /// Lets time pass until `done` says so; panics after `limit`.
    pub(crate) fn pass_until(&mut self, limit: Duration, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let end = self.now + limit;
        self.pump();
        while !done(self) {
            self.pump();
            assert!(self.step(end), "after {limit:?}, still not: {what}");
        }
    }

    /// Dials from one host to a port of another, where it waits to be accepted. Panics if that takes longer than `limit`.
    pub(crate) fn connect(&mut self, from: usize, to: usize, port: u16, limit: Duration) -> Stream {
        let remote = self.hosts[to].tailnet(port);
        let near = self.hosts[from].node.connect(self.now, remote).unwrap();
        let mut far = None;
        self.pass_until(limit, "connected", |world| {
            far = far.or_else(|| world.hosts[to].node.accept(port));
            far.is_some() && world.has(from, |event| matches!(event, Event::Connected { id, .. } if *id == near))
        });
        let far = far.unwrap();
        assert_eq!(far.peer, self.hosts[from].key(), "a stream carries the key of the session that it came through");
        Stream { from, to, near, far: far.id, sent: 0, received: 0 }
    }

    pub(crate) fn has(&self, host: usize, wanted: impl Fn(&Event) -> bool) -> bool {
        self.hosts[host].events.iter().any(wanted)
    }

    /// How a connection ended, if it did.
    pub(crate) fn closed(&self, host: usize, connection: ConnectionId) -> Option<Option<ConnectionError>> {
        self.hosts[host].events.iter().find_map(|event| match event {
            Event::Closed { id, error } if *id == connection => Some(*error),
            _ => None,
        })
    }

    pub(crate) fn path(&self, host: usize, peer: usize) -> Path {
        let key = self.hosts[peer].key();
        let status = self.hosts[host].node.peer_status(self.now).find(|status| status.key == key);
        status.map_or(Path::None, |status| status.path)
    }

    /// Pings and waits for the answer.
    pub(crate) fn ping(&mut self, from: usize, to: usize, kind: PingKind) -> Option<(Duration, Path)> {
        let key = self.hosts[to].key();
        let ping: PingId = self.hosts[from].node.ping(self.now, key, kind).unwrap();
        let mut answer = None;
        self.pass_until(10 * SECOND, "an answer or a failure", |world| {
            world.hosts[from].events.iter().any(|event| match event {
                Event::PingReply { id, latency, path, .. } if *id == ping => {
                    answer = Some((*latency, *path));
                    true
                }
                Event::PingFailed { id, .. } => *id == ping,
                _ => false,
            })
        });
        answer
    }

    /// Sends so many bytes along the stream and checks each. Panics if it takes longer than `limit`.
    pub(crate) fn transfer(&mut self, stream: &mut Stream, bytes: u64, limit: Duration) {
        let goal = stream.received + bytes;
        self.pass_until(limit, "all bytes arrived", |world| {
            stream.write(world, goal);
            stream.read(world);
            stream.received == goal
        });
    }
}

/// A stream between two hosts that carries a known pattern from `from` to `to`.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) near: ConnectionId,
    pub(crate) far: ConnectionId,
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

impl Stream {
    pub(crate) fn write(&mut self, world: &mut World, goal: u64) {
        let pattern = pattern();
        while self.sent < goal {
            let offset = usize::try_from(self.sent % PERIOD as u64).unwrap();
            let length = usize::try_from(goal - self.sent).unwrap().min(PERIOD);
            let node = &mut world.hosts[self.from].node;
            let taken = node.write(world.now, self.near, &pattern[offset..offset + length]).expect("writing");
            self.sent += taken as u64;
            if taken < length {
                return;
            }
        }
    }

    pub(crate) fn read(&mut self, world: &mut World) {
        let (pattern, mut bytes) = (pattern(), vec![0; PERIOD]);
        loop {
            let node = &mut world.hosts[self.to].node;
            match node.read(world.now, self.far, &mut bytes).expect("reading") {
                Read::Bytes(length) => {
                    let offset = usize::try_from(self.received % PERIOD as u64).unwrap();
                    assert!(bytes[..length] == pattern[offset..offset + length], "wrong bytes at {}", self.received);
                    self.received += length as u64;
                }
                Read::Empty => return,
                Read::Eof => panic!("the stream ended after {} bytes", self.received),
            }
        }
    }
}

/// Not a divisor of any packet or buffer size.
const PERIOD: usize = 65_521;

/// Twice the pattern, so that any offset has a whole period behind it.
fn pattern() -> &'static [u8] {
    static PATTERN: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    PATTERN.get_or_init(|| {
        let mut period = vec![0; PERIOD];
        StdRng::seed_from_u64(1).fill_bytes(&mut period);
        period.repeat(2)
    })
}

fn absent_peer(number: u32) -> tailcfg::Node {
    let [_, a, b, c] = number.to_be_bytes();
    let mut key = [0xee; 32];
    key[..4].copy_from_slice(&number.to_be_bytes());
    tailcfg::Node {
        id: 1000 + i64::from(number),
        key: NodePublic::from_bytes(key),
        disco_key: DiscoPublic::from_bytes(key),
        addresses: vec![format!("100.{}.{b}.{c}/32", 65 + a).parse().unwrap()],
        endpoints: vec![([10, a, b, c], 41641).into()],
        home_derp: REGION,
        ..tailcfg::Node::default()
    }
}

fn region() -> DerpRegion {
    let node = DerpNode {
        name: "1a".to_owned(),
        region_id: REGION,
        host_name: "derp.example".to_owned(),
        ..DerpNode::default()
    };
    DerpRegion { region_id: REGION, region_code: "sim".to_owned(), nodes: vec![node], ..DerpRegion::default() }
}
