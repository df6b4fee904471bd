//! Which DERP connections to have, and which one leads to a peer (`tailscale/tailscale` `wgengine/magicsock/derp.go`).
//!
//! The home connection is permanent. Others are made when a packet must go there, and closed when they have been idle
//! for [`IDLE_TIMEOUT`]. A peer is reached in its home region, or through another connection of ours on which it was
//! heard: its *reverse route*. So a peer that doesn't know our home yet, or whose home we don't know, is answered.
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
/// How many reverse routes are kept: more than a tailnet has peers that talk to us. Further ones aren't learnt.
const MAX_ROUTES: usize = 16 << 10;

/// What is to be done about a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
}

/// The DERP connections that should be.
#[derive(Debug, Default)]
pub struct Relay {
    regions: BTreeMap<RegionId, Region>,
    home: Option<RegionId>,
    /// Which connection a peer was heard on last.
    routes: BTreeMap<NodePublic, RegionId>,
    /// At most two for each region, as the state behind each changes with it.
    actions: VecDeque<Action>,
}

#[derive(Debug)]
struct Region {
    definition: DerpRegion,
    link: Link,
    /// When a packet last went there or came from there, while it isn't home.
    used: Option<Instant>,
    failures: u32,
    /// When the relay asked us to come back, after it said that it restarts.
    back_at: Option<Instant>,
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
                    let region = Region { definition, link: Link::Closed, used: None, failures: 0, back_at: None };
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
            region.back_at = None;
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
        let pause = backoff(known.failures, rng);
        known.failures = known.failures.saturating_add(1);
        let until = known.back_at.take().unwrap_or(now + pause).min(now + MAX_BACKOFF);
        known.link = Link::Waiting(until);
        self.routes.retain(|_, route| *route != region);
    }

    /// The relay said that it restarts, and when to come back. Believed up to [`MAX_BACKOFF`].
    pub fn handle_restarting(&mut self, now: Instant, region: RegionId, reconnect_in: Duration) {
        if let Some(region) = self.regions.get_mut(&region) {
            region.back_at = Some(now + reconnect_in.min(MAX_BACKOFF));
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
            self.routes.insert(peer, region);
        }
    }

    /// The relay says that `peer` isn't there.
    pub fn handle_peer_gone(&mut self, region: RegionId, peer: &NodePublic) {
        if self.routes.get(peer) == Some(&region) {
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
            match region.link {
                Link::Closed => None,
                Link::Waiting(until) => Some(idle.map_or(until, |idle| idle.min(until))),
                Link::Dialing | Link::Connected(_) => idle,
            }
        };
        self.regions.iter().filter_map(deadline).min()
    }

    /// Through which region a packet for `peer` goes, whose home region is `home` (0 is unknown): where it was heard
    /// last, else its home. `None` when neither is there. [`Self::handle_wanted`] makes sure of the connection.
    #[must_use]
    pub fn route(&self, peer: &NodePublic, home: RegionId) -> Option<RegionId> {
        let heard = self.routes.get(peer).copied().filter(|region| self.is_connected(*region));
        heard.or_else(|| self.regions.contains_key(&home).then_some(home))
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

    fn close(&mut self, id: RegionId) {
        let Some(region) = self.regions.get_mut(&id) else {
            return;
        };
        let link = std::mem::replace(&mut region.link, Link::Closed);
        if matches!(link, Link::Dialing | Link::Connected(_)) {
            self.routes.retain(|_, route| *route != id);
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
