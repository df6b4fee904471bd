//! A child process that cannot outlive its test, and commands that cannot hang.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::GLANCE;
use super::network::Namespace;

/// How long a process may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);

/// How much of a failed test's logs is shown.
const LAST_LINES: usize = 40;

/// A running process with its own process group; its output goes to a file.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `program`, its environment being `PATH` and `env` alone, both outputs in `log`.
    ///
    /// The kernel kills it with the thread that calls this.
    pub fn start<'e>(
        name: &str,
        program: &Path,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
        env: impl IntoIterator<Item = (&'e str, &'e str)>,
        log: &Path,
    ) -> Self {
        Self::start_in(Namespace::default(), name, program, args, env, log)
    }

    /// As [`Self::start`], in another network. What an earlier one wrote to `log` is kept.
    pub fn start_in<'e>(
        network: Namespace,
        name: &str,
        program: &Path,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
        env: impl IntoIterator<Item = (&'e str, &'e str)>,
        log: &Path,
    ) -> Self {
        let out = File::options().create(true).append(true).open(log).expect("open the log");
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .args(network.entrance())
            .arg(program)
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(env)
            .stdin(Stdio::null())
            .stdout(out.try_clone().expect("share the log"))
            .stderr(out)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("start {name} under setpriv (util-linux): {error}"));
        Self { name: name.to_owned(), child, log: log.to_owned() }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("wait for a child")
    }

    /// Sends `signal` to it and everything it started.
    pub fn signal(&self, signal: Signal) {
        let _ = kill_process_group(Pid::from_child(&self.child), signal);
    }

    /// Waits for its end. Fails the test after `patience`.
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(Instant::now() < deadline, "{} has not ended after {patience:?}", self.name);
            sleep(GLANCE);
        }
    }

    /// SIGTERM, a moment to end in, then SIGKILL to what is left of the group.
    pub fn stop(&mut self) {
        if self.ended().is_none() {
            self.signal(Signal::TERM);
            let deadline = Instant::now() + GRACE;
            while self.ended().is_none() && Instant::now() < deadline {
                sleep(GLANCE);
            }
            if self.ended().is_none() {
                eprintln!("{} ignored SIGTERM for {GRACE:?}", self.name);
                self.signal(Signal::KILL);
                let _ = self.child.wait();
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
            eprintln!("--- {} wrote at last:\n{tail}", self.name);
        }
    }
}

/// Runs `command` to its end and returns what it wrote. Fails the test, after killing it, when `patience` runs out.
pub fn run(command: &mut Command, patience: Duration) -> Output {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap_or_else(|error| panic!("start {shown}: {error}"));
    let stdout = read_aside(child.stdout.take());
    let stderr = read_aside(child.stderr.take());
    let deadline = Instant::now() + patience;
    let status = loop {
        if let Some(status) = child.try_wait().expect("wait for a child") {
            break Some(status);
        }
        if Instant::now() >= deadline {
            let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
            let _ = child.wait();
            break None;
        }
        sleep(GLANCE);
    };
    let stdout = stdout.join().expect("read stdout");
    let stderr = stderr.join().expect("read stderr");
    let Some(status) = status else {
        panic!(
            "{shown} has not ended after {patience:?}; it wrote: {}{}",
            String::from_utf8_lossy(&stdout),
            String::from_utf8_lossy(&stderr)
        );
    };
    Output { status, stdout, stderr }
}

/// As [`run`], but fails the test unless the command succeeds; returns its standard output.
pub fn run_ok(command: &mut Command, patience: Duration) -> String {
    let output = run(command, patience);
    assert!(
        output.status.success(),
        "{command:?}: {}; it wrote: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn read_aside(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}
