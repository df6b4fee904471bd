//! How long a stage is measured, and whose CPU time it takes.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::bench::usage::thread_cpu_time;

/// How long a stage is measured.
#[derive(Debug)]
pub(super) struct Budget {
    time: Duration,
    stop: CancellationToken,
}

impl Budget {
    pub(super) fn new(time: Duration, stop: CancellationToken) -> Self {
        Self { time, stop }
    }

    /// Answers, from now on, whether another round is wanted. The first always is.
    pub(super) fn rounds(&self) -> impl FnMut() -> bool {
        let until = Instant::now() + self.time;
        let mut first = true;
        move || std::mem::take(&mut first) || (Instant::now() < until && !self.stop.is_cancelled())
    }
}

/// Gives the CPU time of this thread to whom it belongs.
pub(super) struct Meter {
    at: Duration,
}

impl Meter {
    pub(super) fn start() -> Self {
        Self { at: thread_cpu_time() }
    }

    /// What was spent since the last call belongs to `whose`.
    pub(super) fn lap(&mut self, whose: &mut Duration) {
        let now = thread_cpu_time();
        *whose += now.saturating_sub(self.at);
        self.at = now;
    }
}
