//! A coordinator.
pub mod borrowed;
pub mod mode;
pub mod verbs;
