//! Whole nodes in a simulated network, under virtual time.

mod hostile;
mod restarts;
mod transfers;
mod world;
