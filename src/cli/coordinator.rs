//! `nixtail coordinator`: joins, waits for its builders, and tells Nix of them.

use std::cell::Cell;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Method;
use nixtail_proto::run::Told;
use serde::{Deserialize, Serialize};

use super::command::{self, Command};
use super::coordinator_mode::ModeArg;
use super::duration::parse_duration;
use super::join::JoinArgs;
use super::progress;
use super::session::{self, Background, Role};
use super::wanted::{WantedArgs, words};
use crate::agent::{Agent, Config};
use crate::coordinator::mode::Layout;
use crate::coordinator::{Board, Coordinator, CoordinatorError, Offer, Options, Transport};
use crate::local::{Request, Routes};
use crate::nix::daemon::on_path;
use crate::report::{Exit, Failure, plain};

/// How long the command may take to end where nobody told us to: the tunnel is gone, or a file can't be written.
const UNTOLD_GRACE: Duration = Duration::from_secs(3);

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
    #[command(flatten)]
    wanted: WantedArgs,
    /// Builds at once on each builder, instead of what it says itself.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    max_jobs: Option<u32>,
    /// The speed factor of each builder, instead of one by its speed.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    speed_factor: Option<u32>,
    /// Let only builds that ask for all of these features go to the builders.
    #[arg(long, value_name = "FEATURES")]
    mandatory_features: Option<String>,
    /// A builder that says nothing for so long is lost: it leaves Nix's list, and its connections are cut.
    #[arg(long, value_name = "TIME", default_value = "40s", value_parser = parse_duration)]
    builder_silence: Duration,
    /// How Nix is told: `own-store` by environment variables, `trusted-user` by such that your Nix hands on to a daemon that
    /// trusts you, `system` by root's files, `auto` by what this machine has.
    #[arg(long, value_name = "MODE", default_value = "auto")]
    mode: ModeArg,
    /// How Nix reaches builders: `direct` through the tunnel alone, `ssh` with SSH in it, `auto` the first where it works.
    #[arg(long, value_name = "LANE", default_value = "auto")]
    transport: TransportArg,
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
    /// How often CMD is run again where it failed while a builder was lost.
    #[arg(long, value_name = "NUMBER", default_value_t = 2)]
    retries: u32,
    /// A command to run with Nix set up: then the builders are stopped, and its exit code is ours. Nix' own `max-jobs` says
    /// how much is built here beside that; `--max-jobs 0` builds nothing here.
    #[arg(last = true, value_name = "CMD", conflicts_with = "background")]
    command: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum TransportArg {
    Auto,
    Direct,
    Ssh,
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

/// Gives the exit code: that of the command, where there is one.
pub(super) fn run(args: &Args) -> Result<u8, Failure> {
    let code = Cell::new(None);
    let command =
        (!args.command.is_empty()).then(|| Command::new(args.command.clone(), args.retries, args.wanted.wait));
    let role = Coordinating { args, options: None, coordinator: None, command, code: &code, grace: UNTOLD_GRACE };
    match (session::run(&args.join, &args.background, role), code.get()) {
        // What went wrong in the end mustn't hide that the command failed.
        (Err(failure), Some(code)) if code != 0 => {
            super::say(&failure);
            Ok(code)
        }
        (ended, code) => ended.map(|()| code.unwrap_or(0)),
    }
}

struct Coordinating<'a> {
    args: &'a Args,
    options: Option<Options>,
    coordinator: Option<Coordinator>,
    command: Option<Command>,
    /// How the command ended, once it has.
    code: &'a Cell<Option<u8>>,
    /// How long it may take to end.
    grace: Duration,
}

impl Role for Coordinating<'_> {
    async fn prepare(&mut self, _: &mut Config) -> Result<(), Failure> {
        self.options = Some(options(self.args).await?);
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
        let progress = coordinator.board().progress();
        tokio::select! {
            ready = coordinator.ready() => ready.map_err(failure)?,
            () = progress::tell(progress) => {}
        }
        let mut builders = coordinator.board().builders();
        builders.retain(|builder| builder.ready);
        let systems: std::collections::BTreeSet<_> =
            builders.iter().filter_map(|builder| builder.system.as_deref()).map(plain).collect();
        let systems = systems.into_iter().collect::<Vec<_>>().join(", ");
        let told = coordinator.told().filter(|told| told.is_by_environment() && self.command.is_none());
        let env = told.map(|told| told.layout().env());
        Ok(Some(ready_words(builders.len(), &systems, env.as_deref())))
    }

    async fn finished(&mut self) -> Result<(), Failure> {
        match (&mut self.coordinator, &mut self.command) {
            (Some(coordinator), Some(command)) => {
                self.code.set(Some(command.run(coordinator).await?));
                Ok(())
            }
            (Some(coordinator), None) => coordinator.work().await.map_err(failure),
            (None, _) => Ok(()),
        }
    }

    fn told(&mut self, _: Told) -> Duration {
        self.grace = command::GRACE;
        if self.command.is_some() { self.grace } else { Duration::ZERO }
    }

    fn leaves_stdout(&self) -> bool {
        self.command.is_some()
    }

    async fn stop(&mut self) -> Result<(), Failure> {
        if let Some(command) = &mut self.command
            && let Some(code) = command.end(self.grace).await
        {
            self.code.set(Some(code));
        }
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

async fn options(args: &Args) -> Result<Options, Failure> {
    let wanted = args.wanted.wanted()?;
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
    let mode = args.mode.resolve(args.store.is_some()).await?;
    let options = Options {
        wanted,
        run: args.wanted.run.clone(),
        offer: Offer {
            max_jobs: args.max_jobs,
            speed_factor: args.speed_factor,
            mandatory_features: args.mandatory_features.as_deref().map(words).into_iter().flatten().collect(),
        },
        login: args.login.clone().map_or_else(super::user_name, Ok)?,
        builder_silence: args.builder_silence,
        mode,
        transport: match args.transport {
            TransportArg::Auto => Transport::Auto,
            TransportArg::Direct => Transport::Direct,
            TransportArg::Ssh => Transport::Ssh,
        },
        layout: Layout::of_system(run, socket.clone()),
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
