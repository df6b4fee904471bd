//! The demo's own processes: nixtail itself, started as a user would start it, and Nix.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader, Lines};
use tokio::process::ChildStdout;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::DemoError;
use crate::nix::spawn::{ChildSpec, GroupChild, TERMINATE_GRACE};

/// The longest that a child's stderr is kept; the end of it says why it failed.
const KEPT_STDERR: usize = 64 * 1024;
/// How long a child may take to log out and end after TERM.
const LEAVE: Duration = Duration::from_secs(8);

/// A child of the demo: killed with its group when dropped, and when the demo itself is killed.
pub(super) struct Process {
    name: String,
    child: GroupChild,
    stdout: Lines<BufReader<ChildStdout>>,
    stderr: JoinHandle<String>,
}

/// What a child that ended well left.
pub(super) struct Ended {
    /// What it wrote to stdout and nobody had read.
    pub(super) stdout: String,
}

/// The environment that each child of the demo gets: what finds programs, and a home of its own.
pub(super) fn environment(home: &Path) -> Vec<(OsString, OsString)> {
    let kept = ["PATH", "LD_LIBRARY_PATH", "LANG", "NIXTAIL_LOG", "NIX_DATA_DIR", "NIX_LIBEXEC_DIR", "NIX_BIN_DIR"];
    let inherited = kept.into_iter().filter_map(|name| Some((name.into(), std::env::var_os(name)?)));
    inherited.chain([("HOME".into(), home.into()), ("XDG_RUNTIME_DIR".into(), home.into())]).collect()
}

impl Process {
    /// Starts `program`; each line of its stderr goes to `log` as it comes.
    pub(super) async fn start(
        name: &str,
        program: &Path,
        arguments: Vec<OsString>,
        environment: Vec<(OsString, OsString)>,
        directory: PathBuf,
        log: impl FnMut(&str) + Send + 'static,
    ) -> Result<Self, DemoError> {
        let spec = ChildSpec { program: program.to_owned(), arguments, environment, directory };
        let mut child = GroupChild::start(&spec).await?;
        let (stdin, stdout, stderr) = child.take_pipes().ok_or_else(|| DemoError::Ended { name: name.to_owned() })?;
        drop(stdin);
        let stderr = tokio::spawn(follow(stderr, log));
        Ok(Self { name: name.to_owned(), child, stdout: BufReader::new(stdout).lines(), stderr })
    }

    /// The next line of its stdout.
    pub(super) async fn line(&mut self, within: Duration) -> Result<String, DemoError> {
        match timeout(within, self.stdout.next_line()).await {
            Err(_) => Err(DemoError::Silent { name: self.name.clone(), seconds: within.as_secs() }),
            Ok(Ok(Some(line))) => Ok(line),
            Ok(_) => {
                let _ = timeout(TERMINATE_GRACE, self.child.wait()).await;
                let said = timeout(TERMINATE_GRACE, &mut self.stderr).await;
                let said = said.ok().and_then(Result::ok).unwrap_or_default();
                Err(DemoError::Failed { name: self.name.clone(), said: last_lines(&said) })
            }
        }
    }

    /// Waits for its end and says how it ended, what else it wrote to stdout, and what to stderr.
    pub(super) async fn wait(mut self, within: Duration) -> Result<Ended, DemoError> {
        let silent = || DemoError::Silent { name: self.name.clone(), seconds: within.as_secs() };
        let mut stdout = String::new();
        let drained = async {
            while let Ok(Some(line)) = self.stdout.next_line().await {
                stdout.push_str(&line);
                stdout.push('\n');
            }
            self.child.wait().await
        };
        let status = timeout(within, drained).await.map_err(|_| silent())??;
        let stderr = timeout(TERMINATE_GRACE, self.stderr).await.ok().and_then(Result::ok).unwrap_or_default();
        if status.success() {
            return Ok(Ended { stdout });
        }
        let mut said = last_lines(&stderr);
        if said.is_empty() {
            said = status.to_string();
        }
        Err(DemoError::Failed { name: self.name, said })
    }

    /// Asks it to end, and sees to it that it does.
    pub(super) async fn end(mut self) -> Result<ExitStatus, DemoError> {
        Ok(self.child.terminate(LEAVE).await?)
    }
}

async fn follow(stderr: impl AsyncRead + Unpin, mut log: impl FnMut(&str)) -> String {
    let mut kept = String::new();
    let mut lines = BufReader::new(stderr);
    let mut line = Vec::new();
    // A line without end is cut, so that no child fills the memory.
    while let Ok(1..) = (&mut lines).take(8192).read_until(b'\n', &mut line).await {
        let text = String::from_utf8_lossy(&line);
        log(text.trim_end());
        kept.push_str(&text);
        if kept.len() > 2 * KEPT_STDERR {
            let from = kept.ceil_char_boundary(kept.len() - KEPT_STDERR);
            kept.drain(..from);
        }
        line.clear();
    }
    kept
}

/// The end of what a child said, which mostly tells why.
fn last_lines(said: &str) -> String {
    let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    lines.iter().skip(lines.len().saturating_sub(8)).copied().collect::<Vec<_>>().join("\n  ")
}
