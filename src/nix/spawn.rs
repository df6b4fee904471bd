//! Children: started without a shell, in a process group of their own, with an environment built from nothing, and never
//! outliving this process.

#![allow(unsafe_code, reason = "pre_exec is the only way to set the parent-death signal; see SAFETY below")]

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

/// How long a child has between TERM and KILL: `nix-daemon` needs it to stop its builds and release its locks.
pub const TERMINATE_GRACE: Duration = Duration::from_secs(3);

/// What to start. Everything a child gets is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildSpec {
    /// Absolute path of the program: no search along `PATH`.
    pub program: PathBuf,
    /// Its arguments, without the program's name.
    pub arguments: Vec<OsString>,
    /// Its whole environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Its working directory.
    pub directory: PathBuf,
}

impl ChildSpec {
    /// A program with arguments, an empty environment, in `/`.
    pub fn new(program: impl Into<PathBuf>, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self {
            program: program.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            environment: Vec::new(),
            directory: PathBuf::from("/"),
        }
    }

    /// The same with one more variable.
    #[must_use]
    pub fn with_variable(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }
}

/// Why a child couldn't be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// The program's path isn't absolute.
    #[error("{0}: not an absolute path; give the full path of the program")]
    NotAbsolute(PathBuf),
    /// The system refused.
    #[error("can't start {program}: {source}")]
    Start {
        /// What was to be started.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The thread that starts children is gone.
    #[error("can't start {0}: this process is ending")]
    Ending(PathBuf),
}

/// A running child with its three pipes. Dropping it kills its whole group at once.
#[derive(Debug)]
pub struct GroupChild {
    child: Child,
    group: Pid,
}

impl GroupChild {
    /// Starts `spec`. Needs a tokio runtime with IO, as it makes pipes.
    pub async fn start(spec: &ChildSpec) -> Result<Self, SpawnError> {
        if !spec.program.is_absolute() {
            return Err(SpawnError::NotAbsolute(spec.program.clone()));
        }
        let failed = |source| SpawnError::Start { program: spec.program.clone(), source };
        let ending = || SpawnError::Ending(spec.program.clone());
        let started = start_on_thread(command(spec)).await;
        let child = started.map_err(|error| if is_ending(&error) { ending() } else { failed(error) })?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let group = pid.ok_or_else(|| failed(io::Error::other("it ended before it began")))?;
        Ok(Self { child, group })
    }

    /// The process id, which is also the group's.
    pub fn process_id(&self) -> i32 {
        self.group.as_raw_nonzero().get()
    }

    /// The child's pipes; each can be taken once.
    pub fn take_pipes(&mut self) -> Option<(ChildStdin, ChildStdout, ChildStderr)> {
        Some((self.child.stdin.take()?, self.child.stdout.take()?, self.child.stderr.take()?))
    }

    /// Waits for the child's end, and ends what it left behind in its group. Cancel safe.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await?;
        self.signal(Signal::KILL);
        Ok(status)
    }

    /// Ends the whole group: TERM, then KILL after `grace`; waits for the child in any case.
    pub async fn terminate(&mut self, grace: Duration) -> io::Result<ExitStatus> {
        self.signal(Signal::TERM);
        if let Ok(status) = tokio::time::timeout(grace, self.wait()).await {
            return status;
        }
        self.signal(Signal::KILL);
        self.wait().await
    }

    /// A group's number isn't reused while it has members, and a signal to one without any does nothing.
    fn signal(&self, signal: Signal) {
        let _ = rustix::process::kill_process_group(self.group, signal);
    }
}

impl Drop for GroupChild {
    fn drop(&mut self) {
        // Only while the leader isn't waited for: from then on the group's number may be another's.
        if self.child.id().is_some() {
            self.signal(Signal::KILL);
        }
    }
}

/// The exit code that stands for `status`: 128 and the signal's number where a signal ended it, as shells have it.
pub fn exit_code(status: ExitStatus) -> u32 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255);
    u32::try_from(code).unwrap_or(255)
}

fn command(spec: &ChildSpec) -> Command {
    let mut command = Command::new(&spec.program);
    command
        .args(&spec.arguments)
        .env_clear()
        .envs(spec.environment.iter().map(|(name, value)| (name, value)))
        .current_dir(&spec.directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    die_with_us(&mut command);
    command
}

/// Has the kernel send TERM to the child when the thread that starts it ends: see [`start_on_thread`]. Not KILL: a
/// sandboxed build is ended by its Nix, which must have the time to.
#[cfg(target_os = "linux")]
pub(super) fn die_with_us(command: &mut Command) {
    let parent = rustix::process::getpid();
    // SAFETY: the closure runs between fork and exec in a process with one thread. It makes two system calls through
    // rustix, which allocates nothing and takes no lock, and builds its error from a raw number.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
            // Where this process died before the call above, nobody would send the signal any more.
            if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(io::Error::from_raw_os_error(3)) }
        });
    }
}

/// Other systems have no such signal. There a child with pipes of ours sees them close, at which `nix-daemon --stdio` ends with
/// its builds; a command of the user's outlives an agent that was killed.
#[cfg(not(target_os = "linux"))]
pub(super) fn die_with_us(_: &mut Command) {}

/// Starts a command on the thread that starts all children, which lives as long as this process.
pub(super) async fn start_on_thread(command: Command) -> io::Result<Child> {
    let (reply, started) = tokio::sync::oneshot::channel();
    let job = Job { command, runtime: tokio::runtime::Handle::current(), reply };
    spawner()?.send(job).map_err(|_| io::Error::from(ENDING))?;
    started.await.map_err(|_| io::Error::from(ENDING))?
}

/// What [`start_on_thread`] fails with where there is no such thread any more.
const ENDING: io::ErrorKind = io::ErrorKind::BrokenPipe;

fn is_ending(error: &io::Error) -> bool {
    error.kind() == ENDING
}

struct Job {
    command: Command,
    runtime: tokio::runtime::Handle,
    reply: tokio::sync::oneshot::Sender<io::Result<Child>>,
}

/// The thread that starts all children. The parent-death signal comes when the *thread* that forked ends, so it must be
/// one that lives as long as the process: a runtime's threads may not.
fn spawner() -> io::Result<&'static mpsc::Sender<Job>> {
    static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    if let Some(sender) = SPAWNER.get() {
        return Ok(sender);
    }
    let (sender, jobs) = mpsc::channel::<Job>();
    std::thread::Builder::new().name("children".into()).spawn(move || {
        for Job { mut command, runtime, reply } in jobs {
            let _in_runtime = runtime.enter();
            let _ = reply.send(command.spawn());
        }
    })?;
    // Where two were made at once, the other's thread ends with its sender, having started nothing.
    Ok(SPAWNER.get_or_init(|| sender))
}

/// Whether there is no such process, or nothing but its zombie.
#[cfg(all(test, target_os = "linux"))]
pub(crate) fn is_gone(process: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"));
    stat.map_or(true, |stat| stat.contains(") Z "))
}

/// Whether there is no such process. Orphans are waited for by the system's first one.
#[cfg(all(test, not(target_os = "linux")))]
pub(crate) fn is_gone(process: i32) -> bool {
    Pid::from_raw(process).is_none_or(|process| rustix::process::test_kill_process(process).is_err())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    fn shell(script: &str) -> ChildSpec {
        ChildSpec::new("/bin/sh", ["-c", script]).with_variable("PATH", "/usr/bin:/bin")
    }

    async fn output(child: &mut GroupChild) -> String {
        let (_, mut stdout, _) = child.take_pipes().unwrap();
        let mut text = String::new();
        stdout.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn the_environment_is_only_what_was_given() {
        let mut child =
            GroupChild::start(&ChildSpec::new("/usr/bin/env", [""; 0]).with_variable("A", "b")).await.unwrap();
        assert_eq!(output(&mut child).await, "A=b\n");
        assert_eq!(exit_code(child.wait().await.unwrap()), 0);
    }

    #[tokio::test]
    async fn a_group_that_ignores_term_is_killed_whole() {
        let mut child =
            GroupChild::start(&shell("trap '' TERM; sleep 1000 & echo $!; wait; wait; sleep 1000")).await.unwrap();
        let (_, mut stdout, _) = child.take_pipes().unwrap();
        let mut line = [0; 32];
        let n = stdout.read(&mut line).await.unwrap();
        let grandchild: i32 = std::str::from_utf8(&line[..n]).unwrap().trim().parse().unwrap();
        let status = child.terminate(Duration::from_millis(100)).await.unwrap();
        assert_eq!(exit_code(status), 128 + 9);
        assert!(ended(grandchild).await);
    }

    #[tokio::test]
    async fn a_dropped_child_ends() {
        let child = GroupChild::start(&shell("sleep 1000")).await.unwrap();
        let id = child.process_id();
        drop(child);
        assert!(ended(id).await);
    }

    /// Runs itself again as an agent of its own, which is then killed without a chance to clean up.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_child_dies_with_its_agent() {
        const AS_AGENT: &str = "NIXTAIL_TEST_AS_AGENT";
        if std::env::var_os(AS_AGENT).is_some() {
            let child = GroupChild::start(&shell("exec sleep 1000")).await.unwrap();
            println!("child {}", child.process_id());
            return std::future::pending().await;
        }
        let mut agent = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "nix::spawn::tests::a_child_dies_with_its_agent", "--nocapture"])
            .env(AS_AGENT, "1")
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(agent.stdout.take().unwrap()));
        let id = loop {
            let line = lines.next_line().await.unwrap().unwrap();
            if let Some((_, id)) = line.split_once("child ") {
                break id.trim().parse().unwrap();
            }
        };
        assert!(std::fs::exists(format!("/proc/{id}")).unwrap());
        agent.kill().await.unwrap();
        assert!(ended(id).await);
    }

    #[tokio::test]
    async fn a_relative_or_missing_program_is_an_error() {
        let none: [&str; 0] = [];
        assert!(matches!(GroupChild::start(&ChildSpec::new("sh", none)).await, Err(SpawnError::NotAbsolute(_))));
        assert!(matches!(GroupChild::start(&ChildSpec::new("/nowhere", none)).await, Err(SpawnError::Start { .. })));
    }

    /// Whether the process is gone, or a zombie whose parent has yet to look.
    async fn ended(id: i32) -> bool {
        for _ in 0..100 {
            if is_gone(id) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }
}
