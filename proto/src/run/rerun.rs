//! When a command is run again: Nix never gives a build that it has lost to another builder, so that the whole command
//! fails. Run once more, it finds what was finished before, and loses only what was under way.

/// How often a command may still be run again.
#[derive(Debug)]
pub struct Reruns {
    left: u32,
    done: u32,
}

/// How one run of a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ended {
    /// With exit code 0.
    pub well: bool,
    /// A signal was passed on to it, or we are told to leave.
    pub interrupted: bool,
    /// The builders that were lost meanwhile.
    pub lost: Vec<String>,
    /// The derivations whose builder ran to its end and failed.
    pub failed_builds: Vec<String>,
}

/// What follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Its exit code is the end.
    Over,
    /// Its exit code is the end, though builders were lost: nothing is left of what was allowed.
    Exhausted {
        /// How often it was run again.
        reruns: u32,
    },
    /// It is run again.
    Again {
        /// Which run again this is, from 1.
        rerun: u32,
        /// How often it may be run again after that.
        left: u32,
    },
}

impl Reruns {
    /// `allowed` of them.
    #[must_use]
    pub fn new(allowed: u32) -> Self {
        Self { left: allowed, done: 0 }
    }

    /// The command has ended. A build that failed by itself would fail again, whatever was lost beside it.
    pub fn handle_ended(&mut self, ended: &Ended) -> Verdict {
        if ended.well || ended.interrupted || ended.lost.is_empty() || !ended.failed_builds.is_empty() {
            return Verdict::Over;
        }
        let Some(left) = self.left.checked_sub(1) else { return Verdict::Exhausted { reruns: self.done } };
        self.left = left;
        self.done += 1;
        Verdict::Again { rerun: self.done, left }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost() -> Ended {
        Ended { lost: vec!["b1".to_owned()], ..Ended::default() }
    }

    #[test]
    fn only_a_lost_builder_is_a_reason_to_run_again() {
        for ended in [
            Ended::default(),
            Ended { well: true, ..lost() },
            Ended { interrupted: true, ..lost() },
            Ended { failed_builds: vec!["hello".to_owned()], ..lost() },
        ] {
            assert_eq!(Reruns::new(2).handle_ended(&ended), Verdict::Over, "{ended:?}");
        }
    }

    #[test]
    fn what_is_allowed_is_used_up() {
        let mut reruns = Reruns::new(2);
        assert_eq!(reruns.handle_ended(&lost()), Verdict::Again { rerun: 1, left: 1 });
        assert_eq!(reruns.handle_ended(&lost()), Verdict::Again { rerun: 2, left: 0 });
        assert_eq!(reruns.handle_ended(&lost()), Verdict::Exhausted { reruns: 2 });
        assert_eq!(Reruns::new(0).handle_ended(&lost()), Verdict::Exhausted { reruns: 0 });
    }
}
