//! The STUN server: tells a node which address its datagram came from.

use std::sync::atomic::{AtomicBool, Ordering};

use nixtail_proto::stun;
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

/// Larger than any request that a node sends; the rest of a longer datagram is dropped with it.
const MAX_REQUEST: usize = 1500;

/// Answers binding requests of Tailscale nodes while `on`, until `stop`. Others are dropped, as Tailscale's servers do.
pub(crate) async fn serve(socket: &UdpSocket, on: &AtomicBool, stop: CancellationToken) {
    let mut buffer = [0; MAX_REQUEST];
    loop {
        let received = tokio::select! {
            () = stop.cancelled() => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        // An error here is a sender's port that closed (ICMP): nothing to do about it.
        let Ok((length, from)) = received else { continue };
        if !on.load(Ordering::Relaxed) {
            continue;
        }
        match stun::parse_request(buffer.get(..length).unwrap_or_default()) {
            Ok(txid) => drop(socket.try_send_to(&stun::response(txid, from), from)),
            Err(error) => tracing::debug!(%from, %error, "not a STUN request"),
        }
    }
}
