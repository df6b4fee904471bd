//! Clocks, medians, and rows of the table.

use std::error::Error;
use std::fmt;
use std::time::{Duration, Instant};

/// Rounds of each measurement, besides one before that warms the caches up.
pub(crate) const ROUNDS: usize = 5;

/// One figure.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) what: String,
    /// `None` where the system doesn't say.
    pub(crate) value: Option<f64>,
    pub(crate) unit: &'static str,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value {
            Some(value) => write!(f, "{:<58} {value:>10.2} {}", self.what, self.unit),
            None => write!(f, "{:<58} {:>10} {}", self.what, "-", self.unit),
        }
    }
}

/// What one round took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    pub(crate) elapsed: Duration,
    pub(crate) cpu: Option<Duration>,
}

/// Runs `round` once to warm up and then [`ROUNDS`] times.
pub(crate) fn rounds(mut round: impl FnMut() -> Result<(), Box<dyn Error>>) -> Result<Vec<Taken>, Box<dyn Error>> {
    round()?;
    let timed = |_| {
        let (cpu, started) = (thread_cpu(), Instant::now());
        round()?;
        let elapsed = started.elapsed();
        let cpu = cpu.zip(thread_cpu()).map(|(before, after)| after.saturating_sub(before));
        Ok(Taken { elapsed, cpu })
    };
    (0..ROUNDS).map(timed).collect()
}

/// The time of one call of `call`, which says whether all went well.
pub(crate) fn per_call(what: String, calls: u32, mut call: impl FnMut() -> bool) -> Result<Row, Box<dyn Error>> {
    let taken = rounds(|| {
        for _ in 0..calls {
            if !call() {
                return Err(format!("{what}: it doesn't do what is measured").into());
            }
        }
        Ok(())
    })?;
    let nanoseconds = median(taken.iter().map(|taken| taken.elapsed.as_secs_f64() * 1e9 / f64::from(calls)));
    let (value, unit) = match nanoseconds {
        Some(value) if value >= 1e6 => (Some(value / 1e6), "ms"),
        Some(value) if value >= 1e3 => (Some(value / 1e3), "µs"),
        value => (value, "ns"),
    };
    Ok(Row { what, value, unit })
}

/// The middle one; `None` of none.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// CPU time of this thread: the first field of `schedstat` (Linux: `Documentation/scheduler/sched-stats.rst`), in
/// nanoseconds.
fn thread_cpu() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median([5.0, 1.0, 3.0].into_iter()), Some(3.0));
        assert_eq!(median([].into_iter()), None);
    }

    #[test]
    fn what_fails_is_not_measured() {
        assert!(per_call("x".into(), 1, || false).is_err());
    }
}
