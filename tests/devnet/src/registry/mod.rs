//! The nodes of a devnet: who is let in, under which name and address, who is online, and when a node vanishes.
//!
//! No socket and no clock: `now` comes from outside. What follows for one node's netmap is in `netmap`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nixtail_proto::key::{MachinePublic, NodePublic};
use nixtail_proto::tailcfg::{MapRequest, Node, NodeId, RegisterRequest, RegisterResponse, Timestamp, UserProfile};

use crate::auth_key::{AuthKeyError, AuthKeys, Entitlement};
use crate::policy::Subject;

/// The DNS name of the tailnet: nodes are `<hostname>.tail.devnet.`.
pub const TAILNET_DOMAIN: &str = "tail.devnet";

/// Most nodes at one time: each costs every other one a comparison at each change.
const MAX_NODES: usize = 1000;
/// Ids are never used again and addresses follow from them: 100.64.0.0/16 ends here.
const MAX_ID: NodeId = 65_000;
/// The longest label of a DNS name (RFC 1035 §2.3.4), with room for `-` and a number.
const MAX_HOSTNAME: usize = 63 - 5;
/// Most endpoints kept of a node.
const MAX_ENDPOINTS: usize = 64;
/// Most SSH host keys kept of a node.
const MAX_HOST_KEYS: usize = 8;
/// The most bytes that a node's description may have as JSON: it goes to every peer.
const MAX_HOSTINFO: usize = 64 << 10;
/// The owner of nodes without tags.
const OWNER: i64 = 1;
/// The owner of nodes with tags, which means nothing.
const TAGGED_DEVICES: i64 = 2;

/// All nodes.
#[derive(Debug)]
pub(crate) struct Registry {
    nodes: BTreeMap<NodeId, Entry>,
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

/// What became of a registration.
#[derive(Debug)]
pub(crate) struct Registered {
    pub(crate) response: RegisterResponse,
    /// Whether any netmap changed.
    pub(crate) changed: bool,
}

impl Registry {
    pub(crate) fn new(ephemeral_grace: Duration) -> Self {
        Self { nodes: BTreeMap::new(), last_id: 0, last_stream: 0, ephemeral_grace }
    }

    /// Lets a node in, gives it another key, or logs it out.
    pub(crate) fn register(
        &mut self,
        now: Instant,
        time: Timestamp,
        machine: MachinePublic,
        request: &RegisterRequest,
        keys: &mut AuthKeys,
    ) -> Registered {
        if request.expiry.is_some_and(|end| !end.is_zero() && end <= time) {
            return self.log_out(time, machine, request);
        }
        match self.admit(now, time, machine, request, keys) {
            Ok((id, changed)) => Registered {
                response: RegisterResponse {
                    user: self.nodes.get(&id).map(|entry| user_profile(entry.node.user)).unwrap_or_default(),
                    machine_authorized: true,
                    ..Default::default()
                },
                changed,
            },
            Err(Refusal::Expired) => Registered {
                response: RegisterResponse { node_key_expired: true, ..Default::default() },
                changed: false,
            },
            Err(refusal) => Registered {
                response: RegisterResponse { error: refusal.to_string(), ..Default::default() },
                changed: false,
            },
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
    pub(crate) fn node(&self, id: NodeId) -> Option<Node> {
        self.nodes.get(&id).map(Entry::current)
    }

    /// All nodes, with whether they are ephemeral.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (Node, bool)> {
        self.nodes.values().map(|entry| (entry.current(), entry.ephemeral))
    }

    /// What the policy wants to know of all nodes.
    pub(crate) fn subjects(&self) -> impl Iterator<Item = (NodeId, Subject<'_>)> {
        self.nodes
            .values()
            .map(|entry| (entry.node.id, Subject { tags: &entry.node.tags, addresses: &entry.node.addresses }))
    }

    fn vanishes_at(&self, entry: &Entry) -> Option<Instant> {
        entry.offline_since.filter(|_| entry.ephemeral)?.checked_add(self.ephemeral_grace)
    }

    /// Ends a node key: an ephemeral node is gone at once, another one is offline and its key has expired.
    fn log_out(&mut self, time: Timestamp, machine: MachinePublic, request: &RegisterRequest) -> Registered {
        let response = RegisterResponse { node_key_expired: true, ..Default::default() };
        let Some(id) = self.find(machine, request.node_key) else {
            return Registered { response, changed: false };
        };
        if self.nodes.get(&id).is_some_and(|entry| entry.ephemeral) {
            self.nodes.remove(&id);
        } else if let Some(entry) = self.nodes.get_mut(&id) {
            entry.node.key_expiry = request.expiry.unwrap_or(time);
            entry.node.expired = true;
            entry.last_seen = time;
        }
        Registered { response, changed: true }
    }

    fn admit(
        &mut self,
        now: Instant,
        time: Timestamp,
        machine: MachinePublic,
        request: &RegisterRequest,
        keys: &mut AuthKeys,
    ) -> Result<(NodeId, bool), Refusal> {
        if request.node_key.is_zero() {
            return Err(Refusal::NoNodeKey);
        }
        let known = self.nodes.values().find(|entry| entry.node.key == request.node_key);
        if known.is_some_and(|entry| entry.node.machine != machine) {
            return Err(Refusal::ForeignNodeKey);
        }
        // The same node again (its first answer may have been lost): its key, which may be used up, isn't asked for.
        if let Some(id) = known.filter(|entry| !entry.node.expired).map(|entry| entry.node.id) {
            return Ok((id, false));
        }
        // Another key for a node of this machine: asked for, or because the old one has expired.
        let successor = known.or_else(|| {
            self.nodes.values().filter(|entry| entry.node.machine == machine).find(|entry| {
                entry.node.expired || (entry.node.key == request.old_node_key && !request.old_node_key.is_zero())
            })
        });
        let valid = successor.is_some_and(|entry| !entry.node.expired);
        let id = successor.map(|entry| entry.node.id);
        let entitlement = match &request.auth {
            Some(auth) if !auth.auth_key.expose().is_empty() => {
                Some(keys.redeem(now, &auth.auth_key, &request.hostinfo.request_tags)?)
            }
            _ if valid => None,
            _ if known.is_some() => return Err(Refusal::Expired),
            _ => return Err(Refusal::NoAuthKey),
        };
        let id = match (id, entitlement) {
            (Some(id), entitlement) => {
                self.renew(id, request, entitlement);
                id
            }
            (None, Some(entitlement)) => self.add(now, time, machine, request, entitlement)?,
            (None, None) => return Err(Refusal::NoAuthKey),
        };
        Ok((id, true))
    }

    /// Gives a node of the same machine another key.
    fn renew(&mut self, id: NodeId, request: &RegisterRequest, entitlement: Option<Entitlement>) {
        let Some(entry) = self.nodes.get_mut(&id) else { return };
        entry.node.key = request.node_key;
        entry.node.key_expiry = Timestamp::ZERO;
        entry.node.expired = false;
        if let Some(entitlement) = entitlement {
            entry.node.user = owner(&entitlement.tags);
            entry.node.tags = entitlement.tags;
            entry.ephemeral = entitlement.ephemeral || request.ephemeral;
        }
        describe(&mut entry.node, request.hostinfo.clone());
    }

    fn add(
        &mut self,
        now: Instant,
        time: Timestamp,
        machine: MachinePublic,
        request: &RegisterRequest,
        entitlement: Entitlement,
    ) -> Result<NodeId, Refusal> {
        if self.nodes.len() >= MAX_NODES || self.last_id >= MAX_ID {
            return Err(Refusal::Full);
        }
        let wanted_hostname = hostname(&request.hostinfo.hostname);
        let name = self.free_name(&wanted_hostname, None);
        self.last_id += 1;
        let id = self.last_id;
        let mut node = Node {
            id,
            stable_id: format!("n{id}DEVNET"),
            name,
            user: owner(&entitlement.tags),
            key: request.node_key,
            machine,
            addresses: addresses(id),
            allowed_ips: Some(addresses(id)),
            created: time,
            cap: request.version.into(),
            tags: entitlement.tags,
            machine_authorized: true,
            ..Default::default()
        };
        describe(&mut node, request.hostinfo.clone());
        let entry = Entry {
            node,
            wanted_hostname,
            ephemeral: entitlement.ephemeral || request.ephemeral,
            stream: None,
            offline_since: Some(now),
            last_seen: time,
        };
        self.nodes.insert(id, entry);
        Ok(id)
    }

    /// `wanted` as a full DNS name, with `-1`, `-2`, … where another node has it.
    fn free_name(&self, wanted: &str, own: Option<NodeId>) -> String {
        let full = |label: &str| format!("{label}.{TAILNET_DOMAIN}.");
        let taken =
            |name: &String| self.nodes.values().any(|entry| entry.node.name == *name && Some(entry.node.id) != own);
        let first = full(wanted);
        if !taken(&first) {
            return first;
        }
        // There are at most MAX_NODES names, so one of MAX_NODES + 1 is free.
        (1..=MAX_NODES + 1).map(|n| full(&format!("{wanted}-{n}"))).find(|name| !taken(name)).unwrap_or(first)
    }
}

impl Entry {
    fn current(&self) -> Node {
        let online = self.stream.is_some() && !self.node.expired;
        let last_seen = (!online).then_some(self.last_seen);
        Node { online: Some(online), last_seen, ..self.node.clone() }
    }
}

/// Why a registration is refused. The texts go to the node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Refusal {
    #[error("node key has expired: log in again")]
    Expired,
    #[error("the request has no node key")]
    NoNodeKey,
    #[error("node exists with different machine key")]
    ForeignNodeKey,
    #[error("an auth key is needed: a devnet has no other login (see what it printed when it started)")]
    NoAuthKey,
    #[error("this devnet is full ({MAX_NODES} nodes): stop some, or start another devnet")]
    Full,
    #[error(transparent)]
    AuthKey(#[from] AuthKeyError),
}

/// The profiles of both owners, as netmaps carry them.
pub(crate) fn user_profiles() -> Vec<UserProfile> {
    vec![user_profile(OWNER), user_profile(TAGGED_DEVICES)]
}

fn user_profile(id: i64) -> UserProfile {
    let (login_name, display_name) = match id {
        TAGGED_DEVICES => ("tagged-devices", "Tagged Devices"),
        _ => ("owner@tail.devnet", "Owner of the devnet"),
    };
    UserProfile { id, login_name: login_name.to_owned(), display_name: display_name.to_owned() }
}

fn owner(tags: &[String]) -> i64 {
    if tags.is_empty() { OWNER } else { TAGGED_DEVICES }
}

/// Puts what a node says of itself into it; of a description that is too large only the home region is taken.
fn describe(node: &mut Node, mut hostinfo: nixtail_proto::tailcfg::Hostinfo) {
    hostinfo.ssh_host_keys.truncate(MAX_HOST_KEYS);
    let region = hostinfo.net_info.as_ref().map_or(0, |info| info.preferred_derp);
    // An update without a home region says nothing about it.
    if region != 0 {
        node.home_derp = region;
        node.legacy_derp = format!("127.3.3.40:{region}");
    }
    if hostinfo.net_info.is_none() {
        hostinfo.net_info = node.hostinfo.net_info.take();
    }
    if serde_json::to_vec(&hostinfo).is_ok_and(|json| json.len() <= MAX_HOSTINFO) {
        node.hostinfo = hostinfo;
    }
}

/// A host name as a DNS label: lower-case letters, digits and hyphens; `node` if nothing is left.
fn hostname(text: &str) -> String {
    let label: String = text
        .split('.')
        .next()
        .unwrap_or_default()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .take(MAX_HOSTNAME)
        .collect();
    let label = label.trim_matches('-');
    if label.is_empty() { "node".to_owned() } else { label.to_owned() }
}

/// 100.64.x.y and fd7a:115c:a1e0::x of a node.
fn addresses(id: NodeId) -> Vec<IpNet> {
    // MAX_ID bounds it.
    let number = u16::try_from(id).unwrap_or(u16::MAX);
    let [high, low] = number.to_be_bytes();
    let v4 = IpAddr::V4(Ipv4Addr::new(100, 64, high, low));
    let v6 = IpAddr::V6(Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, number));
    vec![IpNet::from(v4), IpNet::from(v6)]
}

#[cfg(test)]
mod tests;
