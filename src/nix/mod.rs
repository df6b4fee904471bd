//! Nix on this machine: its daemon as a child, what a builder is worth, and the lines that others' Nix reads.

pub mod attached;
pub mod config;
pub mod configuration;
pub mod daemon;
pub mod facts;
pub mod features;
pub mod inspect;
pub mod machine;
pub mod machines;
pub mod preflight;
pub mod probe;
pub mod settings;
pub mod spawn;
pub mod store;
