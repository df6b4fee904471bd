//! Micro benches of the hot path: what the state machines of `nixtail-proto` cost, without sockets, kernel and runtime.
//!
//! What the whole thing moves through real sockets, `nixtail bench` measures.

pub(crate) mod measure;
mod netmap;
mod packets;
mod stream;

use std::error::Error;
use std::io::Write as _;

use measure::ROUNDS;

/// How much is measured in one round.
#[derive(Debug, Clone, Copy)]
struct Size {
    /// Bytes of the TCP stream.
    stream: u64,
    /// Calls of what takes nanoseconds.
    packets: u32,
    /// Calls of what takes microseconds.
    seals: u32,
    /// Calls of what takes milliseconds.
    netmaps: u32,
    /// Changes of one peer in a netmap.
    deltas: u32,
}

const OPTIMISED: Size = Size { stream: 256 << 20, packets: 1_000_000, seals: 20_000, netmaps: 3, deltas: 5_000 };
/// Code that isn't optimised shall end within a minute, too.
const UNOPTIMISED: Size = Size { stream: 32 << 20, packets: 50_000, seals: 2_000, netmaps: 1, deltas: 200 };

/// Measures all of it and prints the rows.
pub(crate) fn run() -> Result<(), Box<dyn Error>> {
    let size = if cfg!(debug_assertions) { UNOPTIMISED } else { OPTIMISED };
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "What nixtail-proto costs in one thread, all in memory: medians of {ROUNDS} rounds.\n\
         Compare figures of one machine with each other, before and after a change: the ratios count, not the values."
    )?;
    if cfg!(debug_assertions) {
        writeln!(out, "This build isn't optimised: use `cargo run --release -p nixtail-bench -- micro`.")?;
    }
    writeln!(out)?;
    // The netmap first: it tells the most memory that this process ever had.
    for measurement in [netmap::measure, stream::measure, packets::measure] {
        for row in measurement(size)? {
            writeln!(out, "{row}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_measurement_measures() {
        let tiny = Size { stream: 1 << 20, packets: 10, seals: 10, netmaps: 1, deltas: 10 };
        let all = [stream::measure, packets::measure, netmap::measure];
        let rows: Vec<measure::Row> = all.iter().flat_map(|measurement| measurement(tiny).unwrap()).collect();
        assert!(rows.len() >= 6);
        for row in rows {
            assert!(row.value.is_none_or(|value| value.is_finite() && value >= 0.0), "{row}");
        }
    }
}
