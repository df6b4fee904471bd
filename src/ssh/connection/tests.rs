use std::sync::atomic::AtomicBool;

use nixtail_proto::key::NodePublic;
use nixtail_proto::nix_command::ControlRequest;
use nixtail_proto::ssh_policy::{Decision, PrincipalFacts};

use super::*;
use crate::nix::spawn::ChildSpec;
use crate::ssh::{AdmissionControl, AllowedCommands, ControlReply, ControlVerbs, EndpointConfig, HostKey, Limits};

struct NoVerbs;

impl ControlVerbs for NoVerbs {
    fn answer(
        &self,
        _peer: &Peer,
        _request: ControlRequest,
    ) -> std::pin::Pin<Box<dyn Future<Output = ControlReply> + Send + '_>> {
        Box::pin(async { ControlReply::default() })
    }
}

/// A connection to an endpoint of the user `builder`, and what its policy says.
fn connection() -> (Connection, Arc<AtomicBool>) {
    let allowed = Arc::new(AtomicBool::new(true));
    let policy = Arc::clone(&allowed);
    let authorizer = move |_: &Peer, user: &str| {
        if policy.load(Ordering::Relaxed) {
            Decision::Accept(acceptance(user))
        } else {
            Decision::Reject(Rejection::NoUser)
        }
    };
    let nothing = || ChildSpec::new("/nonexistent", [""; 0]);
    let endpoint = Endpoint::new(EndpointConfig {
        host_key: HostKey::generate(&mut rand::rng()).unwrap(),
        admission: AdmissionControl::new("builder", Arc::new(authorizer)),
        commands: AllowedCommands { daemon: nothing(), serve: nothing(), published_store: None },
        sessions: Default::default(),
        control: Arc::new(NoVerbs),
        limits: Limits::default(),
    });
    let peer = Peer {
        node_key: NodePublic::from_bytes([1; 32]),
        name: "peer".to_owned(),
        facts: PrincipalFacts::default(),
        source: ([100, 64, 0, 2], 1000).into(),
    };
    (Connection::new(endpoint, peer), allowed)
}

fn acceptance(user: &str) -> Acceptance {
    Acceptance { local_user: user.to_owned(), message: String::new(), session_duration: None, expires: None }
}

#[test]
fn nothing_runs_for_who_is_not_logged_in() {
    let (connection, _) = connection();
    assert!(!connection.may_run());
    assert!(connection.log_in("other").is_err());
    assert!(!connection.may_run());
    // The suffix that asks to be asked for a password is no part of the name.
    connection.log_in("builder+password").unwrap();
    assert!(connection.may_run());
}

#[test]
fn nothing_runs_once_the_connection_is_to_end() {
    let (connection, _) = connection();
    connection.log_in("builder").unwrap();
    connection.end(ConnectionEnd::Refused("no".to_owned()));
    assert!(!connection.may_run());
}
