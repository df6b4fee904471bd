//! Whole machines against each other, each with a Nix, users and files of its own: versions of Nix, multi-user and rootless
//! pairs, builders that die, freeze or never answer. Nodes are namespaces (see `lab::nixnode`); only root can make them.
#![allow(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

#[path = "nix_nodes/crowd.rs"]
mod crowd;
#[path = "nix_nodes/habits.rs"]
mod habits;
mod lab;
#[path = "nix/nix_at_hand.rs"]
#[allow(dead_code, reason = "this test takes its derivations only")]
mod nix_at_hand;
#[path = "nix_nodes/pairs.rs"]
mod pairs;
#[path = "nix_nodes/stage.rs"]
mod stage;
#[path = "nix_nodes/trusted.rs"]
mod trusted;
#[path = "nix_nodes/versions.rs"]
mod versions;
