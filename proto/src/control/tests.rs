use std::time::{Duration, Instant};

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::json;

use super::*;
use crate::tailcfg::{PingRequest, PingResponse, RegisterResponse, Timestamp};

const CLOCK: Timestamp = Timestamp::from_unix(1_700_000_000);

fn rng() -> StdRng {
    StdRng::seed_from_u64(1)
}

/// An instant that is the same in all of a test.
fn start() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
    Instant::now()
}

#[test]
fn register_answers_in_the_order_of_go() {
    let of = |json| register_outcome(serde_json::from_value::<RegisterResponse>(json).unwrap());
    assert_eq!(
        of(json!({"Error": "invalid\nkey", "NodeKeyExpired": true, "AuthURL": "http://x"})),
        RegisterOutcome::Refused { reason: "invalid key".to_owned() }
    );
    assert_eq!(of(json!({"NodeKeyExpired": true, "AuthURL": "http://x"})), RegisterOutcome::NodeKeyExpired);
    assert_eq!(of(json!({"AuthURL": "http://x"})), RegisterOutcome::NeedsLogin { url: "http://x".to_owned() });
    assert_eq!(of(json!({"NodeKeySignature": "AQI=", "NodeKeyExpired": true})), RegisterOutcome::NeedsSignature);
    assert!(matches!(
        of(json!({"NodeKeySignature": null})),
        RegisterOutcome::Registered { machine_authorized: false, .. }
    ));
}

#[test]
fn a_login_page_is_a_url_that_can_be_shown() {
    let of = |url: &str| register_outcome(RegisterResponse { auth_url: url.to_owned(), ..RegisterResponse::default() });
    let long = format!("https://login.example/a/{}", "x".repeat(1000));
    assert_eq!(of(&long), RegisterOutcome::NeedsLogin { url: long.clone() }, "whole, or it leads nowhere");
    for url in ["javascript:alert(1)", "https://x/\u{1b}[2J", "https://x/a b", "https://ü", &long.repeat(3)] {
        assert_eq!(of(url), RegisterOutcome::BadLoginUrl, "{url}");
    }
}

#[test]
fn statuses_mean_what_to_do() {
    let judge = |status, after: Option<&str>| judge_status(status, after, b"why\x07", CLOCK, &mut rng());
    assert_eq!(judge(200, None), Ok(()));
    assert_eq!(judge(404, None), Err(AnswerError::NotRegistered));
    assert_eq!(judge(429, Some("7")), Err(AnswerError::Later(Duration::from_secs(7))));
    for after in [None, Some("soon"), Some("3601"), Some("0"), Some("-1"), Some("99999999999999999999")] {
        let Err(AnswerError::Later(wait)) = judge(503, after) else { panic!("{after:?}") };
        assert!((5..=10).contains(&wait.as_secs()), "{after:?}: {wait:?}");
    }
    assert_eq!(judge(401, None), Err(AnswerError::Refused { status: 401, text: "why ".to_owned() }));
    assert_eq!(judge(500, None), Err(AnswerError::Failed { status: 500, text: "why ".to_owned() }));
}

#[test]
fn waits_double_to_a_limit() {
    let (mut backoff, mut rng) = (Backoff::default(), rng());
    for most in [250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000] {
        let wait = backoff.next(&mut rng).as_millis();
        assert!((most / 2..=most).contains(&wait), "{wait} of {most}");
    }
    for _ in 0..100 {
        assert!(backoff.next(&mut rng) <= Duration::from_secs(30));
    }
    backoff.reset();
    assert!(backoff.next(&mut rng) <= Duration::from_millis(250));
}

fn c2n(request: &str) -> String {
    use base64::Engine;
    let payload = base64::engine::general_purpose::STANDARD.encode(request);
    match answer_ping(&PingRequest { types: "c2n".to_owned(), payload, ..PingRequest::default() }) {
        PingAnswer::Posts(mut answers) => String::from_utf8(answers.pop().unwrap()).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn echo_is_answered_and_the_rest_is_not_found() {
    assert_eq!(
        c2n("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"),
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nhi"
    );
    assert!(c2n("GET /update HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
    assert!(c2n("nonsense").starts_with("HTTP/1.1 400 "));
    assert!(c2n("\r\n\r\n").starts_with("HTTP/1.1 404 "));
    assert_eq!(answer_ping(&PingRequest::default()), PingAnswer::Head);
    let disco = PingRequest { types: "disco".to_owned(), ..PingRequest::default() };
    let PingAnswer::Posts(answers) =
        answer_ping(&PingRequest { types: "disco,TSMP,new".to_owned(), ip: "100.64.0.2".to_owned(), ..disco })
    else {
        panic!()
    };
    let answers: Vec<PingResponse> = answers.iter().map(|answer| serde_json::from_slice(answer).unwrap()).collect();
    assert_eq!(answers.iter().map(|answer| answer.kind.as_str()).collect::<Vec<_>>(), ["disco", "TSMP"]);
    assert!(answers.iter().all(|answer| answer.ip == "100.64.0.2" && !answer.err.is_empty()));
}

#[test]
fn lengths_that_no_message_has_are_refused() {
    for (header, len) in [([0, 0, 0, 0], 0), ([1, 0, 0, 4], MAX_WIRE_MESSAGE + 1)] {
        let mut frames = MapFrames::default();
        frames.handle_bytes(&header);
        assert_eq!(frames.poll_message(), Err(FrameError(len)));
    }
}

proptest! {
    #[test]
    fn messages_come_out_whole_in_any_cut(messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..10), cut in 1_usize..40) {
        let mut wire = Vec::new();
        for message in &messages {
            write_frame(message, &mut wire);
        }
        let (mut frames, mut out) = (MapFrames::default(), Vec::new());
        for part in wire.chunks(cut) {
            frames.handle_bytes(part);
            while let Some(message) = frames.poll_message().unwrap() {
                out.push(message.to_vec());
            }
        }
        prop_assert_eq!(out, messages);
    }
}

#[test]
fn a_session_keeps_its_netmap_over_streams() {
    let now = start();
    let mut session = MapSession::default();
    session.handle_stream_opened(now);
    assert_eq!(session.poll_timeout(), Some(now + WATCHDOG));
    assert!(session.handle_message(CLOCK, b"{}").is_err(), "the first must have our node");
    assert!(session.handle_message(CLOCK, b"not json").is_err());
    let full = br#"{"Node":{"ID":1,"Name":"a."},"Peers":[{"ID":2,"KeyExpiry":"2024-01-01T00:00:00Z",
        "Key":"nodekey:0101010101010101010101010101010101010101010101010101010101010101"}]}"#;
    let changes = session.handle_message(CLOCK, full).unwrap().changes.unwrap();
    assert_eq!((changes.added, changes.self_node), (vec![2], true));
    assert!(session.handle_message(CLOCK, full).unwrap().changes.is_none(), "nothing new");

    session.handle_stream_closed();
    assert_eq!(session.poll_timeout(), None);
    session.handle_stream_opened(now);
    assert!(session.handle_message(CLOCK, br#"{"PeersRemoved":[2]}"#).is_err(), "a new stream begins anew");
    assert_eq!(session.netmap().map(|netmap| netmap.peers.len()), Some(1), "and until then the old netmap holds");
    session.handle_message(CLOCK, full).unwrap();
    let later = Timestamp::from_unix(CLOCK.unix() + 400 * 86_400);
    let changes = session.handle_clock(later).unwrap();
    assert_eq!(changes.removed_keys.len(), 1, "its key has ended meanwhile");
}

#[test]
fn pings_ride_on_keep_alives_and_come_once() {
    let mut session = MapSession::default();
    session.handle_stream_opened(start());
    let message = br#"{"KeepAlive":true,"PingRequest":{"URL":"https://x/1","Types":"c2n"}}"#;
    assert!(session.handle_message(CLOCK, message).unwrap().ping.is_some());
    assert!(session.handle_message(CLOCK, message).unwrap().ping.is_none());
}

#[test]
fn a_url_to_open_rides_on_keep_alives_and_comes_once() {
    let mut session = MapSession::default();
    session.handle_stream_opened(start());
    let mut open = |json: &[u8]| session.handle_message(CLOCK, json).unwrap().open_url;
    let message = br#"{"KeepAlive":true,"PopBrowserURL":"https://x/\u0007a"}"#;
    assert_eq!(open(message).as_deref(), Some("https://x/ a"));
    assert_eq!(open(message), None);
    assert_eq!(open(br#"{"KeepAlive":true,"PopBrowserURL":"https://x/b"}"#).as_deref(), Some("https://x/b"));
}

#[test]
fn control_s_clock_counts_on_keep_alives() {
    let mut session = MapSession::default();
    session.handle_stream_opened(start());
    let full = br#"{"Node":{"ID":1,"Name":"a."},"Peers":[{"ID":2,"KeyExpiry":"2023-12-01T00:00:00Z",
        "Key":"nodekey:0101010101010101010101010101010101010101010101010101010101010101"}]}"#;
    session.handle_message(CLOCK, full).unwrap();
    let ahead = br#"{"KeepAlive":true,"ControlTime":"2024-01-01T00:00:00Z"}"#;
    let changes = session.handle_message(CLOCK, ahead).unwrap().changes.unwrap();
    assert_eq!(changes.removed_keys.len(), 1, "by control's clock its key has ended");
}

#[test]
fn the_newest_update_wins_and_one_is_in_flight() {
    let now = start();
    let mut updates = LiteUpdates::default();
    assert_eq!(updates.poll_request(now), None);
    updates.handle_wanted(1);
    assert_eq!(updates.poll_request(now), Some(1));
    updates.handle_wanted(2);
    updates.handle_wanted(3);
    assert_eq!(updates.poll_request(now), None, "one is in flight");
    updates.handle_failed(now, Duration::ZERO, &mut rng());
    let at = updates.poll_timeout().unwrap();
    assert!(at > now);
    assert_eq!(updates.poll_request(now), None, "not yet");
    assert_eq!(updates.poll_request(at), Some(3));
    updates.handle_done();
    updates.handle_wanted(3);
    assert_eq!(updates.poll_request(at), None, "control knows it");
    updates.handle_wanted(4);
    assert_eq!(updates.poll_request(at), Some(4));
    let least = Duration::from_secs(600);
    updates.handle_failed(at, least, &mut rng());
    assert!(updates.poll_timeout().is_some_and(|again| again >= at + least), "tried again, when control wants it");
}
