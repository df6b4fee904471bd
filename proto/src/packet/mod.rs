//! IP packets as they travel inside the tunnel: batches of them, and the few headers that we read and write ourselves.

pub mod batch;

pub use batch::PacketBatch;
