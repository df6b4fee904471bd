//! A run from a builder's and from a coordinator's side: waiting, claimed, ready, gone, stopped, and by which deadline.
//!
//! Both machines decide only; who joins, probes and builds is told to them and done by the crate `nixtail`.

mod builder;
mod coordinator;

pub use builder::{Builder, CLAIMER_SILENCE, ClaimError, ClaimerLoss, End, Presence, StopError};
pub use coordinator::{Builders, Failure, Settled, Stage, Standing};

#[cfg(test)]
mod tests;
