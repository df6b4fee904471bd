//! Which DERP region is home, and as what the world sees us (`tailscale/tailscale` `net/netcheck/netcheck.go`).
//!
//! Rounds of STUN requests go to the regions' relays from the socket that carries the packets, so that the addresses
//! that come back are those at which peers may reach us. The policy is our own where Go's would stall: a round ends with
//! the first answer of every region, or after twice the best latency, or when nobody answered for a second; and a map
//! with one region has a home at once. Where UDP reaches no region, they are measured over TCP.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand_core::CryptoRng;

use crate::relay::Target;
use crate::stun;
use crate::tailcfg::{DerpRegion, RegionId};

mod home;
mod relay_times;
mod round;
mod survey;
#[cfg(test)]
mod tests;

use home::History;
use relay_times::RelayTimes;
use round::Round;
pub use survey::{Findings, Survey};

/// How long a round waits for a first answer. Then there is no UDP, or none that is worth waiting for.
pub const NO_ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause between rounds while there are sessions, at least: NAT mappings live for 30 s at times.
pub const MIN_INTERVAL: Duration = Duration::from_secs(20);
/// The pause between rounds while there are sessions, at most.
pub const MAX_INTERVAL: Duration = Duration::from_secs(26);
/// For how long the endpoints of a round can be told to a peer as they are (magicsock's `endpointsFreshEnoughDuration`).
pub const ENDPOINTS_FRESH: Duration = Duration::from_secs(27);
/// How often every region is measured; between that, only those which may become home.
const FULL_INTERVAL: Duration = Duration::from_secs(5 * 60);
/// After the loss of a relay, rounds begin no more often than this.
const LOST_RELAY_INTERVAL: Duration = Duration::from_secs(3);
/// For how long a region whose relays hold no connection isn't chosen as home.
const FAILING_FOR: Duration = Duration::from_secs(5 * 60);
/// How many STUN servers are known, at most: some 30 regions with a few relays of two families.
const MAX_SERVERS: usize = 256;
/// How many mapped addresses of a family are told: behind a NAT that varies, each server sees another, and none helps.
const MAX_ENDPOINTS_OF_FAMILY: usize = 3;
/// After how many rounds that didn't see a mapped address it is dropped.
const ENDPOINT_ROUNDS: u32 = 2;
/// So many rounds without an answer, and a home that was chosen by UDP is looked at anew: one may lose its answers.
const SILENT_ROUNDS: u32 = 2;
/// A relay that sent something so lately is there, whatever STUN says (netcheck's `PreferredDERPFrameTime`).
const HEARD_LATELY: Duration = Duration::from_secs(8);

/// What has been found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Home is another region than before.
    Home(RegionId),
    /// Our mapped addresses (`EndpointType::Stun`) are other ones than before.
    Endpoints(Vec<SocketAddr>),
    /// No region answers over UDP: the round trip to the relays of these is to be measured over TCP, and told by
    /// [`Netcheck::handle_relay_time`], whether it came to anything or not.
    MeasureRelays(Vec<RegionId>),
    /// A round ended: [`Netcheck::report`] is up to date.
    Report,
}

/// What the last rounds say of the network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// The home region; `None` before the first DERP map.
    pub home: Option<RegionId>,
    /// Whether a STUN server answered in the last round. `None` before the first.
    pub udp: Option<bool>,
    /// Whether one answered over IPv4.
    pub ipv4: bool,
    /// Whether one answered over IPv6.
    pub ipv6: bool,
    /// Whether the NAT maps each destination differently (a hard NAT). `None` when fewer than two servers said.
    pub mapping_varies: Option<bool>,
    /// The best round trip to each region that answered in the last 5 minutes.
    pub latencies: BTreeMap<RegionId, Duration>,
}

/// Chooses the home region and finds our mapped addresses.
#[derive(Debug)]
pub struct Netcheck {
    /// The regions that may be home, with control's factor on their latency.
    candidates: BTreeMap<RegionId, f64>,
    /// Those among them whose relays hold no connection, and until when that counts.
    failing: BTreeMap<RegionId, Instant>,
    servers: Vec<(RegionId, SocketAddr)>,
    history: History,
    round: Option<Round>,
    last_round: Option<Instant>,
    last_full_round: Option<Instant>,
    next_round: Option<Instant>,
    rounds: u32,
    /// How many rounds in a row nobody answered.
    silent_rounds: u32,
    relay_times: RelayTimes,
    /// When the home region's relay last sent something.
    home_heard: Option<Instant>,
    /// Whether control can be told of another home.
    has_control: bool,
    active: bool,
    /// Mapped addresses: the number of the round that saw them last, and the latency of the server that did. Its size
    /// is bounded by the servers of two rounds.
    endpoints: BTreeMap<SocketAddr, (u32, Duration)>,
    told_endpoints: Vec<SocketAddr>,
    report: Report,
    transmits: VecDeque<(SocketAddr, Vec<u8>)>,
    events: VecDeque<Event>,
}

impl Netcheck {
    /// Nothing known yet. A choice without data comes from `rng`, and stays the same.
    #[must_use]
    pub fn new(rng: &mut dyn CryptoRng) -> Self {
        Self {
            candidates: BTreeMap::new(),
            failing: BTreeMap::new(),
            servers: Vec::new(),
            history: History::new(rng.next_u64()),
            round: None,
            last_round: None,
            last_full_round: None,
            next_round: None,
            rounds: 0,
            silent_rounds: 0,
            relay_times: RelayTimes::default(),
            home_heard: None,
            has_control: true,
            active: false,
            endpoints: BTreeMap::new(),
            told_endpoints: Vec::new(),
            report: Report::default(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Takes a new DERP map, whole, with control's `scores` (factors on the latency; 1 where absent). Regions that are
    /// to be avoided or have no relay can't become home. With one region, that is home at once.
    pub fn handle_derp_map(
        &mut self,
        now: Instant,
        map: &BTreeMap<RegionId, DerpRegion>,
        scores: &BTreeMap<RegionId, f64>,
        rng: &mut dyn CryptoRng,
    ) {
        let score = |id: &RegionId| scores.get(id).copied().filter(|score| score.is_finite() && *score > 0.0);
        let candidates: BTreeMap<_, _> = map
            .iter()
            .filter(|(_, region)| may_be_home(region))
            .map(|(id, _)| (*id, score(id).unwrap_or(1.0)))
            .collect();
        if candidates == self.candidates {
            return;
        }
        self.candidates = candidates;
        self.history.retain(|region| self.candidates.contains_key(&region));
        self.failing.retain(|region, _| self.candidates.contains_key(region));
        // Those that are new were never measured.
        self.relay_times = RelayTimes::default();
        if self.candidates.len() == 1 || self.report.home.is_some() {
            self.choose_home(now);
        }
        self.start(now, true, rng);
    }

    /// Takes the regions' STUN servers, resolved; the whole list. If it isn't the one that is known, a round begins at
    /// once.
    pub fn handle_servers(&mut self, now: Instant, servers: &[(RegionId, SocketAddr)], rng: &mut dyn CryptoRng) {
        let mut servers: Vec<_> = servers.iter().map(|(id, server)| (*id, canonical(*server))).collect();
        servers.sort_unstable();
        servers.dedup();
        servers.truncate(MAX_SERVERS);
        if servers != self.servers {
            self.servers = servers;
            self.start(now, true, rng);
        }
    }

    /// A connection to a relay was lost, or couldn't be made: what is known of the network is looked at again.
    pub fn handle_lost_relay(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        if self.last_round.is_none_or(|last| now.saturating_duration_since(last) >= LOST_RELAY_INTERVAL) {
            self.start(now, false, rng);
        }
    }

    /// No relay of this region holds a connection: while there is another region, that one is home for the next minutes, since
    /// peers couldn't reach us. Not where nothing else answers, either: then it is the network that is gone.
    pub fn handle_failing_relay(&mut self, now: Instant, region: RegionId) {
        if !self.candidates.contains_key(&region) {
            return;
        }
        if self.report.udp == Some(true) || self.relay_times.another_answers(now, region) {
            self.failing.insert(region, now + FAILING_FOR);
            if self.report.home == Some(region) {
                self.choose_home(now);
            }
        } else if self.report.udp == Some(false)
            && self.candidates.len() > 1
            && self.relay_times.is_worth_repeating(now)
        {
            // Where UDP reaches nothing, TCP must tell which it is. The next failure comes back here, with the answers.
            self.begin_measurement(now);
        }
    }

    /// Says whether there are sessions, which is when rounds repeat.
    pub fn set_active(&mut self, now: Instant, active: bool, rng: &mut dyn CryptoRng) {
        if self.active != active {
            self.active = active;
            self.schedule(rng);
            if active && !self.endpoints_fresh(now) && self.round_is_over() {
                self.start(now, false, rng);
            }
        }
    }

    /// Begins a round at once: this is another network than before.
    pub fn handle_network_changed(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        self.relay_times = RelayTimes::default();
        self.start(now, false, rng);
    }

    /// Says whether control can be told things. While it can't, home stays: peers wouldn't learn of another one.
    pub fn handle_control(&mut self, now: Instant, connected: bool) {
        if !std::mem::replace(&mut self.has_control, connected) && connected {
            self.choose_home(now);
        }
    }

    /// A relay sent something. Where that is home, it stays home for now even if its STUN server is silent.
    pub fn handle_relay_heard(&mut self, now: Instant, region: RegionId) {
        if self.report.home == Some(region) {
            self.home_heard = Some(now);
        }
    }

    /// Takes what [`Event::MeasureRelays`] asked for: a region's round trip, or that it can't be reached.
    pub fn handle_relay_time(&mut self, now: Instant, region: RegionId, time: Option<Duration>) {
        if self.relay_times.handle(now, region, time) {
            self.choose_home(now);
        }
    }

    /// Begins a round at once: a peer is to be told fresh endpoints.
    pub fn refresh(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        self.start(now, false, rng);
    }

    /// Whether our mapped addresses were asked for lately enough to be told to a peer.
    #[must_use]
    pub fn endpoints_fresh(&self, now: Instant) -> bool {
        self.last_round.is_some_and(|last| now.saturating_duration_since(last) < ENDPOINTS_FRESH)
    }

    /// Takes a STUN message that came on the socket. Says whether it was an answer to us; others are to be dropped.
    pub fn handle_response(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: &[u8],
        rng: &mut dyn CryptoRng,
    ) -> bool {
        let (Ok((txid, mapped)), Some(round)) = (stun::parse_response(datagram), &mut self.round) else {
            return false;
        };
        let Some((region, latency)) = round.handle_answer(now, canonical(from), txid, mapped) else {
            return false;
        };
        let seen = self.endpoints.entry(mapped).or_insert((self.rounds, latency));
        *seen = (self.rounds, if seen.0 == self.rounds { seen.1.min(latency) } else { latency });
        self.history.record(region, latency);
        self.tell_endpoints();
        if !self.round_is_over() {
            self.finish_if_done(now, rng);
        } else if self.report.udp == Some(false) || self.history.home_is_guess(self.report.home) {
            // Too late for its round, but the first thing that we know.
            self.finish(now, rng);
        } else if self.take_findings() {
            // The slower family, or another view of us.
            self.events.push_back(Event::Report);
        }
        true
    }

    /// Sends requests again, ends a round, begins the next.
    pub fn handle_timeout(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        if let Some(round) = &mut self.round {
            round.handle_timeout(now, rng, &mut self.transmits);
        }
        self.finish_if_done(now, rng);
        if self.relay_times.handle_timeout(now) {
            self.choose_home(now);
        }
        if self.next_round.is_some_and(|next| next <= now) {
            let full = self.last_full_round.is_none_or(|last| now.saturating_duration_since(last) >= FULL_INTERVAL);
            self.start(now, full, rng);
        }
    }

    /// The next request to send: whom to, and the datagram.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.transmits.pop_front()
    }

    /// The next thing found out.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Self::handle_timeout`] has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let round = self.round.as_ref().and_then(Round::poll_timeout);
        round.into_iter().chain(self.next_round).chain(self.relay_times.poll_timeout()).min()
    }

    /// What is known.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    fn round_is_over(&self) -> bool {
        self.round.as_ref().is_none_or(Round::is_over)
    }

    /// Begins a round, in place of one that runs. One that isn't full asks the home region and the nearest ones.
    fn start(&mut self, now: Instant, full: bool, rng: &mut dyn CryptoRng) {
        if self.candidates.is_empty() {
            // Nothing to ask for: the next map begins a round, and no time that has passed may stay due.
            self.next_round = None;
            return;
        }
        let full = full || self.report.udp != Some(true);
        let nearest = self.history.nearest(&self.candidates, self.report.home);
        let asked = |id: &RegionId| self.candidates.contains_key(id) && (full || nearest.contains(id));
        let servers: Vec<_> = self.servers.iter().copied().filter(|(id, _)| asked(id)).collect();
        if full {
            self.last_full_round = Some(now);
        }
        self.rounds = self.rounds.wrapping_add(1);
        self.last_round = Some(now);
        self.failing.retain(|_, until| *until > now);
        self.next_round = None;
        self.history.begin(now);
        self.transmits.clear();
        let mut round = Round::new(now, &servers);
        round.handle_timeout(now, rng, &mut self.transmits);
        self.round = Some(round);
    }

    fn finish_if_done(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        if self.round.as_mut().is_some_and(|round| round.finish_if_done(now)) {
            self.finish(now, rng);
        }
    }

    fn finish(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        self.take_findings();
        if self.report.udp == Some(true) {
            self.silent_rounds = 0;
            self.relay_times = RelayTimes::default();
        } else {
            self.silent_rounds = self.silent_rounds.saturating_add(1);
            self.measure_relays(now);
        }
        self.choose_home(now);
        let rounds = self.rounds;
        self.endpoints.retain(|_, (seen, _)| rounds.wrapping_sub(*seen) < ENDPOINT_ROUNDS);
        self.tell_endpoints();
        self.schedule(rng);
        self.events.push_back(Event::Report);
    }

    /// The next round comes while there are sessions, and while nothing is known.
    fn schedule(&mut self, rng: &mut dyn CryptoRng) {
        let wanted = !self.candidates.is_empty() && (self.active || self.report.udp == Some(false));
        let jitter = (MAX_INTERVAL - MIN_INTERVAL).mul_f64(f64::from(rng.next_u32()) / f64::from(u32::MAX));
        self.next_round = self.last_round.filter(|_| wanted).map(|last| last + MIN_INTERVAL + jitter);
    }

    /// Takes over what the round has found so far. Says whether the network is another than it seemed.
    fn take_findings(&mut self) -> bool {
        let Some(round) = &self.round else { return false };
        let (ipv4, ipv6) = round.families();
        let report = Report {
            home: self.report.home,
            udp: Some(round.answered()),
            ipv4,
            ipv6,
            mapping_varies: round.mapping_varies().or(self.report.mapping_varies),
            latencies: self.history.latencies(),
        };
        let before = std::mem::replace(&mut self.report, report);
        (before.ipv4, before.ipv6, before.mapping_varies) != (ipv4, ipv6, self.report.mapping_varies)
    }

    /// Has the regions measured over TCP, where there is a choice and none that UDP made.
    fn measure_relays(&mut self, now: Instant) {
        let is_lost = self.silent_rounds >= SILENT_ROUNDS || self.history.home_is_guess(self.report.home);
        if is_lost && self.candidates.len() > 1 && self.relay_times.is_due(now) {
            self.begin_measurement(now);
        }
    }

    fn begin_measurement(&mut self, now: Instant) {
        self.relay_times.begin(now, self.candidates.keys().copied());
        self.events.push_back(Event::MeasureRelays(self.candidates.keys().copied().collect()));
    }

    fn choose_home(&mut self, now: Instant) {
        let current = self.report.home.filter(|home| self.candidates.contains_key(home));
        let is_settled = match current {
            Some(home) => !self.has_control || (self.relay_times.is_open(home) && !self.failing.contains_key(&home)),
            // Rather the nearest in a moment than any at once.
            None => self.report.udp == Some(false) && self.relay_times.is_waiting(),
        };
        if is_settled {
            return;
        }
        let is_heard = self.home_heard.is_some_and(|heard| now.saturating_duration_since(heard) < HEARD_LATELY);
        let fit = self.candidates.iter().filter(|(region, _)| !self.failing.contains_key(region));
        let fit: BTreeMap<_, _> = fit.map(|(region, score)| (*region, *score)).collect();
        // Where all fail, one is as good as another.
        let candidates = if fit.is_empty() { &self.candidates } else { &fit };
        let home = self.history.choose(candidates, self.report.home, self.relay_times.known(), is_heard);
        if home != self.report.home {
            self.report.home = home;
            self.home_heard = None;
            self.events.extend(home.map(Event::Home));
        }
    }

    /// The nearest servers' views of us, a few of each family.
    fn tell_endpoints(&mut self) {
        let mut known: Vec<_> = self.endpoints.iter().map(|(mapped, (_, latency))| (*latency, *mapped)).collect();
        known.sort_unstable();
        let of_family = |ipv4: bool| known.iter().map(|(_, mapped)| *mapped).filter(move |m| m.is_ipv4() == ipv4);
        let mut told: Vec<_> = of_family(true).take(MAX_ENDPOINTS_OF_FAMILY).collect();
        told.extend(of_family(false).take(MAX_ENDPOINTS_OF_FAMILY));
        told.sort_unstable();
        if told != self.told_endpoints {
            self.told_endpoints.clone_from(&told);
            self.events.push_back(Event::Endpoints(told));
        }
    }
}

/// Whether a region isn't to be avoided and has a relay.
fn may_be_home(region: &DerpRegion) -> bool {
    !region.no_measure_no_home && !region.avoid && region.nodes.iter().any(|node| Target::derp(node).is_some())
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
