//! One peer: its WireGuard [`session`] and the [`paths`] by which packets reach it.
//!
//! A tunnel turns IP packets into sealed datagrams and back. It knows nothing of TCP, the filter or other peers; what
//! peers share (static key, handshake budget, receiver indices) is lent to it by the node.

pub mod handshake;
pub mod paths;
pub mod session;
