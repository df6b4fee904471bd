//! Nix on this machine: its daemon as a child, what a builder is worth, and the lines that others' Nix reads.

pub mod config;
pub mod daemon;
pub mod facts;
pub mod machine;
pub mod machines;
pub mod spawn;
