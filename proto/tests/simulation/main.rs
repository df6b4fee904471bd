//! Whole nodes in a simulated network, under virtual time.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod hostile;
mod restarts;
mod transfers;
mod world;
