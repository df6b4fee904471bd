//! A process on a Tailscale network without `tailscaled`, root or a TUN device.

pub mod agent;
pub mod auth;
pub mod bench;
#[cfg(feature = "ssh-nix")]
pub mod builder;
#[cfg(feature = "cli")]
pub mod cli;
mod clock;
pub mod control;
#[cfg(feature = "ssh-nix")]
pub mod coordinator;
#[cfg(feature = "devnet")]
pub mod demo;
#[cfg(feature = "ssh-nix")]
pub mod direct;
pub mod local;
pub mod net;
#[cfg(feature = "ssh-nix")]
pub mod nix;
pub mod report;
#[cfg(feature = "ssh-nix")]
pub mod ssh;
pub mod state;
