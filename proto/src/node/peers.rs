//! The peers of the netmap and the ways to find one: by node key, address, disco key, receiver index.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use rand_core::CryptoRng;

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
    by_address: HashMap<IpAddr, PeerId>,
    by_disco: HashMap<DiscoPublic, PeerId>,
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
        self.by_address.get(&address).copied()
    }

    pub(super) fn by_disco(&self, key: &DiscoPublic) -> Option<PeerId> {
        self.by_disco.get(key).copied()
    }

    /// The peer whose session has this receiver index.
    pub(super) fn by_index(&self, receiver: u32) -> Option<PeerId> {
        self.by_index.get(&(receiver >> (u32::BITS - INDEX_BITS))).copied()
    }

    pub(super) fn ids(&self) -> Vec<PeerId> {
        let mut ids: Vec<PeerId> = self.by_id.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (PeerId, &Peer)> {
        self.by_id.iter().map(|(id, peer)| (*id, peer))
    }

    pub(super) fn insert(&mut self, node: Arc<Node>) -> PeerId {
        let id = PeerId(self.next);
        self.next += 1;
        self.by_key.insert(node.key, id);
        self.by_id.insert(id, Peer { key: node.key, node, addresses: Vec::new(), tunnel: None });
        id
    }

    pub(super) fn remove(&mut self, id: PeerId) -> Option<Peer> {
        let peer = self.by_id.remove(&id)?;
        self.by_key.remove(&peer.key);
        if let Some(tunnel) = &peer.tunnel {
            self.by_index.remove(&tunnel.index());
        }
        Some(peer)
    }

    /// Makes the tables of addresses and disco keys anew. An address or disco key that two peers claim is the one's that
    /// came first, always and alone.
    pub(super) fn index_all(&mut self) {
        self.by_address.clear();
        self.by_disco.clear();
        for id in self.ids() {
            let Some(peer) = self.by_id.get_mut(&id) else { continue };
            peer.addresses.clear();
            for net in peer.node.addresses.iter().filter(|net| net.prefix_len() == net.max_prefix_len()) {
                if *self.by_address.entry(net.addr()).or_insert(id) == id {
                    peer.addresses.push(net.addr());
                }
            }
            if !peer.node.disco_key.is_zero() {
                self.by_disco.entry(peer.node.disco_key).or_insert(id);
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
