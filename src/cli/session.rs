//! A command that stays: it joins, does its role's work, serves the local API, and leaves when it is told to.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use http::Method;
use nixtail_proto::run::Told;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::background::{self, HandedOver};
use super::join::{JoinArgs, has_person};
use super::nc::Target;
use super::ping::Question;
use crate::agent::{Agent, Config, JoinError, LEAVE_DEADLINE};
use crate::control::Person;
use crate::local::{BoundSocket, Request, Routes, Server, SocketPath};
use crate::report::{Exit, Failure, plain};

/// How long calls of the local API that are being answered may take at the end.
const CALLS_DEADLINE: Duration = Duration::from_secs(2);
/// How long a role may take to stop.
const ROLE_DEADLINE: Duration = Duration::from_secs(10);
/// How often the process is looked for that this one is bound to.
const BOND_INTERVAL: Duration = Duration::from_secs(2);
/// A ping may wait this long at the most.
const LONGEST_PING: Duration = Duration::from_secs(3600);

/// The flags of a command that stays.
#[derive(clap::Args)]
pub(super) struct Background {
    /// Return when ready, and go on in the background; its messages go to a file beside the socket.
    #[arg(long)]
    background: bool,
    /// End when this process does: an agent that outlives the steps of a CI job ends with the runner that was to end it.
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(2..))]
    bound_to: Option<u32>,
    /// The background process itself: its key comes on stdin.
    #[arg(long, hide = true, conflicts_with = "background")]
    detached: bool,
}

impl Background {
    /// Whether the command is to go on, or goes on, behind the one that was called.
    pub(super) fn is_wanted(&self) -> bool {
        self.background || self.detached
    }
}

/// What a command that stays does besides being on the tailnet.
pub(super) trait Role {
    /// Whether a person is asked to log in where there is no credential, even without a terminal.
    fn asks_person(&self) -> bool {
        false
    }
    /// Looks whether it can work here, and adds to what the agent joins with.
    async fn prepare(&mut self, _: &mut Config) -> Result<(), Failure> {
        Ok(())
    }
    /// Starts its work and adds its verbs to the local API.
    async fn start(&mut self, agent: &Agent, routes: &mut Routes) -> Result<(), Failure>;
    /// Ends when the role is ready, while the local API is served already. What it returns stands in the ready line.
    async fn ready(&mut self) -> Result<Option<String>, Failure> {
        Ok(None)
    }
    /// Ends when the role does, by itself. Called again after it was cancelled.
    async fn finished(&mut self) -> Result<(), Failure>;
    /// Whoever runs this process tells it to end; [`Self::stop`] comes next. Returns how much longer than usual that may take.
    fn told(&mut self, _: Told) -> Duration {
        Duration::ZERO
    }
    /// Ends the role's work, before the node leaves.
    async fn stop(&mut self) -> Result<(), Failure>;
    /// Whether the ready line goes to stderr, because stdout is somebody else's.
    fn leaves_stdout(&self) -> bool {
        false
    }
}

/// Runs a role from join to leave.
pub(super) fn run(join: &JoinArgs, mode: &Background, role: impl Role) -> Result<(), Failure> {
    let path = join.socket.path()?;
    if mode.background {
        let credential = join.credential(role.asks_person())?;
        let handed_over = HandedOver { credential, has_person: has_person(role.asks_person()) };
        return background::start(&path, &handed_over);
    }
    let config = if mode.detached {
        let HandedOver { credential, has_person } = background::receive()?;
        join.config(credential, has_person.then(|| Person::new(background::pass_login_on)))?
    } else {
        let credential = join.credential(role.asks_person())?;
        let person = has_person(role.asks_person()).then(|| Person::new(ask_to_log_in));
        join.config(credential, person)?
    };
    let bound = path.bind().map_err(|error| super::socket::refused(&error))?;
    let runtime = super::runtime()?;
    let log = mode.detached.then_some(&path);
    let ended = runtime.block_on(live(config, bound, role, log, mode.bound_to));
    // Nothing that a deadline gave up may keep the process.
    runtime.shutdown_timeout(Duration::from_millis(500));
    if let (Some(log), Ok(())) = (log, &ended) {
        background::remove_log(log);
    }
    ended
}

/// `log` is the socket whose log goes when all went well.
async fn live(
    mut config: Config,
    bound: BoundSocket,
    mut role: impl Role,
    log: Option<&SocketPath>,
    bound_to: Option<u32>,
) -> Result<(), Failure> {
    let told = Arc::new(OnceLock::new());
    let stop = stop_on_signals_of("leaving the tailnet", Arc::clone(&told))?;
    if let Some(process) = bound_to {
        tokio::spawn(stop_after(process, stop.clone(), Arc::clone(&told)));
    }
    let begun = Instant::now();
    tokio::select! {
        prepared = role.prepare(&mut config) => prepared?,
        () = stop.cancelled() => return Ok(()),
    }
    let agent = match Agent::join_until(config, stop.clone()).await {
        Ok(agent) => agent,
        Err(JoinError::Cancelled) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let (left_sender, left) = watch::channel(None);
    let mut routes = routes(&agent, &stop, &told, left);
    let ended = match role.start(&agent, &mut routes).await {
        Ok(()) => serve(&agent, bound, routes, &mut role, &stop, begun).await,
        Err(failure) => Ended { server: None, result: Err(failure) },
    };
    let longer = told.get().map_or(Duration::ZERO, |told| role.told(*told));
    let stopped = stop_in_time(&mut role, ROLE_DEADLINE + longer).await;
    let left_well = agent.leave(LEAVE_DEADLINE).await.map_err(Failure::from);
    let ended_well = first_failure([stopped, left_well]);
    if let (Some(log), Ok(()), Ok(())) = (log, &ended.result, &ended_well) {
        // Whoever asked us to stop finds nothing of ours once they have the answer.
        background::remove_log(log);
    }
    left_sender.send_replace(Some(ended_well.clone()));
    if let Some(server) = ended.server {
        server.stop(CALLS_DEADLINE).await;
    }
    first_failure([ended.result, ended_well])
}

/// Tells whoever reads stderr of a login page.
pub(super) fn ask_to_log_in(url: &str) {
    super::say(&format_args!("to let this node in, log in at\n\n  {url}\n\nand this goes on by itself"));
}

async fn stop_in_time(role: &mut impl Role, deadline: Duration) -> Result<(), Failure> {
    tokio::time::timeout(deadline, role.stop()).await.unwrap_or_else(|_| {
        let message = format!("the role's work didn't end within {} s", deadline.as_secs_f32());
        Err(Failure::new(Exit::Timeout, message).next("look for what it left behind; --verbose tells more"))
    })
}

/// The first failure is the command's; later ones, which it may have caused, are told at once.
pub(super) fn first_failure(results: [Result<(), Failure>; 2]) -> Result<(), Failure> {
    let [first, second] = results;
    if let (Err(_), Err(later)) = (&first, &second) {
        super::say(later);
    }
    first.and(second)
}

struct Ended {
    server: Option<Server>,
    result: Result<(), Failure>,
}

async fn serve(
    agent: &Agent,
    bound: BoundSocket,
    routes: Routes,
    role: &mut impl Role,
    stop: &CancellationToken,
    begun: Instant,
) -> Ended {
    let server = match Server::start(bound, routes) {
        Ok(server) => server,
        Err(error) => return Ended { server: None, result: Err(Failure::new(Exit::General, error)) },
    };
    let result = tokio::select! {
        // First: a role may end because of it.
        biased;
        reason = agent.refused() => Err(Failure::new(Exit::Refused, reason)),
        worked = work(agent, role, begun) => worked,
        () = stop.cancelled() => Ok(()),
    };
    Ended { server: Some(server), result }
}

async fn work(agent: &Agent, role: &mut impl Role, begun: Instant) -> Result<(), Failure> {
    let more = role.ready().await?;
    let status = agent.status().await;
    let addresses: Vec<String> = status.own.addresses.iter().map(ToString::to_string).collect();
    tracing::info!(seconds = begun.elapsed().as_secs_f64(), "ready");
    let more = more.map(|more| format!(" {more}")).unwrap_or_default();
    let line = format!("ready {} {}{more}", plain(&status.own.dns_name), addresses.join(" "));
    if role.leaves_stdout() {
        super::say(&line);
    } else {
        super::print(&line)?;
    }
    role.finished().await
}

/// The verbs of every agent: `/status`, `/derp-map`, `/ping`, `/dial`, `/bench/…`, `/stop`.
fn routes(
    agent: &Agent,
    stop: &CancellationToken,
    told: &Arc<OnceLock<Told>>,
    left: watch::Receiver<Option<Result<(), Failure>>>,
) -> Routes {
    let mut routes = Routes::new();
    let status = agent.clone();
    routes.add(Method::GET, "/status", move |_| {
        let agent = status.clone();
        async move { Ok(agent.status().await) }
    });
    let relays = agent.clone();
    routes.add(Method::GET, "/derp-map", move |_| {
        let agent = relays.clone();
        async move { Ok(agent.derp_map()) }
    });
    let ping = agent.clone();
    routes.add(Method::POST, "/ping", move |request: Request| {
        let agent = ping.clone();
        async move {
            let Question { host, kind, timeout_ms } = request.json()?;
            let deadline = Duration::from_millis(timeout_ms).min(LONGEST_PING);
            agent.ping(&host, kind, deadline).await.map_err(Failure::from)
        }
    });
    let dial = agent.clone();
    routes.add_stream(Method::POST, "/dial", move |request: Request| {
        let agent = dial.clone();
        async move {
            let Target { host, port } = request.json()?;
            agent.dial(&host, port).await.map_err(Failure::from)
        }
    });
    super::bench::add_routes(&mut routes, agent);
    let (stop, told) = (stop.clone(), Arc::clone(told));
    let leaving = agent.clone();
    routes.add(Method::POST, "/stop", move |request: Request| {
        let (stop, mut left) = (stop.clone(), left.clone());
        let wish = request.json_or_default::<Stop>();
        if wish.as_ref().is_ok_and(|wish| wish.log_out) {
            leaving.forget_identity();
        }
        let told = Arc::clone(&told);
        async move {
            wish?;
            // Where a signal came first, that is the reason.
            let _ = told.set(Told::Down);
            stop.cancel();
            // The sender lives until the server, and with it this call, is stopped.
            let left = left.wait_for(Option::is_some).await.ok().and_then(|left| left.clone());
            left.unwrap_or(Ok(())).map(|()| serde_json::json!({"stopped": true}))
        }
    });
    routes
}

/// How `/stop` is meant.
#[derive(Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub(super) struct Stop {
    /// Log out a node whose identity is kept, too, and forget it.
    pub(super) log_out: bool,
}

/// A token that the first SIGTERM, SIGINT or SIGHUP cancels. The second ends the process at once.
pub(super) fn stop_on_signals(words: &'static str) -> Result<CancellationToken, Failure> {
    stop_on_signals_of(words, Arc::default())
}

/// As [`stop_on_signals`], and tells which one it was.
fn stop_on_signals_of(words: &'static str, told: Arc<OnceLock<Told>>) -> Result<CancellationToken, Failure> {
    let stop = CancellationToken::new();
    let kinds = [
        (SignalKind::terminate(), 143, Told::Terminate),
        (SignalKind::interrupt(), 130, Told::Interrupt),
        (SignalKind::hangup(), 129, Told::HangUp),
    ];
    let once = Arc::new(std::sync::atomic::AtomicBool::new(false));
    for (kind, status, which) in kinds {
        let mut signals =
            signal(kind).map_err(|error| Failure::new(Exit::General, format!("signals can't be caught: {error}")))?;
        let (stop, once, told) = (stop.clone(), once.clone(), Arc::clone(&told));
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                if once.swap(true, std::sync::atomic::Ordering::SeqCst) {
                    std::process::exit(status);
                }
                super::say(&format_args!("{words}; once more ends it at once"));
                // Where `nixtail down` came first, that is the reason.
                let _ = told.set(which);
                stop.cancel();
            }
        });
    }
    Ok(stop)
}

/// Cancels `stop` when a process of this machine is gone.
async fn stop_after(process: u32, stop: CancellationToken, told: Arc<OnceLock<Told>>) {
    let id = i32::try_from(process).ok().and_then(rustix::process::Pid::from_raw);
    // One of another user's is there, too: that is told as a refusal.
    while id.is_some_and(|id| rustix::process::test_kill_process(id) != Err(rustix::io::Errno::SRCH)) {
        tokio::time::sleep(BOND_INTERVAL).await;
    }
    super::say(&format_args!("process {process} has ended, which this one is bound to: leaving the tailnet"));
    // Where a signal came first, that is the reason.
    let _ = told.set(Told::Unbound);
    stop.cancel();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A role whose end takes some time and may fail.
    struct Ending(Duration, Result<(), Failure>);

    impl Role for Ending {
        async fn start(&mut self, _: &Agent, _: &mut Routes) -> Result<(), Failure> {
            Ok(())
        }

        async fn finished(&mut self) -> Result<(), Failure> {
            Ok(())
        }

        async fn stop(&mut self) -> Result<(), Failure> {
            tokio::time::sleep(self.0).await;
            self.1.clone()
        }
    }

    #[tokio::test]
    async fn a_role_that_ends_badly_or_late_is_a_failure() {
        let bad = || Err(Failure::new(Exit::General, "a file couldn't be put back"));
        let long = Duration::from_secs(30);
        assert_eq!(stop_in_time(&mut Ending(Duration::ZERO, Ok(())), long).await, Ok(()));
        assert_eq!(stop_in_time(&mut Ending(Duration::ZERO, bad()), long).await, bad());
        let late = stop_in_time(&mut Ending(long, Ok(())), Duration::from_millis(1)).await;
        assert_eq!(late.unwrap_err().exit, Exit::Timeout);
    }

    #[tokio::test]
    async fn who_is_bound_to_a_process_ends_with_it() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (stop, told) = (CancellationToken::new(), Arc::default());
        let watching = tokio::spawn(stop_after(child.id(), stop.clone(), Arc::clone(&told)));
        tokio::time::sleep(BOND_INTERVAL / 10).await;
        assert!(!stop.is_cancelled());
        child.kill().unwrap();
        child.wait().unwrap();
        watching.await.unwrap();
        assert!(stop.is_cancelled());
        assert_eq!(told.get(), Some(&Told::Unbound));
    }

    #[test]
    fn the_first_failure_is_the_commands() {
        let failed = |words: &str| Err(Failure::new(Exit::General, words));
        assert_eq!(first_failure([Ok(()), Ok(())]), Ok(()));
        assert_eq!(first_failure([Ok(()), failed("late")]), failed("late"));
        assert_eq!(first_failure([failed("early"), failed("late")]), failed("early"));
    }
}
