//! What differs between two netmaps, for those who keep state by peer.

use super::{Netmap, Peer, same, same_option};
use crate::key::NodePublic;
use crate::tailcfg::NodeId;

/// What differs between a netmap and the one before it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Ourselves: addresses, name, authorisation.
    pub self_node: bool,
    /// The relays or their scores.
    pub derp_map: bool,
    /// The packet filter.
    pub filter: bool,
    /// The SSH policy: running sessions are to be judged anew.
    pub ssh_policy: bool,
    /// Tailnet lock went on or off.
    pub tailnet_lock: bool,
    /// Names and search domains.
    pub dns: bool,
    /// Peers that may be used and couldn't before.
    pub added: Vec<NodeId>,
    /// Node keys that no usable peer has any more: their sessions are to end. A peer with a new key is in
    /// [`Self::changed`] and its old key here.
    pub removed_keys: Vec<NodePublic>,
    /// Peers that could be used before and still may.
    pub changed: Vec<PeerChanges>,
}

/// What differs in one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PeerChanges {
    /// Which.
    pub id: NodeId,
    /// Its node key: its WireGuard session, its DERP identity and its path discovery begin anew.
    pub key: bool,
    /// Its disco key: its path discovery begins anew.
    pub disco_key: bool,
    /// Its UDP endpoints.
    pub endpoints: bool,
    /// Its home region.
    pub home_region: bool,
    /// What may be sent to it and come from it.
    pub allowed_ips: bool,
    /// It came online or went.
    pub online: bool,
    /// Anything else that control says of it.
    pub other: bool,
}

impl Changes {
    /// Whether nothing differs that anybody has to act on.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What differs from `old` to `new`.
    #[must_use]
    pub fn between(old: &Netmap, new: &Netmap) -> Self {
        let mut changes = Self {
            self_node: !same(&old.self_node, &new.self_node),
            derp_map: !same(&old.derp_map, &new.derp_map) || old.region_scores != new.region_scores,
            filter: !same_option(old.filter_rules.as_ref(), new.filter_rules.as_ref()),
            ssh_policy: !same_option(old.ssh_policy.as_ref(), new.ssh_policy.as_ref()),
            tailnet_lock: old.is_locked() != new.is_locked(),
            dns: !same(&old.dns, &new.dns),
            ..Self::default()
        };
        let mut gone = Vec::new();
        new.peers.differences(&old.peers, |before, after| match (before, after) {
            (None, Some(peer)) => changes.added.push(peer.id),
            (Some(before), None) => gone.push(before.key),
            (Some(before), Some(peer)) if before != peer => {
                if before.key != peer.key {
                    changes.removed_keys.push(before.key);
                }
                changes.changed.push(PeerChanges::between(before, peer));
            }
            _ => {}
        });
        changes.removed_keys.extend(gone);
        // A node that was deleted and made anew keeps its key under another number.
        changes.removed_keys.retain(|key| new.peers.by_key(key).is_none());
        changes
    }
}

impl PeerChanges {
    fn between(old: &Peer, new: &Peer) -> Self {
        let mut changes = Self {
            id: new.id,
            key: old.key != new.key,
            disco_key: old.disco_key != new.disco_key,
            endpoints: old.endpoints != new.endpoints,
            home_region: old.home_derp != new.home_derp,
            allowed_ips: old.allowed_ips != new.allowed_ips || old.addresses != new.addresses,
            online: old.online != new.online,
            other: false,
        };
        changes.other = changes == Self { id: new.id, ..Self::default() };
        changes
    }
}
