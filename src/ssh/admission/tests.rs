use std::time::Duration;

use super::*;

type Policy = Arc<Mutex<Decision>>;

fn peer() -> Peer {
    Peer {
        node_key: NodePublic::from_bytes([1; 32]),
        name: "peer".to_owned(),
        facts: PrincipalFacts::default(),
        source: ([100, 64, 0, 2], 1000).into(),
    }
}

fn accepted(session_duration: Option<Duration>, expires: Option<i64>) -> Decision {
    Decision::Accept(Acceptance { local_user: "builder".into(), session_duration, message: String::new(), expires })
}

fn control(first: Decision) -> (Arc<AdmissionControl>, Policy) {
    let policy: Policy = Arc::new(Mutex::new(first));
    let seen = Arc::clone(&policy);
    let authorizer = move |_: &Peer, _: &str| lock(&seen).clone();
    (AdmissionControl::new("builder", Arc::new(authorizer)), policy)
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what).await.unwrap()
}

async fn not_yet<T: std::fmt::Debug>(what: impl Future<Output = T>) {
    let early = tokio::time::timeout(Duration::from_millis(50), what).await;
    assert!(early.is_err(), "{early:?}");
}

#[tokio::test]
async fn nobody_is_in_before_a_login() {
    let (control, policy) = control(accepted(None, None));
    let admission = control.begin(peer());
    assert!(!admission.check());
    not_yet(admission.logged_in()).await;
    // A change of the policy doesn't end what has yet to begin.
    *lock(&policy) = Decision::Reject(Rejection::NoRule);
    control.policy_changed();
    not_yet(admission.ended()).await;
    assert_eq!(admission.log_in("builder"), Err(Rejection::NoRule));
    assert_eq!((admission.user(), admission.check()), (None, false));

    *lock(&policy) = accepted(None, None);
    assert!(admission.log_in("builder").is_ok());
    soon(admission.logged_in()).await;
    assert_eq!((admission.user().as_deref(), admission.check()), (Some("builder"), true));
}

#[tokio::test]
async fn a_change_ends_each_stay_that_it_forbids_and_for_good() {
    let (control, policy) = control(accepted(None, None));
    let stays = [control.begin(peer()), control.begin(peer())];
    for stay in &stays {
        stay.log_in("builder").unwrap();
    }
    control.policy_changed();
    not_yet(stays[0].ended()).await;
    *lock(&policy) = Decision::Reject(Rejection::NoUser);
    control.policy_changed();
    *lock(&policy) = accepted(None, None);
    for stay in &stays {
        assert_eq!(soon(stay.ended()).await, AdmissionEnd::Revoked(Rejection::NoUser));
        assert!(!stay.check());
    }
}

#[tokio::test]
async fn a_new_session_sees_the_policy_of_the_moment_without_being_told() {
    let (control, policy) = control(accepted(None, None));
    let admission = control.begin(peer());
    admission.log_in("builder").unwrap();
    *lock(&policy) = Decision::Reject(Rejection::Hold);
    assert!(!admission.check());
    assert_eq!(soon(admission.ended()).await, AdmissionEnd::Revoked(Rejection::Hold));
}

#[tokio::test]
async fn the_duration_is_waited_for_and_follows_the_policy() {
    let (control, policy) = control(accepted(None, None));
    let admission = control.begin(peer());
    admission.log_in("builder").unwrap();
    not_yet(admission.ended()).await;
    *lock(&policy) = accepted(Some(Duration::from_nanos(1)), None);
    control.policy_changed();
    assert_eq!(soon(admission.ended()).await, AdmissionEnd::DurationOver);
}

#[tokio::test]
async fn an_expired_rule_is_noticed_while_waiting() {
    let (control, policy) = control(accepted(None, Some(unix_now())));
    let admission = control.begin(peer());
    admission.log_in("builder").unwrap();
    *lock(&policy) = Decision::Reject(Rejection::NoRule);
    assert_eq!(soon(admission.ended()).await, AdmissionEnd::Revoked(Rejection::NoRule));
}

#[tokio::test]
async fn a_peer_that_is_served_no_more_is_forgotten() {
    let (control, _policy) = control(accepted(None, None));
    for _ in 0..10 {
        drop(control.begin(peer()));
    }
    let kept = control.begin(peer());
    assert_eq!(lock(&control.inside).len(), 1);
    drop(kept);
}
