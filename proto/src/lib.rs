//! A Tailscale node as pure state machines.
//!
//! Nothing here opens a socket, reads a clock, starts a thread or makes randomness: `now: Instant` and an RNG come from
//! outside. Each machine has the same three kinds of call:
//!
//! * `handle_*` takes an input: datagrams, frames, messages, application bytes, or the passing of time;
//! * `poll_*` hands out what follows from it, until it has nothing more;
//! * `poll_timeout` says when `handle_timeout` wants to be called next.
//!
//! One rule: after each `handle_*`, poll until empty. Machines compose by `min()` over their timeouts.
#![forbid(unsafe_code)]

pub mod control;
pub mod credential;
pub mod derp;
pub mod direct;
pub mod disco;
pub mod filter;
pub mod http_head;
pub mod key;
mod nacl;
pub mod names;
pub mod netcheck;
pub mod netmap;
pub mod nix_command;
pub mod node;
pub mod noise;
pub mod packet;
pub mod proxy;
pub mod relay;
pub mod run;
pub mod secret;
pub mod ssh_policy;
pub mod stack;
pub mod stun;
pub mod tailcfg;
pub mod tunnel;
pub mod worker;
