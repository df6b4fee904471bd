//! Processes: those that run beside the measurements, and commands that cannot hang.

use std::error::Error;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long a command of the stage itself may take.
const STAGE_DEADLINE: Duration = Duration::from_secs(60);
/// How long a process may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);
/// How often a condition is looked at again: a small part of what takes least, a start without delay.
const GLANCE: Duration = Duration::from_millis(2);
/// How often the end of a process is looked for: no figure waits for it, and others may be measured meanwhile.
const END_GLANCE: Duration = Duration::from_millis(5);
/// How much of what a failed command wrote is shown.
const LAST_LINES: usize = 12;

/// Runs a program of this machine to its end; returns what it wrote to stdout.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String, Box<dyn Error>> {
    let mut command = Command::new(program);
    command.args(arguments);
    run_command(command, STAGE_DEADLINE)
}

/// Runs a command to its end; returns what it wrote to stdout. An error holds the last lines of what it wrote.
pub(crate) fn run_command(command: Command, deadline: Duration) -> Result<String, Box<dyn Error>> {
    let shown = shown(&command);
    let mut command = bounded(&command, deadline);
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{shown}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let words = last_lines(&format!("{text}{}", String::from_utf8_lossy(&output.stderr)));
    // What `timeout` ends with.
    if output.status.code() == Some(124) {
        return Err(format!("{shown} didn't end within {} s:\n{words}", deadline.as_secs()).into());
    }
    Err(format!("{shown}: {}:\n{words}", output.status).into())
}

/// Runs a command to its end and says how long that took; what it writes goes to `log`.
pub(crate) fn time(command: Command, deadline: Duration, log: &Path) -> Result<Duration, Box<dyn Error>> {
    let out = File::create(log)?;
    let mut command = bounded(&command, deadline);
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    let begun = Instant::now();
    let status = command.status()?;
    let taken = begun.elapsed();
    if status.success() {
        return Ok(taken);
    }
    let words = last_lines(&fs::read_to_string(log).unwrap_or_default());
    Err(format!("{}: {status} after {:.1} s:\n{words}", shown(&command), taken.as_secs_f64()).into())
}

/// The same command under `timeout` (coreutils), which adds a millisecond to it.
fn bounded(command: &Command, deadline: Duration) -> Command {
    let mut bounded = Command::new("timeout");
    bounded.args(["--kill-after=5", &deadline.as_secs().to_string()]).arg(command.get_program());
    bounded.args(command.get_args());
    let environment = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    if command.get_envs().next().is_some() {
        bounded.env_clear().envs(environment);
    }
    bounded
}

/// A process that runs beside the measurements. Dropping it ends it: SIGTERM, a moment to end in, SIGKILL.
#[derive(Debug)]
pub(crate) struct Running {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts it; both outputs go to `log`.
    pub(crate) fn start(name: &str, mut command: Command, log: &Path) -> Result<Self, Box<dyn Error>> {
        let out = File::create(log)?;
        let child = command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).spawn();
        let child = child.map_err(|error| format!("{name} can't be started: {error}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until `found` finds something in what it has written.
    pub(crate) fn wait_for<T>(
        &mut self,
        what: &str,
        patience: Duration,
        mut found: impl FnMut(&str) -> Option<T>,
    ) -> Result<T, Box<dyn Error>> {
        let deadline = Instant::now() + patience;
        loop {
            let log = self.log();
            if let Some(found) = found(&log) {
                return Ok(found);
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("{} ended ({status}) before {what}:\n{}", self.name, last_lines(&log)).into());
            }
            if Instant::now() >= deadline {
                let waited = patience.as_secs();
                return Err(format!("{}: {waited} s without {what}:\n{}", self.name, last_lines(&log)).into());
            }
            std::thread::sleep(GLANCE);
        }
    }

    /// Waits for its line that begins with `ready`, and returns it.
    pub(crate) fn wait_until_ready(&mut self, patience: Duration) -> Result<String, Box<dyn Error>> {
        let ready = |log: &str| log.lines().find(|line| line.starts_with("ready")).map(str::to_owned);
        self.wait_for("it was ready", patience, ready)
    }
}

/// A word NAME=VALUE of a line that says that something is ready.
pub(crate) fn word(ready: &str, name: &str) -> Result<String, String> {
    let word = ready.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    word.map(str::to_owned).ok_or_else(|| format!("{ready:?} has no {name}"))
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that ended already needs no signal, and one that doesn't end is killed.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        wait_or_kill(&mut self.child, GRACE);
    }
}

/// Waits so long for a process that was told to end, and kills it if it doesn't.
pub(crate) fn wait_or_kill(child: &mut Child, grace: Duration) {
    let deadline = Instant::now() + grace;
    while Instant::now() < deadline {
        // An error is that nobody can wait for it any more: it is gone.
        if matches!(child.try_wait(), Ok(Some(_)) | Err(_)) {
            return;
        }
        std::thread::sleep(END_GLANCE);
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Waits until `found` finds something.
pub(crate) fn wait_until<T>(
    what: &str,
    patience: Duration,
    mut found: impl FnMut() -> Option<T>,
) -> Result<T, Box<dyn Error>> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = found() {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            return Err(format!("{} s without {what}", patience.as_secs()).into());
        }
        std::thread::sleep(GLANCE);
    }
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines.get(lines.len().saturating_sub(LAST_LINES)..).unwrap_or_default().join("\n")
}
