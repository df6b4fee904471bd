//! The policy of the moment: what the newest netmap says.

use std::sync::{Arc, Mutex};

use nixtail_proto::netmap::Netmap;
use nixtail_proto::ssh_policy::{Asker, Authority, Decision, Rejection};
use tokio::sync::watch;

use super::admission::{Authorizer, Peer};
use super::flow::lock;
use crate::clock::unix_now;

/// Judges by the newest netmap, and by the node that it has for the peer now.
pub struct NetmapAuthorizer {
    netmap: watch::Receiver<Option<Arc<Netmap>>>,
    port: u16,
    /// Of the newest netmap that was asked for.
    authority: Mutex<Option<Arc<Authority>>>,
}

impl NetmapAuthorizer {
    /// For connections to `port` inside the tunnel.
    pub fn new(netmap: watch::Receiver<Option<Arc<Netmap>>>, port: u16) -> Self {
        Self { netmap, port, authority: Mutex::default() }
    }

    /// `None` while there is no netmap.
    fn authority(&self) -> Option<Arc<Authority>> {
        let netmap = self.netmap.borrow().clone()?;
        let mut kept = lock(&self.authority);
        match kept.as_ref().filter(|authority| authority.is_by(&netmap)) {
            Some(authority) => Some(Arc::clone(authority)),
            None => Some(Arc::clone(kept.insert(Arc::new(Authority::new(netmap))))),
        }
    }

    fn asker(&self, peer: &Peer) -> Asker {
        Asker { node_key: peer.node_key, source: peer.source, port: self.port }
    }
}

impl Authorizer for NetmapAuthorizer {
    fn authorize(&self, peer: &Peer, user: &str) -> Decision {
        match self.authority() {
            Some(authority) => authority.decide(&self.asker(peer), user, unix_now()),
            None => Decision::Reject(Rejection::UnknownNode),
        }
    }

    fn named_users(&self, peer: &Peer) -> Vec<String> {
        let Some(authority) = self.authority() else { return Vec::new() };
        authority.named_users(&self.asker(peer), unix_now()).into_iter().map(str::to_owned).collect()
    }
}
