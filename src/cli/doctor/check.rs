//! What one check came to.

use serde::Serialize;

use crate::report::{Exit, Failure};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Verdict {
    /// As it should be.
    Ok,
    /// It works, or isn't needed; something is worth a look.
    Warning,
    /// It can't work like that.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    /// What was looked at. Stable, for programs.
    pub(super) name: &'static str,
    /// How it is.
    pub(super) verdict: Verdict,
    /// What was found, one line.
    pub(super) found: String,
    /// What to do next.
    pub(super) next: Option<String>,
    /// How a command ends that has this problem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) exit: Option<Exit>,
}

impl Check {
    /// All is well.
    pub(super) fn ok(name: &'static str, found: impl ToString) -> Self {
        Self { name, verdict: Verdict::Ok, found: found.to_string(), next: None, exit: None }
    }

    /// Something is worth a look.
    pub(super) fn warning(name: &'static str, found: impl ToString, next: impl ToString) -> Self {
        Self { name, verdict: Verdict::Warning, found: found.to_string(), next: Some(next.to_string()), exit: None }
    }

    /// It can't work like that.
    pub(super) fn problem(name: &'static str, exit: Exit, found: impl ToString, next: impl ToString) -> Self {
        Self {
            name,
            verdict: Verdict::Problem,
            found: found.to_string(),
            next: Some(next.to_string()),
            exit: Some(exit),
        }
    }

    /// What a command would fail with.
    pub(super) fn failed(name: &'static str, failure: &Failure) -> Self {
        let (found, next) = match &failure.next {
            Some(next) => (failure.message.as_str(), next.as_str()),
            // Errors of control and of relays have it in their sentence.
            None => failure.message.rsplit_once("; ").unwrap_or((&failure.message, "see docs/troubleshooting.md")),
        };
        Self::problem(name, failure.exit, found, next)
    }

    /// The same, where it is no reason for anything to fail.
    pub(super) fn softened(self) -> Self {
        Self { verdict: self.verdict.min(Verdict::Warning), exit: None, ..self }
    }
}
