//! `nixtail coordinator -- CMD…`: runs a command with Nix set up, again where a builder was lost under it.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nixtail_proto::credential;
use nixtail_proto::run::{Ended, Reruns, Verdict};
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::say;
use crate::coordinator::{Coordinator, CoordinatorError};
use crate::nix::attached::{AttachedChild, AttachedSpec, SignalTarget};
use crate::nix::spawn::exit_code;
use crate::report::{Exit, Failure, plain};

/// How long the command may take to end after a signal: Nix ends its builds, and a script cleans up.
pub(super) const GRACE: Duration = Duration::from_secs(10);
/// Where other programs of Tailscale's find secrets. Those and our own are nothing that the command has any business with.
const FOREIGN_SECRETS: [&str; 3] = ["TS_OAUTH_SECRET", "TS_API_CLIENT_SECRET", "TS_API_KEY"];

/// A command that is run while the builders are ready.
pub(super) struct Command {
    words: Vec<OsString>,
    reruns: Reruns,
    /// How long builders are waited for before it is run again.
    patience: Duration,
    running: Option<AttachedChild>,
    /// How its latest run ended.
    code: Option<u8>,
    signals: Option<Signals>,
}

impl Command {
    /// The program and its arguments, to be run again so often at the most.
    pub(super) fn new(words: Vec<OsString>, retries: u32, patience: Duration) -> Self {
        Self { words, reruns: Reruns::new(retries), patience, running: None, code: None, signals: None }
    }

    /// Runs it to its end; gives the exit code. Where this is cancelled, [`Self::end`] goes on.
    pub(super) async fn run(&mut self, coordinator: &mut Coordinator) -> Result<u8, Failure> {
        loop {
            let is_wrong = |error: CoordinatorError| Failure::new(Exit::General, error);
            // Who was lost before it begins is no matter of its.
            coordinator.forget_losses();
            let before = coordinator.ended_builds();
            let child = self.start(coordinator).await?;
            let status = tokio::select! {
                status = child.wait() => status,
                Err(error) = coordinator.work() => return Err(is_wrong(error)),
            };
            self.running = None;
            if let Some(signals) = &self.signals {
                signals.turn_to(None);
            }
            let status =
                status.map_err(|error| Failure::new(Exit::General, format!("the command is lost: {error}")))?;
            let code = code_of(status);
            // Kept at once: whoever tells us to leave may cancel all that follows.
            self.code = Some(code);
            let interrupted = self.signals.as_ref().is_some_and(Signals::came);
            let lost = if status.success() || interrupted {
                Vec::new()
            } else {
                coordinator.take_losses().await.map_err(is_wrong)?
            };
            if !interrupted {
                coordinator.catch_up().await.map_err(is_wrong)?;
            }
            let ended = Ended {
                well: status.success(),
                interrupted,
                lost,
                failed_builds: coordinator.failed_builds_after(before),
            };
            let names = plain(&ended.lost.join(", "));
            match self.reruns.handle_ended(&ended) {
                Verdict::Over if !ended.lost.is_empty() && !ended.failed_builds.is_empty() => {
                    let builds = plain(&ended.failed_builds.join(", "));
                    say(&format!("{names} was lost, but {builds} failed by itself: the command isn't run again"));
                    return Ok(code);
                }
                Verdict::Over => return Ok(code),
                Verdict::Exhausted { reruns } => {
                    say(&format!(
                        "{names} was lost, and the command has been run again {reruns} times: that is all (--retries)"
                    ));
                    return Ok(code);
                }
                Verdict::Again { rerun, left } => {
                    say(&format!(
                        "the command failed with exit code {code} while {names} was lost; run again {rerun} begins when a \
                         builder is ready, and {left} more are left (--retries)"
                    ));
                    if !coordinator.ready_again(self.patience).await.map_err(is_wrong)? {
                        say(&format!(
                            "no builder was ready within {} s: the command isn't run again",
                            self.patience.as_secs()
                        ));
                        return Ok(code);
                    }
                }
            }
        }
    }

    /// Ends the command if it still runs: it gets a moment after the signal that was passed on to it, or after SIGTERM
    /// where none was. Gives its exit code.
    pub(super) async fn end(&mut self, grace: Duration) -> Option<u8> {
        let Some(mut child) = self.running.take() else { return self.code };
        if !self.signals.as_ref().is_some_and(Signals::came) {
            child.signal(Signal::TERM);
        }
        let ended = match tokio::time::timeout(grace, child.wait()).await {
            Ok(ended) => ended,
            Err(_) => {
                say(&format!("the command hasn't ended {} s after its signal, and is killed", grace.as_secs()));
                child.signal(Signal::KILL);
                child.wait().await
            }
        };
        Some(ended.map_or(1, code_of))
    }

    async fn start(&mut self, coordinator: &Coordinator) -> Result<&mut AttachedChild, Failure> {
        let [program, arguments @ ..] = self.words.as_slice() else {
            return Err(Failure::new(Exit::Usage, "there is no command after --"));
        };
        let told = coordinator.told();
        let spec = AttachedSpec {
            program: program.clone(),
            arguments: arguments.to_vec(),
            set: told.map(crate::coordinator::mode::Told::variables).unwrap_or_default(),
            unset: credential::variables().chain(FOREIGN_SECRETS.map(str::to_owned)).map(OsString::from).collect(),
            // At a terminal the command stays in our group, where Ctrl-C and Ctrl-Z reach it as any other.
            own_group: !std::io::stdin().is_terminal(),
        };
        let child = AttachedChild::start(&spec).await.map_err(|error| {
            let exit = if error.is_missing() { Exit::NotFound } else { Exit::NotExecutable };
            Failure::new(exit, error).next("the words after -- are a program and its arguments; no shell reads them")
        })?;
        let target = child.target();
        match &self.signals {
            Some(signals) => signals.turn_to(Some(target)),
            None => self.signals = Some(Signals::pass_on_to(target, spec.own_group)?),
        }
        Ok(self.running.insert(child))
    }
}

fn code_of(status: std::process::ExitStatus) -> u8 {
    u8::try_from(exit_code(status)).unwrap_or(u8::MAX)
}

/// Passes our own signals on to the command.
struct Signals {
    came: Arc<AtomicBool>,
    target: watch::Sender<Option<SignalTarget>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Signals {
    fn pass_on_to(target: SignalTarget, own_group: bool) -> Result<Self, Failure> {
        let (target, watched) = watch::channel(Some(target));
        let came = Arc::new(AtomicBool::new(false));
        let kinds = [
            (SignalKind::interrupt(), Signal::INT),
            (SignalKind::terminate(), Signal::TERM),
            (SignalKind::hangup(), Signal::HUP),
        ];
        let mut tasks = Vec::new();
        for (kind, number) in kinds {
            let mut signals = signal(kind)
                .map_err(|error| Failure::new(Exit::General, format!("signals can't be caught: {error}")))?;
            let (came, watched) = (Arc::clone(&came), watched.clone());
            // The terminal gives its Ctrl-C to the whole group, the command in it.
            let is_passed_on = own_group || number != Signal::INT;
            tasks.push(tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    came.store(true, Ordering::SeqCst);
                    if let (true, Some(target)) = (is_passed_on, *watched.borrow()) {
                        target.send(number);
                    }
                }
            }));
        }
        Ok(Self { came, target, tasks })
    }

    /// To whom they go from now on; to nobody once the command has ended, since its number may become another's.
    fn turn_to(&self, target: Option<SignalTarget>) {
        self.target.send_replace(target);
    }

    fn came(&self) -> bool {
        self.came.load(Ordering::SeqCst)
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}
