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

/// One case for each sentence of the reference (`tailscale-protocol.md` §6.1) that the tables above don't have. All are
/// asked at second 1000; `RULE` stands for what every rule of a case shares.
#[test]
fn each_sentence_of_the_reference() {
    const ACCEPT: &str = r#"{"accept":true}"#;
    const REJECT: &str = r#"{"reject":true,"message":"not you"}"#;
    const ANY: &str = r#"{"any":true}"#;
    let rule = |action: &str, principal: &str, users: &str, more: &str| {
        format!(r#"{{"action":{action},"principals":[{principal}],"sshUsers":{users}{more}}}"#)
    };
    let policy = |rules: &[String]| format!(r#"{{"rules":[{}]}}"#, rules.join(","));
    let everyone = rule(ACCEPT, ANY, r#"{"*":"="}"#, "");
    let refused = || Err(Rejection::Refused("not you".into()));
    type SentenceCase = (&'static str, Vec<String>, &'static str, Result<&'static str, Rejection>);
    let cases: &[SentenceCase] = &[
        (
            "the first match wins: reject before accept",
            vec![rule(REJECT, ANY, "{}", ""), everyone.clone()],
            "alice",
            refused(),
        ),
        (
            "the first match wins: accept before reject",
            vec![everyone.clone(), rule(REJECT, ANY, "{}", "")],
            "alice",
            Ok("alice"),
        ),
        (
            "a reject needs no user mapping, even one for others",
            vec![rule(REJECT, ANY, r#"{"bob":"bob"}"#, ""), everyone.clone()],
            "alice",
            refused(),
        ),
        (
            "a reject about others is skipped",
            vec![rule(REJECT, r#"{"nodeIP":"9.9.9.9"}"#, "{}", ""), everyone.clone()],
            "alice",
            Ok("alice"),
        ),
        (
            "an expired reject is skipped",
            vec![rule(REJECT, ANY, "{}", r#","ruleExpires":"1970-01-01T00:16:39Z""#), everyone.clone()],
            "alice",
            Ok("alice"),
        ),
        (
            "a rule counts through its last second",
            vec![rule(ACCEPT, ANY, r#"{"*":"="}"#, r#","ruleExpires":"1970-01-01T00:16:40Z""#)],
            "alice",
            Ok("alice"),
        ),
        (
            "a rule without an expiry counts for ever",
            vec![rule(ACCEPT, ANY, r#"{"*":"="}"#, r#","ruleExpires":null"#)],
            "alice",
            Ok("alice"),
        ),
        (
            "null rules and null actions are skipped",
            vec!["null".into(), rule("null", ANY, r#"{"*":"="}"#, ""), everyone.clone()],
            "alice",
            Ok("alice"),
        ),
        (
            "an exact key hides *, even where it is empty",
            vec![rule(ACCEPT, ANY, r#"{"alice":"","*":"x"}"#, "")],
            "alice",
            Err(Rejection::NoUser),
        ),
        (
            "the key = is a name like any other",
            vec![rule(ACCEPT, ANY, r#"{"=":"x"}"#, "")],
            "alice",
            Err(Rejection::NoUser),
        ),
        ("= maps to the same name", vec![rule(ACCEPT, ANY, r#"{"alice":"="}"#, "")], "alice", Ok("alice")),
        (
            "= is never root, by its own key either",
            vec![rule(ACCEPT, ANY, r#"{"root":"="}"#, "")],
            "root",
            Err(Rejection::NoUser),
        ),
        ("root by name is", vec![rule(ACCEPT, ANY, r#"{"root":"root"}"#, "")], "root", Ok("root")),
        ("another name for root is", vec![rule(ACCEPT, ANY, r#"{"alice":"root"}"#, "")], "alice", Ok("root")),
        ("names differ by case", vec![rule(ACCEPT, ANY, r#"{"Alice":"x"}"#, "")], "alice", Err(Rejection::NoUser)),
        (
            "a node by its id alone",
            vec![rule(ACCEPT, r#"{"node":"some-node-ID","nodeIP":"9.9.9.9","userLogin":"x@y"}"#, r#"{"*":"="}"#, "")],
            "alice",
            Ok("alice"),
        ),
        (
            "a node by its address alone",
            vec![rule(ACCEPT, r#"{"node":"other","nodeIP":"1.2.3.4","userLogin":"x@y"}"#, r#"{"*":"="}"#, "")],
            "alice",
            Ok("alice"),
        ),
        (
            "a node by its other address",
            vec![rule(ACCEPT, r#"{"nodeIP":"fd7a:115c:a1e0::1"}"#, r#"{"*":"="}"#, "")],
            "alice",
            Ok("alice"),
        ),
        (
            "a node by its owner alone",
            vec![rule(ACCEPT, r#"{"node":"other","userLogin":"foo@bar.com"}"#, r#"{"*":"="}"#, "")],
            "alice",
            Ok("alice"),
        ),
        (
            "a network is no address",
            vec![rule(ACCEPT, r#"{"nodeIP":"1.2.3.0/24"}"#, r#"{"*":"="}"#, "")],
            "alice",
            Err(Rejection::NoRule),
        ),
        (
            "owners differ by case",
            vec![rule(ACCEPT, r#"{"userLogin":"FOO@bar.com"}"#, r#"{"*":"="}"#, "")],
            "alice",
            Err(Rejection::NoRule),
        ),
        (
            "a later principal of the same rule",
            vec![rule(ACCEPT, r#"{"nodeIP":"9.9.9.9"},{"node":"some-node-ID"}"#, r#"{"*":"="}"#, "")],
            "alice",
            Ok("alice"),
        ),
        (
            "any before all",
            vec![rule(ACCEPT, r#"{"any":true,"node":"other"}"#, r#"{"*":"="}"#, "")],
            "alice",
            Ok("alice"),
        ),
        (
            "any that is false is nobody",
            vec![rule(ACCEPT, r#"{"any":false}"#, r#"{"*":"="}"#, "")],
            "alice",
            Err(Rejection::NoRule),
        ),
        (
            "acceptEnv changes nothing: nothing is passed on",
            vec![rule(ACCEPT, ANY, r#"{"*":"="}"#, r#","acceptEnv":["*"]"#)],
            "alice",
            Ok("alice"),
        ),
        (
            "forwarding that a rule grants is of no use here, and no fault",
            vec![rule(
                r#"{"accept":true,"allowAgentForwarding":true,"allowLocalPortForwarding":true,"allowRemotePortForwarding":true}"#,
                ANY,
                r#"{"*":"="}"#,
                "",
            )],
            "alice",
            Ok("alice"),
        ),
        (
            "a hold that matches first isn't passed over",
            vec![rule(r#"{"holdAndDelegate":"https://x/"}"#, ANY, r#"{"*":"="}"#, ""), everyone.clone()],
            "alice",
            Err(Rejection::Hold),
        ),
        (
            "a hold about another user is",
            vec![rule(r#"{"holdAndDelegate":"https://x/"}"#, ANY, r#"{"bob":"="}"#, ""), everyone],
            "alice",
            Ok("alice"),
        ),
        (
            "recorders that fail open are refused, too",
            vec![rule(
                r#"{"accept":true,"recorders":["100.64.0.9:80"],"onRecordingFailure":null}"#,
                ANY,
                r#"{"*":"="}"#,
                "",
            )],
            "alice",
            Err(Rejection::Recording),
        ),
        (
            "fields of a later Tailscale are no fault",
            vec![rule(r#"{"accept":true,"newField":1}"#, ANY, r#"{"*":"="}"#, r#","another":[]"#)],
            "alice",
            Ok("alice"),
        ),
    ];
    for (name, rules, user, wanted) in cases {
        assert_eq!(outcome(&policy(rules), &peer(), user), wanted.clone().map(str::to_owned), "{name}");
    }
}

#[test]
fn words_for_the_client_say_what_to_do() {
    for (rejection, word) in [
        (Rejection::UnknownNode, "netmap"),
        (Rejection::Renumbered("100.64.0.1".parse().unwrap()), "connect again"),
        (Rejection::Filtered, "`acls`"),
        (Rejection::NoPolicy, "add an `ssh` rule"),
        (Rejection::NoRule, "must come first"),
        (Rejection::NoUser, "ask for a user"),
        (Rejection::OtherLocalUser("builder".into()), "maps to builder"),
        (Rejection::Hold, "use `accept`"),
        (Rejection::Recording, "remove `recorder`"),
    ] {
        let words = rejection.to_string();
        assert!(words.contains(word) && !words.contains('\n'), "{words}");
    }
}

#[test]
fn whom_rules_name_stands_for_everybody() {
    let policy = r#"{"rules":[null,
        {"action":{"accept":true},"principals":[{"any":true}],"sshUsers":{"a":"x","*":"y"}},
        {"action":{"accept":true},"principals":[{"nodeIP":"9.9.9.9"}],"sshUsers":{"others":"z"}},
        {"action":{"accept":true},"ruleExpires":"1970-01-01T00:00:10Z","principals":[{"any":true}],"sshUsers":{"old":"z"}},
        {"action":{"accept":true},"principals":[{"node":"some-node-ID"}],"sshUsers":{"b":"="}}]}"#;
    let policy = parse(policy).unwrap();
    assert_eq!(named_users(&policy, &peer(), 1000).into_iter().collect::<Vec<_>>(), ["*", "a", "b"]);
    // Whoever isn't named is mapped as `*` is.
    let as_user = |user: &str| evaluate(Some(&policy), &peer(), user, 1000);
    assert_eq!(as_user("*"), as_user("somebody"));
}

proptest::proptest! {
    /// The first rule that matches decides; so rules behind it change nothing, and rules about others before it neither.
    #[test]
    fn order_is_all(before in 0_usize..4, behind in 0_usize..4) {
        let other = r#"{"action":{"reject":true},"principals":[{"nodeIP":"9.9.9.9"}],"sshUsers":{"*":"z"}}"#;
        let this = r#"{"action":{"accept":true},"principals":[{"any":true}],"sshUsers":{"*":"x"}}"#;
        let late = r#"{"action":{"reject":true},"principals":[{"any":true}]}"#;
        let rules = [vec![other; before], vec![this], vec![late; behind]].concat();
        let policy = format!(r#"{{"rules":[{}]}}"#, rules.join(","));
        proptest::prop_assert_eq!(outcome(&policy, &peer(), "alice"), Ok("x".to_owned()));
    }
}
