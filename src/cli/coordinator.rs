//! `nixtail coordinator`: joins, waits for its builders, and tells Nix of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Method;
use serde::{Deserialize, Serialize};

use super::duration::parse_duration;
use super::join::JoinArgs;
use super::session::{self, Background, Role};
use crate::agent::{Agent, Config};
use crate::coordinator::mode::{Layout, Mode};
use crate::coordinator::{Board, Coordinator, CoordinatorError, Options};
use crate::local::{Request, Routes};
use crate::nix::daemon::{DAEMON_SOCKET, on_path};
use crate::report::{Exit, Failure, plain};

/// Join the tailnet as a coordinator: wait for builders, prove each one, and tell Nix of them.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    join: JoinArgs,
    #[command(flatten)]
    background: Background,
    /// At the end, write what came of the run into this folder: summary.md, summary.json, timeline.svg, timeline.mmd.
    #[arg(long, value_name = "FOLDER")]
    summary: Option<PathBuf>,
    /// The builders' names, separated by blanks or commas.
    #[arg(long, value_name = "NAMES", required = true)]
    builders: String,
    /// How long to wait until all of them are ready.
    #[arg(long, value_name = "TIME", default_value = "360s", value_parser = parse_duration)]
    wait: Duration,
    /// How Nix is told: `own-store` by environment variables, `system` by root's files, `auto` by what this machine has.
    #[arg(long, value_name = "MODE", default_value = "auto")]
    mode: ModeArg,
    /// The user to log in as at the builders [default: this process' user].
    #[arg(long, value_name = "NAME")]
    login: Option<String>,
    /// The folder for the files that Nix and ssh read [default: one beside the socket].
    #[arg(long, value_name = "FOLDER")]
    run_dir: Option<PathBuf>,
    /// The store that you use Nix with, if it isn't the default one.
    #[arg(long, value_name = "STORE")]
    store: Option<String>,
    /// The `nix-build` to prove builders with [default: the one on PATH].
    #[arg(long, value_name = "PATH")]
    nix_build: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ModeArg {
    Auto,
    OwnStore,
    System,
}

/// What `POST /stop-builders` answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Stopped {
    pub(super) builders: Vec<StoppedBuilder>,
}

/// One builder that was told to end.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StoppedBuilder {
    pub(super) name: String,
    /// Why it couldn't be told.
    pub(super) error: Option<String>,
}

/// What `POST /ended-builds` is asked with.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct EndedAfter {
    /// The number of the last build that the asker knows of; 0 asks for all.
    pub(super) after: u64,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    session::run(&args.join, &args.background, Coordinating { args, options: None, coordinator: None })
}

struct Coordinating<'a> {
    args: &'a Args,
    options: Option<Options>,
    coordinator: Option<Coordinator>,
}

impl Role for Coordinating<'_> {
    async fn prepare(&mut self, _: &mut Config) -> Result<(), Failure> {
        self.options = Some(options(self.args)?);
        Ok(())
    }

    async fn start(&mut self, agent: &Agent, routes: &mut Routes) -> Result<(), Failure> {
        let Some(options) = self.options.take() else {
            return Err(Failure::new(Exit::General, "the coordinator was started twice"));
        };
        let uid = rustix::process::getuid().as_raw();
        let coordinator = Coordinator::begin(agent, options, uid).map_err(failure)?;
        add_routes(routes, &coordinator.board());
        self.coordinator = Some(coordinator);
        Ok(())
    }

    async fn ready(&mut self) -> Result<Option<String>, Failure> {
        let Some(coordinator) = &mut self.coordinator else { return Ok(None) };
        coordinator.ready().await.map_err(failure)?;
        let builders = coordinator.board().builders();
        let systems: std::collections::BTreeSet<_> =
            builders.iter().filter_map(|builder| builder.system.as_deref()).map(plain).collect();
        let systems = systems.into_iter().collect::<Vec<_>>().join(", ");
        let env = coordinator.layout().map(Layout::env).filter(|env| is_not_empty(env));
        Ok(Some(ready_words(builders.len(), &systems, env.as_deref())))
    }

    async fn finished(&mut self) -> Result<(), Failure> {
        match &mut self.coordinator {
            Some(coordinator) => coordinator.work().await.map_err(failure),
            None => Ok(()),
        }
    }

    async fn stop(&mut self) -> Result<(), Failure> {
        let Some(coordinator) = &mut self.coordinator else { return Ok(()) };
        // Before they are told to end: what goes because of us hasn't gone wrong.
        let summary = coordinator.board().summary().await;
        let ended = coordinator.end().await.map_err(|error| {
            Failure::new(Exit::General, format!("the files for Nix couldn't all be put back: {error}"))
                .next("an original is kept as NAME.before-nixtail: rename it back, or let the next coordinator do it")
        });
        let told = super::summary::tell(&summary, self.args.summary.as_deref());
        session::first_failure([ended, told])
    }
}

/// What the ready line says besides the node: how many builders, and how a shell tells its Nix of them.
fn ready_words(count: usize, systems: &str, env: Option<&Path>) -> String {
    let told = env.map(|env| format!("; tell Nix with: . {}", plain(&env.display().to_string()))).unwrap_or_default();
    let noun = if count == 1 { "builder" } else { "builders" };
    format!("with {count} {noun} ({systems}){told}")
}

fn options(args: &Args) -> Result<Options, Failure> {
    let builders: Vec<String> =
        args.builders.split([',', ' ', '\n']).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    if builders.is_empty() {
        return Err(Failure::new(Exit::Usage, "--builders names none"));
    }
    let socket = args.join.socket.path()?.as_path().to_owned();
    let absolute = |path: &Path| {
        std::path::absolute(path)
            .map_err(|error| Failure::new(Exit::Configuration, format!("{}: {error}", path.display())))
    };
    let socket = absolute(&socket)?;
    let run = match &args.run_dir {
        Some(folder) => absolute(folder)?,
        None => socket.with_extension("run"),
    };
    if run.to_string_lossy().contains(|character: char| character.is_whitespace() || character == '\'') {
        return Err(Failure::new(
            Exit::Configuration,
            format!("{}: a run's folder can't have blanks in its path", run.display()),
        )
        .next("name another with --run-dir: Nix before 2.26 splits ssh's options at blanks"));
    }
    let uid = rustix::process::getuid();
    let daemon = Path::new(DAEMON_SOCKET);
    let mode = match args.mode {
        ModeArg::OwnStore => Mode::OwnStore,
        ModeArg::Auto => Mode::found(uid.as_raw(), daemon),
        ModeArg::System => Mode::System,
    };
    if mode == Mode::System && !uid.is_root() {
        return Err(Failure::new(Exit::Configuration, "only root can tell the system's Nix of builders")
            .next("run it as root, or use Nix with a store of your own and `--mode own-store`"));
    }
    // A daemon ignores the builders of users that it doesn't trust, and says so only in its log.
    if mode == Mode::OwnStore && args.store.is_none() && !uid.is_root() && daemon.exists() {
        return Err(Failure::new(
            Exit::Configuration,
            "this machine's Nix builds in a daemon of root's, which ignores your builders",
        )
        .next("run the coordinator as root, or use a store of your own: --store FOLDER here and with Nix"));
    }
    let options = Options {
        builders,
        login: args.login.clone().map_or_else(super::user_name, Ok)?,
        wait: args.wait,
        mode,
        layout: Layout::of_system(run),
        nixtail: std::env::current_exe()
            .map_err(|error| Failure::new(Exit::General, format!("this program's own path is unknown: {error}")))?,
        socket,
        nix_build: match &args.nix_build {
            Some(path) => absolute(path)?,
            None => find_nix_build()?,
        },
        store: args.store.clone(),
    };
    options.check().map_err(|error| {
        Failure::new(Exit::Configuration, error)
            .next("give another --login, --builders, --run-dir or --socket, or move the program")
    })?;
    Ok(options)
}

fn find_nix_build() -> Result<PathBuf, Failure> {
    on_path("nix-build").ok_or_else(|| {
        Failure::new(Exit::Configuration, "nix-build isn't on PATH")
            .next("install Nix, or name it with --nix-build PATH")
    })
}

fn add_routes(routes: &mut Routes, board: &Board) {
    let shown = board.clone();
    routes.add(Method::GET, "/builders", move |_| {
        let board = shown.clone();
        async move { Ok(serde_json::json!({ "builders": board.status().await.builders })) }
    });
    // In place of the one that every node has: the same, and the builders.
    let shown = board.clone();
    routes.add(Method::GET, "/status", move |_| {
        let board = shown.clone();
        async move { Ok(board.status().await) }
    });
    let shown = board.clone();
    routes.add(Method::POST, "/ended-builds", move |request: Request| {
        let board = shown.clone();
        async move { Ok(board.ended_after(request.json::<EndedAfter>()?.after)) }
    });
    let shown = board.clone();
    routes.add(Method::GET, "/summary", move |_| {
        let board = shown.clone();
        async move { Ok(board.summary().await) }
    });
    let board = board.clone();
    routes.add(Method::POST, "/stop-builders", move |_| {
        let board = board.clone();
        async move {
            let stopped = board.stop_builders().await.into_iter();
            let builders = stopped.map(|(name, result)| StoppedBuilder { name, error: result.err() });
            Ok(Stopped { builders: builders.collect() })
        }
    });
}

fn is_not_empty(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.len() > 0)
}

fn failure(error: CoordinatorError) -> Failure {
    match error {
        CoordinatorError::Missing { .. } => Failure::new(Exit::TryAgain, error).next(
            "look at the missing builders' own logs; `nixtail status` shows who is in the tailnet; --wait waits longer",
        ),
        error => Failure::new(Exit::Configuration, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_says_how_nix_is_told() {
        assert_eq!(ready_words(2, "x86_64-linux", None), "with 2 builders (x86_64-linux)");
        let told = ready_words(1, "a, b", Some(Path::new("/run/env")));
        assert_eq!(told, "with 1 builder (a, b); tell Nix with: . /run/env");
    }
}
