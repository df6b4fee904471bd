//! A coordinator.
pub mod places;
pub mod verbs;
