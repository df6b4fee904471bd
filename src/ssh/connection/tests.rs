use std::sync::atomic::AtomicBool;

use nixtail_proto::key::NodePublic;
use nixtail_proto::nix_command::ControlRequest;
use nixtail_proto::ssh_policy::PrincipalFacts;

use super::*;
use crate::nix::spawn::ChildSpec;
use crate::ssh::{AllowedCommands, ControlReply, ControlVerbs, EndpointConfig, HostKey, Limits};

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
    let nothing = || ChildSpec::new("/nonexistent", [""; 0]);
    let endpoint = Endpoint::new(EndpointConfig {
        host_key: HostKey::generate(&mut rand::rng()).unwrap(),
        login: "builder".to_owned(),
        authorizer: Arc::new(move |_: &Peer, user: &str| {
            if policy.load(Ordering::Relaxed) {
                Decision::Accept(acceptance(user))
            } else {
                Decision::Reject(Rejection::NoUser)
            }
        }),
        commands: AllowedCommands { daemon: nothing(), serve: nothing(), published_store: None },
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
    // A change of the policy doesn't end a connection that is about to log in.
    assert!(connection.check_policy());
    assert_eq!(connection.chosen_end(), None);
    connection.logged_in("builder", &acceptance("builder"));
    assert!(connection.may_run());
}

#[test]
fn nothing_runs_once_the_connection_is_to_end() {
    let (connection, _) = connection();
    connection.logged_in("builder", &acceptance("builder"));
    connection.end(ConnectionEnd::Refused("no".to_owned()));
    assert!(!connection.may_run());
}

#[test]
fn nothing_runs_after_the_policy_changed_its_mind() {
    let (connection, allowed) = connection();
    connection.logged_in("builder", &acceptance("builder"));
    allowed.store(false, Ordering::Relaxed);
    assert!(!connection.may_run());
    assert_eq!(connection.chosen_end(), Some(ConnectionEnd::Revoked));
    allowed.store(true, Ordering::Relaxed);
    assert!(!connection.may_run());
}
