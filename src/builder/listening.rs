//! Listening for the claimer: at which moments, and what counts as having heard it.

use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};

/// Looks every so often at how much has come from the claimer.
pub(super) struct Listening {
    turns: Interval,
    received: u64,
}

impl Listening {
    /// The first turn is at once.
    pub(super) fn new(period: Duration) -> Self {
        let mut turns = interval(period);
        // A late turn needn't be made up for: one look tells as much as two.
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { turns, received: 0 }
    }

    /// Waits for the next turn. Cancel safe, and however often it is cancelled, the turn comes no later.
    pub(super) async fn due(&mut self) {
        self.turns.tick().await;
    }

    /// So many bytes have come from the claimer up to now. Says whether an authenticated packet came since the last turn:
    /// only such a one is counted.
    pub(super) fn handle_received(&mut self, received: u64) -> bool {
        std::mem::replace(&mut self.received, received) != received
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_busy_netmap_starves_nobody() {
        let mut listening = Listening::new(Duration::from_millis(50));
        listening.due().await;
        let busy = async {
            loop {
                // As a select that something else wins, every time long before the period is over.
                tokio::select! {
                    () = listening.due() => return,
                    () = tokio::time::sleep(Duration::from_millis(5)) => {}
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(5), busy).await.expect("its turn never came");
    }

    #[tokio::test]
    async fn only_more_bytes_are_a_sign_of_life() {
        let mut listening = Listening::new(Duration::from_secs(1));
        assert!(!listening.handle_received(0));
        assert!(listening.handle_received(148));
        assert!(!listening.handle_received(148));
        // The dataplane counts anew when the peer returns with another session.
        assert!(listening.handle_received(32));
    }
}
