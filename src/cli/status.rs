//! `nixtail status`: this node and its peers.

use std::time::Duration;

use super::{print, print_json, socket::SocketArgs};
use crate::agent::{Peer, State, Status};
use crate::local::Client;
use crate::report::{Exit, Failure, plain};

/// The agent answers from memory.
const DEADLINE: Duration = Duration::from_secs(10);

/// Show this node, its peers, and the path to each.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Print JSON; its keys are stable under one `schema` number.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let client = args.socket.client()?;
    if args.json {
        // As the agent says it: keys that this version doesn't know pass through.
        let answer: serde_json::Value = client.get("/status", DEADLINE)?;
        print_json(&answer)?;
    } else {
        show(&get(&client)?)?;
    }
    Ok(())
}

/// Asks an agent for its status.
pub(super) fn get(client: &Client) -> Result<Status, Failure> {
    client.get("/status", DEADLINE)
}

fn show(status: &Status) -> Result<(), Failure> {
    let own = &status.own;
    print(&row(&plain(&own.name), &addresses(&own.addresses), "this node", &home(own.home_region)))?;
    for peer in &status.peers {
        print(&row(&plain(&peer.name), &addresses(&peer.addresses), online(peer), &path(peer)))?;
    }
    for line in &status.health {
        super::say(&plain(line));
    }
    match status.state {
        State::Running => Ok(()),
        State::ControlLost => Err(Failure::new(Exit::Unavailable, "the connection to control is down")
            .next("peers stay reachable meanwhile; the agent dials again by itself")),
        State::Refused => {
            Err(Failure::new(Exit::Refused, "control took this node off the tailnet")
                .next("start it again with a new key"))
        }
        State::Leaving => Err(Failure::new(Exit::Unavailable, "the agent is leaving the tailnet")),
    }
}

fn row(name: &str, addresses: &str, online: &str, path: &str) -> String {
    format!("{addresses:<16} {name:<30} {online:<10} {path}")
}

fn addresses(addresses: &[std::net::IpAddr]) -> String {
    addresses.first().map(ToString::to_string).unwrap_or_default()
}

fn home(region: Option<u16>) -> String {
    region.map_or_else(|| "no home relay".to_owned(), |region| format!("home: DERP region {region}"))
}

fn online(peer: &Peer) -> &'static str {
    match peer.online {
        Some(true) => "online",
        Some(false) => "offline",
        None => "-",
    }
}

fn path(peer: &Peer) -> String {
    let rtt = peer.rtt_ms.map(|rtt| format!(", {rtt:.1} ms")).unwrap_or_default();
    let bytes = if peer.bytes_sent + peer.bytes_received > 0 {
        format!(", tx {} rx {}", peer.bytes_sent, peer.bytes_received)
    } else {
        String::new()
    };
    format!("{}{rtt}{bytes}", peer.path)
}
