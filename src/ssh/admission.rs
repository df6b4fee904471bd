//! May this peer be here, as whom, and until when: one answer for every way in, the SSH endpoint and the direct lane.
//!
//! What the policy says is [`Authorizer`]'s; what follows from it for a peer that was let in is decided in
//! [`nixtail_proto::ssh_policy::Admission`]. Here both are put to work: clocks, timers, and who is in.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use nixtail_proto::key::NodePublic;
use nixtail_proto::ssh_policy::{self, Acceptance, AdmissionEnd, Decision, PrincipalFacts, Rejection, as_local_user};
use tokio::sync::watch;

use super::flow::lock;
use crate::clock::unix_now;

#[cfg(test)]
mod tests;

/// Who the peer is, as the tunnel and the netmap have it.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The node key of the WireGuard session that the stream came through.
    pub node_key: NodePublic,
    /// The node's name, for people.
    pub name: String,
    /// What the SSH policy asks about.
    pub facts: PrincipalFacts,
    /// Where the stream comes from, inside the tunnel.
    pub source: SocketAddr,
}

/// Says whether a peer may log in: the netmap's SSH policy of this moment. Must not block.
pub trait Authorizer: Send + Sync {
    /// May `peer` log in as `user`?
    fn authorize(&self, peer: &Peer, user: &str) -> Decision;

    /// The users that the policy names for `peer`, `*` among them for all others: who is refused as each of them is
    /// refused as anybody.
    fn named_users(&self, _peer: &Peer) -> Vec<String> {
        vec!["*".to_owned()]
    }
}

impl<F: Fn(&Peer, &str) -> Decision + Send + Sync> Authorizer for F {
    fn authorize(&self, peer: &Peer, user: &str) -> Decision {
        self(peer, user)
    }
}

/// Who is in, and the rules for all of them. One for a builder, whatever ways lead into it.
pub struct AdmissionControl {
    login: String,
    authorizer: Arc<dyn Authorizer>,
    inside: Mutex<Vec<Weak<Admission>>>,
}

impl AdmissionControl {
    /// For an agent that runs everything as the local user `login`: the policy must map the user asked for to that one,
    /// since the uid is never changed.
    pub fn new(login: impl Into<String>, authorizer: Arc<dyn Authorizer>) -> Arc<Self> {
        Arc::new(Self { login: login.into(), authorizer, inside: Mutex::default() })
    }

    /// The local user that everything runs as.
    pub fn login(&self) -> &str {
        &self.login
    }

    /// A peer has come; nothing is decided yet. Keep what this returns for as long as the peer is served: when the last
    /// one is dropped, the peer counts as gone.
    pub fn begin(self: &Arc<Self>, peer: Peer) -> Arc<Admission> {
        let admission = Arc::new(Admission { control: Arc::clone(self), peer, stay: watch::Sender::new(None) });
        let mut inside = lock(&self.inside);
        inside.retain(|admission| admission.strong_count() > 0);
        inside.push(Arc::downgrade(&admission));
        admission
    }

    /// The policy, or anything else that the authorizer looks at, may have changed: ends what is no longer allowed.
    pub fn policy_changed(&self) {
        let inside: Vec<Arc<Admission>> = lock(&self.inside).iter().filter_map(Weak::upgrade).collect();
        for admission in inside {
            admission.check();
        }
    }
}

/// One peer at the door or inside.
pub struct Admission {
    control: Arc<AdmissionControl>,
    peer: Peer,
    stay: watch::Sender<Option<Stay>>,
}

/// Of a peer that was let in.
#[derive(Debug)]
struct Stay {
    user: String,
    state: ssh_policy::Admission,
}

impl Admission {
    /// Who it is about.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// What the policy of this moment says about a login as `user`; a refusal's text is for the peer.
    pub fn decide(&self, user: &str) -> Result<Acceptance, Rejection> {
        as_local_user(self.control.authorizer.authorize(&self.peer, user), &self.control.login)
    }

    /// As [`Admission::decide`] about the endpoint's own login, where the user isn't known yet: a refusal is one that the
    /// peer would meet whatever user it asks for. `None`: that depends on the user.
    pub fn decide_for_anybody(&self) -> Option<Result<Acceptance, Rejection>> {
        let decision = self.decide(&self.control.login);
        let named = || self.control.authorizer.named_users(&self.peer);
        match decision {
            Err(_) if named().iter().any(|user| self.decide(user).is_ok()) => None,
            decision => Some(decision),
        }
    }

    /// Lets the peer in as `user` if the policy of this moment says so. Its stay is counted from here.
    pub fn log_in(&self, user: &str) -> Result<Acceptance, Rejection> {
        let acceptance = self.decide(user)?;
        let state = ssh_policy::Admission::new(Instant::now(), unix_now(), &acceptance);
        self.stay.send_replace(Some(Stay { user: user.to_owned(), state }));
        Ok(acceptance)
    }

    /// The user that the peer was let in as. Untrusted text.
    pub fn user(&self) -> Option<String> {
        self.stay.borrow().as_ref().map(|stay| stay.user.clone())
    }

    /// Whether the peer may do something now: it was let in, and the policy of this moment still allows it. Ends its
    /// stay where the policy doesn't.
    pub fn check(&self) -> bool {
        let Some(user) = self.user() else { return false };
        let decision = self.decide(&user);
        let mut allowed = false;
        self.stay.send_if_modified(|stay| {
            let Some(stay) = stay else { return false };
            let before = stay.state.poll_timeout();
            stay.state.handle_decision(Instant::now(), unix_now(), &decision);
            allowed = stay.state.end().is_none();
            !allowed || stay.state.poll_timeout() != before
        });
        allowed
    }

    /// Waits until a peer that was let in may stay no longer. Cancel safe; never before a login.
    pub async fn ended(&self) -> AdmissionEnd {
        let mut changes = self.stay.subscribe();
        loop {
            let (end, timeout) = match &*changes.borrow_and_update() {
                None => (None, None),
                Some(stay) => (stay.state.end().cloned(), stay.state.poll_timeout()),
            };
            if let Some(end) = end {
                return end;
            }
            let due = async {
                match timeout {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // The sender is `self`'s: this fails never.
                _ = changes.changed() => {}
                () = due => {
                    self.check();
                }
            }
        }
    }

    /// Waits until the peer is let in. Cancel safe.
    pub async fn logged_in(&self) {
        // The sender is `self`'s: this fails never.
        let _ = self.stay.subscribe().wait_for(Option::is_some).await;
    }
}
