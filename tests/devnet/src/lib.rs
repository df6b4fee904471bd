//! A control server, a DERP relay and a STUN server in one process on loopback, for tests and the demo.
#![allow(dead_code)]
mod auth_key;
mod control { mod zstd; }
mod netmap;
mod policy;
mod registry;
