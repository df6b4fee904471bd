//! What a new netmap changes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::{Node, PeerId, PingError};
use crate::filter;
use crate::key::NodePublic;
use crate::netmap::{self, DerpRegions, Netmap, Peers, same, same_option};
use crate::stack::ConnectionError;
use crate::tailcfg::{FilterRule, RegionId};

/// What of the netmap is in force.
#[derive(Debug, Default)]
pub(super) struct Applied {
    addresses: Vec<IpAddr>,
    filter_rules: Option<Arc<Vec<FilterRule>>>,
    derp_map: Arc<DerpRegions>,
    region_scores: BTreeMap<RegionId, f64>,
    peers: Peers,
}

impl Node {
    /// Takes a netmap, whole. Peers that are gone, or have another key, lose their streams at once; what changes of the
    /// others takes effect, and handshakes under way are tried again. What it shares with the netmap before costs nothing.
    pub fn handle_netmap(&mut self, now: Instant, netmap: &Netmap) {
        self.now = now;
        self.apply_addresses(now, netmap);
        self.apply_filter(netmap);
        self.apply_relays(now, netmap);
        self.apply_peers(now, netmap);
    }

    fn apply_peers(&mut self, now: Instant, netmap: &Netmap) {
        let before = std::mem::replace(&mut self.applied.peers, netmap.peers.clone());
        let (mut had, mut has) = (Vec::new(), Vec::new());
        netmap.peers.differences(&before, |before, after| {
            had.extend(before.map(|node| (node.id, node.key)));
            has.extend(after.map(|node| node.key));
        });
        for (id, key) in &had {
            match netmap.peers.by_key(key) {
                // Another number may have it now.
                Some(_) => has.push(*key),
                None => {
                    let reason = match netmap.peers.get(id) {
                        Some(_) => ConnectionError::PeerKeyChanged,
                        None => ConnectionError::PeerRemoved,
                    };
                    self.remove_peer(now, key, reason);
                }
            }
        }
        for node in has.iter().filter_map(|key| netmap.peers.by_key(key)) {
            self.apply_peer(now, node);
        }
    }

    fn apply_peer(&mut self, now: Instant, node: &netmap::Peer) {
        let Some(id) = self.peers.by_key(&node.key) else {
            let id = self.peers.insert(Arc::clone(node));
            return self.answer_knock(now, id, node);
        };
        if self.peers.get(id).is_some_and(|peer| same(&peer.node, node)) {
            return;
        }
        let old = self.peers.replace(id, node);
        let tunnel = self.peers.get_mut(id).and_then(|peer| peer.tunnel.as_mut());
        if let Some((old, tunnel)) = old.zip(tunnel) {
            tunnel.handle_node(now, &old, node);
            self.schedule.wake(id);
        }
    }

    /// The peer may have asked for a session before we knew it: then we ask, instead of waiting for its next try.
    fn answer_knock(&mut self, now: Instant, id: PeerId, node: &netmap::Peer) {
        let Some(knock) = self.knocks.take(now, &node.key, &node.disco_key) else { return };
        if let Some(region) = knock.region {
            self.relay.handle_heard(now, region, node.key);
        }
        if let Some((_, tunnel)) = self.peers.with_tunnel(id, &self.identity, self.direct, &mut self.rng) {
            tracing::debug!(peer = %node.key, "has knocked before the netmap told of it; asks it for a session");
            tunnel.session.renew(now);
            self.schedule.wake(id);
        }
    }

    fn apply_addresses(&mut self, now: Instant, netmap: &Netmap) {
        let addresses: Vec<IpAddr> = netmap.addresses().collect();
        if addresses != self.applied.addresses {
            self.applied.addresses.clone_from(&addresses);
            self.filter.set_addresses(addresses.clone());
            self.jail.set_addresses(addresses.clone());
            self.stack.set_addresses(now, addresses);
        }
    }

    fn apply_filter(&mut self, netmap: &Netmap) {
        if same_option(self.applied.filter_rules.as_ref(), netmap.filter_rules.as_ref()) {
            return;
        }
        self.applied.filter_rules.clone_from(&netmap.filter_rules);
        let (rules, errors) = filter::compile(netmap.filter_rules.as_deref().map_or(&[], Vec::as_slice));
        for error in errors {
            tracing::warn!(%error, "a rule of the packet filter can't be honoured and allows nothing");
        }
        self.filter.set_rules(rules);
    }

    fn apply_relays(&mut self, now: Instant, netmap: &Netmap) {
        if same(&self.applied.derp_map, &netmap.derp_map) && self.applied.region_scores == netmap.region_scores {
            return;
        }
        self.applied.derp_map = Arc::clone(&netmap.derp_map);
        self.applied.region_scores.clone_from(&netmap.region_scores);
        if self.derp {
            self.relay.handle_derp_map(now, &netmap.derp_map);
        }
        self.netcheck.handle_derp_map(now, &netmap.derp_map, &netmap.region_scores, &mut self.rng);
        self.wake_tunnels(now);
    }

    fn remove_peer(&mut self, now: Instant, key: &NodePublic, reason: ConnectionError) {
        let Some(id) = self.peers.by_key(key) else { return };
        self.stack.abort_peer(now, id, reason);
        if let Some(peer) = self.peers.remove(id) {
            self.relay.forget_peer(&peer.key);
        }
        self.schedule.remove(id);
        self.fail_pings_of(id, PingError::PeerRemoved);
    }
}
