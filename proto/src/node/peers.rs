//! The peers of the netmap and the ways to find one: by node key, address, disco key, receiver index.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use rand_core::CryptoRng;

use super::claims::Claims;
use crate::key::{DiscoPublic, NodePublic};
use crate::tailcfg::Node;
use crate::tunnel::Tunnel;
use crate::tunnel::handshake::Identity;

/// Receiver indices have this many bits; boringtun numbers a peer's sessions with the other eight.
const INDEX_BITS: u32 = 24;

/// One node key as peer. A peer with a new key is another one, so what belonged to the old key can't reach the new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PeerId(u64);

pub(super) struct Peer {
    pub(super) key: NodePublic,
    pub(super) node: Arc<Node>,
    /// Its own addresses: the only ones that packets from it may have as source.
    pub(super) addresses: Vec<IpAddr>,
    /// Made when the first packet goes to it or comes from it.
    pub(super) tunnel: Option<Box<Tunnel>>,
}

#[derive(Default)]
pub(super) struct Peers {
    by_id: HashMap<PeerId, Peer>,
    by_key: HashMap<NodePublic, PeerId>,
    by_address: Claims<IpAddr>,
    by_disco: Claims<DiscoPublic>,
    by_index: HashMap<u32, PeerId>,
    next: u64,
}

impl Peers {
    pub(super) fn get(&self, id: PeerId) -> Option<&Peer> {
        self.by_id.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.by_id.get_mut(&id)
    }

    pub(super) fn by_key(&self, key: &NodePublic) -> Option<PeerId> {
        self.by_key.get(key).copied()
    }

    pub(super) fn by_address(&self, address: IpAddr) -> Option<PeerId> {
        self.by_address.owner(&address)
    }

    pub(super) fn by_disco(&self, key: &DiscoPublic) -> Option<PeerId> {
        self.by_disco.owner(key)
    }

    /// The peer whose session has this receiver index.
    pub(super) fn by_index(&self, receiver: u32) -> Option<PeerId> {
        self.by_index.get(&(receiver >> (u32::BITS - INDEX_BITS))).copied()
    }

    /// The peers that were talked to, in the order in which they came.
    pub(super) fn with_tunnels(&self) -> Vec<PeerId> {
        let mut ids: Vec<PeerId> = self.by_index.values().copied().collect();
        ids.sort_unstable();
        ids
    }

    pub(super) fn insert(&mut self, node: Arc<Node>) -> PeerId {
        let id = PeerId(self.next);
        self.next += 1;
        self.by_key.insert(node.key, id);
        self.by_id.insert(id, Peer { key: node.key, node: Arc::clone(&node), addresses: Vec::new(), tunnel: None });
        self.handle_claims(id, None, Some(&node));
        id
    }

    /// Control says something else of a peer than before. Answers what it said before.
    pub(super) fn replace(&mut self, id: PeerId, node: &Arc<Node>) -> Option<Arc<Node>> {
        let peer = self.by_id.get_mut(&id)?;
        let old = std::mem::replace(&mut peer.node, Arc::clone(node));
        self.handle_claims(id, Some(&old), Some(node));
        Some(old)
    }

    pub(super) fn remove(&mut self, id: PeerId) -> Option<Peer> {
        let peer = self.by_id.remove(&id)?;
        self.by_key.remove(&peer.key);
        if let Some(tunnel) = &peer.tunnel {
            self.by_index.remove(&tunnel.index());
        }
        self.handle_claims(id, Some(&peer.node), None);
        Some(peer)
    }

    /// Brings the tables of addresses and disco keys up to date with a change of one peer.
    fn handle_claims(&mut self, id: PeerId, old: Option<&Node>, new: Option<&Node>) {
        let disco_key = |node: Option<&Node>| node.map(|node| node.disco_key).filter(|key| !key.is_zero());
        let (old_disco, new_disco) = (disco_key(old), disco_key(new));
        if old_disco != new_disco {
            old_disco.and_then(|key| self.by_disco.release(key, id));
            new_disco.and_then(|key| self.by_disco.claim(key, id));
        }
        let addresses = |node: Option<&Node>| node.into_iter().flat_map(own_addresses).collect::<Vec<_>>();
        let (before, after) = (addresses(old), addresses(new));
        if before == after {
            return;
        }
        let mut touched = vec![id];
        for address in before.iter().filter(|address| !after.contains(address)) {
            touched.extend(self.by_address.release(*address, id));
        }
        for address in after.iter().filter(|address| !before.contains(address)) {
            touched.extend(self.by_address.claim(*address, id));
        }
        for id in touched {
            if let Some(peer) = self.by_id.get_mut(&id) {
                let is_its = |address: &IpAddr| self.by_address.owner(address) == Some(id);
                peer.addresses = own_addresses(&peer.node).filter(is_its).collect();
            }
        }
    }

    /// The peer with its tunnel, made if it has none yet, with a receiver index that nobody else has.
    pub(super) fn with_tunnel(
        &mut self,
        id: PeerId,
        identity: &Identity,
        direct: bool,
        rng: &mut dyn CryptoRng,
    ) -> Option<(&Node, &mut Tunnel)> {
        let peer = self.by_id.get_mut(&id)?;
        if peer.tunnel.is_none() {
            let index = loop {
                let index = rng.next_u32() >> (u32::BITS - INDEX_BITS);
                if let std::collections::hash_map::Entry::Vacant(entry) = self.by_index.entry(index) {
                    entry.insert(id);
                    break index;
                }
            };
            peer.tunnel = Some(Box::new(Tunnel::new(identity, &peer.node, index, direct)));
        }
        let Peer { tunnel, node, .. } = peer;
        Some((node, tunnel.as_mut()?))
    }
}

/// A node's single addresses, without wider networks.
fn own_addresses(node: &Node) -> impl Iterator<Item = IpAddr> {
    node.addresses.iter().filter(|net| net.prefix_len() == net.max_prefix_len()).map(IpNet::addr)
}
