//! Telling one's own freeze from others' silence.

use std::time::{Duration, Instant};

/// How often a machine that waits for signs of life wants to be called, so that it notices when it wasn't.
pub(super) const LOOK: Duration = Duration::from_secs(5);
/// A call that comes so much too late was held up by a freeze of this process: SIGSTOP, a laptop's lid, a starved machine.
/// Others can't have been heard meanwhile.
const FREEZE: Duration = Duration::from_secs(10);

/// Notices when this process was frozen.
#[derive(Debug)]
pub(super) struct OwnFreeze {
    looked: Instant,
}

impl OwnFreeze {
    pub(super) fn new(now: Instant) -> Self {
        Self { looked: now }
    }

    /// When [`Self::handle_look`] is due.
    pub(super) fn next_look(&self) -> Instant {
        self.looked + LOOK
    }

    /// Says whether this process was frozen since the last look, so that silence begins anew.
    pub(super) fn handle_look(&mut self, now: Instant) -> bool {
        let late = now.saturating_duration_since(self.next_look());
        self.looked = self.looked.max(now);
        late > FREEZE
    }
}
