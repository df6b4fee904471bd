//! Garbage and floods, on every door of a real agent: its UDP port, its relay, its port inside the tunnel, its local socket.
//!
//! What is sent is made by proptest from fixed seeds, out of nothing and out of real frames that were cut, changed and joined. The
//! agent must go on with its work, and cost no more than a bound: memory in all, CPU for each packet (a busy machine makes
//! everything slower, but nothing dearer).
#![cfg(feature = "ssh-nix")]
#![allow(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

#[path = "garbage/frames.rs"]
mod frames;
mod lab;
#[path = "garbage/local.rs"]
mod local;
#[path = "nix/nix_at_hand.rs"]
#[allow(dead_code, reason = "only a place for a Nix is needed of it")]
mod nix_at_hand;
#[path = "garbage/relay.rs"]
mod relay;
#[path = "derp/scripted_relay.rs"]
#[allow(dead_code, reason = "tests/derp.rs takes the other part")]
mod scripted_relay;
#[path = "garbage/ssh.rs"]
mod ssh;
#[path = "garbage/stage.rs"]
mod stage;
#[path = "garbage/udp.rs"]
mod udp;
#[path = "garbage/usage.rs"]
mod usage;

use std::time::Duration;

/// How long anything may take on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);
