//! What control asks of a node through the map stream (`ipn/ipnlocal/c2n.go`, `AnswerC2NPing` in `control/tsp`).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::tailcfg::PingRequest;

/// Bytes of a request from control at most. `/echo` gets a few.
const MAX_PAYLOAD: usize = 64 << 10;

/// How to answer a [`PingRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PingAnswer {
    /// A HEAD request to the URL.
    Head,
    /// A POST request to the URL with this body: a whole HTTP response.
    Post(Vec<u8>),
    /// Not at all: a kind of ping that nixtail doesn't do for control.
    None,
}

/// Answers what control asks: `/echo`, and 404 for everything else.
#[must_use]
pub fn answer_ping(ping: &PingRequest) -> PingAnswer {
    match ping.types.as_str() {
        "" => PingAnswer::Head,
        "c2n" => PingAnswer::Post(answer_c2n(&ping.payload)),
        _ => PingAnswer::None,
    }
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
