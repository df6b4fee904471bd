//! The paths to one peer: which UDP address answers, which is the best, and when only the relay is left.
//!
//! The rules are those of `tailscale/tailscale` `wgengine/magicsock/endpoint.go`: an address is trusted for some seconds
//! after it answered a disco ping. Trusted: packets go there alone. Known but no longer trusted: there and through DERP.
//! None: through DERP. So the first byte never waits for path discovery.
//!
//! This machine decides which disco messages to send ([`Paths::poll_output`]); sealing them, and checking that those
//! which arrive come from the peer's disco key, is the caller's.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand_core::CryptoRng;

use super::retry_after;
use crate::disco::TransactionId;
use crate::tailcfg::RegionId;

mod preference;
#[cfg(test)]
mod tests;

use preference::is_better;

/// An address is trusted for this long after its last answer: two heartbeats and a little.
pub const TRUST_FOR: Duration = Duration::from_millis(6500);
/// While packets are sent, the best address is pinged this often.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(3);
/// Heartbeats go on for this long after the last packet.
pub const ACTIVE_FOR: Duration = Duration::from_secs(45);
/// A ping without an answer is forgotten after this long.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// One address is pinged no more often than this, unless the peer asks for it or packets wait.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// While packets wait for a path, or somebody asks for one, no more often than this.
const URGENT_PING_INTERVAL: Duration = Duration::from_millis(50);
/// How often a better path than a trusted one is looked for.
const UPGRADE_EVERY: Duration = Duration::from_secs(60);
/// A path of this latency is good enough to look for no better one.
const GOOD_ENOUGH: Duration = Duration::from_millis(5);
/// The peer's wish to be pinged is heeded no more often than this; each costs a ping to every address.
const CALL_INTERVAL: Duration = Duration::from_millis(50);
/// How many more calls are heeded within that time, for the addresses that are new in them: our peer's STUN servers of either
/// family answer one after the other.
const MAX_CORRECTIONS: u8 = 4;
/// Addresses that one peer may have; a node with many interfaces behind a hard NAT has some twenty.
const MAX_CANDIDATES: usize = 64;
/// Pings under way at a time: all candidates twice.
const MAX_PINGS: usize = 2 * MAX_CANDIDATES;
/// Disco messages that wait to be polled; more are dropped, and will be repeated by their own timers.
const MAX_OUTPUTS: usize = 2 * MAX_CANDIDATES;

/// A way that packets come and go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Via {
    /// Straight, by UDP to or from this address.
    Udp(SocketAddr),
    /// Through the relay of this region.
    Derp(RegionId),
}

/// Where the next packets for a peer go: to one of them, both, or nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Route {
    /// The best known address.
    pub udp: Option<SocketAddr>,
    /// The relay, where the address isn't trusted or not known.
    pub derp: Option<RegionId>,
}

impl Route {
    /// Whether there is any way.
    pub fn exists(self) -> bool {
        self.udp.is_some() || self.derp.is_some()
    }
}

/// A disco message that is to be sent to the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// A ping.
    Ping {
        /// Where to.
        to: Via,
        /// What its answer will carry.
        txid: TransactionId,
    },
    /// The answer to the peer's ping, back where it came from.
    Pong {
        /// Where to.
        to: Via,
        /// That of the ping.
        txid: TransactionId,
    },
    /// "Ping me", through the relay, with all our endpoints.
    CallMeMaybe {
        /// The relay to send it through.
        region: RegionId,
    },
}

/// An answer to one of our pings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PongReceived {
    /// Which path was pinged.
    pub via: Via,
    /// Round-trip time.
    pub latency: Duration,
    /// When the ping had been sent.
    pub sent: Instant,
}

/// What is known of one address.
#[derive(Debug, Clone, Copy, Default)]
struct Candidate {
    in_netmap: bool,
    called: bool,
    last_ping: Option<Instant>,
    /// When the peer last pinged us from there, or answered there.
    last_heard: Option<Instant>,
}

/// The address that packets go to.
#[derive(Debug, Clone, Copy)]
struct Best {
    address: SocketAddr,
    latency: Duration,
    trusted_until: Instant,
    /// A ping to it was lost when it wasn't trusted any more: packets go there only where no relay leads to the peer.
    given_up: bool,
    /// Since its last answer: when it was first pinged, and how often.
    asked: Option<(Instant, u32)>,
}

/// Packets wait for the peer's answer and no path is trusted: all addresses are pinged, again and again.
#[derive(Debug, Clone, Copy)]
struct Search {
    /// How many rounds there were since it began or was nudged.
    rounds: usize,
    /// When the next one is due.
    next: Instant,
}

#[derive(Debug, Clone, Copy)]
struct SentPing {
    txid: TransactionId,
    to: Via,
    at: Instant,
}

/// All paths to one peer.
#[derive(Debug)]
pub struct Paths {
    /// Whether UDP is used at all.
    direct: bool,
    candidates: BTreeMap<SocketAddr, Candidate>,
    best: Option<Best>,
    /// The relay that reaches the peer.
    region: Option<RegionId>,
    /// The last answer by relay: through which, and how long it took.
    relayed: Option<(RegionId, Duration)>,
    pings: VecDeque<SentPing>,
    outputs: VecDeque<Output>,
    last_send: Option<Instant>,
    last_full_ping: Option<Instant>,
    /// When we last asked the peer to ping us.
    last_called: Option<Instant>,
    /// When we last did as the peer asked.
    last_heeded: Option<Instant>,
    /// How many calls put that one right.
    corrections: u8,
    heartbeat_at: Option<Instant>,
    search: Option<Search>,
}

impl Paths {
    /// Paths to a peer of which nothing is known. `direct` is whether UDP may be used.
    pub fn new(direct: bool) -> Self {
        Self {
            direct,
            candidates: BTreeMap::new(),
            best: None,
            region: None,
            relayed: None,
            pings: VecDeque::new(),
            outputs: VecDeque::new(),
            last_send: None,
            last_full_ping: None,
            last_called: None,
            last_heeded: None,
            corrections: 0,
            heartbeat_at: None,
            search: None,
        }
    }

    /// The addresses that the netmap gives the peer, instead of those that it gave before.
    pub fn handle_endpoints(&mut self, endpoints: &[SocketAddr]) {
        for candidate in self.candidates.values_mut() {
            candidate.in_netmap = false;
        }
        for endpoint in endpoints.iter().filter(|endpoint| is_usable(endpoint)) {
            if let Some(candidate) = self.candidate(*endpoint) {
                candidate.in_netmap = true;
            }
        }
        let best = self.best.map(|best| best.address);
        self.candidates.retain(|address, candidate| {
            candidate.in_netmap || candidate.called || candidate.last_heard.is_some() || best == Some(*address)
        });
    }

    /// Which relay reaches the peer; `None` is none that is connected.
    pub fn set_region(&mut self, region: Option<RegionId>) {
        self.region = region;
    }

    /// The peer has another disco key: it restarted, and what answered before may not be it any more.
    pub fn forget(&mut self) {
        self.best = None;
        self.pings.clear();
        self.outputs.clear();
        self.last_full_ping = None;
        for candidate in self.candidates.values_mut() {
            *candidate = Candidate { in_netmap: candidate.in_netmap, ..Candidate::default() };
        }
        self.candidates.retain(|_, candidate| candidate.in_netmap);
    }

    /// The peer pings us. Answers where it came from, and asks back if there is no trusted path yet.
    pub fn handle_ping(&mut self, now: Instant, from: Via, txid: TransactionId, rng: &mut dyn CryptoRng) {
        self.output(Output::Pong { to: from, txid });
        let Via::Udp(address) = from else { return };
        if !self.direct || !is_usable(&address) {
            return;
        }
        let trusted = self.is_trusted(now);
        let interval = if self.search.is_some() { URGENT_PING_INTERVAL } else { PING_INTERVAL };
        let Some(candidate) = self.candidate(address) else { return };
        // Our last ping may have met the peer's NAT before it was open for us, as it is now.
        let is_open_since =
            candidate.last_ping.is_some_and(|ping| candidate.last_heard.is_none_or(|heard| heard < ping));
        candidate.last_heard = Some(now);
        if !trusted && (is_open_since || is_due(candidate.last_ping, now, interval)) {
            self.ping(now, from, rng);
        }
    }

    /// The peer answers a ping of ours. `None` if it was none, or is too late.
    pub fn handle_pong(&mut self, now: Instant, from: Via, txid: TransactionId) -> Option<PongReceived> {
        let found = self.pings.iter().position(|ping| ping.txid == txid)?;
        let ping = self.pings.get(found).copied()?;
        if now.saturating_duration_since(ping.at) > PING_TIMEOUT
            || matches!(ping.to, Via::Udp(_)) != matches!(from, Via::Udp(_))
        {
            return None;
        }
        self.pings.remove(found);
        let latency = now.saturating_duration_since(ping.at);
        match ping.to {
            Via::Udp(address) => self.answered(now, address, latency),
            Via::Derp(region) => self.relayed = Some((region, latency)),
        }
        Some(PongReceived { via: ping.to, latency, sent: ping.at })
    }

    fn answered(&mut self, now: Instant, address: SocketAddr, latency: Duration) {
        // One that is no longer an address of the peer's is none to move to.
        let Some(candidate) = self.candidates.get_mut(&address) else { return };
        candidate.last_heard = Some(now);
        let replaces = self.best.is_none_or(|best| {
            best.address == address
                || best.trusted_until <= now
                || is_better((address, latency), (best.address, best.latency))
        });
        if replaces {
            self.best = Some(Best { address, latency, trusted_until: now + TRUST_FOR, given_up: false, asked: None });
        }
    }

    /// The peer has pinged us at our addresses and asks to be pinged at its own. The caller has checked that it came
    /// through DERP from that peer.
    pub fn handle_call_me_maybe(&mut self, now: Instant, endpoints: &[SocketAddr], rng: &mut dyn CryptoRng) {
        if !self.direct {
            return;
        }
        // Those of the call before count no more.
        for candidate in self.candidates.values_mut() {
            candidate.called = false;
        }
        for endpoint in endpoints.iter().filter(|endpoint| is_usable(endpoint)) {
            if let Some(candidate) = self.candidate(*endpoint) {
                candidate.called = true;
            }
        }
        if is_due(self.last_heeded, now, CALL_INTERVAL) {
            self.last_heeded = Some(now);
            self.corrections = 0;
            self.ping_candidates(now, Duration::ZERO, rng);
        } else if self.corrections < MAX_CORRECTIONS {
            // The call before it is put right, as happens when STUN answers: what is new in it can't wait.
            self.corrections += 1;
            let new = self.candidates.iter().filter(|(_, candidate)| candidate.called && candidate.last_ping.is_none());
            let new: Vec<SocketAddr> = new.map(|(address, _)| *address).collect();
            for address in new {
                self.ping(now, Via::Udp(address), rng);
            }
        }
    }

    /// Addresses of ours are others than those that the peer was told a moment ago: while it may still need them, it is
    /// told again.
    pub fn handle_own_endpoints(&mut self, now: Instant) {
        let lately = self.last_called.is_some_and(|last| now.saturating_duration_since(last) < PING_INTERVAL);
        if lately && !self.is_trusted(now) {
            self.call(now);
        }
    }

    /// The network changed under us: the path in use is in doubt until it answers again, and so is what is known of the others.
    /// Packets go two ways meanwhile, so that nothing is lost where it still works.
    pub fn handle_network_change(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        if let Some(best) = &mut self.best {
            best.trusted_until = best.trusted_until.min(now);
        }
        self.last_full_ping = None;
        for candidate in self.candidates.values_mut() {
            candidate.last_ping = None;
        }
        if self.heartbeat_at.is_some() {
            self.look_for_better(now, rng);
        }
    }

    /// The system says that packets to `address` lead nowhere. Says whether they went there.
    pub fn handle_unreachable(&mut self, address: SocketAddr) -> bool {
        let used = self.best.is_some_and(|best| best.address == address);
        if used {
            self.best = None;
            self.last_full_ping = None;
        }
        used
    }

    /// Whether packets wait for a path or for the peer's keys. While they do and no path is trusted, all addresses are
    /// pinged at the pace of handshakes: the first pings may be lost on a peer that doesn't know us yet.
    pub fn set_waiting(&mut self, now: Instant, waiting: bool) {
        if !waiting || !self.direct || self.is_trusted(now) {
            self.search = None;
        } else if self.search.is_none() {
            self.search = Some(Search { rounds: 0, next: self.next_urgent(now) });
        }
    }

    /// Something about the peer changed (its netmap entry, a relay connection): if packets wait, looks for a path at
    /// once instead of at its next turn.
    pub fn nudge(&mut self, now: Instant) {
        let urgent = self.next_urgent(now);
        if let Some(search) = &mut self.search {
            *search = Search { rounds: 0, next: search.next.min(urgent) };
        }
    }

    fn next_urgent(&self, now: Instant) -> Instant {
        self.last_full_ping.map_or(now, |last| now.max(last + URGENT_PING_INTERVAL))
    }

    /// Packets were sent to the peer: paths are kept alive, and better ones looked for, while this goes on.
    pub fn handle_sent(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        self.last_send = Some(now);
        self.expire_pings(now);
        if !self.direct {
            return;
        }
        self.heartbeat_at.get_or_insert(now + HEARTBEAT_EVERY);
        self.look_for_better(now, rng);
    }

    fn look_for_better(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        let interval = match self.best {
            Some(best) if best.trusted_until > now && best.latency <= GOOD_ENOUGH => return,
            Some(best) if best.trusted_until > now => UPGRADE_EVERY,
            _ => PING_INTERVAL,
        };
        if is_due(self.last_full_ping, now, interval) {
            self.ping_all(now, PING_INTERVAL, rng);
        }
    }

    /// Pings all addresses that weren't within `interval`, then lets the peer ping ours: our NAT is open by then.
    fn ping_all(&mut self, now: Instant, interval: Duration, rng: &mut dyn CryptoRng) {
        self.ping_candidates(now, interval, rng);
        self.call(now);
    }

    /// Pings the addresses that weren't within `interval`, after dropping those that nobody vouches for any more.
    fn ping_candidates(&mut self, now: Instant, interval: Duration, rng: &mut dyn CryptoRng) {
        self.last_full_ping = Some(now);
        let best = self.best.map(|best| best.address);
        self.candidates.retain(|address, candidate| {
            let heard = candidate.last_heard.is_some_and(|last| now.saturating_duration_since(last) <= ACTIVE_FOR);
            candidate.in_netmap || candidate.called || heard || best == Some(*address)
        });
        let due = |candidate: &Candidate| is_due(candidate.last_ping, now, interval);
        let all = self.candidates.iter().filter(|(_, candidate)| due(candidate));
        let all: Vec<SocketAddr> = all.map(|(address, _)| *address).collect();
        for address in all {
            self.ping(now, Via::Udp(address), rng);
        }
    }

    /// Asks the peer to ping us.
    fn call(&mut self, now: Instant) {
        if let Some(region) = self.region {
            self.last_called = Some(now);
            self.output(Output::CallMeMaybe { region });
        }
    }

    /// Forgets the pings that were lost. One to the address in use, which isn't trusted any more, ends its use.
    fn expire_pings(&mut self, now: Instant) {
        while let Some(lost) = self.pings.pop_front_if(|ping| now.saturating_duration_since(ping.at) >= PING_TIMEOUT) {
            if let Some(best) = &mut self.best
                && lost.to == Via::Udp(best.address)
            {
                best.given_up |= best.trusted_until <= now;
            }
        }
    }

    /// Somebody wants to know whether and how the peer can be reached: pings what is in use, or else everything.
    pub fn probe(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        match self.best.filter(|best| best.trusted_until > now) {
            Some(best) => self.ping(now, Via::Udp(best.address), rng),
            None => {
                if self.direct {
                    self.ping_all(now, URGENT_PING_INTERVAL, rng);
                }
                if let Some(region) = self.region {
                    self.ping(now, Via::Derp(region), rng);
                }
            }
        }
    }

    fn ping(&mut self, now: Instant, to: Via, rng: &mut dyn CryptoRng) {
        if let Via::Udp(address) = to {
            if let Some(candidate) = self.candidates.get_mut(&address) {
                candidate.last_ping = Some(now);
            }
            if let Some(best) = self.best.as_mut().filter(|best| best.address == address) {
                let (first, times) = best.asked.unwrap_or((now, 0));
                best.asked = Some((first, times.saturating_add(1)));
            }
        }
        self.expire_pings(now);
        if self.pings.len() >= MAX_PINGS {
            self.pings.pop_front();
        }
        let txid = TransactionId::generate(rng);
        self.pings.push_back(SentPing { txid, to, at: now });
        self.output(Output::Ping { to, txid });
    }

    fn output(&mut self, output: Output) {
        if self.outputs.len() < MAX_OUTPUTS {
            self.outputs.push_back(output);
        }
    }

    /// The next disco message to send.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Where packets go now.
    pub fn route(&self, now: Instant) -> Route {
        let Some(best) = self.best.filter(|_| self.direct) else {
            return Route { udp: None, derp: self.region };
        };
        if best.trusted_until > now {
            return Route { udp: Some(best.address), derp: None };
        }
        // Without a relay, an address that once answered is better than nothing.
        let given_up = best.given_up && self.region.is_some();
        Route { udp: Some(best.address).filter(|_| !given_up), derp: self.region }
    }

    /// The path in use, as people are told: direct only while it is trusted.
    pub fn path(&self, now: Instant) -> Option<Via> {
        let route = self.route(now);
        match (route.udp, route.derp) {
            (_, Some(region)) => Some(Via::Derp(region)),
            (Some(address), None) => Some(Via::Udp(address)),
            (None, None) => None,
        }
    }

    /// As [`Self::path`], for who was told `before`: a direct path isn't lost because nobody used it, only by pings that it
    /// had the time to answer.
    pub fn path_told(&self, now: Instant, before: Option<Via>) -> Option<Via> {
        let path = self.path(now);
        if matches!(path, Some(Via::Udp(_))) {
            return path;
        }
        let is_lost = |best: &Best| {
            let silent = |(first, times)| times > 1 && now.saturating_duration_since(first) >= PING_TIMEOUT;
            best.given_up || best.asked.is_some_and(silent)
        };
        let is_quiet = |best: &Best| before == Some(Via::Udp(best.address)) && !is_lost(best);
        if self.best.as_ref().is_some_and(is_quiet) { before } else { path }
    }

    /// Round-trip time of a path, as last measured.
    pub fn round_trip(&self, path: Via) -> Option<Duration> {
        match path {
            Via::Udp(address) => self.best.filter(|best| best.address == address).map(|best| best.latency),
            Via::Derp(region) => self.relayed.filter(|(by, _)| *by == region).map(|(_, latency)| latency),
        }
    }

    /// Whether packets were sent to the peer lately.
    pub fn is_active(&self, now: Instant) -> bool {
        !is_due(self.last_send, now, ACTIVE_FOR)
    }

    /// Whether packets have gone to the peer lately, so that paths to it are looked after.
    pub fn is_in_use(&self) -> bool {
        self.heartbeat_at.is_some()
    }

    /// Whether a relay would help: none is connected that reaches the peer, and no address is trusted.
    pub fn lacks_relay(&self, now: Instant) -> bool {
        self.region.is_none() && !self.is_trusted(now)
    }

    fn is_trusted(&self, now: Instant) -> bool {
        self.best.is_some_and(|best| best.trusted_until > now)
    }

    /// When a heartbeat or a round of pings is due. A path that nobody uses has none.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.heartbeat_at.into_iter().chain(self.search.map(|search| search.next)).min()
    }

    /// Sends a heartbeat or a round of pings if it is due.
    pub fn handle_timeout(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        self.expire_pings(now);
        if let Some(Search { rounds, .. }) = self.search.filter(|search| search.next <= now) {
            self.search = Some(Search { rounds: rounds.saturating_add(1), next: now + retry_after(rounds) });
            self.ping_all(now, URGENT_PING_INTERVAL, rng);
        }
        if self.heartbeat_at.is_none_or(|at| at > now) {
            return;
        }
        if is_due(self.last_send, now, ACTIVE_FOR) {
            self.heartbeat_at = None;
            // What is still unanswered says nothing of how things are when packets go there again.
            if let Some(best) = &mut self.best {
                best.asked = None;
                let address = Via::Udp(best.address);
                self.pings.retain(|ping| ping.to != address);
            }
            return;
        }
        self.heartbeat_at = Some(now + HEARTBEAT_EVERY);
        if let Some(best) = self.best.filter(|best| !best.given_up) {
            self.ping(now, Via::Udp(best.address), rng);
        }
        self.look_for_better(now, rng);
    }

    /// The candidate with this address, added if there is room or one that nobody vouches for.
    fn candidate(&mut self, address: SocketAddr) -> Option<&mut Candidate> {
        if !self.candidates.contains_key(&address) && self.candidates.len() >= MAX_CANDIDATES {
            let best = self.best.map(|best| best.address);
            let mut droppable: Vec<(Option<Instant>, SocketAddr)> = self
                .candidates
                .iter()
                .filter(|(address, candidate)| !candidate.in_netmap && best != Some(**address))
                .map(|(address, candidate)| (candidate.last_heard, *address))
                .collect();
            droppable.sort();
            let (_, oldest) = droppable.first()?;
            self.candidates.remove(oldest);
        }
        Some(self.candidates.entry(address).or_default())
    }
}

/// Whether an address may be pinged because a peer or control says so.
fn is_usable(address: &SocketAddr) -> bool {
    let ip = address.ip();
    let link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !broadcast && !link_local
}

fn is_due(last: Option<Instant>, now: Instant, interval: Duration) -> bool {
    last.is_none_or(|last| now.saturating_duration_since(last) >= interval)
}
