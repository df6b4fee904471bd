//! The nodes of a devnet: who is let in, under which name and address, who is online, and when a node vanishes.
//!
//! No socket and no clock: `now` comes from outside. What follows for one node's netmap is in `netmap`.

mod admin;
mod admission;
mod crowd;
mod logins;
mod naming;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nixtail_proto::key::{MachinePublic, NodePublic};
use nixtail_proto::tailcfg::{MapRequest, Node, NodeId, Timestamp};

use crate::policy::Subject;

pub use crowd::Crowd;
pub use logins::LoginPolicy;
pub use naming::TAILNET_DOMAIN;
pub(crate) use naming::{OWNER_LOGIN, user_profiles};

use logins::Logins;
use naming::{describe, hostname};

/// Most nodes at one time: each costs every other one a comparison at each change.
const MAX_NODES: usize = 1000;
/// Ids are never used again and addresses follow from them: 100.64.0.0/16 ends here.
const MAX_ID: NodeId = 65_000;
/// Most endpoints kept of a node.
const MAX_ENDPOINTS: usize = 64;

/// All nodes.
#[derive(Debug)]
pub(crate) struct Registry {
    nodes: BTreeMap<NodeId, Entry>,
    /// Nodes with nothing behind them.
    crowd: BTreeMap<NodeId, Arc<Node>>,
    logins: Logins,
    /// New machines are let in by an admin only.
    needs_approval: bool,
    last_id: NodeId,
    last_stream: u64,
    ephemeral_grace: Duration,
}

/// One node.
#[derive(Debug)]
pub(crate) struct Entry {
    /// What the tailnet knows of it. `online` and `last_seen` are filled in by [`Registry::node`].
    node: Node,
    wanted_hostname: String,
    ephemeral: bool,
    /// The serial number of its newest map stream; the older ones are ending.
    stream: Option<u64>,
    /// Since when it has no map stream, from its registration on.
    offline_since: Option<Instant>,
    last_seen: Timestamp,
}

impl Registry {
    /// `url` is control's own, where people log in.
    pub(crate) fn new(ephemeral_grace: Duration, url: String) -> Self {
        Self {
            nodes: BTreeMap::new(),
            crowd: BTreeMap::new(),
            logins: Logins::new(url),
            needs_approval: false,
            last_id: 0,
            last_stream: 0,
            ephemeral_grace,
        }
    }

    /// The node that `machine` may speak for with `key`.
    pub(crate) fn find(&self, machine: MachinePublic, key: NodePublic) -> Option<NodeId> {
        let entry = self.nodes.values().find(|entry| entry.node.key == key)?;
        (entry.node.machine == machine).then_some(entry.node.id)
    }

    /// Takes over what a node tells of itself in a lite update. Whether any netmap changed.
    pub(crate) fn update(&mut self, id: NodeId, request: &MapRequest) -> bool {
        let Some(entry) = self.nodes.get(&id) else { return false };
        let mut node = entry.node.clone();
        node.disco_key = request.disco_key;
        node.cap = request.version.into();
        node.endpoints = request.endpoints.iter().take(MAX_ENDPOINTS).copied().collect();
        describe(&mut node, request.hostinfo.clone());
        let wanted = hostname(&request.hostinfo.hostname);
        let renamed = wanted != entry.wanted_hostname;
        if renamed {
            node.name = self.free_name(&wanted, Some(id));
        }
        let Some(entry) = self.nodes.get_mut(&id) else { return false };
        entry.wanted_hostname = wanted;
        let changed = entry.node != node;
        entry.node = node;
        changed
    }

    /// A node opened a map stream, which takes the place of an earlier one. Its serial number; 0 for an unknown node.
    pub(crate) fn handle_stream_opened(&mut self, id: NodeId) -> u64 {
        let Some(entry) = self.nodes.get_mut(&id) else { return 0 };
        self.last_stream += 1;
        entry.stream = Some(self.last_stream);
        entry.offline_since = None;
        self.last_stream
    }

    /// Whether a map stream is still the node's newest.
    pub(crate) fn is_newest_stream(&self, id: NodeId, stream: u64) -> bool {
        self.nodes.get(&id).is_some_and(|entry| entry.stream == Some(stream))
    }

    /// A map stream ended. Whether any netmap changed.
    pub(crate) fn handle_stream_closed(&mut self, now: Instant, time: Timestamp, id: NodeId, stream: u64) -> bool {
        let Some(entry) = self.nodes.get_mut(&id).filter(|entry| entry.stream == Some(stream)) else { return false };
        entry.stream = None;
        entry.offline_since = Some(now);
        entry.last_seen = time;
        true
    }

    /// When [`Self::handle_timeout`] has something to do.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.nodes.values().filter_map(|entry| self.vanishes_at(entry)).min()
    }

    /// Removes ephemeral nodes that have been offline too long. Whether any netmap changed.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> bool {
        let gone: Vec<NodeId> = self
            .nodes
            .values()
            .filter(|entry| self.vanishes_at(entry).is_some_and(|at| at <= now))
            .map(|entry| entry.node.id)
            .collect();
        gone.iter().for_each(|id| {
            self.nodes.remove(id);
        });
        !gone.is_empty()
    }

    /// A node, with whether it is online.
    pub(crate) fn node(&self, id: NodeId) -> Option<Arc<Node>> {
        let entry = self.nodes.get(&id).map(|entry| Arc::new(entry.current()));
        entry.or_else(|| self.crowd.get(&id).cloned())
    }

    /// All nodes that have something behind them, with whether they are ephemeral.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (Node, bool)> {
        self.nodes.values().map(|entry| (entry.current(), entry.ephemeral))
    }

    /// What the policy wants to know of one node; `None` as long as an admin hasn't let it in.
    pub(crate) fn subject(&self, id: NodeId) -> Option<Subject<'_>> {
        let node = self.nodes.get(&id).map(|entry| &entry.node).or_else(|| self.crowd.get(&id).map(Arc::as_ref))?;
        node.machine_authorized.then(|| subject(node))
    }

    /// What the policy wants to know of all nodes that have been let in.
    pub(crate) fn subjects(&self) -> impl Iterator<Item = (NodeId, Subject<'_>)> {
        let real = self.nodes.values().map(|entry| &entry.node).filter(|node| node.machine_authorized);
        real.chain(self.crowd.values().map(Arc::as_ref)).map(|node| (node.id, subject(node)))
    }

    fn vanishes_at(&self, entry: &Entry) -> Option<Instant> {
        entry.offline_since.filter(|_| entry.ephemeral)?.checked_add(self.ephemeral_grace)
    }
}

impl Entry {
    fn current(&self) -> Node {
        let online = self.stream.is_some() && !self.node.expired;
        let last_seen = (!online).then_some(self.last_seen);
        Node { online: Some(online), last_seen, ..self.node.clone() }
    }
}

fn subject(node: &Node) -> Subject<'_> {
    Subject { tags: &node.tags, addresses: &node.addresses }
}

#[cfg(test)]
mod tests;
