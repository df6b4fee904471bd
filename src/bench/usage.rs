//! What a process has used: CPU time and memory.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// What this process had used at some moment.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    cpu: Duration,
}

/// What a run cost one side.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// CPU seconds, user and system, of all threads.
    pub cpu_s: f64,
    /// Resident memory at the end, in bytes; `None` where the system doesn't say.
    pub rss_bytes: Option<u64>,
}

impl Usage {
    /// What has been used up to now.
    #[must_use]
    pub fn now() -> Self {
        Self { cpu: cpu_time(ClockId::ProcessCPUTime) }
    }

    /// What has been used since.
    #[must_use]
    pub fn cost(self) -> Cost {
        let cpu = Self::now().cpu.saturating_sub(self.cpu);
        Cost { cpu_s: cpu.as_secs_f64(), rss_bytes: resident_bytes() }
    }
}

/// CPU time of the calling thread.
pub(super) fn thread_cpu_time() -> Duration {
    cpu_time(ClockId::ThreadCPUTime)
}

fn cpu_time(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanoseconds)
}

/// The second field of `/proc/self/statm` (proc(5)) counts pages.
fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(u64::try_from(rustix::param::page_size()).ok()?)
}
