//! Restricted networks and processes, each a case of its own: no UDP, only TCP 443, only an HTTP proxy, no IPv4, a narrow
//! underlay, small socket buffers, a container without privileges. And the README's commands for such runners, as written.
//!
//! Each test is the first process of namespaces of its own (see `world`), shows by a probe that what it takes away is gone, and
//! then lets two nodes join and move bytes both ways, or Nix build.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::unwrap_in_result, reason = "what goes wrong here fails the test")]

#[path = "restricted/confined.rs"]
mod confined;
#[path = "restricted/control.rs"]
mod control;
mod lab;
#[path = "restricted/networks.rs"]
mod networks;
#[path = "restricted/node.rs"]
mod node;
#[path = "restricted/readme.rs"]
mod readme;
#[path = "restricted/seccomp.rs"]
mod seccomp;
#[path = "restricted/underlay.rs"]
mod underlay;
#[path = "restricted/world.rs"]
mod world;
