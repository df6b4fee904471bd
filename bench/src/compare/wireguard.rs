//! wireguard-go with a TUN device on either machine: what userspace WireGuard does without a tailnet around it.

use std::error::Error;
use std::fs;
use std::time::Duration;

use crate::stage::network;
use crate::stage::place::Place;
use crate::stage::process::{Running, wait_until};

/// Tunnel addresses. Of the tailnet's own range, so that no node tells them to its peers as a way to reach it.
pub(super) const LEFT: &str = "100.127.77.1";
pub(super) const RIGHT: &str = "100.127.77.2";

/// As every tailnet has it.
const MTU: &str = "1280";
/// As WireGuard's documents name the first one.
const DEVICE: &str = "wg0";
/// As those documents have it.
const UDP_PORT: &str = "51820";
/// How long one may take to start.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is looked for on PATH.
pub(super) const PROGRAMS: [&str; 2] = ["wireguard-go", "wg"];

/// Starts both ends, each with the other one as its only peer.
pub(super) fn start(places: [Place<'_>; 2]) -> Result<[Running; 2], Box<dyn Error>> {
    let [left, right] = places;
    let (left_public, right_public) = (make_key(left)?, make_key(right)?);
    Ok([join(left, LEFT, &right_public, network::RIGHT)?, join(right, RIGHT, &left_public, network::LEFT)?])
}

/// Makes a private key; returns the public one.
fn make_key(place: Place<'_>) -> Result<String, Box<dyn Error>> {
    let file = place.path("wireguard.key").display().to_string();
    fs::write(&file, place.run("wg", &["genkey"])?)?;
    Ok(place.run("sh", &["-c", "wg pubkey <\"$0\"", &file])?.trim().to_owned())
}

fn join(place: Place<'_>, address: &str, peer: &str, endpoint: &str) -> Result<Running, Box<dyn Error>> {
    let running = place.start("wireguard-go", place.command("wireguard-go", &["-f", DEVICE]))?;
    wait_until("wireguard-go's device", PATIENCE, || place.run("wg", &["show", DEVICE]).ok())?;
    let (key, endpoint) = (place.path("wireguard.key").display().to_string(), format!("{endpoint}:{UDP_PORT}"));
    let own = ["set", DEVICE, "listen-port", UDP_PORT, "private-key", &key];
    let other = ["peer", peer, "allowed-ips", "0.0.0.0/0", "endpoint", &endpoint];
    place.run("wg", &[own.as_slice(), &other].concat())?;
    place.run("ip", &["addr", "add", &format!("{address}/30"), "dev", DEVICE])?;
    place.run("ip", &["link", "set", DEVICE, "mtu", MTU, "up"])?;
    Ok(running)
}
