//! A network of whole nodes in one thread under virtual time: sites behind NATs, links, relays, control.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use nixtail_proto::key::{DiscoPrivate, NodePrivate, NodePublic};
use nixtail_proto::node::{Destination, Event, Node, NodeConfig};
use nixtail_proto::stun;
use nixtail_proto::tailcfg::{self, EndpointType, RegionId};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::control::Control;
use crate::host::{Host, Site, Standing};
use crate::landmarks::{Observer, Way};
use crate::link::Link;
use crate::nat::{Nat, NatKind};
use crate::queue::Queue;
use crate::relay::Frame;

pub(crate) const REGION: RegionId = 1;
pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MILLISECOND: Duration = Duration::from_millis(1);
/// Between hosts of one site.
const LAN_DELAY: Duration = Duration::from_micros(200);
/// Nobody has so much to do without time going on: more is a storm.
const MAX_STEPS_AT_ONCE: u32 = 2000;
/// What is under way at a time, at most: queues are bounded, and so is what they send at once.
const MAX_UNDER_WAY: usize = 100_000;

/// Something that will happen.
#[derive(Debug)]
pub(crate) enum Happening {
    /// A datagram is where it was sent to; `site` has sent it.
    Datagram {
        from: SocketAddr,
        to: SocketAddr,
        site: Option<usize>,
        bytes: Vec<u8>,
    },
    /// One within a site.
    Local {
        host: usize,
        from: SocketAddr,
        to: SocketAddr,
        bytes: Vec<u8>,
    },
    AtRelay {
        host: usize,
        number: u64,
        region: RegionId,
        from: NodePublic,
        to: NodePublic,
        bytes: Vec<u8>,
    },
    FromRelay {
        host: usize,
        region: RegionId,
        number: u64,
        frame: Frame,
    },
    RelayMeasured {
        host: usize,
        region: RegionId,
        time: Option<Duration>,
    },
    RelayDialled {
        host: usize,
        region: RegionId,
        number: u64,
        there: bool,
    },
    RelayDead {
        host: usize,
        region: RegionId,
        number: u64,
    },
    Report {
        host: usize,
    },
    Netmap {
        host: usize,
    },
}

/// Looks at a datagram (who sent it, which bytes) and says whether it may pass.
pub(crate) type Tap = Box<dyn FnMut(usize, &[u8]) -> bool>;

pub(crate) struct World {
    pub(crate) start: Instant,
    pub(crate) now: Instant,
    pub(crate) sites: Vec<Site>,
    pub(crate) hosts: Vec<Host>,
    /// Between all sites.
    pub(crate) udp: Link,
    /// Between any host and any relay.
    pub(crate) derp: Link,
    /// Regions, and whether their relay and STUN server are there.
    pub(crate) relays: BTreeMap<RegionId, bool>,
    /// Pairs of sites (the smaller number first) between which no datagram passes.
    pub(crate) severed: BTreeSet<(usize, usize)>,
    pub(crate) control: Control,
    /// Who lets whom in: (from, to) pairs that the filter of `to` doesn't allow.
    pub(crate) denied: BTreeSet<(usize, usize)>,
    /// Peers that are in everybody's netmap and never there.
    pub(crate) absent: u32,
    pub(crate) tap: Option<Tap>,
    pub(crate) observer: Option<Observer>,
    pub(crate) relayed_bytes: u64,
    pub(crate) direct_bytes: u64,
    pub(crate) rng: StdRng,
    pub(crate) queue: Queue<Happening>,
    pub(crate) next_dial: u64,
    /// Which site a public address leads to.
    routes: HashMap<IpAddr, usize>,
    steps_at_once: u32,
    buffer: Vec<u8>,
}

impl World {
    #[expect(clippy::disallowed_methods, reason = "virtual time needs an origin")]
    pub(crate) fn new(seed: u64) -> Self {
        let start = Instant::now();
        Self {
            start,
            now: start,
            sites: Vec::new(),
            hosts: Vec::new(),
            udp: Link::default(),
            derp: Link { delay: 5 * MILLISECOND, ..Link::default() },
            relays: BTreeMap::from([(REGION, true)]),
            severed: BTreeSet::new(),
            control: Control::new(),
            denied: BTreeSet::new(),
            absent: 0,
            tap: None,
            observer: None,
            relayed_bytes: 0,
            direct_bytes: 0,
            rng: StdRng::seed_from_u64(seed),
            queue: Queue::new(),
            next_dial: 0,
            routes: HashMap::new(),
            steps_at_once: 0,
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

    /// A site at the internet's middle that lets everything pass.
    pub(crate) fn open_site() -> Site {
        Site {
            nat: Nat::new(NatKind::Open, [0, 0, 0, 0].into(), SECOND),
            nat_v6: None,
            access: Link::none(),
            far: BTreeMap::new(),
            udp: true,
            cut: false,
            moves: 0,
        }
    }

    /// Adds a host with a site and a public address of its own; nobody knows it before [`World::publish`].
    pub(crate) fn add(&mut self, direct: bool, derp: bool) -> usize {
        self.sites.push(Self::open_site());
        let address = [192, 0, 2, u8::try_from(self.hosts.len() + 1).unwrap()];
        let host = self.add_at(self.sites.len() - 1, (address, 41641).into(), None, (direct, derp));
        let one = &mut self.hosts[host];
        one.record.endpoints = if direct { vec![one.address] } else { Vec::new() };
        one.record.home_derp = if derp { REGION } else { 0 };
        host
    }

    /// Adds a host to a site.
    pub(crate) fn add_at(
        &mut self,
        site: usize,
        address: SocketAddr,
        address_v6: Option<SocketAddr>,
        (direct, derp): (bool, bool),
    ) -> usize {
        let number = u8::try_from(self.hosts.len() + 1).unwrap();
        let config = NodeConfig {
            node_key: NodePrivate::generate(&mut self.rng),
            disco_key: DiscoPrivate::generate(&mut self.rng),
            direct,
            derp,
        };
        let record = tailcfg::Node {
            id: i64::from(number),
            key: config.node_key.public(),
            disco_key: config.disco_key.public(),
            name: format!("host{number}.example.ts.net."),
            addresses: vec![
                format!("100.64.0.{number}/32").parse().unwrap(),
                format!("fd7a:115c:a1e0::{number}/128").parse().unwrap(),
            ],
            machine_authorized: true,
            ..tailcfg::Node::default()
        };
        let node = self.make(&config);
        self.hosts.push(Host {
            node,
            record,
            site,
            address,
            address_v6,
            events: Vec::new(),
            timer: None,
            timeouts: 0,
            sent: 0,
            frozen: false,
            relays: BTreeMap::new(),
            dials: BTreeMap::new(),
            config,
            endpoints: Vec::new(),
            home: 0,
            control: Standing::default(),
        });
        let host = self.hosts.len() - 1;
        self.handle_addresses_changed();
        self.tell_address(host);
        host
    }

    fn make(&mut self, config: &NodeConfig) -> Node {
        Node::new(config.clone(), self.now, Box::new(StdRng::seed_from_u64(self.rng.next_u64())))
    }

    /// Tells a host its own addresses and the STUN servers.
    pub(crate) fn tell_address(&mut self, host: usize) {
        let servers = self.relays.keys().flat_map(|region| Self::stun_servers(*region).map(|server| (*region, server)));
        let host = &mut self.hosts[host];
        let addresses = host.address_v6.into_iter().chain([host.address]);
        let endpoints: Vec<_> = addresses.map(|address| (address, EndpointType::Local)).collect();
        host.node.handle_local_endpoints(self.now, &endpoints);
        let servers = servers.filter(|(_, server)| server.is_ipv4() || host.address_v6.is_some()).collect();
        host.node.handle_stun_servers(self.now, servers);
    }

    /// Finds out anew which public address leads where.
    pub(crate) fn handle_addresses_changed(&mut self) {
        let own = self.hosts.iter().flat_map(|host| {
            [Some(host.address), host.address_v6].into_iter().flatten().map(|address| (address.ip(), host.site))
        });
        // What is private leads nowhere from outside.
        let own = own.filter(|(ip, _)| !matches!(ip, IpAddr::V4(ip) if ip.is_private()));
        let nats = self.sites.iter().enumerate().map(|(site, one)| (one.nat.public, site));
        self.routes = own.chain(nats.filter(|(ip, _)| !ip.is_unspecified())).collect();
    }

    /// The host's process ends and another begins, with a new node key if asked to. Nobody knows before
    /// [`World::publish`], or before control tells them.
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
        one.relays.clear();
        one.dials.clear();
        one.control.seen.clear();
        self.tell_address(host);
    }

    /// Whether the host's site is connected to anything.
    pub(crate) fn reaches_internet(&self, host: usize) -> bool {
        !self.sites[self.hosts[host].site].cut
    }

    pub(crate) fn is_severed(&self, one: usize, other: usize) -> bool {
        self.severed.contains(&(one.min(other), one.max(other)))
    }

    /// Lets all hosts say what they have to say.
    pub(crate) fn pump(&mut self) {
        for host in 0..self.hosts.len() {
            self.pump_host(host);
        }
    }

    pub(crate) fn pump_host(&mut self, host: usize) {
        while !self.hosts[host].frozen {
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
                break;
            }
        }
        let host = &mut self.hosts[host];
        host.timer = if host.frozen { None } else { host.node.poll_timeout() };
    }

    fn handle_event(&mut self, host: usize, event: Event) {
        self.note_event(host, &event);
        match event {
            Event::DialDerp { region } => self.dial_relay(host, region),
            Event::CloseDerp { region } => self.close_relay(host, region),
            Event::MeasureRelay { region } => self.measure_relay(host, region),
            event => {
                self.handle_report(host, &event);
                self.hosts[host].events.push(event);
            }
        }
    }

    fn carry(&mut self, host: usize, destination: Destination, bytes: &[u8]) {
        if let Some(tap) = &mut self.tap
            && !tap(host, bytes)
        {
            return;
        }
        self.hosts[host].sent += 1;
        self.note_departure(host, destination, bytes);
        match destination {
            Destination::Udp(to) => {
                self.direct_bytes += bytes.len() as u64;
                self.send_datagram(host, to, bytes);
            }
            Destination::Derp { region, peer } => {
                self.relayed_bytes += bytes.len() as u64;
                self.send_to_relay(host, region, peer, bytes.to_vec());
            }
        }
    }

    fn send_datagram(&mut self, host: usize, to: SocketAddr, bytes: &[u8]) {
        let one = &self.hosts[host];
        let (site, from) = (one.site, if to.is_ipv4() { Some(one.address) } else { one.address_v6 });
        // No address of that family: the network is unreachable.
        let Some(from) = from else { return };
        if let Some(near) = self.hosts.iter().position(|other| other.site == site && other.has_address(to)) {
            let bytes = bytes.to_vec();
            return self.happen(self.now + LAN_DELAY, Happening::Local { host: near, from, to, bytes });
        }
        let here = &mut self.sites[site];
        let nat = if to.is_ipv4() { Some(&mut here.nat) } else { here.nat_v6.as_mut() };
        let Some(nat) = nat.filter(|_| here.udp && !here.cut) else { return };
        let from = nat.outbound(self.now, from, to, &mut self.rng);
        self.carry_datagram(from, to, Some(site), bytes);
    }

    /// Over the internet, to a site or a STUN server.
    fn carry_datagram(&mut self, from: SocketAddr, to: SocketAddr, site: Option<usize>, bytes: &[u8]) {
        let server = |world: &Self, address| world.region_of_stun_server(address);
        let region = server(self, to).or_else(|| server(self, from));
        let far_end = self.routes.get(&to.ip()).copied();
        let mut copies = vec![Duration::ZERO];
        self.udp.carry(self.now, &mut self.rng, &mut copies);
        for end in [site, far_end.filter(|far_end| Some(*far_end) != site)].into_iter().flatten() {
            let far = region.and_then(|region| self.sites[end].far.get(&region)).copied().unwrap_or_default();
            copies.iter_mut().for_each(|taken| *taken += far);
            self.sites[end].access.carry(self.now, &mut self.rng, &mut copies);
        }
        match copies.len() {
            0 => self.note("the network lost a packet"),
            1 => {}
            _ => self.note("the network doubled a packet"),
        }
        for taken in copies {
            self.happen(self.now + taken, Happening::Datagram { from, to, site, bytes: bytes.to_vec() });
        }
    }

    pub(crate) fn happen(&mut self, at: Instant, happening: Happening) {
        self.queue.push(at, happening);
        assert!(self.queue.len() < MAX_UNDER_WAY, "{} packets under way", self.queue.len());
    }

    /// A datagram out of nowhere.
    pub(crate) fn inject(&mut self, from: SocketAddr, to: usize, bytes: Vec<u8>) {
        let to = self.hosts[to].address;
        self.happen(self.now, Happening::Datagram { from, to, site: None, bytes });
    }

    /// Goes on to the next thing that happens, but not beyond `end`. Says whether there was one.
    pub(crate) fn step(&mut self, end: Instant) -> bool {
        let timer = self.hosts.iter().filter_map(|host| host.timer.filter(|_| !host.frozen)).min();
        let Some(next) = self.queue.next_at().into_iter().chain(timer).min().filter(|at| *at <= end) else {
            self.now = end;
            return false;
        };
        self.steps_at_once = if next > self.now { 0 } else { self.steps_at_once + 1 };
        assert!(self.steps_at_once < MAX_STEPS_AT_ONCE, "a storm: time doesn't go on");
        self.now = self.now.max(next);
        let mut touched = BTreeSet::new();
        while let Some(happening) = self.queue.pop_due(self.now) {
            touched.extend(self.arrive(happening));
        }
        for host in 0..self.hosts.len() {
            let one = &mut self.hosts[host];
            let timer = if touched.contains(&host) { one.node.poll_timeout() } else { one.timer };
            if !one.frozen && timer.is_some_and(|at| at <= self.now) {
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

    /// Answers which host it concerns.
    fn arrive(&mut self, happening: Happening) -> Option<usize> {
        let host = match happening {
            Happening::Datagram { from, to, site, bytes } => return self.handle_datagram(from, to, site, bytes),
            Happening::Local { host, from, to, bytes } => {
                return if self.hosts[host].has_address(to) { self.deliver(host, from, bytes) } else { None };
            }
            Happening::AtRelay { host, number, region, from, to, bytes } => {
                self.forward(region, (host, number), [from, to], bytes);
                return None;
            }
            Happening::FromRelay { host, region, number, frame } => {
                self.handle_relay_frame(host, region, number, frame);
                host
            }
            Happening::RelayMeasured { host, region, time } => {
                self.hosts[host].node.handle_relay_time(self.now, region, time);
                host
            }
            Happening::RelayDialled { host, region, number, there } => {
                self.handle_dialled(host, region, number, there);
                host
            }
            Happening::RelayDead { host, region, number } => {
                self.handle_relay_dead(host, region, number);
                host
            }
            Happening::Report { host } => {
                self.handle_report_arrived(host);
                host
            }
            Happening::Netmap { host } => {
                self.handle_netmap_arrived(host);
                host
            }
        };
        Some(host)
    }

    fn handle_datagram(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        sender: Option<usize>,
        bytes: Vec<u8>,
    ) -> Option<usize> {
        if let Some(region) = self.region_of_stun_server(to) {
            if self.relays[&region] {
                let answer = stun::response(stun::parse_request(&bytes).unwrap(), from);
                self.carry_datagram(to, from, None, &answer);
            }
            return None;
        }
        let site = *self.routes.get(&to.ip())?;
        if sender.is_some_and(|sender| self.is_severed(sender, site)) {
            return None;
        }
        let there = &mut self.sites[site];
        let nat = if to.is_ipv4() { Some(&mut there.nat) } else { there.nat_v6.as_mut() };
        let inside = nat.filter(|_| there.udp && !there.cut)?.inbound(self.now, from, to)?;
        let host = self.hosts.iter().position(|host| host.site == site && host.has_address(inside))?;
        self.deliver(host, from, bytes)
    }

    fn deliver(&mut self, host: usize, from: SocketAddr, mut bytes: Vec<u8>) -> Option<usize> {
        if self.hosts[host].frozen {
            return None;
        }
        self.note_arrival(host, Way::Udp(from), None, &bytes);
        let size = bytes.len();
        self.hosts[host].node.handle_datagrams(self.now, from, &mut bytes, size);
        Some(host)
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
}
