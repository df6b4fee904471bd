//! Whether a builder that says something every few seconds is still there.

use std::fmt;
use std::time::{Duration, Instant};

use super::freeze::OwnFreeze;

/// How often a builder says something to the coordinator that watches it.
pub const REPORT_INTERVAL: Duration = Duration::from_secs(5);
/// After how long a silent builder counts as lost. One that froze just after a report, for 30 s, still makes it; one that
/// froze for good is found before TCP finds it (45 s).
pub const BUILDER_SILENCE: Duration = Duration::from_secs(40);

/// One watched builder's signs of life. Call [`Self::handle_timeout`] whenever [`Self::poll_timeout`] says so.
#[derive(Debug)]
pub struct Liveness {
    silence: Duration,
    heard: Instant,
    freeze: OwnFreeze,
}

/// A builder that is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// How long it had been silent.
    pub silent: Duration,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no sign of life for {} s", self.silent.as_secs())
    }
}

impl Liveness {
    /// A builder that was heard just now, and is lost after `silence`.
    #[must_use]
    pub fn new(now: Instant, silence: Duration) -> Self {
        Self { silence, heard: now, freeze: OwnFreeze::new(now) }
    }

    /// It said something.
    pub fn handle_heard(&mut self, now: Instant) {
        self.heard = self.heard.max(now);
    }

    /// Looks whether it is lost.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<Lost> {
        if self.freeze.handle_look(now) {
            self.heard = now;
        }
        (now >= self.deadline()).then(|| Lost { silent: now.saturating_duration_since(self.heard) })
    }

    /// When [`Self::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Instant {
        self.deadline().min(self.freeze.next_look())
    }

    fn deadline(&self) -> Instant {
        self.heard + self.silence
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Tests have a clock of their own; this reads the system's once, to begin somewhere.
    #[allow(clippy::disallowed_methods)]
    fn start() -> Instant {
        Instant::now()
    }

    /// When it is found lost, if it isn't heard any more.
    fn lost_at(liveness: &mut Liveness) -> (Instant, Lost) {
        loop {
            let at = liveness.poll_timeout();
            if let Some(lost) = liveness.handle_timeout(at) {
                return (at, lost);
            }
        }
    }

    #[test]
    fn a_builder_that_freezes_for_30_seconds_survives_and_one_for_good_is_found_within_45() {
        let now = start();
        let mut liveness = Liveness::new(now, BUILDER_SILENCE);
        // Frozen just before its next report was due.
        let thawed = now + REPORT_INTERVAL + 30 * SECOND;
        while liveness.poll_timeout() < thawed {
            assert_eq!(liveness.handle_timeout(liveness.poll_timeout()), None);
        }
        liveness.handle_heard(thawed);
        let (at, lost) = lost_at(&mut liveness);
        assert!(at <= thawed + 45 * SECOND, "{:?}", at - thawed);
        assert_eq!(lost.to_string(), "no sign of life for 40 s");
    }

    #[test]
    fn who_was_frozen_itself_blames_nobody() {
        let now = start();
        let mut liveness = Liveness::new(now, BUILDER_SILENCE);
        assert_eq!(liveness.handle_timeout(now + 3600 * SECOND), None);
        assert_eq!(lost_at(&mut liveness).0, now + 3600 * SECOND + BUILDER_SILENCE);
    }
}
