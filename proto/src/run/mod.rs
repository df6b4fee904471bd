//! A run from a builder's and from a coordinator's side: waiting, claimed, ready, gone, stopped, and by which deadline.
//!
//! Both machines decide only; who joins, probes and builds is told to them and done by the crate `nixtail`. The record
//! remembers what came of it.

mod builder;
mod coordinator;
pub mod record;

pub use builder::{Builder, CLAIMER_SILENCE, ClaimError, ClaimerLoss, End, Presence, StopError};
pub use coordinator::{Builders, Failure, Settled, Stage, Standing};
pub use record::{BuilderFacts, Outcome, Record};

#[cfg(test)]
mod tests;
