//! skeleton

pub mod packet;
