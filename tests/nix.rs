//! The main job with real parts: Nix, OpenSSH, tailscaled and headscale against `nixtail` processes.
#![allow(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

#[path = "nix/command.rs"]
mod command;
#[path = "nix/direct.rs"]
mod direct;
#[path = "nix/ends.rs"]
mod ends;
#[path = "nix/host_key.rs"]
mod host_key;
mod lab;
#[path = "nix/nix_at_hand.rs"]
mod nix_at_hand;
#[path = "nix/refusals.rs"]
mod refusals;
#[path = "nix/runs.rs"]
mod runs;
#[path = "nix/stage.rs"]
mod stage;
#[path = "nix/stranger.rs"]
mod stranger;

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use lab::{PATIENCE, wait_for};
use nix_at_hand::{DERIVATIONS, TOP};
use rustix::process::Signal;
use stage::{STRANGER, Stage, coordinators_may_log_in};

/// How long a build of `top` may take on a machine that is busy with other tests; it needs about two seconds.
const BUILD: Duration = Duration::from_secs(60);

#[test]
fn a_graph_builds_on_two_builders_one_by_derp_only() {
    let Some(stage) = Stage::start(&coordinators_may_log_in()) else { return };
    let builders = [stage.builder("near", &[]), stage.builder("relayed", &["--no-direct"])];
    let names = ["near", "relayed"];
    let coordinator = stage.coordinator(&names);

    let build = coordinator.build("top", BUILD);
    assert_eq!(build.code, Some(0), "{}", build.stderr);
    assert_eq!(coordinator.read_output(&build.stdout), TOP);
    let sent = build.sent();
    assert_eq!(sent.len(), DERIVATIONS, "{}", build.stderr);
    for (builder, name) in builders.iter().zip(names) {
        // Nix's word for it, and the builder's own logs.
        let mut told: Vec<&str> = sent.iter().filter(|(_, on)| on == name).map(|(what, _)| what.as_str()).collect();
        let mut built = builder.place.built();
        built.retain(|what| !matches!(what.as_str(), "nixtail-probe" | "nixtail-look"));
        told.sort_unstable();
        built.sort_unstable();
        assert_eq!(told, built, "{name}");
        assert!(!told.is_empty(), "{name} built nothing: {sent:?}");
    }

    wait_for("a direct path to the near builder", PATIENCE, || (coordinator.path_to("near") == "direct").then_some(()));
    assert_eq!(coordinator.path_to("relayed"), "derp");
}

#[test]
fn a_failing_derivation_shows_its_log_and_exit_code() {
    let Some(stage) = Stage::start(&coordinators_may_log_in()) else { return };
    let _builder = stage.builder("b1", &[]);
    let coordinator = stage.coordinator(&["b1"]);
    let build = coordinator.build("failing", BUILD);
    assert_ne!(build.code, Some(0));
    assert!(build.stderr.contains("the last words of failing"), "{}", build.stderr);
    assert!(build.stderr.contains("failed with exit code 7"), "{}", build.stderr);
}

#[test]
fn a_builders_own_time_limit_ends_a_build() {
    let Some(stage) = Stage::start(&coordinators_may_log_in()) else { return };
    let _builder = stage.builder("b1", &["--build-timeout", "2s"]);
    let coordinator = stage.coordinator(&["b1"]);
    let build = coordinator.build("slow", BUILD);
    assert_ne!(build.code, Some(0));
    assert!(build.stderr.contains("timed out after 2 seconds"), "{}", build.stderr);
}

#[test]
fn a_builder_killed_in_mid_build_does_not_hang_nix() {
    let Some(stage) = Stage::start(&coordinators_may_log_in()) else { return };
    let mut builders = [stage.builder("b1", &[]), stage.builder("b2", &[])];
    let coordinator = stage.coordinator(&["b1", "b2"]);
    let log = stage.path("slow.log");
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    let file = std::fs::File::create(&log).unwrap();
    let mut nix = coordinator.build_command("slow");
    let mut nix = nix.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).spawn().unwrap();
    wait_for("the build to begin", PATIENCE, || said().contains("slow has begun").then_some(()));

    let [b1, b2] = &mut builders;
    let (unlucky, left) = if ["@b1'", "/b1'"].iter().any(|on| said().contains(on)) { (b1, "b2") } else { (b2, "b1") };
    let killed = Instant::now();
    unlucky.process.end(Signal::KILL);
    let ended = wait_for("Nix to notice", Duration::from_secs(60), || nix.try_wait().unwrap());
    eprintln!("figure: SIGKILL of a builder to the end of Nix {:?}: {}", killed.elapsed(), said());
    assert!(!ended.success(), "{}", said());
    assert!(said().contains("error: "), "{}", said());
    // Its Nix is told to end with it, and ends its builds.
    let script = format!("slow has begun in {}", stage.salt());
    wait_for("what it ran to be gone", Duration::from_secs(5), || {
        stage::processes_naming(&script).is_empty().then_some(())
    });

    // By now the coordinator knows, and Nix doesn't try the dead one first for each derivation.
    let begun = Instant::now();
    let again = coordinator.build("top", BUILD);
    eprintln!("figure: a build with one of two builders dead {:?}", begun.elapsed());
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert!(again.sent().iter().all(|(_, on)| on == left), "{}", again.stderr);
    assert!(begun.elapsed() < Duration::from_secs(30), "{}", again.stderr);
}

#[test]
fn builders_end_on_stop_and_nothing_is_left() {
    let Some(stage) = Stage::start(&coordinators_may_log_in()) else { return };
    let mut builders = [stage.builder("b1", &[]), stage.builder("b2", &[])];
    let mut coordinator = stage.coordinator(&["b1", "b2"]);
    let run_folder = coordinator.run_folder.clone();
    let sockets: Vec<_> =
        builders.iter().map(|builder| builder.process.socket()).chain([coordinator.process.socket()]).collect();
    assert!(run_folder.join("env").exists() && sockets.iter().all(|socket| socket.exists()));

    let told = coordinator.stop_builders();
    assert_eq!(told, "b1 is ending\nb2 is ending\n");
    for builder in &mut builders {
        let status = builder.process.wait();
        assert!(status.success(), "{status}: {}", builder.process.log());
        assert!(builder.process.log().contains("its coordinator stopped it"), "{}", builder.process.log());
    }
    assert_eq!(stage.nodes(), ["coordinator"], "an ephemeral node is gone as soon as it has ended");
    assert_eq!(coordinator.stop_builders(), "", "a second time there is nothing to stop");

    assert!(coordinator.process.end(Signal::TERM).success());
    assert_eq!(coordinator.stop_builders(), "", "nor where no coordinator runs any more");
    assert_eq!(stage.nodes(), [""; 0]);
    assert!(!run_folder.exists(), "{run_folder:?} is left");
    for socket in sockets {
        assert!(!socket.exists(), "{socket:?} is left");
    }
    assert_eq!(stage.processes(), [""; 0]);
}

#[test]
fn builder_ends_when_idle() {
    let Some(stage) = Stage::start(&coordinators_may_log_in()) else { return };
    let mut builder = stage.builder("idle", &["--idle-timeout", "2s"]);
    let ready = Instant::now();
    assert!(builder.process.wait().success());
    let lived = ready.elapsed();
    // Its clock began shortly before it said that it is ready.
    assert!((Duration::from_secs(1)..Duration::from_secs(10)).contains(&lived), "{lived:?}");
    assert!(builder.process.log().contains("no coordinator claimed it within 2 s"), "{}", builder.process.log());
    assert_eq!(stage.nodes(), [""; 0]);
}

#[test]
fn a_coordinator_that_ends_takes_its_builders_with_it() {
    let Some(stage) = Stage::start(&coordinators_may_log_in()) else { return };
    let mut builder = stage.builder("b1", &[]);
    let mut coordinator = stage.coordinator(&["b1"]);
    assert!(coordinator.process.end(Signal::TERM).success());
    assert!(!coordinator.run_folder.exists());
    assert!(builder.process.wait().success(), "{}", builder.process.log());
    assert_eq!(stage.nodes(), [""; 0]);
}

#[test]
fn builder_ends_when_its_claimer_is_in_the_tailnet_no_more() {
    let Some(stage) = Stage::start(&coordinators_may_log_in()) else { return };
    let mut builder = stage.builder("b1", &[]);
    // headscale sends a whole map where the policy changes with a node. Without any peer in it that reads as "no change",
    // to Tailscale's own client too: so a node doesn't learn that its last peer is gone.
    let _bystander = stage.up("bystander", STRANGER);
    let mut coordinator = stage.coordinator(&["b1"]);
    // One that can say nothing any more; control removes it, as it does after a logout.
    let id = stage.headscale.node("coordinator").unwrap().id.to_string();
    coordinator.process.end(Signal::KILL);
    stage.headscale.cli(&["nodes", "delete", "--force", "--identifier", &id]);
    assert!(builder.process.wait().success(), "{}", builder.process.log());
    assert!(builder.process.log().contains("its coordinator left the tailnet"), "{}", builder.process.log());
    assert_eq!(stage.nodes(), ["bystander"]);
}

#[test]
fn a_coordinator_without_its_builders_exits_75_and_names_them() {
    // Nobody may log in anywhere.
    let everything = r#"{"action": "accept", "src": ["*"], "dst": ["*:*"]}"#;
    let Some(stage) = Stage::start(&stage::policy(everything, "")) else { return };
    let _builder = stage.builder("aloof", &[]);
    let ended = stage.failing_coordinator(&["aloof", "nobody"], "3s", &stage.programs.nix_build);
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(75), "{said}");
    assert!(ended.stdout.is_empty(), "it was never ready: {ended:?}");
    assert!(said.contains("nobody: not in the netmap"), "{said}");
    assert!(said.contains("aloof: refused by policy: "), "{said}");
    assert_eq!(stage.nodes(), ["aloof"]);
    assert!(!stage.path("loser.run").exists() && !stage.path("loser.sock").exists());
}

#[test]
fn a_claimed_builder_that_fails_its_probe_is_told_to_end() {
    let Some(stage) = Stage::start(&coordinators_may_log_in()) else { return };
    let mut builder = stage.builder("b1", &[]);
    let ended = stage.failing_coordinator(&["b1"], "3s", Path::new("/bin/false"));
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(75), "{said}");
    assert!(said.contains("b1: probe build failed: "), "{said}");
    assert!(builder.process.wait().success(), "{}", builder.process.log());
    assert!(builder.process.log().contains("its coordinator stopped it"), "{}", builder.process.log());
}
