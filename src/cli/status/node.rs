//! A node and its peers, a line each.

use std::time::Duration;

use crate::agent::{Path, Peer, StageTime, Status};
use crate::report::plain;
use crate::report::words::{bytes, duration, round_trip};

/// This node first, with what its start took, then its peers by name.
pub(super) fn lines(status: &Status) -> Vec<String> {
    let own = &status.own;
    let mut lines = vec![row(&plain(&own.name), &address(&own.addresses), "this node", &home(own.home_region))];
    lines.extend(start(&status.start));
    for peer in &status.peers {
        lines.push(row(&plain(&peer.name), &address(&peer.addresses), online(peer), &path(peer)));
    }
    lines
}

/// When each stage of the start was reached.
fn start(stages: &[StageTime]) -> Option<String> {
    let stages: Vec<_> = stages.iter().map(|time| format!("{} {}", time.stage, round_trip(time.ms))).collect();
    (!stages.is_empty()).then(|| format!("{:<16} {}", "its start", stages.join(", ")))
}

/// The first of a node's addresses.
pub(super) fn address(addresses: &[std::net::IpAddr]) -> String {
    addresses.first().map(ToString::to_string).unwrap_or_default()
}

/// Where a node is reached by relay.
pub(super) fn home(region: Option<u16>) -> String {
    region.map_or_else(|| "no home relay".to_owned(), |region| format!("home: DERP region {region}"))
}

/// Whether control sees a peer.
pub(super) fn online(peer: &Peer) -> &'static str {
    match peer.online {
        Some(true) => "online",
        Some(false) => "offline",
        None => "-",
    }
}

/// The path to a peer, how long it takes, what went over it, and how old its keys are.
fn path(peer: &Peer) -> String {
    let rtt = peer.rtt_ms.filter(|_| peer.path != Path::None).map(|rtt| format!(", {}", round_trip(rtt)));
    let traffic = (peer.bytes_sent + peer.bytes_received > 0)
        .then(|| format!(", sent {}, received {}", bytes(peer.bytes_sent), bytes(peer.bytes_received)));
    let handshake = peer.last_handshake_s.and_then(|ago| Duration::try_from_secs_f64(ago).ok());
    let handshake = handshake.map(|ago| format!(", handshake {} ago", duration(ago)));
    let idle = if peer.active || peer.path == Path::None { "" } else { "idle, last " };
    let more = [rtt, traffic, handshake].into_iter().flatten().collect::<String>();
    format!("{idle}{}{more}", peer.path)
}

fn row(name: &str, address: &str, online: &str, path: &str) -> String {
    format!("{address:<16} {name:<30} {online:<10} {path}")
}
