//! A state that a log tells of as it changes, and no more often than a person can read.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The log's target of such lines, which are shown without `-v`, too.
pub(crate) const MOMENT: &str = "nixtail::moment";

/// So many lines …
const LINES: usize = 5;
/// … within this time, at most, about one thing. What changes more often is told less often, with how often it did.
const WINDOW: Duration = Duration::from_secs(5 * 60);

/// How one thing is, and what was told of it.
#[derive(Debug)]
pub(crate) struct Told<S> {
    told: Option<S>,
    state: Option<S>,
    /// How often it changed since it was told.
    changes: u32,
    /// When the last lines were.
    lines: VecDeque<Instant>,
}

/// What is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Change<S> {
    /// What was told last. The same as `state`, where that came back before its change could be told.
    pub(crate) before: Option<S>,
    /// How it is.
    pub(crate) state: S,
    /// How many changes in between weren't told.
    pub(crate) untold: u32,
}

impl<S: Clone + PartialEq> Told<S> {
    /// Takes how it is. What comes back is to be told now.
    pub(crate) fn set(&mut self, now: Instant, state: S) -> Option<Change<S>> {
        if self.state.as_ref() != Some(&state) {
            self.state = Some(state);
            self.changes = self.changes.saturating_add(1);
        }
        self.poll(now)
    }

    /// What had to wait and is to be told now.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Change<S>> {
        if self.changes == 0 || self.poll_timeout().is_some_and(|at| at > now) {
            return None;
        }
        if self.lines.len() >= LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(now);
        let state = self.state.clone()?;
        let untold = std::mem::take(&mut self.changes) - 1;
        Some(Change { before: self.told.replace(state.clone()), state, untold })
    }

    /// When [`Self::poll`] has something that waits. `None`: nothing does.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let oldest = *self.lines.front().filter(|_| self.changes > 0)?;
        Some(if self.lines.len() < LINES { oldest } else { oldest + WINDOW })
    }
}

impl<S> Default for Told<S> {
    fn default() -> Self {
        Self { told: None, state: None, changes: 0, lines: VecDeque::new() }
    }
}

impl<S> Change<S> {
    /// What is put behind a line about it.
    pub(crate) fn more(&self) -> String {
        match self.untold {
            0 => String::new(),
            1 => " (and it changed once in between)".to_owned(),
            times => format!(" (and it changed {times} times in between)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_is_told_once() {
        let (mut told, now) = (Told::default(), Instant::now());
        assert_eq!(told.set(now, 1), Some(Change { before: None, state: 1, untold: 0 }));
        assert_eq!(told.set(now, 1), None);
        assert_eq!(told.set(now, 2), Some(Change { before: Some(1), state: 2, untold: 0 }));
        assert_eq!((told.poll(now), told.poll_timeout()), (None, None));
    }

    #[test]
    fn what_flaps_is_told_seldom_and_in_the_end_as_it_is() {
        let start = Instant::now();
        let mut told = Told::default();
        let mut lines = 0;
        for second in 0..3600 {
            let now = start + Duration::from_secs(second);
            lines += usize::from(told.set(now, second % 2).is_some());
        }
        let windows = 3600 / usize::try_from(WINDOW.as_secs()).unwrap();
        assert!(lines <= LINES * (windows + 1), "{lines}");

        let mut told = Told::default();
        for state in 0..100 {
            told.set(start, state);
        }
        let due = told.poll_timeout().unwrap();
        assert_eq!((told.poll(due - Duration::from_millis(1)), due), (None, start + WINDOW));
        let change = told.poll(due).unwrap();
        assert_eq!((change.before, change.state, change.untold), (Some(4), 99, 94));
        assert_eq!(change.more(), " (and it changed 94 times in between)");
        assert_eq!(told.poll_timeout(), None);
    }

    #[test]
    fn what_came_back_before_it_was_told_is_told_all_the_same() {
        let (mut told, now) = (Told::default(), Instant::now());
        for state in [0, 1, 0, 1, 0, 1, 0] {
            told.set(now, state);
        }
        let change = told.poll(now + WINDOW).unwrap();
        assert_eq!((change.before, change.state, change.untold), (Some(0), 0, 1));
    }
}
