//! The direct lane: Nix's worker protocol straight through the tunnel, encrypted once ([`nixtail_proto::direct`]).
//!
//! ```text
//!  coordinator                                                        builder
//!  Nix ── starts RUN/builders/NAME --stdio (a link to nixtail)
//!   │ two pipes   └─ hands both over, waits for the last word
//!   ▼                        ▼
//!  Lane ── a stream through the tunnel ─────────────────► DirectEndpoint ── the daemon's socket, or `nix-daemon --stdio`
//! ```
//!
//! Nix takes `ssh-ng://localhost?remote-program=P` for a store behind the program `P`, which it starts instead of ssh. No
//! byte of a build passes through that program: it hands its descriptors to the agent and only tells, at the end, what
//! went wrong. A link in RUN/over-ssh is called in the same way, and starts ssh ([`SshLinks`]).

mod call;
mod endpoint;
mod handover;
mod lane;
mod opened;
mod outlet;
mod over_ssh;
mod program;
mod words;

pub use call::{AnswerError, CallError, Followed, Following, Reply, ask, follow};
pub use endpoint::{DirectEndpoint, SessionEnd, SessionReport};
pub use lane::{LANE_SOCKET, Lane, LaneError, OnTrouble, store_uri};
pub use opened::{Opened, open};
pub(crate) use over_ssh::SSH_CONFIG;
pub use over_ssh::SshLinks;
pub use program::run_if_called;
