//! The cases of Go's `TestMatchRule` and `TestEvalSSHPolicy` (`ssh/tailssh/tailssh_test.go`) as data, with `accept` where
//! Go's have an empty action, and our own.

use super::*;

/// Name, policy, user asked for, and what comes out: `Ok(local user)` or the words of the refusal.
type Case = (&'static str, &'static str, &'static str, Result<&'static str, Rejection>);

fn peer() -> PrincipalFacts {
    PrincipalFacts {
        stable_id: "some-node-ID".into(),
        addresses: vec!["1.2.3.4".parse().unwrap(), "fd7a:115c:a1e0::1".parse().unwrap()],
        login_name: Some("foo@bar.com".into()),
    }
}

fn parse(policy: &str) -> Option<SshPolicy> {
    serde_json::from_str(policy).unwrap()
}

fn outcome(policy: &str, peer: &PrincipalFacts, user: &str) -> Result<String, Rejection> {
    let policy = parse(policy);
    match evaluate(policy.as_ref(), peer, user, 1000) {
        Decision::Accept(acceptance) => Ok(acceptance.local_user),
        Decision::Reject(rejection) => Err(rejection),
    }
}

#[test]
fn the_go_tables() {
    let cases: &[Case] = &[
        ("no-policy", "null", "alice", Err(Rejection::NoPolicy)),
        ("nil-rule", r#"{"rules":[null]}"#, "alice", Err(Rejection::NoRule)),
        (
            "nil-action",
            r#"{"rules":[{"principals":[{"any":true}],"sshUsers":{"*":"ubuntu"}}]}"#,
            "alice",
            Err(Rejection::NoRule),
        ),
        (
            "expired",
            r#"{"rules":[{"action":{"accept":true},"ruleExpires":"1970-01-01T00:01:40Z","principals":[{"any":true}],"sshUsers":{"*":"ubuntu"}}]}"#,
            "alice",
            Err(Rejection::NoRule),
        ),
        (
            "no-principal",
            r#"{"rules":[{"action":{"accept":true},"sshUsers":{"*":"ubuntu"}}]}"#,
            "alice",
            Err(Rejection::NoRule),
        ),
        (
            "no-user-match",
            r#"{"rules":[{"action":{"accept":true},"principals":[{"any":true}]}]}"#,
            "alice",
            Err(Rejection::NoUser),
        ),
        (
            "ok-wildcard",
            r#"{"rules":[{"action":{"accept":true},"principals":[{"any":true}],"sshUsers":{"*":"ubuntu"}}]}"#,
            "alice",
            Ok("ubuntu"),
        ),
        (
            "ok-wildcard-and-nil-principal",
            r#"{"rules":[{"action":{"accept":true},"principals":[null,{"any":true}],"sshUsers":{"*":"ubuntu"}}]}"#,
            "alice",
            Ok("ubuntu"),
        ),
        (
            "ok-exact",
            r#"{"rules":[{"action":{"accept":true},"principals":[{"any":true}],"sshUsers":{"*":"ubuntu","alice":"thealice"}}]}"#,
            "alice",
            Ok("thealice"),
        ),
        (
            "no-users-for-reject",
            r#"{"rules":[{"action":{"reject":true},"principals":[{"any":true}]}]}"#,
            "alice",
            Err(Rejection::Refused(String::new())),
        ),
        (
            "match-principal-node-ip",
            r#"{"rules":[{"action":{"accept":true},"principals":[{"nodeIP":"1.2.3.4"}],"sshUsers":{"*":"ubuntu"}}]}"#,
            "alice",
            Ok("ubuntu"),
        ),
        (
            "match-principal-node-id",
            r#"{"rules":[{"action":{"accept":true},"principals":[{"node":"some-node-ID"}],"sshUsers":{"*":"ubuntu"}}]}"#,
            "alice",
            Ok("ubuntu"),
        ),
        (
            "match-principal-userlogin",
            r#"{"rules":[{"action":{"accept":true},"principals":[{"userLogin":"foo@bar.com"}],"sshUsers":{"*":"ubuntu"}}]}"#,
            "alice",
            Ok("ubuntu"),
        ),
        (
            "ssh-user-equal",
            r#"{"rules":[{"action":{"accept":true},"principals":[{"any":true}],"sshUsers":{"*":"="}}]}"#,
            "alice",
            Ok("alice"),
        ),
        (
            "multiple-matches-picks-first-match",
            r#"{"rules":[
                {"action":{"accept":true},"principals":[{"any":true}],"sshUsers":{"other":"other1"}},
                {"action":{"accept":true},"principals":[{"any":true}],"sshUsers":{"*":"ubuntu","alice":"thealice"}},
                {"action":{"accept":true},"principals":[{"any":true}],"sshUsers":{"*":"ubuntu","alice":"another"}}]}"#,
            "alice",
            Ok("thealice"),
        ),
        ("no-matches-returns-rejected", r#"{"rules":[]}"#, "alice", Err(Rejection::NoRule)),
        (
            "no-user-matches-returns-rejected-user",
            r#"{"rules":[
                {"action":{"accept":true},"principals":[{"any":true}],"sshUsers":{"other":"other1"}},
                {"action":{"accept":true},"principals":[{"any":true}],"sshUsers":{"fedora":"ubuntu"}}]}"#,
            "alice",
            Err(Rejection::NoUser),
        ),
    ];
    for (name, policy, user, wanted) in cases {
        assert_eq!(outcome(policy, &peer(), user), wanted.clone().map(str::to_owned), "{name}");
    }
}

#[test]
fn what_cannot_be_honoured_is_refused() {
    let rule = |action: &str| {
        format!(r#"{{"rules":[{{"action":{action},"principals":[{{"any":true}}],"sshUsers":{{"*":"="}}}}]}}"#)
    };
    for (action, wanted) in [
        (r#"{"holdAndDelegate":"https://control/x"}"#, Rejection::Hold),
        (r#"{"accept":true,"holdAndDelegate":"https://control/x"}"#, Rejection::Hold),
        (r#"{"accept":true,"recorders":["100.64.0.9:80"]}"#, Rejection::Recording),
        (r#"{"accept":true,"onRecordingFailure":{"RejectSessionWithMessage":"no"}}"#, Rejection::Recording),
        (r#"{"accept":true,"reject":true,"message":"go\u001b[31m away"}"#, Rejection::Refused("go[31m away".into())),
        ("{}", Rejection::NoVerdict),
    ] {
        assert_eq!(outcome(&rule(action), &peer(), "alice"), Err(wanted), "{action}");
    }
}

#[test]
fn users_that_map_to_nothing_go_on_to_the_next_rule() {
    let headscale =
        r#"{"rules":[{"action":{"accept":true},"principals":[{"nodeIP":"1.2.3.4"}],"sshUsers":{"*":"=","root":""}}]}"#;
    assert_eq!(outcome(headscale, &peer(), "alice"), Ok("alice".into()));
    assert_eq!(outcome(headscale, &peer(), "root"), Err(Rejection::NoUser));

    let later = r#"{"rules":[
        {"action":{"accept":true},"principals":[{"any":true}],"sshUsers":{"root":"","*":"="}},
        {"action":{"accept":true},"principals":[{"any":true}],"sshUsers":{"root":"root"}}]}"#;
    assert_eq!(outcome(later, &peer(), "root"), Ok("root".into()));
    let equal = r#"{"rules":[{"action":{"accept":true},"principals":[{"any":true}],"sshUsers":{"*":"="}}]}"#;
    assert_eq!(outcome(equal, &peer(), "root"), Err(Rejection::NoUser));
    assert_eq!(outcome(equal, &peer(), ""), Err(Rejection::NoUser));
}

#[test]
fn an_empty_fact_matches_no_empty_principal() {
    let policy = r#"{"rules":[{"action":{"accept":true},"principals":[{"node":"","nodeIP":"","userLogin":""},{"nodeIP":"bad"}],"sshUsers":{"*":"x"}}]}"#;
    assert_eq!(outcome(policy, &PrincipalFacts::default(), "alice"), Err(Rejection::NoRule));
    let tagged = PrincipalFacts { login_name: None, ..peer() };
    let by_login =
        r#"{"rules":[{"action":{"accept":true},"principals":[{"userLogin":"foo@bar.com"}],"sshUsers":{"*":"x"}}]}"#;
    assert_eq!(outcome(by_login, &tagged, "alice"), Err(Rejection::NoRule));
}

#[test]
fn duration_message_and_expiry_come_along() {
    let policy = r#"{"rules":[{"ruleExpires":"1970-01-01T00:20:00Z","action":{"accept":true,"message":"hi\u0007","sessionDuration":60000000000},
        "principals":[{"any":true}],"sshUsers":{"*":"x"}}]}"#;
    let policy: SshPolicy = serde_json::from_str(policy).unwrap();
    let wanted = Acceptance {
        local_user: "x".into(),
        session_duration: Some(Duration::from_secs(60)),
        message: "hi".into(),
        expires: Some(1200),
    };
    assert_eq!(evaluate(Some(&policy), &peer(), "y", 1000), Decision::Accept(wanted));
    assert_eq!(evaluate(Some(&policy), &peer(), "y", 1201), Decision::Reject(Rejection::NoRule));
}
