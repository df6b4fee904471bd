//! What people look with when something is wrong: `nixtail netcheck`, `doctor`, `ping`, `status` and the log, on a devnet in which it is so.
#![allow(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

#[path = "diagnosis/doctor.rs"]
mod doctor;
mod lab;
#[path = "diagnosis/netcheck.rs"]
mod netcheck;
#[path = "diagnosis/paths.rs"]
mod paths;
#[path = "diagnosis/quiet.rs"]
mod quiet;
#[path = "diagnosis/tailnet.rs"]
mod tailnet;
