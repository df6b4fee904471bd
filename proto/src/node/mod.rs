//! A whole node: from a datagram to the peer, from a packet to the peer, and all that peers share.
//!
//! The world gives it datagrams, relay packets, netmaps and the time; the application listens, connects, reads and
//! writes. After each call, poll [`Node::poll_event`] and [`Node::poll_transmit`] until both have nothing more, then
//! wait for input or [`Node::poll_timeout`].
//!
//! Peers are those of the netmap. Each costs a table entry until it is talked to; then it gets a [tunnel](crate::tunnel)
//! and is looked at when it has something to do, or its time has come. What comes out of a tunnel must carry one of that
//! peer's own addresses as source and pass the packet filter before the stack sees it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand_core::CryptoRng;

use crate::filter::Filter;
use crate::key::{DiscoPrivate, NodePublic};
use crate::netcheck::{self, Netcheck};
use crate::packet::PacketBatch;
use crate::relay::{Action, Relay};
use crate::stack::{self, Stack};
use crate::tailcfg::{EndpointType, NetInfo, RegionId};
use crate::tunnel::handshake::{Gate, Identity};
use crate::tunnel::paths::ACTIVE_FOR;

mod application;
mod claims;
mod discovery;
mod inbound;
mod knocks;
mod map;
mod outbound;
mod peers;
mod pings;
mod rng;
mod schedule;
#[cfg(test)]
mod tests;
mod types;

use knocks::Knocks;
use peers::{PeerId, Peers};
use pings::Pings;
use rng::SharedRng;
use schedule::Schedule;
pub use types::{Destination, Drops, Event, NodeConfig, Path, PeerStatus, PingError, PingId, PingKind, Transmit};

pub use pings::{MAX_PINGS, PING_TIMEOUT};

/// Changes of routes alone are heeded no more often than this.
const ROUTES_INTERVAL: Duration = Duration::from_secs(5);

/// A node on a tailnet.
pub struct Node {
    key: NodePublic,
    identity: Identity,
    disco: DiscoPrivate,
    direct: bool,
    derp: bool,
    rng: SharedRng,
    /// The latest time that was given.
    now: Instant,
    gate: Gate,
    peers: Peers,
    schedule: Schedule<PeerId>,
    stack: Stack<PeerId>,
    filter: Filter,
    /// The filter of peers that may answer and open nothing.
    jail: Filter,
    applied: map::Applied,
    relay: Relay,
    netcheck: Netcheck,
    local_endpoints: Vec<(SocketAddr, EndpointType)>,
    /// The port that somebody chose for our socket, and may have opened in a NAT.
    fixed_port: Option<u16>,
    /// When the network was last heeded to have changed under us, though no address did.
    routes_changed: Option<Instant>,
    /// When it is heeded again, if it changed since.
    routes_due: Option<Instant>,
    mapped_endpoints: Vec<SocketAddr>,
    told_endpoints: Option<Vec<(SocketAddr, EndpointType)>>,
    /// Until when netcheck must keep our NAT's mapping known.
    active_until: Option<Instant>,
    /// Handshake answers and disco messages, ready to be sent.
    small: VecDeque<(Destination, Vec<u8>)>,
    /// What came out of tunnels and passed the filter.
    incoming: PacketBatch<PeerId>,
    /// What the stack wants sent.
    outgoing: PacketBatch<PeerId>,
    duplicate: outbound::Duplicate,
    events: VecDeque<Event>,
    pings: Pings,
    /// Who asked for a session before the netmap told us of it.
    knocks: Knocks,
    drops: Drops,
}

impl Node {
    /// A node without a netmap: it knows nobody and lets nothing in.
    pub fn new(config: NodeConfig, now: Instant, rng: Box<dyn CryptoRng + Send>) -> Self {
        let mut rng = SharedRng::new(rng);
        let identity = Identity::new(&config.node_key);
        let stack = Stack::new(stack::Config::default(), Box::new(rng.clone()));
        Self {
            key: config.node_key.public(),
            gate: Gate::new(&identity),
            identity,
            disco: config.disco_key,
            direct: config.direct,
            derp: config.derp,
            now,
            peers: Peers::default(),
            schedule: Schedule::new(),
            stack,
            filter: Filter::default(),
            jail: Filter::default(),
            applied: map::Applied::default(),
            relay: Relay::new(),
            netcheck: Netcheck::new(&mut rng),
            rng,
            local_endpoints: Vec::new(),
            fixed_port: None,
            routes_changed: None,
            routes_due: None,
            mapped_endpoints: Vec::new(),
            told_endpoints: None,
            active_until: None,
            small: VecDeque::new(),
            incoming: PacketBatch::new(),
            outgoing: PacketBatch::new(),
            duplicate: outbound::Duplicate::default(),
            events: VecDeque::new(),
            pings: Pings::default(),
            knocks: Knocks::default(),
            drops: Drops::default(),
        }
    }

    /// Our node key.
    pub fn key(&self) -> NodePublic {
        self.key
    }

    /// Somebody chose this port for our socket. Behind a NAT that maps each destination differently it is told to peers, with
    /// the address that STUN saw: who chooses a port may have opened it there.
    pub fn set_fixed_port(&mut self, port: u16) {
        self.fixed_port = Some(port);
    }

    /// The addresses of our interfaces with the port that the socket is bound to, instead of those told before. Where one is
    /// gone, every path and relay connection is in doubt.
    pub fn handle_local_endpoints(&mut self, now: Instant, endpoints: &[(SocketAddr, EndpointType)]) {
        self.now = now;
        let before = std::mem::replace(&mut self.local_endpoints, endpoints.to_vec());
        if self.told_endpoints.is_some() {
            if before.iter().any(|endpoint| !endpoints.contains(endpoint)) {
                self.handle_network_change(now);
            } else if self.direct {
                // The mapped addresses may be others, too.
                self.netcheck.handle_network_changed(now, &mut self.rng);
            }
        }
        self.tell_endpoints();
    }

    /// Routes came or went, while our addresses stayed. Heeded every 5 s at most, since some machines' routes are never at rest; the
    /// last of them is never missed, though: often it is the one that brings the network back.
    pub fn handle_routes_changed(&mut self, now: Instant) {
        self.now = now;
        let next = self.routes_changed.map(|last| last + ROUTES_INTERVAL).filter(|next| now < *next);
        self.routes_due = next;
        if next.is_some() {
            return;
        }
        self.routes_changed = Some(now);
        self.relay.handle_routes_changed(now);
        if self.direct && self.told_endpoints.is_some() {
            self.netcheck.refresh(now, &mut self.rng);
        }
    }

    /// What carried our packets is gone: paths must answer anew, relays are asked for a sign of life, and where the world sees
    /// us is found out again.
    fn handle_network_change(&mut self, now: Instant) {
        tracing::info!("an address of this machine is gone: looking for paths anew");
        self.relay.handle_network_change(now);
        if self.direct {
            self.netcheck.handle_network_changed(now, &mut self.rng);
        }
        for id in self.peers.with_tunnels() {
            if let Some(tunnel) = self.peers.get_mut(id).and_then(|peer| peer.tunnel.as_mut()) {
                tunnel.paths.handle_network_change(now, &mut self.rng);
                tunnel.nudge(now);
                self.schedule.wake(id);
            }
        }
    }

    /// The system says that datagrams to `address` lead nowhere.
    pub fn handle_unreachable(&mut self, now: Instant, address: SocketAddr) {
        self.now = now;
        for id in self.peers.with_tunnels() {
            if let Some(tunnel) = self.peers.get_mut(id).and_then(|peer| peer.tunnel.as_mut())
                && tunnel.paths.handle_unreachable(address)
            {
                self.schedule.wake(id);
            }
        }
    }

    /// Whether control can be told things. While it can't, the home region stays what it is.
    pub fn handle_control(&mut self, now: Instant, connected: bool) {
        self.now = now;
        self.netcheck.handle_control(now, connected);
    }

    /// What [`Event::MeasureRelay`] asked for: the round trip to a region's relay over TCP, or that it can't be reached.
    pub fn handle_relay_time(&mut self, now: Instant, region: RegionId, time: Option<Duration>) {
        self.now = now;
        self.netcheck.handle_relay_time(now, region, time);
    }

    /// The STUN servers of the DERP map's regions, resolved; the whole list.
    pub fn handle_stun_servers(&mut self, now: Instant, servers: Vec<(RegionId, SocketAddr)>) {
        self.now = now;
        if self.direct {
            self.netcheck.handle_servers(now, &servers, &mut self.rng);
        }
    }

    /// The connection to the relay of `region` is ready for packets.
    pub fn handle_derp_connected(&mut self, now: Instant, region: RegionId) {
        self.now = now;
        self.relay.handle_connected(now, region);
        self.wake_tunnels(now);
    }

    /// The connection to the relay of `region` ended, or couldn't be made.
    pub fn handle_derp_disconnected(&mut self, now: Instant, region: RegionId) {
        self.now = now;
        self.relay.handle_disconnected(now, region, &mut self.rng);
        if self.direct {
            self.netcheck.handle_lost_relay(now, &mut self.rng);
        }
        if self.relay.is_failing(region) {
            self.netcheck.handle_failing_relay(now, region);
        }
        self.wake_tunnels(now);
    }

    /// The relay of `region` will restart, wants us back after `reconnect_in`, and us to try for `try_for` then.
    pub fn handle_derp_restarting(
        &mut self,
        now: Instant,
        region: RegionId,
        reconnect_in: Duration,
        try_for: Duration,
    ) {
        self.now = now;
        self.relay.handle_restarting(now, region, reconnect_in, try_for);
    }

    /// The relay of `region` finds something wrong with the connection; empty when it is well again.
    pub fn handle_derp_health(&mut self, now: Instant, region: RegionId, problem: String) {
        self.now = now;
        self.relay.handle_health(now, region, problem);
    }

    /// Which relay of `region` to dial first, by its place among those that can be dialled, modulo their number.
    pub fn first_derp_node(&self, region: RegionId) -> usize {
        self.relay.first_node(region)
    }

    /// The relay of `region` says that `peer` isn't connected to it.
    pub fn handle_derp_peer_gone(&mut self, now: Instant, region: RegionId, peer: NodePublic) {
        self.now = now;
        self.relay.handle_peer_gone(region, &peer);
        let Some(id) = self.peers.by_key(&peer) else { return };
        if let Some(tunnel) = self.peers.get_mut(id).and_then(|peer| peer.tunnel.as_mut()) {
            tunnel.session.handle_absent(now);
            self.schedule.wake(id);
        }
    }

    /// Lets what is due happen.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        self.schedule.handle_timeout(now);
        self.stack.handle_timeout(now);
        if self.relay.poll_timeout().is_some_and(|at| at <= now) {
            self.relay.handle_timeout(now);
        }
        if self.netcheck.poll_timeout().is_some_and(|at| at <= now) {
            self.netcheck.handle_timeout(now, &mut self.rng);
        }
        if self.routes_due.is_some_and(|due| due <= now) {
            self.handle_routes_changed(now);
        }
        if self.active_until.is_some_and(|until| until <= now) {
            self.active_until = None;
            self.netcheck.set_active(now, false, &mut self.rng);
        }
        self.handle_ping_timeouts(now);
    }

    /// When [`Node::handle_timeout`] is due.
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        let timeouts = [
            self.schedule.poll_timeout(),
            self.stack.poll_timeout(),
            self.relay.poll_timeout(),
            self.netcheck.poll_timeout(),
            self.routes_due,
            self.active_until,
            self.pings.poll_timeout(),
        ];
        timeouts.into_iter().flatten().min()
    }

    /// The next thing that the world may want to act on.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.collect_events();
        self.events.pop_front()
    }

    /// How things are with the peers that were talked to.
    pub fn peer_status(&self, now: Instant) -> impl Iterator<Item = PeerStatus> + '_ {
        self.peers.with_tunnels().into_iter().filter_map(move |id| {
            let peer = self.peers.get(id)?;
            let tunnel = peer.tunnel.as_ref()?;
            Some(PeerStatus {
                key: peer.key,
                path: tunnel.paths.path_told(now, tunnel.told_path).into(),
                rtt: tunnel.paths.path_told(now, tunnel.told_path).and_then(|path| tunnel.paths.round_trip(path)),
                is_active: tunnel.paths.is_active(now),
                bytes_sent: tunnel.bytes_sent,
                bytes_received: tunnel.bytes_received,
                last_handshake: tunnel.session.established(),
            })
        })
    }

    /// When something authentic last came from `peer`; `None` if never.
    pub fn last_heard(&self, peer: &NodePublic) -> Option<Instant> {
        self.peers.get(self.peers.by_key(peer)?)?.tunnel.as_ref()?.last_heard
    }

    /// How many packets were thrown away, and why.
    pub fn drops(&self) -> Drops {
        self.drops
    }

    /// What relays, netcheck and the stack have to say.
    fn collect_events(&mut self) {
        while let Some(event) = self.netcheck.poll_event() {
            match event {
                netcheck::Event::Home(region) => {
                    if self.derp {
                        self.relay.handle_home(self.now, Some(region));
                    }
                    self.events.push_back(Event::HomeRegion(region));
                    // Not only with the report that follows: until control knows it, nobody reaches us through it.
                    self.events.push_back(Event::NetInfo(net_info(self.netcheck.report())));
                }
                netcheck::Event::Endpoints(mapped) => {
                    self.mapped_endpoints = mapped;
                    self.tell_endpoints();
                }
                netcheck::Event::MeasureRelays(regions) => {
                    for region in regions {
                        if self.derp {
                            self.events.push_back(Event::MeasureRelay { region });
                        } else {
                            self.netcheck.handle_relay_time(self.now, region, None);
                        }
                    }
                }
                netcheck::Event::Report => {
                    // Whether the NAT is a hard one is known now.
                    if self.told_endpoints.is_some() {
                        self.tell_endpoints();
                    }
                    let info = net_info(self.netcheck.report());
                    self.events.push_back(Event::NetInfo(info));
                }
            }
        }
        while let Some(action) = self.relay.poll_action() {
            self.events.push_back(match action {
                Action::Dial { region } => Event::DialDerp { region },
                Action::Close { region } => Event::CloseDerp { region },
                Action::Check { region } => Event::CheckDerp { region },
                Action::Health { region, problem } => Event::DerpHealth { region, problem },
            });
        }
        while let Some(event) = self.stack.poll_event() {
            self.handle_stack_event(event);
        }
    }

    /// Local and mapped addresses, if they are others than before. The first time also if there are none.
    fn tell_endpoints(&mut self) {
        let mut endpoints = if self.direct { self.local_endpoints.clone() } else { Vec::new() };
        for mapped in &self.mapped_endpoints {
            if endpoints.iter().all(|(endpoint, _)| endpoint != mapped) {
                endpoints.push((*mapped, EndpointType::Stun));
            }
        }
        if let Some(guess) = self.endpoint_behind_hard_nat()
            && endpoints.iter().all(|(endpoint, _)| *endpoint != guess)
        {
            endpoints.push((guess, EndpointType::Stun4LocalPort));
        }
        if self.told_endpoints.as_ref() != Some(&endpoints) {
            let first = self.told_endpoints.replace(endpoints.clone()).is_none();
            self.events.push_back(Event::Endpoints(endpoints));
            if !first {
                self.tell_endpoints_again();
            }
        }
    }

    fn endpoint_behind_hard_nat(&self) -> Option<SocketAddr> {
        let port = self.fixed_port.filter(|_| self.netcheck.report().mapping_varies == Some(true))?;
        let mapped = self.mapped_endpoints.iter().find(|mapped| mapped.is_ipv4())?;
        Some(SocketAddr::new(mapped.ip(), port))
    }

    /// Peers that were told the former endpoints a moment ago, and need them, are told the new ones.
    fn tell_endpoints_again(&mut self) {
        for id in self.peers.with_tunnels() {
            if let Some(tunnel) = self.peers.get_mut(id).and_then(|peer| peer.tunnel.as_mut()) {
                tunnel.paths.handle_own_endpoints(self.now);
                self.schedule.wake(id);
            }
        }
    }

    /// Packets went to a peer: keep our NAT's mapping known for a while.
    fn note_activity(&mut self, now: Instant) {
        if self.direct && self.active_until.is_none() {
            self.netcheck.set_active(now, true, &mut self.rng);
            self.active_until = Some(now + ACTIVE_FOR);
        }
    }

    /// A relay came or went: whoever waits for one may go on.
    fn wake_tunnels(&mut self, now: Instant) {
        for id in self.peers.with_tunnels() {
            if let Some(tunnel) = self.peers.get_mut(id).and_then(|peer| peer.tunnel.as_mut()) {
                tunnel.nudge(now);
                self.schedule.wake(id);
            }
        }
    }
}

/// A report in control's words.
fn net_info(report: &netcheck::Report) -> NetInfo {
    let family = if report.ipv4 { "v4" } else { "v6" };
    let latencies = report.latencies.iter();
    NetInfo {
        mapping_varies_by_dest_ip: report.mapping_varies,
        working_ipv6: report.udp.map(|_| report.ipv6),
        os_has_ipv6: None,
        working_udp: report.udp,
        preferred_derp: report.home.unwrap_or(0),
        derp_latency: latencies.map(|(region, rtt)| (format!("{region}-{family}"), rtt.as_secs_f64())).collect(),
    }
}
