//! How the messages of one map stream make netmaps (`control/controlclient/map.go`).
//!
//! The state belongs to one stream: the first message of a new stream is the whole truth, so each stream begins with a
//! new [`NetmapState`].

use std::collections::BTreeMap;
use std::sync::Arc;

use super::normalise::{any_rule_admits, normalise};
use super::{DerpRegions, Netmap, Peer, Refusal};
use crate::tailcfg::{
    DerpMap, DnsConfig, FilterRule, MapResponse, Node, NodeId, PeerChange, RegionId, SshPolicy, Timestamp, TkaInfo,
    UserId, UserProfile,
};

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
    self_node: Option<Peer>,
    peers: BTreeMap<NodeId, Peer>,
    regions: Arc<DerpRegions>,
    region_scores: BTreeMap<RegionId, f64>,
    filters: BTreeMap<String, Vec<FilterRule>>,
    /// The chunks in order. `None` until control has sent any.
    filter_rules: Option<Arc<Vec<FilterRule>>>,
    ssh_policy: Option<Arc<SshPolicy>>,
    users: Arc<BTreeMap<UserId, UserProfile>>,
    domain: String,
    dns: Arc<DnsConfig>,
    tailnet_lock: Option<TkaInfo>,
    health: Vec<String>,
    /// Seconds to add to our clock to have control's.
    clock_offset: i64,
}

impl NetmapState {
    /// Takes what a message says; `clock` is our own. A keep-alive may still carry control's time, and nothing else
    /// that matters here.
    pub fn handle_response(&mut self, response: MapResponse, clock: Timestamp) {
        if let Some(theirs) = response.control_time.filter(|time| !time.is_zero()) {
            let offset = theirs.unix().saturating_sub(clock.unix());
            self.clock_offset = if offset.saturating_abs() <= CLOCK_TOLERANCE { 0 } else { offset };
        }
        if response.keep_alive {
            return;
        }
        self.handle_peers(&response, clock);
        if let Some(node) = response.node {
            self.self_node = Some(Arc::new(normalise(node)));
        }
        if !response.user_profiles.is_empty() {
            Arc::make_mut(&mut self.users).extend(response.user_profiles.into_iter().map(|user| (user.id, user)));
        }
        if let Some(map) = response.derp_map {
            self.handle_derp_map(map);
        }
        self.handle_filters(response.packet_filter, response.packet_filters);
        if let Some(dns) = response.dns_config {
            self.dns = Arc::new(dns);
        }
        if let Some(policy) = response.ssh_policy {
            self.ssh_policy = Some(Arc::new(policy));
        }
        if !response.domain.is_empty() {
            self.domain = response.domain;
        }
        if let Some(health) = response.health {
            self.health = health;
        }
        if let Some(lock) = response.tka_info {
            self.tailnet_lock = Some(lock);
        }
    }

    /// What is known now, judged by our own clock: peers whose key has ended by then are refused.
    ///
    /// # Errors
    /// While control hasn't said who we are.
    pub fn netmap(&self, clock: Timestamp) -> Result<Netmap, NetmapError> {
        let self_node = self.self_node.clone().ok_or(NetmapError::NoSelfNode)?;
        let mut netmap = Netmap {
            self_node,
            derp_map: Arc::clone(&self.regions),
            region_scores: self.region_scores.clone(),
            filter_rules: self.effective_filter(),
            ssh_policy: self.ssh_policy.clone(),
            users: Arc::clone(&self.users),
            domain: self.domain.clone(),
            dns: Arc::clone(&self.dns),
            tailnet_lock: self.tailnet_lock.clone(),
            health: self.health.clone(),
            clock_offset: self.clock_offset,
            ..Netmap::default()
        };
        let now = Timestamp::from_unix(clock.unix().saturating_add(self.clock_offset));
        let is_locked = netmap.is_locked();
        for (&id, peer) in &self.peers {
            // Ourselves as our own peer would be a loop.
            if peer.key == netmap.self_node.key {
                continue;
            }
            match refusal(peer, is_locked, now) {
                Some(why) => drop(netmap.refused.insert(id, (Arc::clone(peer), why))),
                None => drop(netmap.peers.insert(id, Arc::clone(peer))),
            }
        }
        Ok(netmap)
    }

    fn handle_peers(&mut self, response: &MapResponse, clock: Timestamp) {
        let upsert = |node: &Node| (node.id, Arc::new(normalise(node.clone())));
        if !response.peers.is_empty() {
            // A full list: the deltas of the same message don't count.
            self.peers = response.peers.iter().map(upsert).collect();
            return;
        }
        for id in &response.peers_removed {
            self.peers.remove(id);
        }
        self.peers.extend(response.peers_changed.iter().map(upsert));
        for (id, &seen) in &response.peer_seen_change {
            self.change(*id, |peer| peer.last_seen = seen.then_some(clock));
        }
        for (id, &online) in &response.online_change {
            self.change(*id, |peer| peer.online = Some(online));
        }
        for patch in response.peers_changed_patch.iter().flatten() {
            self.change(patch.node_id, |peer| apply_patch(peer, patch));
        }
    }

    /// Changes a peer, if it is known.
    fn change(&mut self, id: NodeId, change: impl FnOnce(&mut Node)) {
        if let Some(peer) = self.peers.get_mut(&id) {
            change(Arc::make_mut(peer));
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
            self.regions = Arc::new(regions.collect());
        }
        if let Some(scores) = map.home_params.and_then(|params| params.region_score) {
            self.region_scores = scores;
        }
    }

    fn handle_filters(
        &mut self,
        base: Option<Vec<FilterRule>>,
        named: Option<BTreeMap<String, Option<Vec<FilterRule>>>>,
    ) {
        if base.is_none() && named.is_none() {
            return;
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
    }

    /// The rules, or none at all if they let in a node that tailnet lock doesn't cover: control must not do that.
    fn effective_filter(&self) -> Option<Arc<Vec<FilterRule>>> {
        let rules = self.filter_rules.as_ref()?;
        let unsigned = self.peers.values().filter(|peer| peer.unsigned_peer_api_only).flat_map(|peer| &peer.addresses);
        if any_rule_admits(rules, unsigned) {
            tracing::warn!("control's packet filter lets unsigned peers in: nobody is let in");
            return Some(Arc::default());
        }
        Some(Arc::clone(rules))
    }
}

fn refusal(peer: &Node, is_locked: bool, now: Timestamp) -> Option<Refusal> {
    let has_ended = peer.expired || (!peer.key_expiry.is_zero() && peer.key_expiry < now);
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
