//! How the messages of one map stream make netmaps (`control/controlclient/map.go`).
//!
//! The state belongs to one stream: the first message of a new stream is the whole truth, so each stream begins with a
//! new [`NetmapState`]. What a message costs goes by what it changes, not by the size of the tailnet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::health::Health;
use super::normalise::{any_rule_admits, normalise};
use super::{Netmap, Peer, Peers, Refusal, SharedMap};
use crate::tailcfg::{DerpMap, FilterRule, MapResponse, Node, NodeId, PeerChange, Timestamp, TkaInfo, UserProfile};

/// The chunk of filter rules that the old field `PacketFilter` stands for.
const BASE_FILTER: &str = "base";
/// The chunk name that, with `null`, stands for all of them.
const ALL_FILTERS: &str = "*";
/// Control's clock may be wrong by so many seconds before ours is corrected by it, as in Go (`controlTimeSkew`).
const CLOCK_TOLERANCE: i64 = 60;

/// A message that makes no netmap: control's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NetmapError {
    /// The first message of a stream must say who we are.
    #[error("control's first netmap lacks our own node")]
    NoSelfNode,
}

/// What the messages of one stream have said so far.
#[derive(Debug, Default)]
pub struct NetmapState {
    /// What is known, with each peer where it belongs.
    netmap: Netmap,
    /// Control has said who we are.
    has_self: bool,
    /// Ourselves among the peers, where control lists us: using that would be a loop.
    own: BTreeMap<NodeId, Peer>,
    /// Peers of an earlier stream: those that are the same take no memory anew.
    earlier: Peers,
    filters: BTreeMap<String, Vec<FilterRule>>,
    /// The chunks in order. `None` until control has sent any.
    filter_rules: Option<Arc<Vec<FilterRule>>>,
    /// Peers that tailnet lock doesn't cover: no rule may let them in.
    unsigned: BTreeSet<NodeId>,
    health: Health,
    /// When the next key of a peer ends, by control's clock: until then, nobody needs to be judged anew.
    next_expiry: Option<Timestamp>,
}

impl NetmapState {
    /// A new stream's, after one that knew these peers.
    #[must_use]
    pub fn after(earlier: Peers) -> Self {
        Self { earlier, ..Self::default() }
    }

    /// Takes what a message says; `clock` is our own. A keep-alive may still carry control's time, and nothing else
    /// that matters here.
    pub fn handle_response(&mut self, response: MapResponse, clock: Timestamp) {
        let mut is_other = false;
        if let Some(theirs) = response.control_time.filter(|time| !time.is_zero()) {
            is_other = self.handle_control_time(theirs, clock);
        }
        if response.keep_alive {
            if is_other {
                self.judge_all(clock);
            }
            return;
        }
        if let Some(node) = response.node {
            let node = Arc::new(normalise(node));
            is_other |= !self.has_self || self.netmap.self_node.key != node.key;
            self.has_self = true;
            self.netmap.self_node = node;
        }
        if let Some(lock) = response.tka_info {
            is_other |= is_on(Some(&lock)) != self.netmap.is_locked();
            self.netmap.tailnet_lock = Some(lock);
        }
        if is_other || self.is_due(clock) {
            self.judge_all(clock);
        }
        let mut filter_changed = self.handle_filters(response.packet_filter, response.packet_filters);
        let unsigned = self.unsigned.clone();
        if response.peers.is_empty() {
            let (removed, changed) = (response.peers_removed, response.peers_changed);
            removed.iter().for_each(|id| drop(self.take(*id)));
            changed.into_iter().for_each(|node| self.handle_node(node, clock));
            response.peer_seen_change.iter().for_each(|(id, seen)| {
                self.change(*id, clock, |peer| peer.last_seen = seen.then_some(clock));
            });
            response.online_change.iter().for_each(|(id, online)| {
                self.change(*id, clock, |peer| peer.online = Some(*online));
            });
            for patch in response.peers_changed_patch.iter().flatten() {
                self.change(patch.node_id, clock, |peer| apply_patch(peer, patch));
            }
        } else {
            // A full list: the deltas of the same message don't count.
            self.handle_all(response.peers, clock);
        }
        filter_changed |= unsigned != self.unsigned;
        if filter_changed || !self.unsigned.is_empty() {
            self.netmap.filter_rules = self.effective_filter();
        }
        for user in response.user_profiles {
            self.handle_user(user);
        }
        if let Some(map) = response.derp_map {
            self.handle_derp_map(map);
        }
        if let Some(dns) = response.dns_config {
            self.netmap.dns = Arc::new(dns);
        }
        if let Some(policy) = response.ssh_policy {
            self.netmap.ssh_policy = Some(Arc::new(policy));
        }
        if !response.domain.is_empty() {
            self.netmap.domain = response.domain;
        }
        if self.health.handle(response.health, response.display_messages) {
            self.netmap.health = self.health.lines();
        }
    }

    /// What is known now, judged by our own clock: peers whose key has ended by then are refused.
    ///
    /// # Errors
    /// While control hasn't said who we are.
    pub fn netmap(&mut self, clock: Timestamp) -> Result<Netmap, NetmapError> {
        if !self.has_self {
            return Err(NetmapError::NoSelfNode);
        }
        if self.is_due(clock) {
            self.judge_all(clock);
        }
        Ok(self.netmap.clone())
    }

    /// Says whether our clock is to be corrected otherwise than before.
    fn handle_control_time(&mut self, theirs: Timestamp, clock: Timestamp) -> bool {
        let offset = theirs.unix().saturating_sub(clock.unix());
        let offset = if offset.saturating_abs() <= CLOCK_TOLERANCE { 0 } else { offset };
        std::mem::replace(&mut self.netmap.clock_offset, offset) != offset
    }

    fn handle_all(&mut self, nodes: Vec<Node>, clock: Timestamp) {
        let known = std::mem::take(&mut self.netmap.peers);
        let earlier = std::mem::take(&mut self.earlier);
        self.netmap.refused = SharedMap::default();
        self.own.clear();
        self.unsigned.clear();
        self.next_expiry = None;
        for node in nodes {
            let node = normalise(node);
            let same = known.get(&node.id).or_else(|| earlier.get(&node.id)).filter(|known| ***known == node);
            let peer = same.map_or_else(|| Arc::new(node), Arc::clone);
            self.put(peer, clock);
        }
    }

    fn handle_node(&mut self, node: Node, clock: Timestamp) {
        let node = normalise(node);
        self.put(Arc::new(node), clock);
    }

    /// Changes a peer, if it is known.
    fn change(&mut self, id: NodeId, clock: Timestamp, change: impl FnOnce(&mut Node)) {
        let Some(mut peer) = self.find(id).cloned() else { return };
        change(Arc::make_mut(&mut peer));
        self.put(peer, clock);
    }

    fn find(&self, id: NodeId) -> Option<&Peer> {
        let refused = || self.netmap.refused.get(&id).map(|(peer, _)| peer);
        self.netmap.peers.get(&id).or_else(refused).or_else(|| self.own.get(&id))
    }

    fn take(&mut self, id: NodeId) -> Option<Peer> {
        self.unsigned.remove(&id);
        let refused = self.netmap.refused.remove(&id).map(|(peer, _)| peer);
        self.netmap.peers.remove(&id).or(refused).or_else(|| self.own.remove(&id))
    }

    /// Puts a peer where it belongs, in place of what its number stood for.
    fn put(&mut self, peer: Peer, clock: Timestamp) {
        let (id, now) = (peer.id, self.control_time(clock));
        if peer.unsigned_peer_api_only {
            self.unsigned.insert(id);
        } else {
            self.unsigned.remove(&id);
        }
        if has_end(&peer) && peer.key_expiry >= now {
            self.next_expiry = Some(self.next_expiry.map_or(peer.key_expiry, |next| next.min(peer.key_expiry)));
        }
        let is_own = self.has_self && peer.key == self.netmap.self_node.key;
        let refusal = refusal(&peer, self.netmap.is_locked(), now);
        if is_own || refusal.is_some() {
            self.netmap.peers.remove(&id);
        }
        if is_own || refusal.is_none() {
            self.netmap.refused.remove(&id);
        }
        if !is_own {
            self.own.remove(&id);
        }
        match refusal {
            _ if is_own => drop(self.own.insert(id, peer)),
            Some(why) => drop(self.netmap.refused.insert(id, (peer, why))),
            None => drop(self.netmap.peers.insert(id, peer)),
        }
    }

    /// Whether a key has ended since peers were judged.
    fn is_due(&self, clock: Timestamp) -> bool {
        self.next_expiry.is_some_and(|at| at < self.control_time(clock))
    }

    /// Judges all peers anew.
    fn judge_all(&mut self, clock: Timestamp) {
        self.next_expiry = None;
        let refused = self.netmap.refused.values().map(|(peer, _)| peer);
        let all: Vec<Peer> = self.netmap.peers.values().chain(refused).chain(self.own.values()).cloned().collect();
        for peer in all {
            self.put(peer, clock);
        }
    }

    fn control_time(&self, clock: Timestamp) -> Timestamp {
        Timestamp::from_unix(clock.unix().saturating_add(self.netmap.clock_offset))
    }

    fn handle_user(&mut self, user: UserProfile) {
        if self.netmap.users.get(&user.id).is_none_or(|known| **known != user) {
            self.netmap.users.insert(user.id, Arc::new(user));
        }
    }

    fn handle_derp_map(&mut self, map: DerpMap) {
        if let Some(regions) = map.regions {
            // Headscale was seen to send null regions.
            let regions = regions.into_iter().filter_map(|(id, region)| {
                let mut region = region?;
                region.region_id = id;
                Some((id, region))
            });
            self.netmap.derp_map = Arc::new(regions.collect());
        }
        if let Some(scores) = map.home_params.and_then(|params| params.region_score) {
            self.netmap.region_scores = scores;
        }
    }

    /// Says whether there was anything about filters.
    fn handle_filters(
        &mut self,
        base: Option<Vec<FilterRule>>,
        named: Option<BTreeMap<String, Option<Vec<FilterRule>>>>,
    ) -> bool {
        if base.is_none() && named.is_none() {
            return false;
        }
        if let Some(rules) = base {
            self.filters.insert(BASE_FILTER.to_owned(), rules);
        }
        let named = named.unwrap_or_default();
        if named.get(ALL_FILTERS).is_some_and(Option::is_none) {
            self.filters.clear();
        }
        for (name, rules) in named.into_iter().filter(|(name, _)| name != ALL_FILTERS) {
            match rules {
                Some(rules) => drop(self.filters.insert(name, rules)),
                None => drop(self.filters.remove(&name)),
            }
        }
        self.filter_rules = Some(Arc::new(self.filters.values().flatten().cloned().collect()));
        true
    }

    /// The rules, or none at all if they let in a node that tailnet lock doesn't cover: control must not do that.
    fn effective_filter(&self) -> Option<Arc<Vec<FilterRule>>> {
        let rules = self.filter_rules.as_ref()?;
        let unsigned = self.unsigned.iter().filter_map(|id| self.find(*id)).flat_map(|peer| &peer.addresses);
        if any_rule_admits(rules, unsigned) {
            tracing::warn!("control's packet filter lets unsigned peers in: nobody is let in");
            return Some(Arc::default());
        }
        Some(Arc::clone(rules))
    }
}

/// Whether tailnet lock is on.
pub(super) fn is_on(lock: Option<&TkaInfo>) -> bool {
    lock.is_some_and(|lock| !lock.disabled)
}

fn has_end(peer: &Node) -> bool {
    !peer.key_expiry.is_zero()
}

fn refusal(peer: &Node, is_locked: bool, now: Timestamp) -> Option<Refusal> {
    let has_ended = peer.expired || (has_end(peer) && peer.key_expiry < now);
    match () {
        () if is_locked => Some(Refusal::TailnetLock),
        () if has_ended => Some(Refusal::Expired),
        () if peer.is_wire_guard_only => Some(Refusal::WireGuardOnly),
        () => None,
    }
}

fn apply_patch(peer: &mut Node, patch: &PeerChange) {
    fn set<T: Clone>(field: &mut T, value: Option<&T>) {
        if let Some(value) = value {
            field.clone_from(value);
        }
    }
    set(&mut peer.home_derp, Some(&patch.derp_region).filter(|region| **region != 0));
    set(&mut peer.cap, Some(&patch.cap).filter(|cap| **cap != 0));
    set(&mut peer.cap_map, patch.cap_map.as_ref());
    set(&mut peer.endpoints, patch.endpoints.as_ref());
    set(&mut peer.key, patch.key.as_ref());
    set(&mut peer.key_signature, patch.key_signature.as_ref());
    set(&mut peer.disco_key, patch.disco_key.as_ref());
    set(&mut peer.key_expiry, patch.key_expiry.as_ref());
    peer.online = patch.online.or(peer.online);
    peer.last_seen = patch.last_seen.or(peer.last_seen);
}
