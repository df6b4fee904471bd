//! What has happened in a world, seen from outside: packets on its wires, and what nodes say. Histories must come by each
//! landmark of [`REQUIRED`], or they try less than they seem to.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use nixtail_proto::disco::{self, Message, SharedKey};
use nixtail_proto::key::{DiscoPublic, NodePublic};
use nixtail_proto::node::{Destination, Event, Path};
use nixtail_proto::stack::ConnectionError;
use nixtail_proto::tailcfg::RegionId;
use nixtail_proto::tunnel::session::{REJECT_AFTER, REKEY_AFTER};

use crate::world::{SECOND, World};

/// What a thousand histories must have come by.
pub(crate) const REQUIRED: &[&str] = &[
    "a network of forty nodes",
    "a network of two nodes",
    "the network lost a packet",
    "the network doubled a packet",
    "packets overtook each other",
    "a handshake was answered by UDP",
    "a handshake was answered through a relay",
    "a handshake was retried, and answered then",
    "keys were renewed in mid-conversation",
    "a keepalive was sent",
    "direct after a call-me-maybe",
    "direct at an address that nobody told, where a ping came from",
    "direct within a site",
    "direct over IPv6",
    "upgraded from the relay",
    "another endpoint was preferred",
    "a heartbeat was answered",
    "trust expired, back to the relay",
    "a packet went both ways while trust was gone",
    "a reverse route was used",
    "a relay said that a peer is gone",
    "a relay was dialled again",
    "an idle relay was closed",
    "home changed",
    "addresses changed",
    "a NAT that maps each destination differently was noticed",
    "no UDP was noticed",
    "UDP came back",
    "a restart was noticed by its disco key",
    "a stream ended because the peer's key changed",
    "a stream ended because the peer fell silent",
    "a stream was reset",
    "a dial ended in time",
    "a stream outlived an outage",
    "pairs that can't go direct stayed at the relay",
    "pairs that can go direct did",
    "direct without a NAT",
    "direct through a firewall",
    "direct behind a NAT through which any may answer",
    "direct behind a NAT through which addresses may answer",
    "direct behind a NAT that preserves ports",
    "direct behind a NAT with random ports",
];

/// The way that a packet came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Udp(SocketAddr),
    Relay(RegionId),
}

/// Headers of data packets that are remembered, to know copies: a full train.
const REMEMBERED: usize = 64;

#[derive(Default)]
pub(crate) struct Observer {
    /// Whether everything is told to people as it happens.
    talkative: bool,
    pub(crate) landmarks: BTreeMap<&'static str, u64>,
    shared: HashMap<(DiscoPublic, DiscoPublic), SharedKey>,
    /// What a host (the first) and its peer have been through.
    pairs: HashMap<(usize, usize), Pair>,
    hosts: HashMap<usize, Seen>,
}

#[derive(Default)]
struct Pair {
    path: Path,
    /// What the peer told in its last call-me-maybe.
    called: Vec<SocketAddr>,
    /// When the host heard that the peer has another disco key.
    new_disco: Option<Instant>,
}

#[derive(Default)]
struct Seen {
    home: Option<RegionId>,
    addresses: bool,
    no_udp: bool,
    dialled: Vec<RegionId>,
    /// By tunnel: initiations since the last answer, and when the first and last of them were sent.
    initiations: HashMap<u32, (Instant, Instant)>,
    /// By tunnel: when a handshake of ours was last answered.
    answered: HashMap<u32, Instant>,
    sent_by_udp: VecDeque<[u8; 12]>,
    /// Receiver and counter of the last data packet that came straight.
    last_data: Option<(u32, u64)>,
}

impl Observer {
    /// One that tells people everything, or only counts.
    pub(crate) fn new(talkative: bool) -> Self {
        Self { talkative, ..Self::default() }
    }
}

impl World {
    /// Something has happened.
    pub(crate) fn note(&mut self, landmark: &'static str) {
        if let Some(observer) = &mut self.observer {
            *observer.landmarks.entry(landmark).or_default() += 1;
        }
    }

    /// Tells people, if they want to know everything.
    pub(crate) fn tell(&self, words: impl FnOnce() -> String) {
        if self.observer.as_ref().is_some_and(|observer| observer.talkative) {
            println!("{:>12.6} {}", self.elapsed().as_secs_f64(), words());
        }
    }

    /// Another process runs at this host, or is known to.
    pub(crate) fn note_restart(&mut self, host: usize) {
        if let Some(observer) = &mut self.observer {
            observer.pairs.retain(|(one, other), _| *one != host && *other != host);
            observer.hosts.remove(&host);
        }
    }

    /// A host gets a netmap that names another disco key of a peer whose node key is the same.
    pub(crate) fn note_new_disco_key(&mut self, host: usize, peer: usize) {
        let now = self.now;
        if let Some(observer) = &mut self.observer {
            observer.pairs.entry((host, peer)).or_default().new_disco = Some(now);
        }
    }

    pub(crate) fn note_departure(&mut self, host: usize, destination: Destination, bytes: &[u8]) {
        self.tell(|| format!("host {host} sends {} to {destination:?}", name(bytes)));
        let Some(observer) = &mut self.observer else { return };
        let seen = observer.hosts.entry(host).or_default();
        let mut landmark = None;
        match (kind(bytes), destination) {
            (Some(1), _) => {
                let times = seen.initiations.entry(tunnel_at(bytes, 4)).or_insert((self.now, self.now));
                times.1 = self.now;
            }
            (Some(4), Destination::Udp(_)) => {
                seen.sent_by_udp.truncate(REMEMBERED - 1);
                seen.sent_by_udp.push_front(header(bytes));
            }
            (Some(4), Destination::Derp { .. }) if seen.sent_by_udp.contains(&header(bytes)) => {
                landmark = Some("a packet went both ways while trust was gone");
            }
            _ => {}
        }
        if kind(bytes) == Some(4) && bytes.len() == 32 {
            self.note("a keepalive was sent");
        }
        if let Destination::Derp { region, peer } = destination
            && let Some(record) = self.by_key(&peer).and_then(|peer| self.hosts[peer].control.published.as_ref())
            && record.home_derp != region
        {
            self.note("a reverse route was used");
        }
        if let Some(landmark) = landmark {
            self.note(landmark);
        }
    }

    pub(crate) fn note_arrival(&mut self, host: usize, way: Way, claimed: Option<NodePublic>, bytes: &[u8]) {
        if self.observer.is_none() {
            return;
        }
        self.tell(|| format!("host {host} gets {} by {way:?}", name(bytes)));
        if disco::is_disco(bytes) {
            return self.note_disco(host, way, bytes);
        }
        let from = claimed.and_then(|key| self.by_key(&key));
        let now = self.now;
        let Some(observer) = &mut self.observer else { return };
        match kind(bytes) {
            Some(1) => {
                let noticed = from.and_then(|from| observer.pairs.get(&(from, host))).and_then(|pair| pair.new_disco);
                if noticed.is_some_and(|at| now - at < SECOND) {
                    self.note("a restart was noticed by its disco key");
                }
            }
            Some(2) => {
                let seen = observer.hosts.entry(host).or_default();
                let times = seen.initiations.remove(&tunnel_at(bytes, 8));
                let before = seen.answered.insert(tunnel_at(bytes, 8), now);
                if times.is_some_and(|(first, last)| last - first >= Duration::from_millis(200)) {
                    self.note("a handshake was retried, and answered then");
                }
                if before.is_some_and(|before| (REKEY_AFTER..REJECT_AFTER).contains(&(now - before))) {
                    self.note("keys were renewed in mid-conversation");
                }
                self.note(match way {
                    Way::Udp(_) => "a handshake was answered by UDP",
                    Way::Relay(_) => "a handshake was answered through a relay",
                });
            }
            Some(4) if matches!(way, Way::Udp(_)) => {
                let (receiver, counter) = numbers(bytes);
                let before = observer.hosts.entry(host).or_default().last_data.replace((receiver, counter));
                if before.is_some_and(|before| before.0 == receiver && before.1 > counter) {
                    self.note("packets overtook each other");
                }
            }
            _ => {}
        }
    }

    fn note_disco(&mut self, host: usize, way: Way, bytes: &[u8]) {
        let Some(sender) = disco::sender(bytes) else { return };
        let Some(from) = self.hosts.iter().position(|one| one.record.disco_key == sender) else { return };
        let Some(observer) = &mut self.observer else { return };
        let (own, receiver) = (self.hosts[host].disco_key(), self.hosts[host].record.disco_key);
        let shared = observer.shared.entry((receiver, sender)).or_insert_with(|| SharedKey::new(own, &sender));
        let pair = observer.pairs.entry((host, from)).or_default();
        match shared.open(bytes) {
            Ok(Message::CallMeMaybe { endpoints }) => pair.called = endpoints,
            Ok(Message::Pong { .. }) if matches!((pair.path, way), (Path::Direct(_), Way::Udp(_))) => {
                self.note("a heartbeat was answered");
            }
            _ => {}
        }
    }

    pub(crate) fn note_event(&mut self, host: usize, event: &Event) {
        if !matches!(event, Event::Readable { .. } | Event::Writable { .. }) {
            self.tell(|| format!("host {host}: {event:?}"));
        }
        if self.observer.is_none() {
            return;
        }
        if let Event::PathChanged { peer, path } = event {
            return self.note_path(host, peer, *path);
        }
        let Some(observer) = &mut self.observer else { return };
        let seen = observer.hosts.entry(host).or_default();
        let landmark = match event {
            Event::HomeRegion(region) => seen.home.replace(*region).map(|_| "home changed"),
            Event::Endpoints(_) => std::mem::replace(&mut seen.addresses, true).then_some("addresses changed"),
            Event::NetInfo(info) => {
                if info.mapping_varies_by_dest_ip == Some(true) {
                    *observer
                        .landmarks
                        .entry("a NAT that maps each destination differently was noticed")
                        .or_default() += 1;
                }
                match info.working_udp {
                    Some(false) => (!std::mem::replace(&mut seen.no_udp, true)).then_some("no UDP was noticed"),
                    Some(true) => std::mem::take(&mut seen.no_udp).then_some("UDP came back"),
                    None => None,
                }
            }
            Event::DialDerp { region } if seen.dialled.contains(region) => Some("a relay was dialled again"),
            Event::DialDerp { region } => {
                seen.dialled.push(*region);
                None
            }
            Event::CloseDerp { .. } => Some("an idle relay was closed"),
            Event::Closed { error: Some(error), .. } => match error {
                ConnectionError::PeerKeyChanged => Some("a stream ended because the peer's key changed"),
                ConnectionError::TimedOut => Some("a stream ended because the peer fell silent"),
                ConnectionError::ConnectTimedOut => Some("a dial ended in time"),
                ConnectionError::Reset => Some("a stream was reset"),
                _ => None,
            },
            _ => None,
        };
        if let Some(landmark) = landmark {
            self.note(landmark);
        }
    }

    fn note_path(&mut self, host: usize, peer: &NodePublic, path: Path) {
        let Some(peer) = self.by_key(peer) else { return };
        let published = self.hosts[peer].control.published.clone();
        let Some(observer) = &mut self.observer else { return };
        let pair = observer.pairs.entry((host, peer)).or_default();
        let before = std::mem::replace(&mut pair.path, path);
        let called = pair.called.clone();
        match (before, path) {
            (Path::Direct(_), Path::Direct(_)) => self.note("another endpoint was preferred"),
            (Path::Derp(_), Path::Direct(_)) => self.note("upgraded from the relay"),
            (Path::Direct(_), Path::Derp(_)) => self.note("trust expired, back to the relay"),
            _ => {}
        }
        let Path::Direct(address) = path else { return };
        let told = published.is_some_and(|record| record.endpoints.contains(&address));
        if called.contains(&address) {
            self.note("direct after a call-me-maybe");
        } else if !told {
            self.note("direct at an address that nobody told, where a ping came from");
        }
        match address.ip() {
            IpAddr::V6(_) => self.note("direct over IPv6"),
            IpAddr::V4(ip) if ip.is_private() => self.note("direct within a site"),
            IpAddr::V4(_) => {}
        }
    }

    fn by_key(&self, key: &NodePublic) -> Option<usize> {
        self.hosts.iter().position(|host| host.key() == *key)
    }
}

/// The type of a WireGuard message.
fn kind(bytes: &[u8]) -> Option<u8> {
    matches!(bytes, [1..=4, 0, 0, 0, ..]).then(|| bytes[0])
}

/// The receiver index at an offset, without the session's number: one tunnel of the host that chose it.
fn tunnel_at(bytes: &[u8], offset: usize) -> u32 {
    bytes.get(offset..).and_then(|rest| rest.first_chunk()).map_or(0, |index| u32::from_le_bytes(*index) >> 8)
}

/// Receiver and counter of a data packet.
fn header(bytes: &[u8]) -> [u8; 12] {
    bytes.get(4..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default()
}

/// The same as numbers.
fn numbers(bytes: &[u8]) -> (u32, u64) {
    let [a, b, c, d, counter @ ..] = header(bytes);
    (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(counter))
}

fn name(bytes: &[u8]) -> String {
    let kind = match kind(bytes) {
        Some(1) => "an initiation",
        Some(2) => "a response",
        Some(3) => "a cookie",
        Some(_) => return format!("data {}/{} of {}", tunnel_at(bytes, 4), bytes[8], bytes.len()),
        None if disco::is_disco(bytes) => "disco",
        None => "STUN",
    };
    format!("{kind} of {}", bytes.len())
}
