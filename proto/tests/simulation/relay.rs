//! The relays: which hosts are connected to which, and what becomes of a frame. A connection is TCP: what arrives, arrives in
//! order.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nixtail_proto::key::NodePublic;
use nixtail_proto::tailcfg::{DerpNode, DerpRegion, RegionId};

use crate::landmarks::Way;
use crate::world::{Happening, SECOND, World};

/// After how long a host notices that a connection is dead which nobody has closed.
const DEAD_AFTER: Duration = Duration::from_secs(10);

/// A host's connection to a relay.
#[derive(Debug)]
pub(crate) struct Connection {
    /// Which one: frames of an earlier one are lost.
    pub(crate) number: u64,
    /// When the last frame on its way to the relay, or from there, arrives.
    last_up: Instant,
    last_down: Instant,
}

/// What a relay sends to a client.
#[derive(Debug)]
pub(crate) enum Frame {
    Packet { from: NodePublic, bytes: Vec<u8> },
    PeerGone { peer: NodePublic },
}

impl World {
    pub(crate) fn region(region_id: RegionId) -> DerpRegion {
        let node =
            DerpNode { name: "1a".to_owned(), region_id, host_name: "derp.example".to_owned(), ..DerpNode::default() };
        DerpRegion { region_id, region_code: "sim".to_owned(), nodes: vec![node], ..DerpRegion::default() }
    }

    pub(crate) fn stun_servers(region: RegionId) -> [SocketAddr; 2] {
        let low = region.to_be_bytes()[1];
        [([203, 0, 113, low], 3478).into(), ([0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, region], 3478).into()]
    }

    pub(crate) fn region_of_stun_server(&self, address: SocketAddr) -> Option<RegionId> {
        self.relays.keys().copied().find(|region| Self::stun_servers(*region).contains(&address))
    }

    /// One way between a host and a relay.
    fn relay_delay(&mut self, host: usize, region: RegionId) -> Duration {
        let site = &self.sites[self.hosts[host].site];
        self.derp.delay + site.access.delay + site.far.get(&region).copied().unwrap_or_default()
    }

    pub(crate) fn dial_relay(&mut self, host: usize, region: RegionId) {
        assert!(self.relays.contains_key(&region), "host {host} dials region {region}, which isn't in its map");
        self.next_dial += 1;
        let (number, delay) = (self.next_dial, self.relay_delay(host, region));
        let there = self.relays[&region] && self.reaches_internet(host);
        self.hosts[host].dials.insert(region, number);
        // A refusal comes back at once, silence is waited for.
        let takes = if self.reaches_internet(host) { 2 * delay } else { 5 * SECOND };
        self.happen(self.now + takes, Happening::RelayDialled { host, region, number, there });
    }

    pub(crate) fn handle_dialled(&mut self, host: usize, region: RegionId, number: u64, there: bool) {
        let now = self.now;
        let there = there && self.relays[&region] && self.reaches_internet(host);
        let one = &mut self.hosts[host];
        if one.dials.get(&region) != Some(&number) {
            return;
        }
        one.dials.remove(&region);
        if there {
            one.relays.insert(region, Connection { number, last_up: now, last_down: now });
            one.node.handle_derp_connected(now, region);
        } else {
            one.node.handle_derp_disconnected(now, region);
        }
    }

    /// TCP, TLS and a question take a round trip each, and the last of them is what is told.
    pub(crate) fn measure_relay(&mut self, host: usize, region: RegionId) {
        let round_trip = 2 * self.relay_delay(host, region);
        let there = self.relays.get(&region) == Some(&true) && self.reaches_internet(host);
        let (takes, time) = if there { (4 * round_trip, Some(round_trip)) } else { (5 * SECOND, None) };
        self.happen(self.now + takes, Happening::RelayMeasured { host, region, time });
    }

    pub(crate) fn close_relay(&mut self, host: usize, region: RegionId) {
        self.hosts[host].dials.remove(&region);
        self.hosts[host].relays.remove(&region);
    }

    /// The host's connection breaks.
    pub(crate) fn break_relay(&mut self, host: usize, region: RegionId) {
        if self.hosts[host].relays.remove(&region).is_some() {
            self.hosts[host].node.handle_derp_disconnected(self.now, region);
            self.pump_host(host);
        }
    }

    /// A relay ends (after it has told its clients, if `politely`), or is there again.
    pub(crate) fn set_relay(&mut self, region: RegionId, up: bool, politely: bool) {
        self.relays.insert(region, up);
        if up {
            return;
        }
        for host in 0..self.hosts.len() {
            if politely && self.hosts[host].relays.contains_key(&region) {
                self.hosts[host].node.handle_derp_restarting(self.now, region, 2 * SECOND, 2 * SECOND);
            }
            self.break_relay(host, region);
        }
    }

    /// The site's hosts notice that their connections are dead, unless the site is there again until then.
    pub(crate) fn starve_relays(&mut self, site: usize) {
        for host in 0..self.hosts.len() {
            if self.hosts[host].site == site {
                for (region, connection) in &self.hosts[host].relays {
                    let number = connection.number;
                    self.queue.push(self.now + DEAD_AFTER, Happening::RelayDead { host, region: *region, number });
                }
            }
        }
    }

    pub(crate) fn handle_relay_dead(&mut self, host: usize, region: RegionId, number: u64) {
        let same = self.hosts[host].relays.get(&region).is_some_and(|connection| connection.number == number);
        if same && self.sites[self.hosts[host].site].cut {
            self.break_relay(host, region);
        }
    }

    /// A frame leaves a host.
    pub(crate) fn send_to_relay(&mut self, host: usize, region: RegionId, to: NodePublic, bytes: Vec<u8>) {
        let delay = self.relay_delay(host, region);
        let mut copies = vec![Duration::ZERO];
        let mut link = self.derp;
        link.carry(self.now, &mut self.rng, &mut copies);
        let from = self.hosts[host].key();
        let late = copies.first().map(|taken| taken.saturating_sub(self.derp.delay));
        // Without a connection it is lost: the relay went while it waited to be sent.
        let Some((late, connection)) = late.zip(self.hosts[host].relays.get_mut(&region)) else { return };
        let number = connection.number;
        let mut at = self.now + delay + late;
        if link.late_ppm == 0 {
            at = at.max(connection.last_up);
            connection.last_up = at;
        }
        self.happen(at, Happening::AtRelay { host, number, region, from, to, bytes });
    }

    /// A frame is at the relay.
    pub(crate) fn forward(&mut self, region: RegionId, sender: (usize, u64), keys: [NodePublic; 2], bytes: Vec<u8>) {
        let (host, number) = sender;
        let [from, to] = keys;
        let is_there = self.hosts[host].relays.get(&region).is_some_and(|connection| connection.number == number);
        if !is_there || !self.relays[&region] || !self.reaches_internet(host) {
            return;
        }
        let receiver = self.hosts.iter().position(|one| one.key() == to && one.relays.contains_key(&region));
        match receiver {
            Some(receiver) => self.send_from_relay(receiver, region, Frame::Packet { from, bytes }),
            None => self.send_from_relay(host, region, Frame::PeerGone { peer: to }),
        }
    }

    fn send_from_relay(&mut self, host: usize, region: RegionId, frame: Frame) {
        let delay = self.relay_delay(host, region);
        let Some(connection) = self.hosts[host].relays.get_mut(&region) else { return };
        let at = (self.now + delay).max(connection.last_down);
        connection.last_down = at;
        let number = connection.number;
        self.happen(at, Happening::FromRelay { host, region, number, frame });
    }

    pub(crate) fn handle_relay_frame(&mut self, host: usize, region: RegionId, number: u64, frame: Frame) {
        let is_there = self.hosts[host].relays.get(&region).is_some_and(|connection| connection.number == number);
        if !is_there || self.hosts[host].frozen || !self.reaches_internet(host) {
            return;
        }
        match frame {
            Frame::Packet { from, bytes } => {
                self.note_arrival(host, Way::Relay(region), Some(from), &bytes);
                self.hosts[host].node.handle_derp_packets(self.now, region, [(from, &bytes[..])]);
            }
            Frame::PeerGone { peer } => {
                self.note("a relay said that a peer is gone");
                self.hosts[host].node.handle_derp_peer_gone(self.now, region, peer);
            }
        }
    }
}
