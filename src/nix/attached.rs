//! A command of the user's: it has our own stdin, stdout and stderr, and it mustn't outlive this process either.

use std::ffi::OsString;
use std::io;
use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};

use super::spawn::{die_with_us, start_on_thread};

/// A command to run as a person would.
#[derive(Debug, Clone)]
pub struct AttachedSpec {
    /// The program, looked up along `PATH`.
    pub program: OsString,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// What is set in its environment, which is ours besides.
    pub set: Vec<(OsString, OsString)>,
    /// What is taken out of it.
    pub unset: Vec<OsString>,
    /// Whether it gets a process group of its own.
    pub own_group: bool,
}

/// Why a command couldn't be started.
#[derive(Debug, thiserror::Error)]
#[error("can't start {}: {source}", program.display())]
pub struct AttachedError {
    program: OsString,
    source: io::Error,
}

impl AttachedError {
    /// Whether there is no such program, rather than one that can't be started.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// A running command. Dropping it kills it.
#[derive(Debug)]
pub struct AttachedChild {
    child: Child,
    target: SignalTarget,
}

/// Where signals for a command go: to itself, or to its whole group.
#[derive(Debug, Clone, Copy)]
pub struct SignalTarget {
    process: Pid,
    is_group: bool,
}

impl SignalTarget {
    /// Sends it, while the command hasn't been waited for.
    pub fn send(self, signal: Signal) {
        // One that has just ended needs it no more.
        let _ = if self.is_group {
            rustix::process::kill_process_group(self.process, signal)
        } else {
            rustix::process::kill_process(self.process, signal)
        };
    }
}

impl AttachedChild {
    /// Starts it. Needs a tokio runtime.
    ///
    /// # Errors
    /// When there is no such program, or the system doesn't start it.
    pub async fn start(spec: &AttachedSpec) -> Result<Self, AttachedError> {
        let failed = |source| AttachedError { program: spec.program.clone(), source };
        let mut command = Command::new(&spec.program);
        command.args(&spec.arguments).stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
        for name in &spec.unset {
            command.env_remove(name);
        }
        command.envs(spec.set.iter().map(|(name, value)| (name, value))).kill_on_drop(true);
        if spec.own_group {
            command.process_group(0);
        }
        // TERM, not KILL: it is the user's, and may have something to put in order.
        die_with_us(&mut command);
        let child = start_on_thread(command).await.map_err(failed)?;
        let process = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let process = process.ok_or_else(|| failed(io::Error::other("it ended before it began")))?;
        Ok(Self { child, target: SignalTarget { process, is_group: spec.own_group } })
    }

    /// Where its signals go.
    #[must_use]
    pub fn target(&self) -> SignalTarget {
        self.target
    }

    /// Waits for its end. Cancel safe.
    ///
    /// # Errors
    /// When the system doesn't say how it ended.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        if self.child.id().is_some() {
            self.target.send(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> AttachedSpec {
        AttachedSpec {
            program: "sh".into(),
            arguments: vec!["-c".into(), script.into()],
            set: vec![("NIXTAIL_TEST_SET".into(), "a b".into())],
            unset: vec!["HOME".into()],
            own_group: true,
        }
    }

    #[tokio::test]
    async fn its_environment_is_ours_with_what_is_set_and_without_what_is_not() {
        let script = r#"test "$NIXTAIL_TEST_SET" = "a b" && test -z "${HOME+x}" && test -n "$PATH" && exit 42"#;
        let mut child = AttachedChild::start(&shell(script)).await.unwrap();
        assert_eq!(child.wait().await.unwrap().code(), Some(42));
    }

    #[tokio::test]
    async fn a_signal_reaches_its_whole_group() {
        let mut child = AttachedChild::start(&shell("trap 'exit 7' TERM; sleep 1000 & wait")).await.unwrap();
        // The shell needs a moment to set its trap; without it the signal ends it, too.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        child.signal(Signal::TERM);
        let status = tokio::time::timeout(std::time::Duration::from_secs(60), child.wait()).await.unwrap().unwrap();
        assert!(!status.success());
        // Nobody is left in the group, once who took over its orphan has seen it.
        for _ in 0..600 {
            if rustix::process::test_kill_process_group(child.target.process).is_err() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        panic!("a process of its group is left");
    }

    #[tokio::test]
    async fn what_is_not_there_is_told_from_what_cannot_be_started() {
        let missing = AttachedChild::start(&AttachedSpec { program: "no-such-program".into(), ..shell("") }).await;
        assert!(missing.unwrap_err().is_missing());
        let folder = AttachedChild::start(&AttachedSpec { program: "/".into(), ..shell("") }).await;
        assert!(!folder.unwrap_err().is_missing());
    }
}
