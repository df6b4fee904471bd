//! A link that the kernel can't emulate here (it has no netem): a pure model of each direction, and two TUN devices that
//! it stands between.

mod line;
#[cfg(test)]
mod tests;
mod wire;

use std::time::Duration;

pub(crate) use line::{Counts, Line};
pub(crate) use wire::{DEVICE, Wire};

/// What a packet meets in one direction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Conditions {
    /// From the end of its sending to its arrival.
    pub(crate) delay: Duration,
    /// Bits a second; `None` is as fast as the machine is.
    pub(crate) rate: Option<u64>,
    /// Bytes that may wait to be sent; what comes beyond is lost. Means nothing without a rate.
    pub(crate) queue: usize,
    /// The share of packets that are lost, 0 to 1.
    pub(crate) loss: f64,
    /// The share of packets that come late, 0 to 1: those behind them overtake them.
    pub(crate) late: f64,
    /// How late they are.
    pub(crate) late_by: Duration,
}

impl Conditions {
    /// Nothing happens to a packet.
    pub(crate) const CLEAN: Self =
        Self { delay: Duration::ZERO, rate: None, queue: 0, loss: 0.0, late: 0.0, late_by: Duration::ZERO };

    /// A LAN of 1 Gbit/s; the queue is that of a Linux device: 1,000 packets of 1,500 bytes.
    pub(crate) const GIGABIT: Self =
        Self { delay: Duration::from_micros(100), rate: Some(1_000_000_000), queue: 1_500_000, ..Self::CLEAN };

    /// Packets pass as they come: nobody need wait for anything.
    pub(crate) fn is_transparent(&self) -> bool {
        self.delay.is_zero() && self.rate.is_none() && self.loss == 0.0 && self.late == 0.0
    }
}
