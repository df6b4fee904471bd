//! The peers of a netmap, with the ways to find one.

use std::net::IpAddr;
use std::sync::Arc;

use super::Peer;
use super::shared_map::SharedMap;
use crate::key::NodePublic;
use crate::tailcfg::{Node, NodeId};

/// Peers by number, also to be found by key, address, name and tag. Copies share what they have in common.
///
/// Of two that claim one key, address or name, which no control server should send, the lower number is found first.
#[derive(Clone, Default)]
pub struct Peers {
    by_id: SharedMap<NodeId, Peer>,
    by_key: Index<NodePublic>,
    by_address: Index<IpAddr>,
    by_name: Index<Arc<str>>,
    by_tag: Index<Arc<str>>,
}

/// What some peers have, and which.
type Index<T> = SharedMap<(T, NodeId), ()>;

impl Peers {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// The peer of a number.
    #[must_use]
    pub fn get(&self, id: &NodeId) -> Option<&Peer> {
        self.by_id.get(id)
    }

    /// Whether there is a peer of this number.
    #[must_use]
    pub fn contains_key(&self, id: &NodeId) -> bool {
        self.by_id.contains_key(id)
    }

    /// All of them, by number.
    pub fn values(&self) -> impl Iterator<Item = &Peer> {
        self.by_id.values()
    }

    /// All numbers.
    pub fn keys(&self) -> impl Iterator<Item = &NodeId> {
        self.by_id.keys()
    }

    /// The peer that has this node key.
    #[must_use]
    pub fn by_key(&self, key: &NodePublic) -> Option<&Peer> {
        self.find(&self.by_key, *key).next()
    }

    /// The peer whose own address this is.
    #[must_use]
    pub fn by_address(&self, address: IpAddr) -> Option<&Peer> {
        self.find(&self.by_address, address).next()
    }

    /// The peers of this whole name, in lower case and without the trailing dot.
    pub fn called<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a Peer> + use<'a> {
        self.find(&self.by_name, Arc::from(name))
    }

    /// The peers with this tag.
    pub fn tagged<'a>(&'a self, tag: &str) -> impl Iterator<Item = &'a Peer> + use<'a> {
        self.find(&self.by_tag, Arc::from(tag))
    }

    /// Puts a peer in, in place of the one that had its number.
    pub fn insert(&mut self, id: NodeId, peer: Peer) -> Option<Peer> {
        let old = self.by_id.insert(id, Arc::clone(&peer));
        let (old_node, new) = (old.as_deref(), Some(&*peer));
        self.index(id, old_node, new);
        old
    }

    /// Takes a peer out.
    pub fn remove(&mut self, id: &NodeId) -> Option<Peer> {
        let old = self.by_id.remove(id)?;
        self.index(*id, Some(&old), None);
        Some(old)
    }

    /// Shows every peer that isn't known to be the same in `old`: see [`SharedMap::differences`].
    pub fn differences<'a>(&'a self, old: &'a Self, mut visit: impl FnMut(Option<&'a Peer>, Option<&'a Peer>)) {
        self.by_id.differences(&old.by_id, |_, before, after| match (before, after) {
            (Some(before), Some(after)) if Arc::ptr_eq(before, after) => {}
            (before, after) => visit(before, after),
        });
    }

    fn find<'a, T: Ord + Clone>(&'a self, index: &'a Index<T>, what: T) -> impl Iterator<Item = &'a Peer> + use<'a, T> {
        let first = (what.clone(), NodeId::MIN);
        let found = index.range_from(&first).take_while(move |((other, _), ())| *other == what);
        found.filter_map(|((_, id), ())| self.by_id.get(id))
    }

    fn index(&mut self, id: NodeId, old: Option<&Node>, new: Option<&Node>) {
        reindex(&mut self.by_key, id, old, new, |node| vec![node.key]);
        reindex(&mut self.by_address, id, old, new, own_addresses);
        reindex(&mut self.by_name, id, old, new, |node| vec![Arc::from(node.dns_name().to_ascii_lowercase())]);
        reindex(&mut self.by_tag, id, old, new, |node| node.tags.iter().map(|tag| Arc::from(tag.as_str())).collect());
    }
}

/// What a node has, as far as it changed.
fn reindex<T: Ord + Clone>(
    index: &mut Index<T>,
    id: NodeId,
    old: Option<&Node>,
    new: Option<&Node>,
    has: impl Fn(&Node) -> Vec<T>,
) {
    let [before, after] = [old, new].map(|node| node.map(&has).unwrap_or_default());
    if before == after {
        return;
    }
    for thing in before {
        index.remove(&(thing, id));
    }
    for thing in after {
        index.insert((thing, id), ());
    }
}

/// A node's own addresses: single ones, not wider networks.
fn own_addresses(node: &Node) -> Vec<IpAddr> {
    let single = node.addresses.iter().filter(|net| net.prefix_len() == net.max_prefix_len());
    single.map(ipnet::IpNet::addr).collect()
}

impl PartialEq for Peers {
    fn eq(&self, other: &Self) -> bool {
        let mut is_equal = self.len() == other.len();
        if is_equal {
            self.differences(other, |before, after| is_equal = is_equal && before == after);
        }
        is_equal
    }
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.by_id.fmt(f)
    }
}

impl FromIterator<(NodeId, Peer)> for Peers {
    fn from_iter<T: IntoIterator<Item = (NodeId, Peer)>>(entries: T) -> Self {
        let mut peers = Self::default();
        for (id, peer) in entries {
            peers.insert(id, peer);
        }
        peers
    }
}

impl<const N: usize> From<[(NodeId, Peer); N]> for Peers {
    fn from(entries: [(NodeId, Peer); N]) -> Self {
        entries.into_iter().collect()
    }
}
