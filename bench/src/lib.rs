//! What the bench program, the micro benches and the counted checks share: nodes in memory, under virtual time.

pub mod hub;
