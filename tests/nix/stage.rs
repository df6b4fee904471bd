//! headscale with a policy for Nix, and the roles on it, each with a Nix of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use tempfile::TempDir;

use crate::lab::PATIENCE;
use crate::lab::headscale::{Headscale, KeyTerms, USER};
use crate::lab::nixtail::{Nixtail, program};
use crate::lab::process::{run, run_ok};
use crate::nix_at_hand::{Place, Programs, make_removable, write_derivations};

/// What builders are tagged with.
pub(crate) const BUILDER: &str = "tag:nix-ci-builder";
/// What coordinators are tagged with; [`policy`] lets them log in at builders.
pub(crate) const COORDINATOR: &str = "tag:nix-ci-coordinator";
/// A tag that no policy here lets log in.
pub(crate) const STRANGER: &str = "tag:stranger";

/// Everyone may send anything to everyone; coordinators may log in at builders.
pub(crate) fn coordinators_may_log_in() -> String {
    let users = r#"["autogroup:nonroot", "root"]"#;
    let ssh = format!(r#"{{"action": "accept", "src": ["{COORDINATOR}"], "dst": ["{BUILDER}"], "users": {users}}}"#);
    policy(r#"{"action": "accept", "src": ["*"], "dst": ["*:*"]}"#, &ssh)
}

/// A policy of these `acls` and `ssh` rules, with the tags of this file.
pub(crate) fn policy(acls: &str, ssh: &str) -> String {
    let owners = [BUILDER, COORDINATOR, STRANGER].map(|tag| format!(r#""{tag}": ["{USER}@"]"#)).join(", ");
    format!(r#"{{"tagOwners": {{{owners}}}, "acls": [{acls}], "ssh": [{ssh}]}}"#)
}

/// A tailnet, and a folder for all that its nodes keep.
///
/// Declare it before its nodes: they are to end before it does.
pub(crate) struct Stage {
    pub(crate) headscale: Headscale,
    pub(crate) programs: Programs,
    folder: TempDir,
}

impl Stage {
    /// Starts headscale with `policy`. `None` when a program is missing.
    pub(crate) fn start(policy: &str) -> Option<Self> {
        let programs = Programs::find()?;
        let headscale = Headscale::start(policy)?;
        Some(Self { headscale, programs, folder: tempfile::tempdir().expect("a folder") })
    }

    /// A key for one node with one tag.
    pub(crate) fn key(&self, tag: &str) -> String {
        self.headscale.preauth_key(KeyTerms { ephemeral: true, reusable: false, tags: &[tag] })
    }

    /// A node that does nothing but be there.
    pub(crate) fn up(&self, name: &str, tag: &str) -> Nixtail {
        Nixtail::up(self.headscale.url(), &self.key(tag), name, &[])
    }

    /// A builder of a run.
    pub(crate) fn builder_of_run(&self, name: &str, run: &str) -> Builder {
        self.builder(name, &["--run", run])
    }

    /// A builder with a store of its own.
    pub(crate) fn builder(&self, name: &str, more: &[&str]) -> Builder {
        let place = Place::make(self.path(name), 2);
        let store = place.store().display().to_string();
        let args = [&["--store", &store], more].concat();
        let key = self.key(BUILDER);
        let process = Nixtail::start_in("builder", self.headscale.url(), &key, name, &args, &place.environment());
        Builder { process, place }
    }

    /// A coordinator that is ready: each of `builders` has been claimed and proved.
    pub(crate) fn coordinator(&self, builders: &[&str]) -> Coordinator {
        self.coordinator_that_wants(&["--builders", &builders.join(" ")])
    }

    /// A coordinator that is ready with the builders that these flags mean.
    pub(crate) fn coordinator_that_wants(&self, wanted: &[&str]) -> Coordinator {
        self.coordinator_in(wanted, &[])
    }

    /// As [`Self::coordinator`], with more flags and more in its environment.
    pub(crate) fn coordinator_with(
        &self,
        builders: &[&str],
        more: &[&str],
        environment: &[(&'static str, String)],
    ) -> Coordinator {
        let builders = builders.join(" ");
        self.coordinator_in(&[&["--builders", &builders], more].concat(), environment)
    }

    fn coordinator_in(&self, wanted: &[&str], environment: &[(&'static str, String)]) -> Coordinator {
        let name = "coordinator";
        let place = Place::make(self.path(name), 0);
        let run_folder = self.path("run");
        let args = self.coordinator_args(&place, &run_folder, wanted, "60s", &self.programs.nix_build);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let key = self.key(COORDINATOR);
        let environment = [&place.environment()[..], environment].concat();
        let process = Nixtail::start_in(name, self.headscale.url(), &key, name, &args, &environment);
        let expression = write_derivations(self.folder.path(), &self.programs, &self.salt());
        Coordinator { process, place, run_folder, nix_build: self.programs.nix_build.clone(), expression }
    }

    /// A coordinator that is to end by itself; `nix_build` proves its builders.
    pub(crate) fn failing_coordinator(&self, builders: &[&str], wait: &str, nix_build: &Path) -> Output {
        let wanted = ["--builders", &builders.join(" ")];
        run(&mut self.coordinator_command("loser", &wanted, wait, nix_build), 2 * PATIENCE)
    }

    /// The command line of a coordinator called `name`, which has folders and a socket of that name.
    pub(crate) fn coordinator_command(&self, name: &str, wanted: &[&str], wait: &str, nix_build: &Path) -> Command {
        let place = Place::make(self.path(name), 0);
        let socket = self.path(&format!("{name}.sock")).display().to_string();
        let joining = ["coordinator", "--login-server", self.headscale.url(), "--hostname", name, "--socket", &socket];
        let mut command = place.command(&program());
        let run_folder = self.path(&format!("{name}.run"));
        command.args(joining).args(self.coordinator_args(&place, &run_folder, wanted, wait, nix_build));
        command.env("TS_AUTHKEY", self.key(COORDINATOR));
        command
    }

    fn coordinator_args(
        &self,
        place: &Place,
        run_folder: &Path,
        wanted: &[&str],
        wait: &str,
        nix_build: &Path,
    ) -> Vec<String> {
        let args = [
            ("--mode", "own-store".to_owned()),
            ("--run-dir", run_folder.display().to_string()),
            ("--store", place.store().display().to_string()),
            ("--nix-build", nix_build.display().to_string()),
            ("--wait", wait.to_owned()),
        ];
        let args = args.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
        wanted.iter().map(|word| (*word).to_owned()).chain(args).collect()
    }

    /// The names of the nodes that headscale knows.
    pub(crate) fn nodes(&self) -> Vec<String> {
        self.headscale.nodes().into_iter().map(|node| node.name).collect()
    }

    /// A path in its folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What is in no other stage's derivations.
    pub(crate) fn salt(&self) -> String {
        self.folder.path().file_name().expect("a name").to_string_lossy().into_owned()
    }

    /// The command lines of the processes that belong to it: all name its folder.
    pub(crate) fn processes(&self) -> Vec<String> {
        processes_naming(&self.folder.path().display().to_string())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        make_removable(self.folder.path());
    }
}

/// A builder, ready to be claimed.
pub(crate) struct Builder {
    pub(crate) process: Nixtail,
    pub(crate) place: Place,
}

/// A coordinator whose builders are ready.
pub(crate) struct Coordinator {
    pub(crate) process: Nixtail,
    place: Place,
    /// Where the files are that Nix and ssh read.
    pub(crate) run_folder: PathBuf,
    nix_build: PathBuf,
    expression: PathBuf,
}

/// What a build said, and what came of it.
pub(crate) struct Build {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Coordinator {
    /// `nix-build` of one attribute of [`write_derivations`], as a user does it who was told to read `RUN/env`.
    pub(crate) fn build_command(&self, attribute: &str) -> Command {
        let mut command = self.place.command(Path::new("sh"));
        command.args(["-c", ". \"$0\" && exec \"$@\""]).arg(self.run_folder.join("env"));
        command.arg(&self.nix_build).args(["--no-out-link", "--max-jobs", "0", "--store"]).arg(self.place.store());
        command.arg(&self.expression).args(["-A", attribute]);
        command
    }

    /// Builds and waits for the end, `patience` at the most.
    pub(crate) fn build(&self, attribute: &str, patience: Duration) -> Build {
        let Output { status, stdout, stderr } = run(&mut self.build_command(attribute), patience);
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Build { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
    }

    /// The content of an output in its store.
    pub(crate) fn read_output(&self, named: &str) -> String {
        self.place.read_output(named)
    }

    /// OpenSSH with the configuration that Nix is told of; `command` goes to the builder as it is.
    pub(crate) fn ssh(&self, builder: &str, command: &[&str]) -> Output {
        let mut ssh = self.place.command(Path::new("ssh"));
        ssh.arg("-F").arg(self.run_folder.join("ssh_config")).arg(builder).args(command);
        run(&mut ssh, PATIENCE)
    }

    /// `nixtail stop-nix-builders`, which must succeed.
    pub(crate) fn stop_builders(&self) -> String {
        run_ok(&mut self.process.command(&["stop-nix-builders"]), PATIENCE)
    }

    /// The path that it has to a peer: `none`, `direct` or `derp`.
    pub(crate) fn path_to(&self, peer: &str) -> String {
        let status = self.process.status();
        let found = status["peers"].as_array().and_then(|peers| peers.iter().find(|known| known["name"] == peer));
        found.and_then(|peer| peer["path"]["kind"].as_str()).unwrap_or("unknown").to_owned()
    }
}

impl Build {
    /// Which derivation Nix sent to which builder, as it says itself.
    pub(crate) fn sent(&self) -> Vec<(String, String)> {
        let line = |line: &str| {
            let (derivation, on) = line.trim().strip_prefix("building '")?.split_once(".drv' on '")?;
            let derivation = derivation.rsplit('/').next()?.split_once('-')?.1;
            // `ssh-ng://bob@b1`, or `ssh-ng://localhost?remote-program=RUN/builders/b1`.
            let builder = on.split("://").nth(1)?.split('\'').next()?.rsplit(['@', '/']).next()?;
            Some((derivation.to_owned(), builder.to_owned()))
        };
        self.stderr.lines().filter_map(line).collect()
    }
}

/// The command lines of running processes that hold `mark`.
pub(crate) fn processes_naming(mark: &str) -> Vec<String> {
    let own = std::process::id().to_string();
    let entries = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let others = entries.filter(|entry| entry.file_name().to_string_lossy() != own);
    // A zombie's is empty.
    let lines = others.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(mark)).collect()
}
