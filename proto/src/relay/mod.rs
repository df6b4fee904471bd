//! Which DERP connections to have, and which one leads to a peer (`tailscale/tailscale` `wgengine/magicsock/derp.go`).
//!
//! The home connection is permanent. Others are made when a packet must go there, and closed when they have been idle
//! for [`IDLE_TIMEOUT`]. A peer is reached in its home region, or through another connection of ours on which it was
//! heard: its *reverse route*. So a peer that doesn't know our home yet, or whose home we don't know, is answered.
//!
//! Relays are strangers' programs. One that closes again and again is left for the next one of its region
//! ([`Relay::first_node`]), and when all of a region's do, home is moved ([`Relay::is_failing`] tells netcheck). What a relay
//! says of itself is passed on as often as people can use it, however often it says so.
//!
//! One `Dial` is one attempt: whoever carries it out reports [`Relay::handle_connected`] or
//! [`Relay::handle_disconnected`], and is told to dial again after a pause. After a `Close`, nothing more of that
//! connection may be reported.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use rand_core::CryptoRng;

use crate::key::NodePublic;
use crate::tailcfg::{DerpRegion, RegionId};

mod target;
#[cfg(test)]
mod tests;

pub use target::{Address, Target};

/// How long a connection other than home's is kept without a packet (magicsock's `derpInactiveCleanupTime`).
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest pause before the next attempt.
pub const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// The pause after the first failure; it doubles with each further one. A relay that asks control about its clients may
/// refuse a fresh node for a moment, and says so only by closing.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// A connection that lived this long was no failure: the next one is tried soon.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// A relay that restarts is believed this long to be back soon. Go's server says a few seconds.
const MAX_TRY_FOR: Duration = Duration::from_secs(30);
/// The pause between attempts while a relay restarts.
const RESTART_PAUSE: Duration = Duration::from_millis(500);
/// So many failures in a row, and the region isn't fit to be home. That is some 5 s, longer than a relay that doesn't know us
/// yet takes to ask control.
const FAILING_AFTER: u32 = 5;
/// A reverse route leads before the peer's home while the peer was heard there within this time, or home isn't connected.
const ROUTE_FRESH: Duration = Duration::from_secs(60);
/// What a relay says of itself is passed on no more often than this.
const HEALTH_INTERVAL: Duration = Duration::from_secs(10);
/// How many reverse routes are kept: more than a tailnet has peers that talk to us. Further ones aren't learnt.
const MAX_ROUTES: usize = 16 << 10;

/// What is to be done about a connection, or told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Dial this region once.
    Dial {
        /// The region, as the last DERP map has it.
        region: RegionId,
    },
    /// Close its connection, or give up dialling.
    Close {
        /// The region.
        region: RegionId,
    },
    /// Ask its relay for a sign of life: the network changed, and the connection may be dead without knowing it.
    Check {
        /// The region.
        region: RegionId,
    },
    /// The relay finds something wrong with this connection; empty when it is well again. Fit to be shown.
    Health {
        /// The region.
        region: RegionId,
        /// What.
        problem: String,
    },
}

/// The DERP connections that should be.
#[derive(Debug, Default)]
pub struct Relay {
    regions: BTreeMap<RegionId, Region>,
    home: Option<RegionId>,
    /// Which connection a peer was heard on last, and when.
    routes: BTreeMap<NodePublic, (RegionId, Instant)>,
    /// At most four for each region, as the state behind each changes with it.
    actions: VecDeque<Action>,
}

#[derive(Debug)]
struct Region {
    definition: DerpRegion,
    link: Link,
    /// When a packet last went there or came from there, while it isn't home.
    used: Option<Instant>,
    failures: u32,
    restart: Option<Restart>,
    health: Health,
}

/// What a relay that restarts has asked for.
#[derive(Debug, Clone, Copy)]
struct Restart {
    /// When to come back.
    back_at: Instant,
    /// Until when failures are no outage.
    until: Instant,
}

/// What a relay says of a connection.
#[derive(Debug, Default)]
struct Health {
    problem: String,
    /// What of it was passed on, and when.
    told: Option<(String, Instant)>,
}

impl Health {
    /// The connection is gone, and what was said of it. That the next one has the same problem is no news for a while.
    fn handle_lost(&mut self) {
        self.problem.clear();
        if let Some((told, _)) = &mut self.told {
            told.clear();
        }
    }

    /// When what changed may be passed on.
    fn due(&self) -> Option<Instant> {
        match &self.told {
            Some((told, at)) => (*told != self.problem).then_some(*at + HEALTH_INTERVAL),
            None => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Closed,
    /// Dial again then, if it is still needed.
    Waiting(Instant),
    Dialing,
    Connected(Instant),
}

impl Relay {
    /// No regions, no home.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a new DERP map, whole. Connections to regions that are gone are closed; where a region's relays changed,
    /// it is dialled anew.
    pub fn handle_derp_map(&mut self, now: Instant, map: &BTreeMap<RegionId, DerpRegion>) {
        let gone: Vec<_> = self.regions.keys().copied().filter(|id| !map.get(id).is_some_and(is_usable)).collect();
        for id in gone {
            self.close(id);
            self.regions.remove(&id);
        }
        for (id, definition) in map.iter().filter(|(_, region)| is_usable(region)) {
            match self.regions.get_mut(id) {
                Some(region) if region.definition.nodes == definition.nodes => {}
                Some(region) => {
                    region.definition = definition.clone();
                    region.failures = 0;
                    self.close(*id);
                }
                None => {
                    let definition = definition.clone();
                    let (link, health) = (Link::Closed, Health::default());
                    let region = Region { definition, link, used: None, failures: 0, restart: None, health };
                    self.regions.insert(*id, region);
                }
            }
            self.dial_if_needed(now, *id);
        }
    }

    /// Takes the home region, whose connection is permanent; the former one is kept as long as it is used.
    pub fn handle_home(&mut self, now: Instant, home: Option<RegionId>) {
        if self.home == home {
            return;
        }
        let former = std::mem::replace(&mut self.home, home).and_then(|id| self.regions.get_mut(&id));
        if let Some(former) = former {
            former.used = Some(now);
        }
        if let Some(home) = home {
            self.dial_if_needed(now, home);
        }
    }

    /// A packet must go to this region. It is dialled if it isn't connected; the packet meanwhile is the caller's.
    pub fn handle_wanted(&mut self, now: Instant, region: RegionId) {
        if let Some(known) = self.regions.get_mut(&region) {
            known.used = Some(now);
            self.dial_if_needed(now, region);
        }
    }

    /// The connection that was dialled is ready for packets.
    pub fn handle_connected(&mut self, now: Instant, region: RegionId) {
        if let Some(region) = self.regions.get_mut(&region)
            && region.link == Link::Dialing
        {
            region.link = Link::Connected(now);
            region.restart = None;
        }
    }

    /// The connection ended without our asking, or couldn't be made. It is tried again after a pause (with jitter out
    /// of `rng`), if it is still needed then.
    pub fn handle_disconnected(&mut self, now: Instant, region: RegionId, rng: &mut dyn CryptoRng) {
        let Some(known) = self.regions.get_mut(&region) else {
            return;
        };
        match known.link {
            Link::Connected(since) if now.saturating_duration_since(since) >= STABLE_AFTER => known.failures = 0,
            Link::Connected(_) | Link::Dialing => {}
            Link::Closed | Link::Waiting(_) => return,
        }
        let until = match known.restart.filter(|restart| now < restart.until) {
            Some(Restart { back_at, .. }) if now < back_at => back_at,
            Some(_) => now + RESTART_PAUSE,
            None => {
                known.restart = None;
                let pause = backoff(known.failures, rng);
                known.failures = known.failures.saturating_add(1);
                now + pause
            }
        };
        known.link = Link::Waiting(until.min(now + MAX_BACKOFF));
        known.health.handle_lost();
        self.routes.retain(|_, (route, _)| *route != region);
    }

    /// The relay said that it restarts, when to come back (believed up to [`MAX_BACKOFF`]), and for how long to try then, at a
    /// steady pace, before it counts as an outage (believed up to 30 s).
    pub fn handle_restarting(&mut self, now: Instant, region: RegionId, reconnect_in: Duration, try_for: Duration) {
        if let Some(region) = self.regions.get_mut(&region)
            && matches!(region.link, Link::Connected(_))
        {
            let back_at = now + reconnect_in.min(MAX_BACKOFF);
            region.restart = Some(Restart { back_at, until: back_at + try_for.min(MAX_TRY_FOR) });
        }
    }

    /// The relay finds something wrong with the connection (empty: nothing any more). It is passed on at once, and then no
    /// more often than every 10 s, and only when it is something else than before.
    pub fn handle_health(&mut self, now: Instant, region: RegionId, problem: String) {
        let id = region;
        let Some(region) = self.regions.get_mut(&id).filter(|region| matches!(region.link, Link::Connected(_))) else {
            return;
        };
        region.health.problem = problem;
        if region.health.told.is_none() && !region.health.problem.is_empty() {
            self.tell_health(now, id);
        } else {
            self.tell_due_health(now, id);
        }
    }

    /// We are in another network: what failed in the one before says nothing, and the rest is as after a change of routes.
    pub fn handle_network_change(&mut self, now: Instant) {
        for region in self.regions.values_mut() {
            if matches!(region.link, Link::Waiting(_)) {
                region.failures = 0;
            }
        }
        self.handle_routes_changed(now);
    }

    /// The network changed under us: each connection is asked for a sign of life, and what waits to be dialled is dialled now.
    pub fn handle_routes_changed(&mut self, now: Instant) {
        let ids: Vec<_> = self.regions.keys().copied().collect();
        for id in ids {
            let Some(region) = self.regions.get_mut(&id) else { continue };
            match region.link {
                Link::Waiting(_) => {
                    region.link = Link::Closed;
                    self.dial_if_needed(now, id);
                }
                Link::Connected(_) => {
                    let check = Action::Check { region: id };
                    if !self.actions.contains(&check) {
                        self.actions.push_back(check);
                    }
                }
                Link::Closed | Link::Dialing => {}
            }
        }
    }

    /// A packet from `peer` came on this region's connection: it can be answered there. To be called for peers of the
    /// netmap only, since anybody may send to us through a relay.
    pub fn handle_heard(&mut self, now: Instant, region: RegionId, peer: NodePublic) {
        let Some(known) = self.regions.get_mut(&region).filter(|region| matches!(region.link, Link::Connected(_)))
        else {
            return;
        };
        known.used = Some(now);
        if self.routes.len() < MAX_ROUTES || self.routes.contains_key(&peer) {
            self.routes.insert(peer, (region, now));
        }
    }

    /// The relay says that `peer` isn't there.
    pub fn handle_peer_gone(&mut self, region: RegionId, peer: &NodePublic) {
        if self.routes.get(peer).is_some_and(|(route, _)| *route == region) {
            self.routes.remove(peer);
        }
    }

    /// Forgets a peer that left the netmap.
    pub fn forget_peer(&mut self, peer: &NodePublic) {
        self.routes.remove(peer);
    }

    /// Closes what is idle and dials what has waited.
    pub fn handle_timeout(&mut self, now: Instant) {
        let ids: Vec<_> = self.regions.keys().copied().collect();
        for id in ids {
            self.tell_due_health(now, id);
            if !self.is_needed(now, id) {
                self.close(id);
                continue;
            }
            if let Some(region) = self.regions.get_mut(&id)
                && matches!(region.link, Link::Waiting(until) if until <= now)
            {
                region.link = Link::Closed;
            }
            self.dial_if_needed(now, id);
        }
    }

    /// The next thing to do about a connection.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Self::handle_timeout`] has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let deadline = |(id, region): (&RegionId, &Region)| {
            let idle = region.used.map(|used| used + IDLE_TIMEOUT).filter(|_| self.home != Some(*id));
            let link = match region.link {
                Link::Closed => None,
                Link::Waiting(until) => Some(idle.map_or(until, |idle| idle.min(until))),
                Link::Dialing | Link::Connected(_) => idle,
            };
            link.into_iter().chain(region.health.due()).min()
        };
        self.regions.iter().filter_map(deadline).min()
    }

    /// Through which region a packet for `peer` goes, whose home region is `home` (0 is unknown): where it was heard lately,
    /// else its home if that is connected, else where it was ever heard, else its home. Of a peer that has just joined control tells
    /// the home later, and nobody has heard it: that home may well be ours, which costs nothing to try. `None` when there is
    /// nothing to try. [`Self::handle_wanted`] makes sure of the connection.
    ///
    /// Go's client prefers a home that is connected in any case; but where a peer was just heard it is, and at its home it may
    /// not be yet.
    #[must_use]
    pub fn route(&self, now: Instant, peer: &NodePublic, home: RegionId) -> Option<RegionId> {
        let heard = self.routes.get(peer).filter(|(region, _)| self.is_connected(*region));
        let fresh = heard.is_some_and(|(_, at)| now.saturating_duration_since(*at) < ROUTE_FRESH);
        heard
            .filter(|_| fresh || !self.is_connected(home))
            .map(|(region, _)| *region)
            .or_else(|| self.regions.contains_key(&home).then_some(home))
            .or_else(|| self.home.filter(|own| self.is_connected(*own)))
    }

    /// Which of a region's relays to try first, by its place among those that can be dialled: the next one after each
    /// failure, so that one that lets us in and then breaks the protocol isn't all that we ever see of its region.
    #[must_use]
    pub fn first_node(&self, region: RegionId) -> usize {
        self.regions.get(&region).map_or(0, |region| usize::try_from(region.failures).unwrap_or(0))
    }

    /// Whether no relay of a region has held a connection for a while, however often it was tried.
    #[must_use]
    pub fn is_failing(&self, region: RegionId) -> bool {
        self.regions.get(&region).is_some_and(|region| region.failures >= FAILING_AFTER)
    }

    /// Whether packets can go to this region now.
    #[must_use]
    pub fn is_connected(&self, region: RegionId) -> bool {
        self.regions.get(&region).is_some_and(|region| matches!(region.link, Link::Connected(_)))
    }

    /// The home region.
    #[must_use]
    pub fn home(&self) -> Option<RegionId> {
        self.home
    }

    /// What the DERP map says of a region, for whoever dials it. `None` when it has no relay that could be dialled.
    #[must_use]
    pub fn region(&self, region: RegionId) -> Option<&DerpRegion> {
        self.regions.get(&region).map(|region| &region.definition)
    }

    fn is_needed(&self, now: Instant, id: RegionId) -> bool {
        let used = self.regions.get(&id).and_then(|region| region.used);
        self.home == Some(id) || used.is_some_and(|used| now.saturating_duration_since(used) < IDLE_TIMEOUT)
    }

    fn dial_if_needed(&mut self, now: Instant, id: RegionId) {
        let needed = self.is_needed(now, id);
        if let Some(region) = self.regions.get_mut(&id)
            && needed
            && region.link == Link::Closed
        {
            region.link = Link::Dialing;
            self.actions.push_back(Action::Dial { region: id });
        }
    }

    fn tell_due_health(&mut self, now: Instant, id: RegionId) {
        if self.regions.get(&id).and_then(|region| region.health.due()).is_some_and(|due| due <= now) {
            self.tell_health(now, id);
        }
    }

    fn tell_health(&mut self, now: Instant, id: RegionId) {
        let Some(Region { health, .. }) = self.regions.get_mut(&id) else { return };
        health.told = Some((health.problem.clone(), now));
        self.actions.push_back(Action::Health { region: id, problem: health.problem.clone() });
    }

    fn close(&mut self, id: RegionId) {
        let Some(region) = self.regions.get_mut(&id) else {
            return;
        };
        let link = std::mem::replace(&mut region.link, Link::Closed);
        region.restart = None;
        region.health = Health::default();
        if matches!(link, Link::Dialing | Link::Connected(_)) {
            self.routes.retain(|_, (route, _)| *route != id);
            self.actions.retain(|action| *action != Action::Check { region: id });
            // A dial that nobody has taken yet is taken back instead.
            let dial = Action::Dial { region: id };
            match self.actions.iter().position(|action| *action == dial) {
                Some(index) => drop(self.actions.remove(index)),
                None => self.actions.push_back(Action::Close { region: id }),
            }
        }
    }
}

fn is_usable(region: &DerpRegion) -> bool {
    region.nodes.iter().any(|node| Target::derp(node).is_some())
}

/// Between half and all of the pause that belongs to the number of failures so far.
fn backoff(failures: u32, rng: &mut dyn CryptoRng) -> Duration {
    let longest = FIRST_BACKOFF.saturating_mul(1 << failures.min(8)).min(MAX_BACKOFF);
    longest / 2 + (longest / 2).mul_f64(f64::from(rng.next_u32()) / f64::from(u32::MAX))
}
