//! A run from a builder's and from a coordinator's side: waiting, claimed, ready, gone, stopped, and by which deadline.
//!
//! Both machines decide only; who joins, probes and builds is told to them and done by the crate `nixtail`. The record
//! remembers what came of it.

mod builder;
mod coordinator;
mod freeze;
mod liveness;
pub mod record;
mod room;

pub use builder::{Builder, CLAIMER_SILENCE, ClaimError, ClaimerLoss, End, NotClaimer, Presence, Told};
pub use coordinator::{Builders, Failure, Settled, Stage, Standing};
pub use liveness::{BUILDER_SILENCE, Liveness, Lost, REPORT_INTERVAL};
pub use record::{BuilderFacts, Outcome, Record};
pub use room::{NoRoom, Room};

#[cfg(test)]
mod tests;
