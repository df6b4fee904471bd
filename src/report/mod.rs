//! How things are told to people: failures, untrusted text made harmless, tables, and the summary of a run.

mod failure;
pub mod summary;
pub mod table;
pub mod terminal;
mod text;
pub(crate) mod told;
pub mod words;

pub use failure::{Exit, Failure};
pub use text::{markdown, plain};
