//! Which peers have something to do, and when others will: ten thousand idle peers cost nothing per packet.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::time::Instant;

/// Keys that are due now, in the order in which they became so, and those that will be.
#[derive(Debug)]
pub(super) struct Schedule<K> {
    due: VecDeque<K>,
    is_due: HashSet<K>,
    /// May hold entries that were brought forward since; `timers` has the valid time of each key.
    heap: BinaryHeap<Reverse<(Instant, K)>>,
    timers: HashMap<K, Instant>,
}

impl<K: Copy + Eq + Hash + Ord> Schedule<K> {
    pub(super) fn new() -> Self {
        Self { due: VecDeque::new(), is_due: HashSet::new(), heap: BinaryHeap::new(), timers: HashMap::new() }
    }

    /// Makes `key` due.
    pub(super) fn wake(&mut self, key: K) {
        if self.is_due.insert(key) {
            self.due.push_back(key);
        }
    }

    /// The key that is due for longest; it stays due until [`Schedule::sleep`].
    pub(super) fn first_due(&mut self) -> Option<K> {
        while let Some(key) = self.due.front().copied() {
            if self.is_due.contains(&key) {
                return Some(key);
            }
            self.due.pop_front();
        }
        None
    }

    /// `key` has nothing more to do before `until`. A timer that rings earlier than needed is left alone: it does no
    /// harm, and packets move it all the time.
    pub(super) fn sleep(&mut self, key: K, until: Option<Instant>) {
        self.is_due.remove(&key);
        if self.due.front() == Some(&key) {
            self.due.pop_front();
        }
        let Some(until) = until else { return };
        if self.timers.get(&key).is_none_or(|at| until < *at) {
            self.timers.insert(key, until);
            self.heap.push(Reverse((until, key)));
        }
    }

    /// Forgets `key`.
    pub(super) fn remove(&mut self, key: K) {
        self.is_due.remove(&key);
        self.timers.remove(&key);
    }

    /// Makes due whose time has come.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        while let Some(Reverse((at, key))) = self.heap.peek().copied()
            && at <= now
        {
            self.heap.pop();
            if self.timers.get(&key) == Some(&at) {
                self.timers.remove(&key);
                self.wake(key);
            }
        }
    }

    /// When the next key becomes due.
    pub(super) fn poll_timeout(&mut self) -> Option<Instant> {
        while let Some(Reverse((at, key))) = self.heap.peek().copied() {
            if self.timers.get(&key) == Some(&at) {
                return Some(at);
            }
            self.heap.pop();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "virtual time needs an origin")]
    fn keys_become_due_in_their_time_and_once() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut schedule = Schedule::new();
        schedule.sleep(1, Some(at(5)));
        schedule.sleep(2, Some(at(3)));
        schedule.sleep(1, Some(at(2)));
        assert_eq!(schedule.poll_timeout(), Some(at(2)));
        schedule.handle_timeout(at(3));
        schedule.wake(1);
        assert_eq!(schedule.first_due(), Some(1));
        schedule.sleep(1, None);
        assert_eq!(schedule.first_due(), Some(2));
        schedule.remove(2);
        assert_eq!(schedule.first_due(), None);
        schedule.handle_timeout(at(9));
        assert_eq!((schedule.first_due(), schedule.poll_timeout()), (None, None));
    }
}
