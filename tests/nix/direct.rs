//! The direct lane with a real Nix: builds, refusals, and what happens when one of the many ends dies.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::lab::{PATIENCE, wait_for};
use crate::nix_at_hand::{DERIVATIONS, TOP};
use crate::stage::{Coordinator, STRANGER, Stage, coordinators_may_log_in, processes_naming};
use rustix::process::Signal;

/// How long a build of `top` may take on a machine that is busy with other tests; it needs about a second.
const BUILD: Duration = Duration::from_secs(90);

/// How long anything may take to be noticed, on such a machine.
const NOTICED: Duration = Duration::from_secs(60);

/// What Nix starts for a builder.
fn link(coordinator: &Coordinator, builder: &str) -> PathBuf {
    coordinator.run_folder.join("builders").join(builder)
}

/// Starts it as Nix does and closes its input.
fn call(link: &Path) -> Output {
    let mut command = Command::new(link);
    let command = command.arg("--stdio").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Closes its input first.
    command.spawn().unwrap().wait_with_output().unwrap()
}

/// A build that has begun at its builder.
struct Slow {
    nix: Child,
    log: PathBuf,
    /// What the command line of the builder's script holds.
    script: String,
}

impl Slow {
    fn begin(stage: &Stage, coordinator: &Coordinator) -> Self {
        Self::begin_with(stage, coordinator, "slow")
    }

    /// As [`Self::begin`], of another derivation than `slow`.
    fn begin_with(stage: &Stage, coordinator: &Coordinator, attribute: &str) -> Self {
        let log = stage.path("slow.log");
        let file = fs::File::create(&log).unwrap();
        let mut nix = coordinator.build_command(attribute);
        let nix = nix.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).spawn().unwrap();
        let slow = Self { nix, log, script: format!("{attribute} has begun in {}", stage.salt()) };
        let begun = format!("{attribute} has begun");
        wait_for("the build to begin", PATIENCE, || slow.said().contains(&begun).then_some(()));
        slow
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for Nix' end, which must be an error that holds `words`, and for the end of what it ran. Says when Nix ended.
    fn fails(mut self, words: &str) -> Instant {
        let ended = wait_for("Nix to notice", NOTICED, || self.nix.try_wait().unwrap());
        let noticed = Instant::now();
        let said = self.said();
        assert!(!ended.success() && said.contains("error: ") && said.contains(words), "{said}");
        wait_for("the build to be gone", NOTICED, || processes_naming(&self.script).is_empty().then_some(()));
        noticed
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        let _ = self.nix.kill();
        let _ = self.nix.wait();
    }
}

#[test]
fn a_graph_builds_without_ssh_keys_or_configuration() {
    let Some(stage) = Stage::start(&coordinators_may_log_in()) else { return };
    let mut builders = [stage.builder("b1", &[]), stage.builder("b2", &["--no-direct"])];
    let mut coordinator = stage.coordinator_with(&["b1", "b2"], &["--transport", "direct"], &[]);
    let machines = fs::read_to_string(coordinator.run_folder.join("machines")).unwrap();
    for name in ["b1", "b2"] {
        let uri = format!("ssh-ng://localhost?remote-program={} ", link(&coordinator, name).display());
        assert!(machines.lines().any(|line| line.starts_with(&uri) && line.ends_with(" -")), "{machines}");
    }
    assert_eq!(fs::read_to_string(coordinator.run_folder.join("ssh_config")).unwrap(), "");

    let build = coordinator.build("top", BUILD);
    assert_eq!(build.code, Some(0), "{}", build.stderr);
    assert_eq!(coordinator.read_output(&build.stdout), TOP);
    assert_eq!(build.sent().len(), DERIVATIONS, "{}", build.stderr);
    let failing = coordinator.build("failing", BUILD);
    assert!(failing.stderr.contains("the last words of failing"), "{}", failing.stderr);
    assert!(failing.stderr.contains("failed with exit code 7"), "{}", failing.stderr);

    assert!(coordinator.process.end(Signal::TERM).success());
    assert!(!coordinator.run_folder.exists());
    for builder in &mut builders {
        assert!(builder.process.wait().success());
    }
    assert_eq!(stage.processes(), [""; 0]);
}

#[test]
fn ssh_is_used_where_it_is_asked_for_or_nix_cannot_do_the_other() {
    let Some(stage) = Stage::start(&coordinators_may_log_in()) else { return };
    let _builder = stage.builder("b1", &[]);
    // Nix 2.8 starts the program by `bash -c`. Later ones don't, and need another reason.
    let tools = stage.path("tools-without-bash");
    fs::create_dir(&tools).unwrap();
    for folder in ["/bin", "/usr/bin"] {
        for tool in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
            if tool.file_name() != "bash" {
                let _ = std::os::unix::fs::symlink(tool.path(), tools.join(tool.file_name()));
            }
        }
    }
    let mut coordinator = stage.coordinator_with(&["b1"], &[], &[("PATH", tools.display().to_string())]);
    let log = coordinator.process.log();
    assert!(log.contains("the direct lane doesn't work with this Nix; trying SSH"), "{log}");
    over_ssh(&coordinator);
    // It refuses what it isn't meant for, rather than being a second way.
    let refused = call(&link(&coordinator, "b1"));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("reached over SSH in this run"), "{said}");
    coordinator.process.end(Signal::TERM);
    drop(coordinator);

    let _builder = stage.builder("b2", &[]);
    let coordinator = stage.coordinator_with(&["b2"], &["--transport", "ssh"], &[]);
    assert!(!coordinator.run_folder.join("builders").exists());
    over_ssh(&coordinator);
}

fn over_ssh(coordinator: &Coordinator) {
    let machines = fs::read_to_string(coordinator.run_folder.join("machines")).unwrap();
    assert!(machines.starts_with("ssh-ng://") && !machines.contains("localhost"), "{machines}");
    let build = coordinator.build("top", BUILD);
    assert_eq!(build.code, Some(0), "{}", build.stderr);
}

#[test]
fn a_builder_that_is_gone_is_refused_at_once_with_words() {
    let Some(stage) = Stage::start(&coordinators_may_log_in()) else { return };
    // headscale tells nobody that the last peer has gone.
    let _bystander = stage.up("bystander", STRANGER);
    let mut builder = stage.builder("b1", &[]);
    let mut coordinator = stage.coordinator(&["b1"]);
    let link = link(&coordinator, "b1");
    // Alive: input that ends at once is the daemon's end, too, in order.
    let alive = call(&link);
    assert!(alive.stdout.is_empty(), "{alive:?}");

    builder.process.end(Signal::TERM);
    wait_for("the machines line to go", PATIENCE, || {
        fs::read_to_string(coordinator.run_folder.join("machines")).unwrap().is_empty().then_some(())
    });
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..10 {
        let begun = Instant::now();
        let refused = call(&link);
        times.push(begun.elapsed());
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        let (begins, goes_on) = ("nixtail: builder b1: it is no longer ready (", "; the build goes to another builder");
        assert!(said.starts_with(begins) && said.contains(goes_on) && said.lines().count() == 1, "{said}");
        assert!(!refused.status.success() && refused.stdout.is_empty(), "{refused:?}");
    }
    times.sort();
    eprintln!("figure: refusal of a builder that is gone: median {:?}, slowest {:?}", times[5], times[9]);
    assert!(times[5] < Duration::from_millis(500), "{times:?}");
    let log = coordinator.process.log();
    assert!(log.contains("a session of the direct lane failed"), "the run's log has it too: {log}");

    // And when the coordinator itself is gone, with a link left behind.
    let aside = stage.path("builders");
    fs::create_dir(&aside).unwrap();
    std::os::unix::fs::symlink(crate::lab::nixtail::program(), aside.join("b1")).unwrap();
    coordinator.process.end(Signal::TERM);
    let refused = call(&aside.join("b1"));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("the coordinator that offered it doesn't run any more"), "{said}");
    assert_eq!(refused.status.code(), Some(69));
}

#[test]
fn a_policy_that_no_longer_allows_it_ends_a_build_with_words() {
    let Some(stage) = Stage::start(&coordinators_may_log_in()) else { return };
    let _builder = stage.builder("b1", &[]);
    let coordinator = stage.coordinator(&["b1"]);
    let slow = Slow::begin(&stage, &coordinator);
    let everything = r#"{"action": "accept", "src": ["*"], "dst": ["*:*"]}"#;
    let other = r#"{"action": "accept", "src": ["tag:stranger"], "dst": ["tag:nix-ci-builder"], "users": ["root"]}"#;
    stage.headscale.set_policy(&crate::stage::policy(everything, other));
    slow.fails("nixtail: builder b1: Access revoked.");
    wait_for("the run's log to have it", PATIENCE, || {
        coordinator.process.log().contains("Access revoked").then_some(())
    });
}

#[test]
fn a_build_ends_at_both_sides_whoever_dies() {
    let Some(stage) = Stage::start(&coordinators_may_log_in()) else { return };
    let mut builder = stage.builder("b1", &[]);
    let mut coordinator = stage.coordinator(&["b1"]);

    // The program that Nix started.
    let slow = Slow::begin(&stage, &coordinator);
    let begun = Instant::now();
    let program = format!("{} --stdio", link(&coordinator, "b1").display());
    kill(&program);
    wait_for("the build to be gone", NOTICED, || processes_naming(&slow.script).is_empty().then_some(()));
    eprintln!("figure: SIGKILL of what Nix started to the end of the remote build {:?}", begun.elapsed());
    slow.fails("");

    // Nix itself.
    let mut slow = Slow::begin(&stage, &coordinator);
    slow.nix.kill().unwrap();
    wait_for("the build to be gone", NOTICED, || processes_naming(&slow.script).is_empty().then_some(()));
    drop(slow);

    // The builder.
    let slow = Slow::begin(&stage, &coordinator);
    let begun = Instant::now();
    builder.process.end(Signal::KILL);
    let noticed = slow.fails("nixtail: builder b1: it is no longer ready (");
    eprintln!("figure: SIGKILL of a builder to Nix' error {:?}", noticed - begun);

    coordinator.process.end(Signal::TERM);
}

#[test]
fn a_build_whose_coordinators_agent_is_killed_ends_and_so_does_its_builder() {
    // One notices by itself, the other is told to end while its build still runs.
    for (name, silence) in [("lonely", "10s"), ("told", "10m")] {
        let Some(stage) = Stage::start(&coordinators_may_log_in()) else { return };
        let mut builder = stage.builder(name, &["--claimer-silence", silence, "--drain", "10m"]);
        let mut coordinator = stage.coordinator(&[name]);
        let mut long = Slow::begin_with(&stage, &coordinator, "long");
        let killed = Instant::now();
        coordinator.process.end(Signal::KILL);
        if name == "told" {
            builder.process.signal(Signal::TERM);
        }
        let ended = wait_for("Nix to notice", NOTICED, || long.nix.try_wait().unwrap());
        eprintln!("figure: SIGKILL of the coordinator's agent to Nix' error {:?}", killed.elapsed());
        let (said, words) = (long.said(), format!("nixtail: builder {name}: the coordinator's agent ended"));
        assert!(!ended.success() && said.contains(&words), "{said}");
        wait_for("the build to be gone", NOTICED, || processes_naming(&long.script).is_empty().then_some(()));
        eprintln!("figure: … to the end of the remote build, {name} {:?}", killed.elapsed());
        let status = builder.process.wait();
        eprintln!("figure: … to the end of the builder, {name} {:?}", killed.elapsed());
        assert!(status.success(), "{status}: {}", builder.process.log());
    }
}

/// Kills the processes whose command line is `line`: this test's own, by its folder's name.
fn kill(line: &str) {
    let mut killed = 0;
    for entry in fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let Ok(id) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let found = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&found).replace('\0', " ").trim() == line {
            let pid = rustix::process::Pid::from_raw(id).unwrap();
            rustix::process::kill_process(pid, Signal::KILL).unwrap();
            killed += 1;
        }
    }
    assert!(killed > 0, "no process {line:?}");
}
