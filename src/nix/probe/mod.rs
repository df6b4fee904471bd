//! A build that tells what builds are like here: it goes the way of a coordinator's, through the very child that sessions
//! get, and looks around from inside the sandbox.
//!
//! It writes what it finds to its log and makes no output, so that nothing of it stays in the store but the shell that it
//! runs, which is named by its content and goes with the next garbage collection.

mod tools;
mod trust;
mod worker;

use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;

use super::machine::Membership;
use super::spawn::{ChildSpec, GroupChild, SpawnError, TERMINATE_GRACE};
use crate::report::plain;
use tools::Shell;
use worker::{Derivation, Worker, WorkerError};

pub use trust::{DaemonError, is_trusted};

/// How long a probe may take; it takes 0.2 s on an idle machine.
pub const PROBE_DEADLINE: Duration = Duration::from_secs(60);
/// How much of the daemon's stderr is kept.
const MAX_WORDS: u64 = 16 * 1024;
/// The value of `cores` that a probe is given, to see whether settings of ours reach builds: nobody has so many.
const TELLTALE_CORES: u32 = 60_977;
/// The hash in the names of the trial derivation and its output, which never comes to be. Always the same, so that the lock
/// file and the log that Nix leaves of a failed build don't become many; trials of one store wait for each other.
const HASH: &str = "n1x7a11n1x7a11n1x7a11n1x7a11n1x7";

/// What the shell in the build does. It has no program beside it: built-ins only. (`<>` would make a file that isn't there.)
const SCRIPT: &str = r#"
echo "pid $$"
echo "settings $NIX_BUILD_CORES"
if [ -c /dev/kvm ] && (exec 3<>/dev/kvm) 2>/dev/null; then echo "kvm opens"; fi
while read -r name value; do
  case $name in Cpus_allowed_list:) echo "cpus $value";; esac
done </proc/self/status
while read -r line; do echo "cgroup $line"; done </proc/self/cgroup
echo "done"
"#;

/// What came of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Findings {
    /// Whether the daemon trusts us; `None` when it didn't come to that.
    pub trusted: Option<bool>,
    /// What builds are like, or why there was none.
    pub build: Result<Inside, Obstacle>,
}

/// What a build sees.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inside {
    /// Whether it is kept apart from the machine's processes.
    pub sandboxed: bool,
    /// Whether settings given to the child reach builds, instead of the system daemon's own.
    pub settings_reach: bool,
    /// Whether `/dev/kvm` opens for reading and writing.
    pub kvm: bool,
    /// The limits under which it runs.
    pub membership: Option<Membership>,
}

/// Why nothing was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// The daemon couldn't be talked to: its words on stderr, or why the connection ended.
    Connection(String),
    /// The store takes nothing.
    Add(String),
    /// It was not allowed, or the build failed before it could look: Nix' words.
    Build(String),
    /// No program could be put together here that a build might run: why. All else was not tried.
    Shell(String),
    /// It took longer than [`PROBE_DEADLINE`].
    Deadline,
}

/// Builds through `daemon`, for `system`, with `configuration` as the child's `NIX_CONFIG`.
///
/// # Errors
/// When the child can't be started.
pub async fn probe(
    daemon: &ChildSpec,
    store_folder: &str,
    system: &str,
    configuration: &str,
) -> Result<Findings, SpawnError> {
    let configuration = format!("{configuration}\ncores = {TELLTALE_CORES}\n");
    let mut child = GroupChild::start(&daemon.clone().with_variable("NIX_CONFIG", configuration)).await?;
    let Some((stdin, stdout, stderr)) = child.take_pipes() else {
        return Ok(Findings { trusted: None, build: Err(Obstacle::Connection("it has no pipes".into())) });
    };
    let words = tokio::spawn(async move {
        let mut words = Vec::new();
        // What was read before an error is all there is to show.
        let _ = stderr.take(MAX_WORDS).read_to_end(&mut words).await;
        String::from_utf8_lossy(&words).into_owned()
    });
    let reader = tokio::io::BufReader::new(stdout);
    let mut findings = timeout(PROBE_DEADLINE, look(reader, stdin, store_folder, system))
        .await
        .unwrap_or(Findings { trusted: None, build: Err(Obstacle::Deadline) });
    // It has closed its pipes or will; its words end with it. A group that is gone already can't be ended again.
    let _ = child.terminate(TERMINATE_GRACE).await;
    let words = timeout(TERMINATE_GRACE, words).await.ok().and_then(Result::ok).unwrap_or_default();
    if let Err(Obstacle::Connection(reason)) = &mut findings.build
        && let Some(line) = telling_line(&words)
    {
        *reason = line;
    }
    Ok(findings)
}

async fn look<R, W>(reader: R, writer: W, store_folder: &str, system: &str) -> Findings
where
    R: tokio::io::AsyncRead + Unpin,
    W: tokio::io::AsyncWrite + Unpin,
{
    let failed = |trusted, obstacle| Findings { trusted, build: Err(obstacle) };
    let mut worker = match Worker::greet(reader, writer).await {
        Ok(worker) => worker,
        Err(error) => return failed(None, Obstacle::Connection(error.to_string())),
    };
    let said = worker.trusted;
    let shell = match Shell::collect().await {
        Ok(shell) => shell,
        Err(error) => return failed(said, Obstacle::Shell(error.to_string())),
    };
    let tools = match worker.add_archive("nixtail-probe-tools", &shell.archive).await {
        Ok(path) => path,
        Err(error) => return failed(said, Obstacle::Add(error.to_string())),
    };
    let (builder, arguments) = shell.command(&tools, SCRIPT);
    let path = |name: &str| format!("{store_folder}/{HASH}-{name}");
    let output = path("nixtail-look");
    let derivation = Derivation {
        path: path("nixtail-look.drv"),
        output: output.clone(),
        sources: vec![tools],
        system: system.to_owned(),
        builder,
        arguments,
        // Neither fetched from elsewhere nor forwarded.
        environment: [("out", output.as_str()), ("allowSubstitutes", ""), ("preferLocalBuild", "1")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec(),
    };
    match worker.build(&derivation).await {
        Ok(built) => {
            let inside = read_log(&built.lines).ok_or_else(|| Obstacle::Build(plain(&built.error)));
            Findings { trusted: said.or(Some(true)), build: inside }
        }
        // Before 2.15 this is how an untrusted client learns that it is one.
        Err(WorkerError::Refused(words)) if words.contains("not privileged to build") => {
            failed(Some(false), Obstacle::Build(words))
        }
        Err(WorkerError::Refused(words)) => failed(said, Obstacle::Build(words)),
        Err(error) => failed(said, Obstacle::Connection(error.to_string())),
    }
}

/// Reads what [`SCRIPT`] wrote; `None` unless it came to its end.
fn read_log(lines: &[String]) -> Option<Inside> {
    lines.iter().any(|line| line == "done").then_some(())?;
    let value = |name: &str| lines.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let cgroups: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix("cgroup ")).collect();
    Some(Inside {
        // In a sandbox it is the first process of a PID namespace, or the second.
        sandboxed: value("pid").and_then(|pid| pid.parse::<u32>().ok()).is_some_and(|pid| pid <= 2),
        settings_reach: value("settings") == Some(&TELLTALE_CORES.to_string()),
        kvm: value("kvm") == Some("opens"),
        membership: value("cpus")
            .map(|cpus| Membership { cgroups: cgroups.join("\n"), allowed_cpus: cpus.trim().to_owned() }),
    })
}

/// The line of Nix' that says why: its last error that has words beside it (newer ones begin with a bare `error:` and the
/// circumstances), or its last words.
fn telling_line(words: &str) -> Option<String> {
    let mut lines = words.lines().map(str::trim).filter(|line| !line.is_empty());
    let has_words = |line: &&str| line.split_once("error:").is_some_and(|(_, rest)| !rest.trim().is_empty());
    let error = lines.clone().rfind(has_words);
    error.or_else(|| lines.next_back()).map(|line| plain(line).chars().take(300).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_sandboxed_build_tells_what_it_sees() {
        let said = "pid 1\nsettings 60977\nkvm opens\ncpus 0-3\ncgroup 0::/a\ncgroup 3:cpu:/\ndone";
        let membership = Membership { cgroups: "0::/a\n3:cpu:/".into(), allowed_cpus: "0-3".into() };
        let wanted = Inside { sandboxed: true, settings_reach: true, kvm: true, membership: Some(membership) };
        assert_eq!(read_log(&log(said)), Some(wanted));
    }

    #[test]
    fn a_build_without_sandbox_or_settings_says_so() {
        let inside = read_log(&log("pid 4711\nsettings 2\ncpus 0-1\ndone")).unwrap();
        assert!(!inside.sandboxed && !inside.settings_reach && !inside.kvm);
    }

    #[test]
    fn a_log_that_ends_early_tells_nothing() {
        assert_eq!(read_log(&log("pid 1\nsettings 60977")), None);
        assert_eq!(read_log(&[]), None);
    }

    #[test]
    fn the_telling_line_is_the_error() {
        assert_eq!(telling_line("warning: x\nerror: cannot connect\nbye\n").as_deref(), Some("error: cannot connect"));
        let newer = "error:\n       \u{2026} while opening\n       error: creating '/nix': Permission denied\n";
        assert_eq!(telling_line(newer).as_deref(), Some("error: creating '/nix': Permission denied"));
        assert_eq!(telling_line("one\ntwo\n").as_deref(), Some("two"));
        assert_eq!(telling_line("\n"), None);
    }
}
