//! Who asked for a session before the netmap told us of it.
//!
//! Two nodes that join at the same time learn of each other at different times. The first one's initiations and pings are
//! dropped by the second, which doesn't know the keys. Once it does, it asks for a session itself instead of leaving it to the
//! other's next try.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::key::{DiscoPublic, NodePublic};
use crate::tailcfg::RegionId;

/// How many are remembered; anybody may knock, so the oldest makes room.
const MAX_KNOCKS: usize = 64;
/// After this long, who has knocked tries again by itself soon, or has given up.
const REMEMBERED_FOR: Duration = Duration::from_secs(10);

/// Who knocked, as far as can be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Knocker {
    /// The key of an initiation, or the one that the relay has authenticated.
    Node(NodePublic),
    /// What a disco packet says that it is from.
    Disco(DiscoPublic),
}

/// A packet of somebody whom we don't know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Knock {
    pub(super) from: Knocker,
    /// The relay that it came through.
    pub(super) region: Option<RegionId>,
    pub(super) at: Instant,
}

/// The latest of each, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Knocks(VecDeque<Knock>);

impl Knocks {
    pub(super) fn handle(&mut self, knock: Knock) {
        self.0.retain(|known| known.from != knock.from);
        if self.0.len() >= MAX_KNOCKS {
            self.0.pop_front();
        }
        self.0.push_back(knock);
    }

    /// Takes out what somebody with these keys has left, who is known now. The newest counts.
    pub(super) fn take(&mut self, now: Instant, node: &NodePublic, disco: &DiscoPublic) -> Option<Knock> {
        while self.0.front().is_some_and(|oldest| now.saturating_duration_since(oldest.at) > REMEMBERED_FOR) {
            self.0.pop_front();
        }
        let is_its = |knock: &Knock| knock.from == Knocker::Node(*node) || knock.from == Knocker::Disco(*disco);
        let found = self.0.iter().copied().rfind(is_its)?;
        self.0.retain(|knock| !is_its(knock));
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> NodePublic {
        let mut bytes = [7; 32];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        NodePublic::from_bytes(bytes)
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "virtual time needs an origin")]
    fn the_latest_of_each_is_kept_for_a_while_and_the_oldest_makes_room() {
        let start = Instant::now();
        let mut knocks = Knocks::default();
        let node = |n, millis| Knock {
            from: Knocker::Node(key(n)),
            region: Some(1),
            at: start + Duration::from_millis(millis),
        };
        for n in 0..1000 {
            knocks.handle(node(n % 100, n.into()));
        }
        assert_eq!(knocks.0.len(), MAX_KNOCKS);
        let now = start + Duration::from_secs(1);
        let (disco, nobody) = (DiscoPublic::from_bytes([3; 32]), DiscoPublic::from_bytes([4; 32]));
        assert_eq!(knocks.take(now, &key(99), &nobody), Some(node(99, 999)));
        assert_eq!(knocks.take(now, &key(99), &nobody), None);
        assert_eq!(knocks.take(now, &key(30), &nobody), None, "it made room");
        let by_disco = Knock { from: Knocker::Disco(disco), region: None, at: now };
        knocks.handle(by_disco);
        assert_eq!(knocks.take(now, &key(98), &disco), Some(by_disco));
        assert_eq!(knocks.take(now, &key(98), &disco), None, "both were its");
        assert_eq!(knocks.take(start + 2 * REMEMBERED_FOR, &key(97), &nobody), None, "too long ago");
    }
}
