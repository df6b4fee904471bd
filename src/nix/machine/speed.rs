//! How fast one processor is, in a tenth of a second.

use std::time::{Duration, Instant};

use blake2::{Blake2b512, Digest as _};

/// BLAKE2b's speed on the reference machine: one processor of a hosted cloud machine of 2023 (an Intel Xeon of the
/// Sapphire Rapids generation at some 2.7 GHz; GitHub's hosted runners are near it).
///
/// BLAKE2b in portable code, and not SHA-256: it is plain 64-bit arithmetic, as compilers do it, while the instructions for
/// SHA make one machine five times as fast as another that compiles just as well.
pub const REFERENCE_BYTES_PER_SECOND: f64 = 700.0e6;

/// Slices that are measured; the best one counts.
const SLICES: u32 = 6;
/// The processor time of a slice.
const SLICE: Duration = Duration::from_millis(12);
/// No slice is begun after so long, however busy the machine is.
const DEADLINE: Duration = Duration::from_millis(500);
/// Fits the first-level cache: memory has no part in it.
const BUFFER: usize = 16 * 1024;

/// The speed of one processor, about 1.0 on a usual cloud machine; takes some 75 ms of its time.
///
/// By processor time, not by the clock: what else runs now is told by the load, and is gone when builds come.
pub fn speed() -> f64 {
    let buffer = vec![0x5a_u8; BUFFER];
    let begun = Instant::now();
    let slices = (0..SLICES).take_while(|slice| *slice == 0 || begun.elapsed() < DEADLINE);
    let best = slices.map(|_| bytes_per_second(&buffer)).fold(0.0, f64::max);
    (best / REFERENCE_BYTES_PER_SECOND * 100.0).round() / 100.0
}

fn bytes_per_second(buffer: &[u8]) -> f64 {
    let begun = processor_time();
    let mut hash = Blake2b512::new();
    let mut bytes = 0.0;
    let mut taken = Duration::ZERO;
    while taken < SLICE {
        hash.update(buffer);
        bytes += buffer.len() as f64;
        taken = processor_time().saturating_sub(begun);
    }
    std::hint::black_box(hash.finalize());
    bytes / taken.as_secs_f64()
}

/// What this thread has used so far.
fn processor_time() -> Duration {
    rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime).try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_is_that_of_a_processor_of_this_century() {
        let begun = Instant::now();
        let speed = speed();
        assert!((0.02..20.0).contains(&speed), "{speed}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
}
