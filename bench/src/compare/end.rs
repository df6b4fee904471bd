//! The driver's side of an end: a process that takes orders by its stdin and answers by its stdout.

use std::cell::Cell;
use std::error::Error;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::load::words::{Answer, Order};
use crate::stage::process::wait_or_kill;

/// How long an answer may take beyond what was asked for: a start, a dial, small answers on a lossy link.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long leaving may take.
const GRACE: Duration = Duration::from_secs(4);

/// A process. Dropping it lets it leave, and kills it if it doesn't.
#[derive(Debug)]
pub(super) struct End {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    answers: Receiver<String>,
    log: PathBuf,
    /// It owes an answer, so that the next one would be to another order.
    is_lost: Cell<bool>,
    /// What it said when it was ready.
    pub(super) ready: Answer,
}

impl End {
    /// Starts it; returns when it is ready. What it has to say beside its answers goes to `log`.
    pub(super) fn start(name: &str, mut command: Command, log: PathBuf) -> Result<Self, Box<dyn Error>> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&log)?);
        let mut child = command.spawn().map_err(|error| format!("{name} can't be started: {error}"))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let (lines, answers) = channel();
        // It ends with the process' stdout.
        std::thread::spawn(move || {
            let mut stdout = BufReader::new(stdout?).lines().map_while(Result::ok);
            stdout.try_for_each(|line| lines.send(line).ok())
        });
        let mut end = Self {
            name: name.to_owned(),
            child,
            stdin,
            answers,
            log,
            is_lost: Cell::new(false),
            ready: Answer::default(),
        };
        end.ready = end.next_answer(Duration::ZERO)?;
        Ok(end)
    }

    /// Its process id.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Has it do something that takes so long, and waits for its answer.
    pub(super) fn obey(&self, order: &Order, takes: Duration) -> Result<Answer, Box<dyn Error>> {
        if self.is_lost.get() {
            return Err(format!("{} hasn't answered before", self.name).into());
        }
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        let mut stdin = self.stdin.as_ref().ok_or("an end that takes no orders")?;
        let written = stdin.write_all(&line).and_then(|()| stdin.flush());
        written.map_err(|error| format!("{} takes no orders any more ({error}): {}", self.name, self.last_words()))?;
        self.next_answer(takes)
    }

    fn next_answer(&self, takes: Duration) -> Result<Answer, Box<dyn Error>> {
        let Ok(line) = self.answers.recv_timeout(takes + PATIENCE) else {
            self.is_lost.set(true);
            return Err(format!("{} doesn't answer: {}", self.name, self.last_words()).into());
        };
        let answer: Answer = serde_json::from_str(&line).map_err(|error| format!("{}: {line}: {error}", self.name))?;
        if answer.error.is_empty() { Ok(answer) } else { Err(format!("{}: {}", self.name, answer.error).into()) }
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().rev().take(3).collect::<Vec<_>>().join(" / ")
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.stdin = None;
        // Control forgets by itself who doesn't leave.
        wait_or_kill(&mut self.child, GRACE);
    }
}
