//! A process on a Tailscale network without `tailscaled`, root or a TUN device.

pub mod agent;
pub mod auth;
pub mod bench;
#[cfg(feature = "cli")]
pub mod cli;
pub mod control;
pub mod coordinator;
pub mod local;
pub mod net;
#[cfg(feature = "ssh-nix")]
pub mod nix;
pub mod report;
#[cfg(feature = "ssh-nix")]
pub mod ssh;
