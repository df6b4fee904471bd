//! How things are told to people: failures, and untrusted text made harmless.

mod failure;
mod text;

pub use failure::{Exit, Failure};
pub use text::plain;
