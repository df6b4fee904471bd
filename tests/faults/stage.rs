//! Two machines on a switch: a coordinator with its Nix on the left one, a builder on the right one, control and a relay between.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::lab::headscale::{Headscale, KeyTerms, USER};
use crate::lab::network::{Machine, Switch};
use crate::lab::nixtail::Nixtail;
use crate::lab::{PATIENCE, wait_for};
use crate::nix_at_hand::{Place, Programs, make_removable};
use crate::stream::data;

const BUILDER: &str = "tag:nix-ci-builder";
const COORDINATOR: &str = "tag:nix-ci-coordinator";
/// What a cable carries to its machine: what a build needs takes seconds.
const RATE: &str = "40mbit";
/// What goes to the builder for each build, and comes back: more than a second each way on such a cable.
const CARGO: u64 = 6 << 20;
/// How much of it has gone when a copy counts as being under way.
const UNDER_WAY: u64 = 1 << 20;

/// The tailnet, the machines, and a folder for all that their nodes keep.
///
/// Declare it before its nodes: they are to end before it does.
pub(crate) struct Stage {
    pub(crate) headscale: Headscale,
    pub(crate) left: Machine,
    pub(crate) right: Machine,
    _switch: Switch,
    /// Whether its nodes may meet without the relay.
    pub(crate) direct: bool,
    programs: Programs,
    folder: TempDir,
}

impl Stage {
    /// `None`, and the test is skipped by name, without root or a program.
    pub(crate) fn start(direct: bool) -> Option<Self> {
        let programs = Programs::find()?;
        let folder = tempfile::tempdir().unwrap();
        let mut switch = Switch::start(folder.path())?;
        let headscale = switch.headscale(&policy())?;
        let left = switch.machine("left", RATE, folder.path());
        let right = switch.machine("right", RATE, folder.path());
        fs::write(folder.path().join("data"), data(CARGO)).unwrap();
        let tools = folder.path().join("tools");
        fs::create_dir(&tools).unwrap();
        fs::copy(&programs.busybox, tools.join("busybox")).unwrap();
        Some(Self { headscale, left, right, _switch: switch, direct, programs, folder })
    }

    /// A key for nodes with one tag; a killed one may come again with it.
    pub(crate) fn key(&self, tag: &str) -> String {
        self.headscale.preauth_key(KeyTerms { ephemeral: false, reusable: true, tags: &[tag] })
    }

    /// A path in its folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The folder.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn more(&self) -> &'static [&'static str] {
        if self.direct { &[] } else { &["--no-direct"] }
    }

    /// The builder, on the right machine. One that was killed comes back as the node that it was.
    pub(crate) fn builder(&self, environment: &[(&'static str, String)]) -> Nixtail {
        let place = Place::make(self.path("builder"), 2);
        let [store, state] = ["builder/store", "builder/state"].map(|name| self.path(name).display().to_string());
        let args = [&["--store", &store, "--state-dir", &state], self.more()].concat();
        let environment = [&place.environment()[..], environment].concat();
        let (url, key) = (self.headscale.url(), self.key(BUILDER));
        Nixtail::start_on(self.right.namespace(), "builder", url, &key, "builder", &args, &environment)
    }

    /// The coordinator, on the left machine, with its builder proved. One that was killed comes back as the node that it was.
    pub(crate) fn coordinator(&self, environment: &[(&'static str, String)]) -> Coordinator {
        let place = Place::make(self.path("coordinator"), 0);
        let paths = ["run", "coordinator/store", "coordinator/state"].map(|name| self.path(name).display().to_string());
        let [run, store, state] = &paths;
        let nix_build = self.programs.nix_build.display().to_string();
        let wanted = ["--builders", "builder", "--mode", "own-store", "--wait", "60s", "--nix-build", &nix_build];
        let args = [&wanted[..], &["--run-dir", run, "--store", store, "--state-dir", state], self.more()].concat();
        let environment = [&place.environment()[..], environment].concat();
        let (url, key) = (self.headscale.url(), self.key(COORDINATOR));
        let left = self.left.namespace();
        let process = Nixtail::start_on(left, "coordinator", url, &key, "coordinator", &args, &environment);
        Coordinator { process, place, folder: self.folder().to_owned(), nix_build: self.programs.nix_build.clone() }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        make_removable(self.folder.path());
    }
}

/// Everyone may send anything to everyone; coordinators may log in at builders.
fn policy() -> String {
    let owners = [BUILDER, COORDINATOR, "tag:stream"].map(|tag| format!(r#""{tag}": ["{USER}@"]"#)).join(", ");
    let users = r#"["autogroup:nonroot", "root"]"#;
    format!(
        r#"{{"tagOwners": {{{owners}}}, "acls": [{{"action": "accept", "src": ["*"], "dst": ["*:*"]}}],
            "ssh": [{{"action": "accept", "src": ["{COORDINATOR}"], "dst": ["{BUILDER}"], "users": {users}}}]}}"#
    )
}

/// A coordinator whose builder is ready.
pub(crate) struct Coordinator {
    pub(crate) process: Nixtail,
    place: Place,
    folder: PathBuf,
    nix_build: PathBuf,
}

impl Coordinator {
    /// Begins a build called `name` that gets the cargo, works for so many seconds, and gives the cargo back.
    pub(crate) fn begin(&self, name: &str, seconds: u64) -> Build<'_> {
        let expression = self.folder.join(format!("{name}.nix"));
        fs::write(&expression, derivation(&self.folder, name, seconds)).unwrap();
        let log = self.folder.join(format!("{name}.log"));
        let file = fs::File::create(&log).unwrap();
        let mut command = self.place.command(Path::new("sh"));
        command.args(["-c", ". \"$0\" && exec \"$@\""]).arg(self.folder.join("run/env")).arg(&self.nix_build);
        command.args(["--no-out-link", "--max-jobs", "0", "--store"]).arg(self.place.store()).arg(&expression);
        let sent_before = self.sent();
        let begun = Instant::now();
        let nix = command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        Build { nix, log, begun, sent_before, coordinator: self }
    }

    /// A build that is to end well.
    pub(crate) fn builds(&self, name: &str) {
        self.begin(name, 0).ends_well(PATIENCE);
    }

    /// What its status says of the builder.
    fn of_builder(&self, what: &str) -> Value {
        let status = self.process.status();
        let found = status["peers"].as_array().and_then(|peers| peers.iter().find(|peer| peer["name"] == "builder"));
        found.map(|builder| builder[what].clone()).unwrap_or_default()
    }

    fn sent(&self) -> u64 {
        self.of_builder("bytes_sent").as_u64().unwrap_or(0)
    }

    /// Waits until packets to the builder go `direct`ly, or through the relay (`derp`).
    pub(crate) fn wait_for_path(&self, kind: &str) {
        let what = format!("the path to the builder to be {kind}");
        wait_for(&what, PATIENCE, || (self.of_builder("path")["kind"] == kind).then_some(()));
    }

    /// Waits until Nix is told of the builder.
    pub(crate) fn wait_for_builder(&self) {
        let machines = self.folder.join("run/machines");
        wait_for("the builder to be in the machines list", 3 * PATIENCE, || {
            fs::read_to_string(&machines).is_ok_and(|text| text.contains("builder")).then_some(())
        });
    }
}

/// A run of `nix-build`.
pub(crate) struct Build<'c> {
    nix: Child,
    log: PathBuf,
    begun: Instant,
    sent_before: u64,
    coordinator: &'c Coordinator,
}

impl Build<'_> {
    /// What Nix has said so far.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until part of the cargo is with the builder.
    pub(crate) fn wait_for_copy(&mut self) {
        wait_for("the copy to be under way", 2 * PATIENCE, || {
            assert!(self.nix.try_wait().unwrap().is_none(), "Nix has ended: {}", self.said());
            (self.coordinator.sent() > self.sent_before + UNDER_WAY).then_some(())
        });
    }

    /// Waits until the builder works.
    pub(crate) fn wait_for_work(&mut self) {
        wait_for("the build to begin", 2 * PATIENCE, || {
            assert!(self.nix.try_wait().unwrap().is_none(), "Nix has ended: {}", self.said());
            self.said().contains("at work").then_some(())
        });
    }

    /// Waits for its end; says whether it went well, and what Nix said.
    pub(crate) fn ends(mut self, patience: Duration) -> (bool, String) {
        let ended = wait_for("Nix to end", patience, || self.nix.try_wait().unwrap());
        (ended.success(), self.said())
    }

    /// Waits for its end and compares every byte of what came back.
    pub(crate) fn ends_well(self, patience: Duration) {
        let (begun, coordinator) = (self.begun, self.coordinator);
        let (well, said) = self.ends(patience);
        assert!(well, "{said}");
        eprintln!("figure: the build took {:.1} s", begun.elapsed().as_secs_f64());
        let output = said.lines().rfind(|line| line.starts_with("/nix/store/")).expect("the output's path");
        let output = fs::read(coordinator.place.store().join(output.trim_start_matches('/'))).unwrap();
        assert!(output == data(CARGO), "the output has {} bytes, and not the right ones", output.len());
    }
}

impl Drop for Build<'_> {
    fn drop(&mut self) {
        if self.nix.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = self.nix.kill();
            let _ = self.nix.wait();
        }
    }
}

fn derivation(folder: &Path, name: &str, seconds: u64) -> String {
    let at = |name: &str| folder.join(name).display().to_string();
    let (tools, data) = (at("tools"), at("data"));
    format!(
        r#"let
  tools = builtins.path {{ path = /. + "{tools}"; name = "test-tools"; }};
  # Another path for each build, so that all of it is copied each time.
  data = builtins.path {{ path = /. + "{data}"; name = "data-{name}"; }};
in derivation {{
  name = "{name}";
  system = builtins.currentSystem;
  builder = "${{tools}}/busybox";
  args = [ "sh" "-euc" ''
    busybox=${{tools}}/busybox
    echo at work
    for n in $($busybox seq {seconds}); do $busybox sleep 1; echo second $n; done
    $busybox cat ${{data}} > $out
  '' ];
}}
"#
    )
}
