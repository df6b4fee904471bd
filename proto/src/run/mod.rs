//! A run from a builder's and from a coordinator's side: waiting, claimed, ready, gone, stopped, and by which deadline.
//!
//! Both machines decide only; who joins, probes and builds is told to them and done by the crate `nixtail`. The record
//! remembers what came of it.

mod builder;
mod coordinator;
mod freeze;
mod liveness;
pub mod record;
mod rerun;
mod room;
mod speed;

pub use builder::{Builder, CLAIMER_SILENCE, ClaimError, ClaimerLoss, End, NotClaimer, Presence, Told};
pub use coordinator::{
    Action, Attempt, BUILDER_TAG, Builders, ClaimRefusal, Failure, Holder, MAX_RUN_NAME, Met, Progress, RunNameError,
    Settled, Sighting, Stage, Standing, Step, Wanted, Who, carries_run, check_run_name,
};
pub use liveness::{BUILDER_SILENCE, Liveness, Lost, REPORT_INTERVAL};
pub use record::{BuilderFacts, Outcome, Record};
pub use rerun::{Ended, Reruns, Verdict};
pub use room::{NoRoom, Room};
pub use speed::{Speed, speed_factors};
