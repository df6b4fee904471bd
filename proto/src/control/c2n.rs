//! What control asks of a node through the map stream (`ipn/ipnlocal/c2n.go`, `AnswerC2NPing` in `control/tsp`).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::printable;
use crate::tailcfg::{PingRequest, PingResponse};

/// Bytes of a request from control at most. `/echo` gets a few.
const MAX_PAYLOAD: usize = 64 << 10;
/// The kinds of pings that there are (`tailcfg.PingType`).
const KINDS: [&str; 4] = ["disco", "TSMP", "ICMP", "peerapi"];

/// How to answer a [`PingRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PingAnswer {
    /// A HEAD request to the URL.
    Head,
    /// A POST request to the URL with each of these bodies: a whole HTTP response, or what came of a ping. None for what
    /// isn't known.
    Posts(Vec<Vec<u8>>),
}

/// Answers what control asks: `/echo`, and 404 for every other path. Pings of peers are refused, each in the form of its
/// answer: whoever waits for it needn't wait.
#[must_use]
pub fn answer_ping(ping: &PingRequest) -> PingAnswer {
    match ping.types.as_str() {
        "" => PingAnswer::Head,
        "c2n" => PingAnswer::Posts(vec![answer_c2n(&ping.payload)]),
        kinds => {
            PingAnswer::Posts(kinds.split(',').filter_map(|kind| refuse(kind, &ping.ip)).take(KINDS.len()).collect())
        }
    }
}

/// The answer to a ping of a peer that isn't done.
fn refuse(kind: &str, ip: &str) -> Option<Vec<u8>> {
    let kind = KINDS.into_iter().find(|known| *known == kind)?.to_owned();
    let err = "nixtail pings nobody for control".to_owned();
    serde_json::to_vec(&PingResponse { kind, ip: printable(ip.as_bytes()), err, ..PingResponse::default() }).ok()
}

/// The HTTP response to a raw HTTP/1.1 request in base64.
fn answer_c2n(payload: &str) -> Vec<u8> {
    let request = STANDARD.decode(payload).ok().filter(|request| request.len() <= MAX_PAYLOAD).unwrap_or_default();
    let Some(head_end) = request.windows(4).position(|window| window == b"\r\n\r\n") else {
        return response("400 Bad Request", b"not an HTTP request\n");
    };
    let (head, body) = request.split_at(head_end);
    let target = head.split(|&c| c == b' ').nth(1).unwrap_or_default();
    let path = target.split(|&c| c == b'?').next().unwrap_or_default();
    match path {
        // Its framing: the payload holds one request and nothing after it.
        b"/echo" => response("200 OK", body.get(4..).unwrap_or_default()),
        _ => response("404 Not Found", b"unknown c2n path\n"),
    }
}

fn response(status: &str, body: &[u8]) -> Vec<u8> {
    let len = body.len();
    let mut response =
        format!("HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len}\r\n\r\n").into_bytes();
    response.extend_from_slice(body);
    response
}
