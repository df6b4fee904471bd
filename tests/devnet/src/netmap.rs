//! The netmap of one node: what its map stream says first, and then what has changed since.
//!
//! A stream keeps the [`View`] that it has sent and compares it with the present one whenever something changed. So
//! changes that come together are told together, and a slow reader costs no queue.

use std::collections::BTreeMap;
use std::sync::Arc;

use nixtail_proto::tailcfg::{
    DerpMap, DnsConfig, FilterRule, Hostinfo, MapResponse, Node, NodeId, PeerChange, SshPolicy, Timestamp, TkaInfo,
};

use crate::policy::Policy;
use crate::registry::{Registry, TAILNET_DOMAIN, user_profiles};

/// Says that a node may serve SSH (`tailcfg.CapabilitySSH`).
const CAPABILITY_SSH: &str = "https://tailscale.com/cap/ssh";
/// Keeps tailscaled from looking for a router on the host's network (`tailcfg.NodeAttrDisableUPnP`).
const ATTRIBUTE_DISABLE_UPNP: &str = "debug-disable-upnp";

/// All that a node is told.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct View {
    node: Node,
    peers: BTreeMap<NodeId, Arc<Node>>,
    derp_map: DerpMap,
    filter: Vec<FilterRule>,
    ssh_policy: SshPolicy,
    lock: Option<TkaInfo>,
}

impl View {
    /// What the node `id` may know now; `None` when there is no such node (any more).
    pub(crate) fn new(
        id: NodeId,
        registry: &Registry,
        policy: &Policy,
        derp_map: &DerpMap,
        lock: Option<&TkaInfo>,
    ) -> Option<Self> {
        let mut node = Arc::unwrap_or_clone(registry.node(id)?);
        node.cap_map.insert(ATTRIBUTE_DISABLE_UPNP.to_owned(), None);
        let (derp_map, lock) = (derp_map.clone(), lock.cloned());
        let Some(own) = registry.subject(id) else {
            // As long as no admin has let it in, it is alone.
            let (filter, ssh_policy) = (vec![], SshPolicy::default());
            return Some(Self { node, peers: BTreeMap::new(), derp_map, filter, ssh_policy, lock });
        };
        let others: Vec<_> = registry.subjects().filter(|(other, _)| *other != id).collect();
        let peers = others
            .iter()
            .filter(|(_, other)| policy.joins(own, *other))
            .filter_map(|(other, _)| Some((*other, as_peer(registry.node(*other)?))))
            .collect();
        let subjects: Vec<_> = others.iter().map(|(_, subject)| *subject).collect();
        let ssh_policy = policy.ssh_policy(own, &subjects);
        let filter = policy.filter(own, &subjects);
        if !policy.ssh.is_empty() {
            node.cap_map.insert(CAPABILITY_SSH.to_owned(), None);
        }
        Some(Self { node, peers, derp_map, filter, ssh_policy, lock })
    }

    /// The first message of a stream: everything.
    pub(crate) fn first(&self, time: Timestamp) -> MapResponse {
        MapResponse {
            node: Some(self.node.clone()),
            derp_map: Some(self.derp_map.clone()),
            peers: self.peers.values().map(|peer| Node::clone(peer)).collect(),
            dns_config: Some(DnsConfig {
                domains: vec![TAILNET_DOMAIN.to_owned()],
                proxied: true,
                ..Default::default()
            }),
            domain: TAILNET_DOMAIN.to_owned(),
            packet_filter: Some(self.filter.clone()),
            user_profiles: user_profiles(),
            health: Some(vec![]),
            ssh_policy: Some(self.ssh_policy.clone()),
            control_time: Some(time),
            tka_info: self.lock.clone(),
            ..Default::default()
        }
    }

    /// What a node that knows `before` must be told; `None` if nothing.
    pub(crate) fn changes(&self, before: &Self) -> Option<MapResponse> {
        if self == before {
            return None;
        }
        let mut message = MapResponse {
            node: (self.node != before.node).then(|| self.node.clone()),
            derp_map: (self.derp_map != before.derp_map).then(|| self.derp_map.clone()),
            packet_filter: (self.filter != before.filter).then(|| self.filter.clone()),
            ssh_policy: (self.ssh_policy != before.ssh_policy).then(|| self.ssh_policy.clone()),
            tka_info: self.lock.clone().filter(|_| self.lock != before.lock),
            peers_removed: before.peers.keys().filter(|id| !self.peers.contains_key(id)).copied().collect(),
            ..Default::default()
        };
        for (id, peer) in &self.peers {
            match before
                .peers
                .get(id)
                .map(|known| if Arc::ptr_eq(known, peer) { Change::None } else { peer_change(known, peer) })
            {
                None | Some(Change::Whole) => message.peers_changed.push(Node::clone(peer)),
                Some(Change::None) => {}
                Some(Change::Online(online)) => {
                    message.online_change.insert(*id, online);
                }
                Some(Change::Fields(change)) => message.peers_changed_patch.push(Some(*change)),
            }
        }
        Some(message)
    }
}

/// How a peer that is known differs from what it is now.
enum Change {
    None,
    Online(bool),
    Fields(Box<PeerChange>),
    Whole,
}

fn peer_change(known: &Node, peer: &Node) -> Change {
    if known == peer {
        return Change::None;
    }
    let online = peer.online.filter(|_| peer.online != known.online);
    // Whether it was seen follows from whether it is online: it needs no telling of its own.
    let but = |node: &Node| Node { online: peer.online, last_seen: peer.last_seen, ..node.clone() };
    if but(known) == *peer {
        return online.map_or(Change::None, Change::Online);
    }
    let patched = Node {
        endpoints: peer.endpoints.clone(),
        disco_key: peer.disco_key,
        home_derp: peer.home_derp,
        legacy_derp: peer.legacy_derp.clone(),
        ..but(known)
    };
    // A patch can't say "no home region any more".
    if patched != *peer || (peer.home_derp == 0 && known.home_derp != 0) {
        return Change::Whole;
    }
    Change::Fields(Box::new(PeerChange {
        node_id: peer.id,
        derp_region: if peer.home_derp == known.home_derp { 0 } else { peer.home_derp },
        endpoints: (peer.endpoints != known.endpoints).then(|| peer.endpoints.clone()),
        disco_key: (peer.disco_key != known.disco_key).then_some(peer.disco_key),
        online,
        ..Default::default()
    }))
}

/// A node as its peers see it: what concerns only itself and control is left out.
fn as_peer(mut node: Arc<Node>) -> Arc<Node> {
    let hostinfo = &node.hostinfo;
    // One that was made up says nothing of that kind, and is shared as it is: there may be ten thousand.
    if hostinfo.net_info.is_some() || !hostinfo.backend_log_id.is_empty() || !hostinfo.request_tags.is_empty() {
        let hostinfo = &mut Arc::make_mut(&mut node).hostinfo;
        *hostinfo =
            Hostinfo { net_info: None, backend_log_id: String::new(), request_tags: vec![], ..hostinfo.clone() };
    }
    node
}

#[cfg(test)]
mod tests {
    use nixtail_proto::key::{DiscoPublic, NodePublic};

    use super::*;

    fn view(peers: &[Node]) -> View {
        View {
            node: Node { id: 1, ..Default::default() },
            peers: peers.iter().map(|peer| (peer.id, Arc::new(peer.clone()))).collect(),
            derp_map: DerpMap::default(),
            filter: vec![],
            ssh_policy: SshPolicy::default(),
            lock: None,
        }
    }

    fn peer(id: NodeId) -> Node {
        Node { id, online: Some(true), home_derp: 900, ..Default::default() }
    }

    #[test]
    fn the_smallest_change_that_says_it() {
        let before = view(&[peer(2), peer(3), peer(4), peer(5)]);
        let offline = Node { online: Some(false), last_seen: Some(Timestamp::from_unix(7)), ..peer(2) };
        let disco_key = DiscoPublic::from_bytes([7; 32]);
        let moved = Node { disco_key, endpoints: vec!["127.0.0.1:7".parse().unwrap()], ..peer(3) };
        let rekeyed = Node { key: NodePublic::from_bytes([9; 32]), ..peer(4) };
        let after = view(&[offline, moved, rekeyed.clone(), peer(6)]);

        let message = after.changes(&before).unwrap();
        assert_eq!(message.online_change, BTreeMap::from([(2, false)]));
        let patch = message.peers_changed_patch[0].as_ref().unwrap();
        assert_eq!((patch.node_id, patch.disco_key, patch.online), (3, Some(disco_key), None));
        assert_eq!((patch.derp_region, patch.endpoints.as_ref().map(Vec::len)), (0, Some(1)));
        assert_eq!(message.peers_changed, [rekeyed, peer(6)]);
        assert_eq!(message.peers_removed, [5]);
        assert!(message.node.is_none() && message.packet_filter.is_none() && message.peers.is_empty());
        assert_eq!(before.changes(&before), None);
    }

    #[test]
    fn an_empty_filter_is_told() {
        let before = View { filter: vec![FilterRule::default()], ..view(&[]) };
        assert_eq!(view(&[]).changes(&before).unwrap().packet_filter, Some(vec![]));
        assert_eq!(view(&[]).first(Timestamp::ZERO).packet_filter, Some(vec![]));
    }
}
