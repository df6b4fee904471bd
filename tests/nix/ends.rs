//! How builders end or fall silent, and what Nix and its user get to know of it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::process::Signal;
use serde_json::Value;

use crate::lab::nixtail::Nixtail;
use crate::lab::{PATIENCE, wait_for};
use crate::stage::{Builder, Coordinator, Stage, coordinators_may_log_in};

/// How long a build may take on a machine that is busy with other tests.
const BUILD: Duration = Duration::from_secs(90);

/// A builder that is silent for so long is lost in these tests: two of its reports.
const SILENCE: &str = "12s";

/// `GET /builder` at a builder's own socket.
fn builder_status(builder: &Nixtail) -> Value {
    let mut socket = UnixStream::connect(builder.socket()).unwrap();
    socket.write_all(b"GET /builder HTTP/1.1\r\nHost: nixtail\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

/// A build of `attribute` that has begun on some builder, and its log.
struct Running<'a> {
    nix: Child,
    log: std::path::PathBuf,
    stage: &'a Stage,
}

impl<'a> Running<'a> {
    fn begin(stage: &'a Stage, coordinator: &Coordinator, attribute: &str) -> Self {
        let log = stage.path(&format!("{attribute}.log"));
        let file = fs::File::create(&log).unwrap();
        let mut nix = coordinator.build_command(attribute);
        let nix = nix.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).spawn().unwrap();
        let running = Self { nix, log, stage };
        let begun = format!("{attribute} has begun");
        wait_for("the build to begin", 2 * PATIENCE, || running.said().contains(&begun).then_some(()));
        running
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn is_on(&self, builder: &str) -> bool {
        let (over_ssh, direct) = (format!("@{builder}'"), format!("/{builder}'"));
        self.said().lines().any(|line| line.contains("' on '") && (line.contains(&over_ssh) || line.contains(&direct)))
    }

    /// Waits for its end; says whether it went well.
    fn end(mut self) -> (bool, String) {
        let ended = wait_for("Nix to end", BUILD, || self.nix.try_wait().unwrap());
        assert_eq!(held_locks(&self.stage.path("coordinator")), [""; 0], "in Nix's current-load folder");
        (ended.success(), self.said())
    }
}

/// The files in Nix's `current-load` folders under `folder` that somebody holds locked.
fn held_locks(folder: &Path) -> Vec<String> {
    let mut held = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            held.extend(held_locks(&path));
        } else if folder.ends_with("current-load") {
            let file = fs::File::open(&path).unwrap();
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                held.push(path.display().to_string());
            }
        }
    }
    held
}

/// Waits until Nix is told of just these builders.
fn wait_for_machines(coordinator: &Coordinator, names: &[&str]) {
    let listed = || {
        let text = fs::read_to_string(coordinator.run_folder.join("machines")).unwrap_or_default();
        let uris = text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect::<Vec<_>>();
        uris.len() == names.len() && names.iter().all(|name| uris.iter().any(|uri| uri.contains(name)))
    };
    wait_for(&format!("the machines list to name {names:?}"), 3 * PATIENCE, || listed().then_some(()));
}

#[test]
fn a_frozen_builder_is_found_and_comes_back() {
    let Some(stage) = Stage::start(&coordinators_may_log_in()) else { return };
    let builders = [stage.builder("b1", &[]), stage.builder("b2", &[])];
    let coordinator = stage.coordinator_that_wants(&["--builders", "b1 b2", "--builder-silence", SILENCE]);

    let running = Running::begin(&stage, &coordinator, "slow");
    let [b1, b2] = &builders;
    let ((frozen, name), (other, left)) =
        if running.is_on("b1") { ((b1, "b1"), (b2, "b2")) } else { ((b2, "b2"), (b1, "b1")) };
    frozen.process.signal(Signal::STOP);
    let stopped = Instant::now();
    let (well, said) = running.end();
    let found = stopped.elapsed();
    eprintln!("figure: SIGSTOP of a builder to the end of Nix, with a silence of {SILENCE}: {found:?}");
    assert!(!well && said.contains("error: "), "{said}");
    assert!(found < Duration::from_secs(30), "the build itself takes that long: {said}");
    wait_for_machines(&coordinator, &[left]);
    frozen.process.signal(Signal::CONT);
    wait_for_machines(&coordinator, &["b1", "b2"]);

    // One that accepts and never answers: frozen, and still in the list.
    other.process.signal(Signal::STOP);
    let begun = Instant::now();
    let build = coordinator.build("top", BUILD);
    eprintln!("figure: a build of seven with a frozen builder in the list: {:?}", begun.elapsed());
    assert_eq!(build.code, Some(0), "{}", build.stderr);
    let last = build.sent().pop().unwrap();
    assert_eq!(last, ("top".to_owned(), name.to_owned()), "{}", build.stderr);
    other.process.signal(Signal::CONT);
    wait_for_machines(&coordinator, &["b1", "b2"]);
}

#[test]
fn a_frozen_builder_is_found_over_either_lane() {
    let Some(stage) = Stage::start(&coordinators_may_log_in()) else { return };
    for (transport, words) in
        [("direct", "nixtail: builder direct: it is no longer ready (no sign of life for "), ("ssh", "error: ")]
    {
        let builder = stage.builder(transport, &[]);
        let wanted = ["--builders", transport, "--builder-silence", SILENCE, "--transport", transport];
        let mut coordinator = stage.coordinator_that_wants(&wanted);
        // One that never has a chance to end by itself.
        let running = Running::begin(&stage, &coordinator, "long");
        builder.process.signal(Signal::STOP);
        let stopped = Instant::now();
        let (well, said) = running.end();
        eprintln!("figure: SIGSTOP of a builder to the end of Nix over {transport} {:?}", stopped.elapsed());
        assert!(!well && said.contains("error: ") && said.contains(words), "{said}");
        assert!(stopped.elapsed() < Duration::from_secs(45), "TCP alone takes as long");
        builder.process.signal(Signal::CONT);
        coordinator.process.end(Signal::TERM);
    }
}

#[test]
fn a_killed_builder_is_found_over_ssh() {
    let Some(stage) = Stage::start(&coordinators_may_log_in()) else { return };
    let mut builder = stage.builder("b1", &[]);
    let coordinator = stage.coordinator_that_wants(&["--builders", "b1", "--transport", "ssh"]);
    let running = Running::begin(&stage, &coordinator, "long");
    let killed = Instant::now();
    builder.process.end(Signal::KILL);
    let (well, said) = running.end();
    eprintln!("figure: SIGKILL of a builder to the end of Nix over ssh {:?}", killed.elapsed());
    assert!(!well && said.contains("error: "), "{said}");
}

#[test]
fn a_builder_that_gets_sigterm_finishes_its_build_and_takes_no_new_one() {
    let Some(stage) = Stage::start(&coordinators_may_log_in()) else { return };
    let mut builder = stage.builder("b1", &["--drain", "60s"]);
    let coordinator = stage.coordinator(&["b1"]);
    let running = Running::begin(&stage, &coordinator, "brief");
    let status = builder_status(&builder.process);
    assert!(status["claimed_by"].as_str().unwrap().starts_with("coordinator."), "{status}");
    assert_eq!(status["running"][0]["derivation"], "brief", "{status}");
    assert_eq!(status["running"][0]["lane"], "direct", "{status}");

    builder.process.signal(Signal::TERM);
    wait_for_machines(&coordinator, &[]);
    let refused = coordinator.ssh("b1", &["nix-daemon", "--stdio"]);
    let words = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(75), "{words}");
    assert!(words.contains("this builder is ending: it got SIGTERM"), "{words}");
    let status = builder_status(&builder.process);
    assert_eq!(status["ending"], "it got SIGTERM", "{status}");

    let (well, said) = running.end();
    assert!(well, "{said}");
    ends_well(&mut builder);
    assert_eq!(stage.nodes(), ["coordinator"]);
}

#[test]
fn a_builder_that_gets_sigint_ends_its_build_at_once() {
    let Some(stage) = Stage::start(&coordinators_may_log_in()) else { return };
    let mut builder = stage.builder("b1", &[]);
    let coordinator = stage.coordinator(&["b1"]);
    let running = Running::begin(&stage, &coordinator, "slow");
    let begun = Instant::now();
    builder.process.signal(Signal::INT);
    let (well, said) = running.end();
    eprintln!("figure: SIGINT of a builder to the end of Nix: {:?}", begun.elapsed());
    assert!(!well && said.contains("error: "), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(20), "the build itself takes longer: {said}");
    ends_well(&mut builder);
    wait_for_machines(&coordinator, &[]);
}

#[test]
fn a_builder_counts_what_it_builds() {
    let Some(stage) = Stage::start(&coordinators_may_log_in()) else { return };
    let builder = stage.builder("b1", &[]);
    let coordinator = stage.coordinator(&["b1"]);
    let probed = builder_status(&builder.process);
    let build = coordinator.build("top", BUILD);
    assert_eq!(build.code, Some(0), "{}", build.stderr);
    assert_ne!(coordinator.build("failing", BUILD).code, Some(0));
    // The last session's end may be on its way.
    let status = wait_for("the last build to be counted", PATIENCE, || {
        let status = builder_status(&builder.process);
        (status["failed"] == 1).then_some(status)
    });
    let counted = |status: &Value, what: &str| status[what].as_u64().unwrap();
    assert_eq!(counted(&status, "done"), counted(&probed, "done") + crate::nix_at_hand::DERIVATIONS as u64, "{status}");
    assert_eq!(counted(&status, "unfinished"), 0, "{status}");
    assert!(counted(&status, "bytes_in") > 1000 && counted(&status, "bytes_out") > 1000, "{status}");
    assert_eq!(status["running"].as_array().map(Vec::len), Some(0), "{status}");
}

#[test]
fn a_builder_whose_coordinator_was_deleted_without_a_word_ends() {
    let Some(stage) = Stage::start(&coordinators_may_log_in()) else { return };
    let mut builder = stage.builder("b1", &["--claimer-silence", "10s"]);
    let mut coordinator = stage.coordinator(&["b1"]);
    // With nobody else there, headscale 0.27.1 goes on showing the deleted node.
    let id = stage.headscale.node("coordinator").unwrap().id.to_string();
    coordinator.process.end(Signal::KILL);
    stage.headscale.cli(&["nodes", "delete", "--force", "--identifier", &id]);
    wait_for_end(&mut builder, "");
}

#[test]
#[ignore = "make test-long: TCP takes 45 s to find a coordinator that froze"]
fn a_builder_whose_coordinator_froze_for_good_ends_whatever_control_says() {
    let Some(stage) = Stage::start(&coordinators_may_log_in()) else { return };
    let mut builder = stage.builder("b1", &["--claimer-silence", "10s"]);
    let coordinator = stage.coordinator(&["b1"]);
    coordinator.process.signal(Signal::STOP);
    wait_for_end(&mut builder, "its coordinator hasn't asked after it for 10 s");
    coordinator.process.signal(Signal::CONT);
}

/// Waits until a builder has ended by itself, and well, with such words.
fn wait_for_end(builder: &mut Builder, words: &str) {
    let begun = Instant::now();
    let said = wait_for("the builder to end", 5 * PATIENCE, || {
        let log = builder.process.log();
        log.lines().find(|line| line.contains("the builder ends: ")).map(str::to_owned)
    });
    eprintln!("figure: a builder without its coordinator after {:?}: {said}", begun.elapsed());
    assert!(said.contains(words), "{said}");
    ends_well(builder);
}

#[test]
#[ignore = "make test-long: the real limit is 40 s"]
fn a_frozen_builder_is_found_within_45_seconds_and_one_that_thaws_after_20_goes_on() {
    let Some(stage) = Stage::start(&coordinators_may_log_in()) else { return };
    let builder = stage.builder("b1", &[]);
    let coordinator = stage.coordinator(&["b1"]);
    let running = Running::begin(&stage, &coordinator, "slow");
    builder.process.signal(Signal::STOP);
    std::thread::sleep(Duration::from_secs(20));
    builder.process.signal(Signal::CONT);
    let (well, said) = running.end();
    assert!(well, "{said}");

    let running = Running::begin(&stage, &coordinator, "long");
    builder.process.signal(Signal::STOP);
    let stopped = Instant::now();
    let (well, said) = running.end();
    eprintln!("figure: SIGSTOP of a builder to the end of Nix {:?}", stopped.elapsed());
    assert!(!well && stopped.elapsed() < Duration::from_secs(45), "{:?}: {said}", stopped.elapsed());
    builder.process.signal(Signal::CONT);
}

fn ends_well(builder: &mut Builder) {
    let status = builder.process.wait();
    assert!(status.success(), "{status}: {}", builder.process.log());
}
