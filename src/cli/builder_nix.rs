//! The Nix that a builder serves: its flags, the look at it before the builder joins, and `--print-facts`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::duration::parse_duration;
use super::size::{parse_size, show_size};
use crate::nix::configuration::Wishes;
use crate::nix::daemon::{NixHost, NixPrograms};
use crate::nix::facts::Facts;
use crate::nix::inspect::{Inspection, Request, inspect};
use crate::nix::preflight::{MIN_FREE_DISK, Problem};
use crate::nix::store::{StoreAccess, StoreConfig};
use crate::report::{Exit, Failure};

/// The flags about the Nix that a builder serves.
#[derive(clap::Args, Default)]
pub(super) struct NixArgs {
    /// The user that coordinators log in as: your word that this process is that user [default: its own user].
    #[arg(long, value_name = "NAME")]
    login: Option<String>,
    /// Serve a chroot store in this folder instead of the system's store; it needs user namespaces.
    #[arg(long, value_name = "FOLDER")]
    store: Option<PathBuf>,
    /// Serve the store FOLDER/store, which needs no namespaces; coordinators must have theirs in the same FOLDER
    /// [default: what NIX_STORE_DIR, NIX_STATE_DIR and NIX_LOG_DIR say].
    #[arg(long, value_name = "FOLDER", conflicts_with = "store")]
    private_store: Option<PathBuf>,
    /// The `nix-daemon` to run [default: the one on PATH].
    #[arg(long, value_name = "PATH")]
    nix_daemon: Option<PathBuf>,
    /// Builds at once [default: nix.conf's, or by processors and memory].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    max_jobs: Option<u32>,
    /// Processors of each build, 0 for all [default: nix.conf's, or so that all builds together have about all].
    #[arg(long, value_name = "N")]
    cores: Option<u32>,
    /// End a build that takes longer; a coordinator's own limit doesn't come along [default: nix.conf's].
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    build_timeout: Option<Duration>,
    /// End a build that writes nothing for so long [default: nix.conf's].
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    max_silent_time: Option<Duration>,
    /// More lines for the builder's Nix, as in nix.conf, or `file:PATH` of a file with them; they win against all but `builders`.
    #[arg(long, value_name = "LINES", default_value = "", hide_default_value = true)]
    extra_nix_config: String,
    /// Don't join, and take no builds, with less free disk where the store is [default: 1GiB].
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    min_free_disk: Option<u64>,
    /// Say what this machine is worth as a builder, and what would fail, and end; nothing is joined.
    #[arg(long)]
    pub(super) print_facts: bool,
    /// With --print-facts: as JSON.
    #[arg(long, requires = "print_facts")]
    json: bool,
}

impl NixArgs {
    /// Looks at this machine; refuses it when it can't be a builder, and says what merely hurts.
    pub(super) async fn ready(&self) -> Result<Inspection, Failure> {
        let inspection = self.inspect().await?;
        say_all(&inspection.problems);
        refused(&inspection.problems).map_or(Ok(inspection), Err)
    }

    /// The least free disk, in bytes.
    pub(super) fn min_free_disk(&self) -> u64 {
        self.min_free_disk.unwrap_or(MIN_FREE_DISK)
    }

    /// Prints the facts, and what would fail on stderr.
    pub(super) async fn print(&self) -> Result<(), Failure> {
        let Inspection { facts, problems, .. } = self.inspect().await?;
        if self.json {
            super::print_json(&Printed { facts: &facts, problems: problems.iter().map(Told::from).collect() })?;
        } else {
            super::print(&table(&facts))?;
            say_all(&problems);
        }
        refused(&problems).map_or(Ok(()), Err)
    }

    /// Looks at this machine.
    pub(super) async fn inspect(&self) -> Result<Inspection, Failure> {
        let (user, login) = match (super::user_name(), &self.login) {
            (Ok(user), Some(login)) => (user, login.clone()),
            (Ok(user), None) => (user.clone(), user),
            // It has a number, and what it is called is the operator's word.
            (Err(_), Some(login)) => (login.clone(), login.clone()),
            (Err(failure), None) => return Err(failure),
        };
        let request = Request {
            host: self.host(user.clone())?,
            login,
            user,
            wishes: Wishes {
                max_jobs: self.max_jobs,
                cores: self.cores,
                timeout: self.build_timeout,
                max_silent_time: self.max_silent_time,
                lines: self.extra_lines()?,
            },
            min_free_disk: self.min_free_disk(),
        };
        inspect(request).await.map_err(|error| {
            Failure::new(Exit::Configuration, format!("this machine can't be a builder: {error}"))
                .next("run `nix-store --version` and `nix-build` here by hand; --nix-daemon and --store name another Nix or store")
        })
    }

    /// The lines for nix.conf. They may hold access tokens, which no command line should: hence the file.
    fn extra_lines(&self) -> Result<String, Failure> {
        let Some(path) = self.extra_nix_config.strip_prefix("file:") else { return Ok(self.extra_nix_config.clone()) };
        std::fs::read_to_string(path).map_err(|error| {
            Failure::new(Exit::Configuration, format!("--extra-nix-config: {path} can't be read: {error}"))
                .next("name a file of lines as in nix.conf, or give the lines themselves")
        })
    }

    fn host(&self, user: String) -> Result<NixHost, Failure> {
        let unfit = |error: &dyn std::fmt::Display| {
            Failure::new(Exit::Configuration, error).next("install Nix, or name its daemon with --nix-daemon PATH")
        };
        let absolute = |path: &Path| std::path::absolute(path).map_err(|error| unfit(&error));
        let path = match &self.nix_daemon {
            Some(daemon) => absolute(daemon)?.parent().map(|folder| folder.as_os_str().to_owned()),
            None => std::env::var_os("PATH"),
        };
        let mut programs = NixPrograms::find(path.as_ref()).map_err(|error| unfit(&error))?;
        if let Some(daemon) = &self.nix_daemon {
            programs.nix_daemon = absolute(daemon)?;
        }
        let store = match (&self.store, &self.private_store) {
            (Some(root), _) => StoreConfig::Chroot { root: absolute(root)? },
            (None, Some(root)) => StoreConfig::private(&absolute(root)?),
            (None, None) => StoreConfig::from_environment(|name| std::env::var_os(name)),
        };
        Ok(NixHost {
            programs,
            store,
            home: std::env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from),
            user,
            configuration: std::env::var_os("NIX_CONF_DIR").map(PathBuf::from),
            settings: std::env::var("NIX_CONFIG").unwrap_or_default(),
        })
    }
}

/// Facts and problems as JSON.
#[derive(Serialize)]
struct Printed<'a> {
    #[serde(flatten)]
    facts: &'a Facts,
    problems: Vec<Told<'a>>,
}

#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    problem: &'a Problem,
    fatal: bool,
}

impl<'a> From<&'a Problem> for Told<'a> {
    fn from(problem: &'a Problem) -> Self {
        Self { problem, fatal: problem.kind.is_fatal() }
    }
}

/// The first fatal problem as the command's failure.
fn refused(problems: &[Problem]) -> Option<Failure> {
    let first = problems.iter().find(|problem| problem.kind.is_fatal())?;
    let message = format!("this machine can't be a builder: {}", first.what);
    Some(Failure::new(Exit::Configuration, message).next(&first.mend))
}

/// All problems but the one that [`refused`] tells of.
fn say_all(problems: &[Problem]) {
    let fatal = problems.iter().filter(|problem| problem.kind.is_fatal());
    let mild = problems.iter().filter(|problem| !problem.kind.is_fatal());
    for problem in fatal.skip(1).chain(mild) {
        super::say(&format_args!("{}\n  {}", problem.what, problem.mend));
    }
}

/// The facts for people.
fn table(facts: &Facts) -> String {
    let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "unknown".to_owned());
    let trust = match facts.trusted {
        Some(true) => "trusted",
        Some(false) => "not trusted",
        None => "trust unknown",
    };
    let opened = match facts.store_access {
        Some(StoreAccess::Direct) => "opened by nixtail's own child",
        Some(StoreAccess::Daemon) => "opened by the system's daemon",
        None => "not opened",
    };
    let others = if facts.extra_platforms.is_empty() {
        String::new()
    } else {
        format!(", also {}", facts.extra_platforms.join(" "))
    };
    let each = match (facts.cores_per_build, facts.settings_reach_builds) {
        (Some(0), _) => "all processors for each",
        (Some(1), _) => "one processor each",
        (Some(cores), _) => &format!("{cores} processors each"),
        (None, Some(false)) => "processors as the system's daemon has it",
        (None, _) => "processors of each unknown",
    };
    let limit = |seconds: Option<u64>, name: &str| seconds.map(|seconds| format!("{name} {seconds} s"));
    let limits: Vec<String> =
        [limit(facts.timeout_seconds, "at most"), limit(facts.max_silent_seconds, "silent at most")]
            .into_iter()
            .flatten()
            .collect();
    let limits = if limits.is_empty() { "those of nix.conf".to_owned() } else { limits.join(", ") };
    let sandbox = if facts.sandbox { "sandboxed" } else { "no sandbox" };
    let features = if facts.features.is_empty() { "none".to_owned() } else { facts.features.join(" ") };
    let rows = [
        ("system", format!("{}{others}", facts.system)),
        (
            "processors",
            format!("{}, speed of one {}", facts.cores, or_unknown(facts.speed.map(|speed| format!("{speed:.2}")))),
        ),
        (
            "memory",
            format!(
                "{}, {} available",
                show_size(facts.memory_bytes),
                or_unknown(facts.memory_available_bytes.map(show_size))
            ),
        ),
        ("nix", format!("{} as {}, {trust}", facts.nix_version, facts.login)),
        ("store", format!("{}, {opened}", facts.store_folder)),
        ("disk", format!("{} free at {}", show_size(facts.free_disk_bytes), or_unknown(facts.store_on_disk.clone()))),
        ("builds", format!("{} at once, {each}, {sandbox}", facts.max_jobs)),
        ("limits", limits),
        ("features", features),
    ];
    rows.map(|(name, value)| format!("{name:<11} {value}")).join("\n")
}
