//! Why a command failed, in the words and the exit code that its user gets.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The exit codes of the command line. Stable; most are those of BSD's `sysexits.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// 1: something else failed.
    General,
    /// 2: the command line makes no sense.
    Usage,
    /// 69: the agent, the control plane, a relay or a peer can't be reached.
    Unavailable,
    /// 75: not now; trying again later may help.
    TryAgain,
    /// 77: the key, the tag or the policy doesn't allow it.
    Refused,
    /// 78: the configuration or the machine isn't fit for it.
    Configuration,
    /// 124: it took longer than it was given.
    Timeout,
    /// 126: the command to run can't be started.
    NotExecutable,
    /// 127: there is no such command to run.
    NotFound,
}

impl Exit {
    /// The process' exit status.
    pub const fn code(self) -> u8 {
        match self {
            Self::General => 1,
            Self::Usage => 2,
            Self::Unavailable => 69,
            Self::TryAgain => 75,
            Self::Refused => 77,
            Self::Configuration => 78,
            Self::Timeout => 124,
            Self::NotExecutable => 126,
            Self::NotFound => 127,
        }
    }
}

/// A failure as a person is told of it: what failed and why, what to do next, and the exit code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What failed and why, one line without a full stop at its end.
    pub message: String,
    /// What to do next.
    pub next: Option<String>,
    /// How the process ends.
    pub exit: Exit,
}

impl Failure {
    /// A failure without advice.
    pub fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self { message: message.to_string(), next: None, exit }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn next(mut self, next: impl fmt::Display) -> Self {
        self.next = Some(next.to_string());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.next {
            Some(next) => write!(f, "\n  {next}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}
