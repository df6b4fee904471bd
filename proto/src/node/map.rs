//! What a new netmap changes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::{Node, PeerId, PingError};
use crate::filter;
use crate::netmap::{DerpRegions, Netmap};
use crate::stack::ConnectionError;
use crate::tailcfg::{FilterRule, RegionId};

/// What of the netmap is in force.
#[derive(Debug, Default)]
pub(super) struct Applied {
    addresses: Vec<IpAddr>,
    filter_rules: Option<Arc<Vec<FilterRule>>>,
    derp_map: Arc<DerpRegions>,
    region_scores: BTreeMap<RegionId, f64>,
}

impl Node {
    /// Takes a netmap, whole. Peers that are gone, or have another key, lose their streams at once; what changes of the
    /// others takes effect, and handshakes under way are tried again.
    pub fn handle_netmap(&mut self, now: Instant, netmap: &Netmap) {
        self.now = now;
        self.apply_addresses(now, netmap);
        self.apply_filter(netmap);
        self.apply_relays(now, netmap);
        self.remove_peers(now, netmap);
        for node in netmap.peers.values() {
            let Some(id) = self.peers.by_key(&node.key) else {
                self.peers.insert(Arc::clone(node));
                continue;
            };
            let Some(peer) = self.peers.get_mut(id) else { continue };
            if Arc::ptr_eq(&peer.node, node) || peer.node == *node {
                continue;
            }
            let old = std::mem::replace(&mut peer.node, Arc::clone(node));
            if let Some(tunnel) = &mut peer.tunnel {
                tunnel.handle_node(now, &old, node);
                self.schedule.wake(id);
            }
        }
        self.peers.index_all();
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
        if self.applied.filter_rules == netmap.filter_rules {
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
        if self.applied.derp_map == netmap.derp_map && self.applied.region_scores == netmap.region_scores {
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

    fn remove_peers(&mut self, now: Instant, netmap: &Netmap) {
        let keys: std::collections::HashSet<_> = netmap.peers.values().map(|node| node.key).collect();
        for id in self.peers.ids() {
            let Some(peer) = self.peers.get(id).filter(|peer| !keys.contains(&peer.key)) else { continue };
            let reason = match netmap.peers.get(&peer.node.id) {
                Some(_) => ConnectionError::PeerKeyChanged,
                None => ConnectionError::PeerRemoved,
            };
            self.remove_peer(now, id, reason);
        }
    }

    fn remove_peer(&mut self, now: Instant, id: PeerId, reason: ConnectionError) {
        self.stack.abort_peer(now, id, reason);
        if let Some(peer) = self.peers.remove(id) {
            self.relay.forget_peer(&peer.key);
        }
        self.schedule.remove(id);
        self.fail_pings_of(id, PingError::PeerRemoved);
    }
}
