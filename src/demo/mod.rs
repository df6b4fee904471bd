//! `nixtail demo`: a Nix build on two builders through our own tunnel, all of it on this machine, nothing left behind.
//!
//! It starts a devnet in this process, and two builders and a coordinator as processes of their own, each with a
//! throw-away store in a temporary folder. Then Nix builds twelve derivations in three levels with `max-jobs = 0`.

mod check;
mod graph;
mod process;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nixtail_devnet::{AuthKeyOptions, Devnet};
use nixtail_proto::secret::Secret;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::report::terminal::Terminal;
use graph::{Attribution, DERIVATIONS};
use process::{Process, environment};

/// The builders' names in the devnet.
const BUILDERS: [&str; 2] = ["demo-builder-1", "demo-builder-2"];
/// How long each process may take to join and be ready. A cold start on a busy machine takes some seconds.
const READY: Duration = Duration::from_secs(60);
/// How long the build may take; it needs about two seconds of sleeping.
const BUILD: Duration = Duration::from_secs(180);
/// What stands before each line: the time.
const INDENT: usize = 9;
/// How long everything may take to be gone.
const GONE: Duration = Duration::from_secs(15);

/// Why the demo didn't come to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DemoError {
    /// A program that it needs isn't there.
    #[error("{program} is not installed; `make demo` installs it, or see the README's list")]
    Missing {
        /// Which.
        program: &'static str,
    },
    /// The kernel or a policy refuses what throw-away stores need.
    #[error(
        "this machine refuses user namespaces, which Nix needs for a throw-away store; allow them (sysctl kernel.unprivileged_userns_clone=1, or kernel.apparmor_restrict_unprivileged_userns=0), or run the demo as root"
    )]
    NoNamespaces,
    /// The system said no.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// A child couldn't be started.
    #[error(transparent)]
    Spawn(#[from] crate::nix::spawn::SpawnError),
    /// The devnet couldn't.
    #[error(transparent)]
    Devnet(#[from] nixtail_devnet::DevnetError),
    /// A child ended before it began.
    #[error("{name} ended at once")]
    Ended {
        /// Which.
        name: String,
    },
    /// A child ended where it shouldn't have.
    #[error("{name} failed:\n  {said}")]
    Failed {
        /// Which.
        name: String,
        /// The end of its stderr.
        said: String,
    },
    /// A child said nothing in time.
    #[error("{name} said nothing for {seconds} s")]
    Silent {
        /// Which.
        name: String,
        /// For how long.
        seconds: u64,
    },
    /// Everything ran, and something isn't as it must be.
    #[error("{0}")]
    Wrong(String),
    /// Ctrl-C.
    #[error("interrupted; everything was ended and removed")]
    Interrupted,
}

/// Runs the demo and tells of it through `say`: a line, or a line and what belongs below it. Returns the closing line.
///
/// `nixtail` is the program to start for the roles. When `cancel` fires, all children are ended, the folder is removed
/// and [`DemoError::Interrupted`] comes back.
///
/// # Errors
/// When anything didn't hold that the closing line says.
pub async fn run(nixtail: &Path, cancel: CancellationToken, say: &dyn Fn(&str)) -> Result<String, DemoError> {
    let folder = tempfile::Builder::new().prefix("nixtail-demo-").tempdir()?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700))?;
    let mut stage =
        Stage { folder, nixtail: nixtail.to_owned(), builders: Vec::new(), coordinator: None, devnet: None };
    let result = tokio::select! {
        result = stage.play(say) => result,
        () = cancel.cancelled() => Err(DemoError::Interrupted),
    };
    // What couldn't be cleared is told even where something else went wrong before: somebody must remove it.
    match (stage.clear().await, result) {
        (Ok(()), result) => result,
        (Err(left), Err(error)) if !matches!(error, DemoError::Interrupted) => {
            Err(DemoError::Wrong(format!("{error}\n  and then: {left}")))
        }
        (Err(left), _) => Err(left),
    }
}

/// Everything that the demo has started and must end.
struct Stage {
    folder: TempDir,
    nixtail: PathBuf,
    builders: Vec<(String, Process)>,
    coordinator: Option<Process>,
    devnet: Option<Devnet>,
}

impl Stage {
    async fn play(&mut self, say: &dyn Fn(&str)) -> Result<String, DemoError> {
        let nix_build = find("nix-build")?;
        let busybox = self.lay_out()?;
        say(
            "a tailnet on this machine alone: a control server, two builders, a coordinator; then Nix builds on the builders",
        );
        say("looking whether Nix can have a throw-away store here");
        self.probe_store(&nix_build).await?;

        let devnet = self.devnet.insert(Devnet::start(nixtail_devnet::Config::default()).await?);
        let url = devnet.url();
        let key = |tag: &str| {
            devnet.add_auth_key(AuthKeyOptions {
                reusable: true,
                ephemeral: true,
                tags: vec![tag.to_owned()],
                ..AuthKeyOptions::default()
            })
        };
        let keys = [("builder.key", key("tag:nix-ci-builder")?), ("coordinator.key", key("tag:nix-ci-coordinator")?)];
        for (name, key) in &keys {
            write_secret(&self.path(name), key)?;
        }
        say(&format!("devnet: control at {url}, with a DERP relay and STUN beside it"));

        for name in BUILDERS {
            let process = self.start_builder(&url, name).await?;
            self.builders.push((name.to_owned(), process));
        }
        for (name, process) in &mut self.builders {
            say(&format!("{name} {}", process.line(READY).await?));
        }
        let coordinator = self.start_coordinator(&url, &nix_build).await?;
        let ready = self.coordinator.insert(coordinator).line(READY).await?;
        say(&format!("coordinator {ready}"));

        let attribution = self.build(&nix_build, &busybox, say).await?;
        self.catch_up().await?;
        say(&format!("nixtail summary\n{}", self.ask("summary").await?));
        let path = check::paths(&self.status().await?, &BUILDERS)?;
        say(&format!("path to the builders: {path}"));
        self.stop(say).await?;
        Ok(format!(
            "demo: {} derivations on {} builders, all traffic over WireGuard ({path}), nothing left behind",
            attribution.total(),
            attribution.by_builder.len()
        ))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes the folders that every process needs; returns the one with busybox in it.
    fn lay_out(&self) -> Result<PathBuf, DemoError> {
        let tools = self.path("tools");
        fs::create_dir(&tools)?;
        fs::copy(find("busybox")?, tools.join("busybox"))?;
        for name in BUILDERS.into_iter().chain(["coordinator", "probe"]) {
            let etc = self.path(name).join("etc");
            fs::create_dir_all(&etc)?;
            fs::create_dir(self.path(name).join("home"))?;
            // Build users are for root's daemons; substituters would be asked, without internet, for seconds.
            let jobs = if name == "coordinator" { 0 } else { 2 };
            fs::write(etc.join("nix.conf"), format!("build-users-group =\nsubstituters =\nmax-jobs = {jobs}\n"))?;
        }
        Ok(tools)
    }

    /// A built-in builder runs in the same namespaces as any other.
    async fn probe_store(&self, nix_build: &Path) -> Result<(), DemoError> {
        let expression = "derivation { name = \"probe\"; system = builtins.currentSystem; builder = \"builtin:buildenv\"; derivations = \"\"; manifest = \"/dev/null\"; }";
        let arguments = ["--no-out-link", "--store", "store", "-E", expression].map(OsString::from).to_vec();
        let mut arguments = arguments;
        arguments[2] = self.path("probe").join("store").into();
        let probe = self.nix(nix_build, "probe", arguments, |_| {}).await?;
        match probe.wait(READY).await {
            Ok(_) => Ok(()),
            Err(DemoError::Failed { said, .. })
                if said.contains("namespace") || said.contains("Operation not permitted") =>
            {
                Err(DemoError::NoNamespaces)
            }
            Err(error) => Err(error),
        }
    }

    async fn start_builder(&self, url: &str, name: &str) -> Result<Process, DemoError> {
        let mut arguments = self.joining("builder", url, name, "builder.key");
        arguments.extend(["--store".into(), self.path(name).join("store").into()]);
        self.nixtail(name, name, arguments).await
    }

    async fn start_coordinator(&self, url: &str, nix_build: &Path) -> Result<Process, DemoError> {
        let mut arguments = self.joining("coordinator", url, "demo-coordinator", "coordinator.key");
        arguments.extend(["--builders".into(), BUILDERS.join(" ").into()]);
        arguments.extend(["--mode".into(), "own-store".into()]);
        arguments.extend(["--run-dir".into(), self.path("run").into()]);
        arguments.extend(["--nix-build".into(), nix_build.into()]);
        arguments.extend(["--store".into(), self.path("coordinator").join("store").into()]);
        self.nixtail("coordinator", "coordinator", arguments).await
    }

    fn joining(&self, role: &str, url: &str, hostname: &str, key: &str) -> Vec<OsString> {
        let mut key_file = OsString::from("file:");
        key_file.push(self.path(key));
        vec![
            role.into(),
            "--login-server".into(),
            url.into(),
            "--auth-key".into(),
            key_file,
            "--hostname".into(),
            hostname.into(),
            "--socket".into(),
            self.socket(if role == "builder" { hostname } else { "coordinator" }).into(),
        ]
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.sock"))
    }

    async fn nixtail(&self, name: &str, home: &str, arguments: Vec<OsString>) -> Result<Process, DemoError> {
        let directory = self.path(home);
        let mut variables = environment(&directory.join("home"));
        variables.push(("NIX_CONF_DIR".into(), directory.join("etc").into()));
        Process::start(name, &self.nixtail, arguments, variables, directory, |_| {}).await
    }

    /// Runs Nix as a user would: through a shell that has read what the coordinator wrote for it, once there is one.
    async fn nix(
        &self,
        nix_build: &Path,
        home: &str,
        arguments: Vec<OsString>,
        log: impl FnMut(&str) + Send + 'static,
    ) -> Result<Process, DemoError> {
        let directory = self.path(home);
        let mut variables = environment(&directory.join("home"));
        variables.push(("NIX_CONF_DIR".into(), directory.join("etc").into()));
        let script = "if [ -e \"$0\" ]; then . \"$0\"; fi; exec \"$@\"";
        let mut words = vec!["-c".into(), script.into(), self.path("run").join("env").into(), nix_build.into()];
        words.extend(arguments);
        Process::start("nix-build", Path::new("/bin/sh"), words, variables, directory, log).await
    }

    async fn build(&self, nix_build: &Path, busybox: &Path, say: &dyn Fn(&str)) -> Result<Attribution, DemoError> {
        let expression = self.path("demo.nix");
        let salt = self.folder.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        fs::write(&expression, graph::expression(busybox, &salt))?;
        let store = self.path("coordinator").join("store");
        let arguments: Vec<OsString> = vec![
            "--no-out-link".into(),
            "--max-jobs".into(),
            "0".into(),
            "--store".into(),
            store.clone().into(),
            expression.into(),
        ];
        let (lines, mut heard) = tokio::sync::mpsc::channel::<String>(256);
        let nix = self
            .nix(nix_build, "coordinator", arguments, move |line| {
                // A full queue would lose attribution, not output: the closing check then fails loudly.
                let _ = lines.try_send(line.to_owned());
            })
            .await?;
        let mut attribution = Attribution::default();
        let listening = async {
            while let Some(line) = heard.recv().await {
                if let Some((builder, derivation)) = attribution.read(&line) {
                    say(&format!("  {builder} builds {derivation}"));
                    if attribution.total() == DERIVATIONS / 2 {
                        say(&format!("nixtail status, in mid-build\n{}", self.ask("status").await?));
                    }
                }
            }
            Ok::<_, DemoError>(())
        };
        let (ended, listened) = tokio::join!(nix.wait(BUILD), listening);
        ended?;
        listened?;
        check::outputs(&store, &attribution, &BUILDERS)?;
        Ok(attribution)
    }

    /// What a command shows of the coordinator, as it would in the terminal that the demo runs in.
    async fn ask(&self, command: &'static str) -> Result<String, DemoError> {
        let directory = self.path("coordinator");
        let mut variables = environment(&directory.join("home"));
        let terminal = Terminal::of(std::io::stdout());
        let width = terminal.width.map(|width| width.saturating_sub(INDENT).max(1));
        variables.extend(width.map(|width| ("COLUMNS".into(), width.to_string().into())));
        variables.push(if terminal.colour {
            ("CLICOLOR_FORCE".into(), "1".into())
        } else {
            ("NO_COLOR".into(), "1".into())
        });
        let arguments = vec![command.into(), "--socket".into(), self.socket("coordinator").into()];
        let process = Process::start(command, &self.nixtail, arguments, variables, directory, |_| {}).await?;
        Ok(process.wait(GONE).await?.stdout.trim_end().to_owned())
    }

    /// Waits until the coordinator has heard of the last build's end, which Nix knows a moment earlier.
    async fn catch_up(&self) -> Result<(), DemoError> {
        let begun = Instant::now();
        loop {
            let built = self.status().await?["totals"]["built"].as_u64().unwrap_or_default();
            if built == DERIVATIONS as u64 {
                return Ok(());
            }
            if begun.elapsed() > GONE {
                return Err(DemoError::Wrong(format!(
                    "the coordinator counts {built} of {DERIVATIONS} builds as built"
                )));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn status(&self) -> Result<serde_json::Value, DemoError> {
        let arguments = vec!["status".into(), "--json".into(), "--socket".into(), self.socket("coordinator").into()];
        let status = self.nixtail("nixtail status", "coordinator", arguments).await?.wait(GONE).await?;
        serde_json::from_str(&status.stdout)
            .map_err(|error| DemoError::Wrong(format!("`nixtail status --json`: {error}")))
    }

    /// Ends the run as a user would, and looks whether everything is gone.
    async fn stop(&mut self, say: &dyn Fn(&str)) -> Result<(), DemoError> {
        say("stop-nix-builders");
        let arguments = vec!["stop-nix-builders".into(), "--socket".into(), self.socket("coordinator").into()];
        self.nixtail("stop-nix-builders", "coordinator", arguments).await?.wait(GONE).await?;
        for (name, builder) in std::mem::take(&mut self.builders) {
            builder.wait(GONE).await?;
            say(&format!("  {name} ended"));
        }
        if let Some(coordinator) = self.coordinator.take() {
            let status = coordinator.end().await?;
            if !status.success() {
                return Err(DemoError::Wrong(format!("the coordinator ended with {status}")));
            }
        }
        if let Some(devnet) = &self.devnet {
            check::no_nodes(devnet, GONE).await?;
        }
        check::no_processes(self.folder.path(), GONE).await?;
        check::no_sockets(self.folder.path(), &self.path("run"))
    }

    /// Ends whatever still runs and removes the folder, however far it came.
    async fn clear(self) -> Result<(), DemoError> {
        let Self { folder, builders, coordinator, devnet, .. } = self;
        let processes = coordinator.into_iter().chain(builders.into_iter().map(|(_, builder)| builder));
        let ends: Vec<_> = processes.map(|process| tokio::spawn(process.end())).collect();
        for end in ends {
            // How they end doesn't matter any more, only that they do; that is looked at next.
            let _ = end.await;
        }
        if let Some(devnet) = devnet {
            devnet.shutdown().await;
        }
        let processes = check::no_processes(folder.path(), GONE).await;
        check::make_removable(folder.path());
        let removed = folder.close().map_err(|error| DemoError::Wrong(format!("a folder is left: {error}")));
        processes.and(removed)
    }
}

/// The absolute path of a program on `PATH`.
fn find(program: &'static str) -> Result<PathBuf, DemoError> {
    crate::nix::daemon::on_path(program).ok_or(DemoError::Missing { program })
}

fn write_secret(path: &Path, secret: &Secret) -> Result<(), DemoError> {
    fs::write(path, secret.expose())?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o600))?)
}
