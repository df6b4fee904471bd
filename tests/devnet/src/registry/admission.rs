//! Registrations: who is let in, who must log in, approve or renew first, and who is refused.

use std::time::Instant;

use nixtail_proto::key::MachinePublic;
use nixtail_proto::tailcfg::{Node, NodeId, RegisterRequest, RegisterResponse, Timestamp};

use super::naming::{addresses, describe, hostname, owner, user_profile};
use super::{Entry, MAX_ID, MAX_NODES, Registry};
use crate::auth_key::{AuthKeyError, AuthKeys, Entitlement};

/// What became of a registration.
#[derive(Debug)]
pub(crate) struct Registered {
    /// `None`: the node asks for the end of a login that a person has yet to finish. Ask again when something changed.
    pub(crate) response: Option<RegisterResponse>,
    /// Whether any netmap changed.
    pub(crate) changed: bool,
}

impl Registry {
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
        let admitted = self.admit(now, time, machine, request, keys);
        let changed = admitted.as_ref().is_ok_and(|(_, changed)| *changed);
        let response = match admitted {
            Ok((id, _)) => {
                let node = self.nodes.get(&id).map(|entry| &entry.node);
                RegisterResponse {
                    user: node.map(|node| user_profile(node.user)).unwrap_or_default(),
                    machine_authorized: node.is_some_and(|node| node.machine_authorized),
                    ..Default::default()
                }
            }
            Err(Refusal::Expired) => RegisterResponse { node_key_expired: true, ..Default::default() },
            Err(Refusal::Login(url)) => RegisterResponse { auth_url: url, ..Default::default() },
            Err(Refusal::Waits) => return Registered { response: None, changed },
            Err(refusal) => RegisterResponse { error: refusal.to_string(), ..Default::default() },
        };
        Registered { response: Some(response), changed }
    }

    /// Ends a node key: an ephemeral node is gone at once, another one is offline and its key has expired.
    fn log_out(&mut self, time: Timestamp, machine: MachinePublic, request: &RegisterRequest) -> Registered {
        let response = RegisterResponse { node_key_expired: true, ..Default::default() };
        let Some(id) = self.find(machine, request.node_key) else {
            return Registered { response: Some(response), changed: false };
        };
        if self.nodes.get(&id).is_some_and(|entry| entry.ephemeral) {
            self.nodes.remove(&id);
        } else if let Some(entry) = self.nodes.get_mut(&id) {
            entry.node.key_expiry = request.expiry.unwrap_or(time);
            entry.node.expired = true;
            entry.last_seen = time;
        }
        Registered { response: Some(response), changed: true }
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
        // A key that has ended stays so, whatever comes with it: the node must make another.
        if known.is_some_and(|entry| entry.has_expired(time)) {
            return Err(Refusal::Expired);
        }
        // The same node again (its first answer may have been lost): its key, which may be used up, isn't asked for.
        if let Some(id) = known.map(|entry| entry.node.id) {
            return Ok((id, false));
        }
        // Another key for a node of this machine: asked for, or because the old one has expired.
        let successor = self.nodes.values().filter(|entry| entry.node.machine == machine).find(|entry| {
            entry.has_expired(time) || (entry.node.key == request.old_node_key && !request.old_node_key.is_zero())
        });
        let valid = successor.is_some_and(|entry| !entry.has_expired(time));
        let id = successor.map(|entry| entry.node.id);
        let entitlement = match &request.auth {
            Some(auth) if !auth.auth_key.expose().is_empty() => {
                Some(keys.redeem(now, &auth.auth_key, &request.hostinfo.request_tags)?)
            }
            _ if valid => None,
            _ => Some(self.logins.ask(machine, request)?),
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
            entry.node.machine_authorized |= entitlement.preauthorized;
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
            machine_authorized: entitlement.preauthorized || !self.needs_approval,
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
}

/// Why a registration is refused. The texts go to the node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("node key has expired: log in again")]
    Expired,
    #[error("a person must log in at {0}")]
    Login(String),
    #[error("a person has yet to log in")]
    Waits,
    #[error("the login was refused: {0}")]
    LoginRefused(String),
    #[error("too many logins wait for a person: finish some")]
    TooManyLogins,
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
