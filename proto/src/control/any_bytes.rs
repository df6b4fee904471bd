//! What strangers may send: each decoder of control's answers with anything, and with good ones that were tampered with. The short
//! form of `make fuzz`, whose targets are in `fuzz/`.

use std::time::Instant;

use proptest::prelude::*;
use proptest::sample::Index;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::tailcfg::{PingRequest, RegisterResponse, Timestamp};

const CLOCK: Timestamp = Timestamp::from_unix(1_700_000_000);
const MAPS: &[&str] = &[
    r#"{"Node":{"ID":1,"Name":"a.x.","Key":"nodekey:1717171717171717171717171717171717171717171717171717171717171717","Addresses":["100.64.0.1/32"]},"Peers":[{"ID":2,"Name":"b.x.","AllowedIPs":null,"DERP":"127.3.3.40:9"}],"PacketFilters":{"base":[{"SrcIPs":["*"],"DstPorts":[{"IP":"*","Ports":{"First":0,"Last":65535}}]}]}}"#,
    r#"{"PeersChangedPatch":[{"NodeID":2,"DERPRegion":9,"Online":true}],"PeersRemoved":[2],"PacketFilters":{"*":null},"DisplayMessages":{"*":null}}"#,
    r#"{"KeepAlive":true,"PingRequest":{"URL":"https://x/","Types":"c2n","Payload":"R0VUIC8gSFRUUC8xLjENCg0K"}}"#,
];
const REGISTERS: &[&str] = &[
    r#"{"Error":"no"}"#,
    r#"{"AuthURL":"https://x/"}"#,
    r#"{"User":{"ID":1},"MachineAuthorized":true,"NodeKeyExpired":false}"#,
];

/// One of these, with a few pieces of it replaced by other bytes.
fn tampered(good: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..4),
        prop::sample::select(vec!["null", "[]", "{}", "\"\"", "-1", "1e999", "\"\\u0000\"", "\u{7f}"])
            .prop_map(|text| text.as_bytes().to_vec()),
    ];
    let edits = prop::collection::vec((any::<Index>(), 0_usize..6, piece), 0..4);
    (prop::sample::select(good), edits).prop_map(|(good, edits)| {
        let mut bytes = good.as_bytes().to_vec();
        for (at, taken, piece) in edits {
            let at = at.index(bytes.len() + 1);
            let end = (at + taken).min(bytes.len());
            bytes.splice(at..end, piece);
        }
        bytes
    })
}

#[expect(clippy::disallowed_methods, reason = "virtual time needs an origin")]
fn origin() -> Instant {
    Instant::now()
}

fn is_fit_to_be_shown(text: &str) -> bool {
    !text.chars().any(char::is_control) && text.len() <= 4096
}

proptest! {
    #[test]
    fn a_map_stream_of_anything_is_followed_or_refused(
        messages in prop::collection::vec(tampered(MAPS), 0..5),
        tail in prop::collection::vec(any::<u8>(), 0..20),
        cut in 1_usize..300,
    ) {
        let mut bytes = Vec::new();
        for message in &messages {
            write_frame(message, &mut bytes);
        }
        bytes.extend_from_slice(&tail);
        let (mut frames, mut session) = (MapFrames::default(), MapSession::default());
        session.handle_stream_opened(origin());
        'stream: for piece in bytes.chunks(cut) {
            frames.handle_bytes(piece);
            while let Ok(Some(message)) = frames.poll_message() {
                let Ok(json) = decompress(message) else { break 'stream };
                if session.handle_message(CLOCK, &json).is_err() {
                    break 'stream;
                }
            }
        }
    }

    #[test]
    fn a_register_answer_of_anything_is_understood_or_refused(json in tampered(REGISTERS)) {
        if let Ok(response) = serde_json::from_slice::<RegisterResponse>(&json) {
            match register_outcome(response) {
                RegisterOutcome::Refused { reason: text } | RegisterOutcome::NeedsLogin { url: text } => {
                    prop_assert!(is_fit_to_be_shown(&text));
                }
                _ => {}
            }
        }
    }

    #[test]
    fn any_status_means_something(status: u16, header: Option<String>, body: Vec<u8>) {
        let judged = judge_status(status, header.as_deref(), &body, CLOCK, &mut StdRng::seed_from_u64(1));
        prop_assert_eq!(judged.is_ok(), status == 200);
        if let Err(error) = judged {
            prop_assert!(is_fit_to_be_shown(&error.to_string()));
        }
    }

    #[test]
    fn any_request_of_control_gets_an_http_answer(payload in prop::collection::vec(any::<u8>(), 0..200)) {
        use base64::Engine;
        let payload = base64::engine::general_purpose::STANDARD.encode(payload);
        let ping = serde_json::json!({ "URL": "https://x/", "Types": "c2n", "Payload": payload });
        let ping: PingRequest = serde_json::from_value(ping).unwrap();
        let PingAnswer::Posts(responses) = answer_ping(&ping) else { panic!("c2n is answered by POST") };
        prop_assert!(responses.len() == 1 && responses.iter().all(|response| response.starts_with(b"HTTP/1.1 ")));
    }

    #[test]
    fn any_key_answer_is_a_key_or_none(json: Vec<u8>) {
        prop_assert!(read_server_key(&json).is_none_or(|key| !key.is_zero()));
    }
}
