//! Two processes that join within a second of each other, and one of which dials the other when both are there.

use std::error::Error;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::stage::process::wait_or_kill;
use crate::stage::{Machine, Who};

/// Where nodes echo.
const PORT: &str = "7000";
/// How long any step may take: a start, a contact.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long leaving may take.
const GRACE: Duration = Duration::from_secs(15);

/// Where nodes log in.
pub(super) struct Login<'a> {
    pub(super) url: &'a str,
    pub(super) key: &'a str,
}

/// A pair to be, as chance has it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) who: Who,
    pub(super) number: usize,
    /// How much later the second one starts.
    pub(super) apart: Duration,
    /// Whether the machines are the other way round.
    pub(super) swapped: bool,
    /// Whether the one that started last dials.
    pub(super) last_dials: bool,
}

/// How a first contact went, in seconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Contact {
    pub(super) who: Who,
    pub(super) number: usize,
    pub(super) apart: f64,
    pub(super) last_dials: bool,
    /// From when both had said that they are ready until the dialler had the other in its netmap.
    pub(super) seen: f64,
    /// From the dial, which follows at once, to the connection, and to the first byte back.
    pub(super) connected: f64,
    pub(super) answered: f64,
    /// From when both were ready to the first byte back.
    pub(super) since_ready: f64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Step {
    step: String,
    addresses: Vec<String>,
    error: String,
    seen_us: u64,
    connected_us: u64,
    answered_us: u64,
}

/// Lets a pair meet. What our nodes have logged is kept in `logs`, by their names.
pub(super) fn meet(
    plan: &Plan,
    folder: &Path,
    machines: [&Machine; 2],
    login: &Login<'_>,
    logs: &Path,
) -> Result<Contact, Box<dyn Error>> {
    let start = |machine: usize, role: &str| {
        let name = format!("{}-{}-{role}", plan.who.name(), plan.number);
        Node::start(plan.who, &name, folder, machines[machine ^ usize::from(plan.swapped)], login, logs)
    };
    let mut first = start(0, "first")?;
    std::thread::sleep(plan.apart);
    let mut last = start(1, "last")?;
    let deadline = Instant::now() + PATIENCE;
    for node in [&mut first, &mut last] {
        node.wait("listening", deadline)?;
    }
    let ready = Instant::now();
    let (dialler, dialled) = if plan.last_dials { (&mut last, &first) } else { (&mut first, &last) };
    let address = dialled.address.as_ref().ok_or("a node without an address")?;
    writeln!(dialler.stdin.as_mut().ok_or("a node without commands")?, "dial {address}")?;
    let answered = dialler.wait("answered", deadline)?;
    let since_ready = ready.elapsed().as_secs_f64();
    let seconds = |micros: u64| Duration::from_micros(micros).as_secs_f64();
    Ok(Contact {
        who: plan.who,
        number: plan.number,
        apart: plan.apart.as_secs_f64(),
        last_dials: plan.last_dials,
        seen: seconds(answered.seen_us),
        connected: seconds(answered.connected_us),
        answered: seconds(answered.answered_us),
        since_ready,
    })
}

/// A process. Dropping it lets it log out and end, and kills it if it doesn't.
struct Node {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    steps: Receiver<String>,
    address: Option<String>,
    log: PathBuf,
}

impl Node {
    fn start(
        who: Who,
        name: &str,
        folder: &Path,
        machine: &Machine,
        login: &Login<'_>,
        logs: &Path,
    ) -> Result<Self, Box<dyn Error>> {
        let program = |name: &str| folder.join("bin").join(name).display().to_string();
        let mut command = match who {
            Who::Nixtail => machine.command(&program("node"), &["contact-node", login.url, name, PORT]),
            Who::Tsnet => machine.command(&program("tsnet-peer"), &[login.url, name, "", PORT]),
        };
        command.env("TS_AUTHKEY", login.key).env("TS_NO_LOGS_NO_SUPPORT", "true").env("TS_DISABLE_PORTMAPPER", "1");
        let log = logs.join(format!("{name}.log"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&log)?);
        let mut child = command.spawn()?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().ok_or("no stdout")?);
        let (lines, steps) = channel();
        // It ends with the process' stdout.
        std::thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| lines.send(line).ok())
        });
        Ok(Self { name: name.to_owned(), child, stdin, steps, address: None, log })
    }

    /// Waits for a step.
    fn wait(&mut self, wanted: &str, deadline: Instant) -> Result<Step, Box<dyn Error>> {
        loop {
            let line = self.steps.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            let Ok(line) = line else {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                let end: Vec<&str> = log.lines().rev().take(5).collect();
                return Err(format!("{} didn't come to {wanted:?}: {end:?}", self.name).into());
            };
            let step: Step = serde_json::from_str(&line)?;
            self.address = self.address.take().or_else(|| step.addresses.first().cloned());
            match step.step.as_str() {
                "error" => return Err(format!("{}: {}", self.name, step.error).into()),
                step_name if step_name == wanted => return Ok(step),
                _ => {}
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stdin = None;
        // Control forgets by itself who doesn't leave.
        wait_or_kill(&mut self.child, GRACE);
    }
}
