//! Whole nodes in a simulated network, under virtual time.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod contact;
mod control;
mod conversation;
mod histories;
mod history;
mod host;
mod hostile;
mod landmarks;
mod link;
mod nat;
mod play;
mod queue;
mod reference;
mod relay;
mod restarts;
mod stream;
mod transfers;
mod world;
