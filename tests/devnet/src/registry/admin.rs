//! What an admin does to nodes: let them in, end their keys, remove them.

use std::time::Instant;

use nixtail_proto::tailcfg::{NodeId, Timestamp};

use super::logins::LoginPolicy;
use super::{Entry, Registry};

impl Registry {
    /// From now on new machines wait until [`Self::approve`], unless their auth key says otherwise.
    pub(crate) fn require_approval(&mut self, needed: bool) {
        self.needs_approval = needed;
    }

    /// Lets a machine in. `None` when there is no such node.
    pub(crate) fn approve(&mut self, id: NodeId) -> Option<()> {
        self.nodes.get_mut(&id)?.node.machine_authorized = true;
        Some(())
    }

    /// Sets when a node's key ends; [`Timestamp::ZERO`] is never. `None` when there is no such node.
    pub(crate) fn set_key_expiry(&mut self, time: Timestamp, id: NodeId, end: Timestamp) -> Option<()> {
        let entry = self.nodes.get_mut(&id)?;
        entry.node.key_expiry = end;
        entry.node.expired = entry.has_expired(time);
        entry.last_seen = time;
        Some(())
    }

    /// Removes a node, as an admin does. `None` when there is none.
    pub(crate) fn delete(&mut self, id: NodeId) -> Option<()> {
        self.nodes.remove(&id).map(|_| ())
    }

    /// Ends a node's map stream. `None` when it has none.
    pub(crate) fn drop_stream(&mut self, now: Instant, time: Timestamp, id: NodeId) -> Option<()> {
        let entry = self.nodes.get_mut(&id)?;
        entry.stream.take()?;
        entry.offline_since = Some(now);
        entry.last_seen = time;
        Some(())
    }

    /// Whether a node has a map stream.
    pub(crate) fn has_stream(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|entry| entry.stream.is_some())
    }

    /// What happens to nodes without an auth key.
    pub(crate) fn set_login_policy(&mut self, policy: LoginPolicy) {
        self.logins.policy = policy;
    }

    /// The URLs where a person is awaited, oldest first.
    pub(crate) fn waiting_logins(&self) -> Vec<String> {
        self.logins.waiting()
    }

    /// A person logged in at `url`, or was refused with these words. Whether that login waited.
    pub(crate) fn finish_login(&mut self, url: &str, refused: Option<&str>) -> bool {
        self.logins.finish(url, refused)
    }

    /// Puts another URL in the place of one; `None` when that didn't wait.
    pub(crate) fn replace_login(&mut self, url: &str) -> Option<String> {
        self.logins.replace(url)
    }
}

impl Entry {
    /// Whether its key has ended at `time`.
    pub(super) fn has_expired(&self, time: Timestamp) -> bool {
        self.node.expired || (!self.node.key_expiry.is_zero() && self.node.key_expiry <= time)
    }
}
