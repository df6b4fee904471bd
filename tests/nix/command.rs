//! `nixtail coordinator -- CMD`, with a real Nix as the command.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::lab::process::run;
use crate::lab::{PATIENCE, wait_for};
use crate::nix_at_hand::{TOP, write_derivations};
use crate::stage::{Stage, coordinators_may_log_in};

/// How long a run with its builds may take on a busy machine; it takes some seconds.
const RUN: Duration = Duration::from_secs(120);

/// A coordinator that lets `script` run; `"$@"` there is `nix-build` of what `write_derivations` writes.
fn coordinator(stage: &Stage, builders: &str, script: &str) -> Command {
    let wanted = ["--builders", builders];
    let mut command = stage.coordinator_command("coordinator", &wanted, "60s", &stage.programs.nix_build);
    let store = stage.path("coordinator").join("store");
    let expression = write_derivations(&stage.path("coordinator"), &stage.programs, &stage.salt());
    command.args(["--", "sh", "-euc", script, "sh"]).arg(&stage.programs.nix_build);
    command.args(["--no-out-link", "--max-jobs", "0", "--store"]).arg(store).arg(expression);
    command
}

#[test]
fn a_command_has_its_builders_and_its_exit_code_is_the_coordinators() {
    let Some(stage) = Stage::start(&coordinators_may_log_in()) else { return };
    let mut builder = stage.builder("b1", &[]);
    // A failing build, too: it is the last word, and isn't tried again.
    let script = r#"test -z "${TS_AUTHKEY+x}"; test -S "$NIXTAIL_SOCKET"; "$@" -A top; exec "$@" -A failing"#;
    let ended = run(&mut coordinator(&stage, "b1", script), RUN);
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(matches!(ended.status.code(), Some(1 | 100)), "{:?}: {said}", ended.status);
    assert!(said.contains("the last words of failing") && !said.contains("run again"), "{said}");
    assert!(said.contains("nixtail: ready coordinator"), "{said}");
    // stdout is the command's alone.
    let path = String::from_utf8_lossy(&ended.stdout).trim().to_owned();
    let output = stage.path("coordinator").join("store").join(path.trim_start_matches('/'));
    assert_eq!(std::fs::read_to_string(&output).unwrap_or_else(|error| panic!("{path}: {error}: {said}")), TOP);
    assert!(builder.process.wait().success(), "{}", builder.process.log());
    assert!(builder.process.log().contains("its coordinator stopped it"), "{}", builder.process.log());
    assert_eq!(stage.nodes(), [""; 0]);
    assert!(!stage.path("coordinator.run").exists());
}

#[test]
fn a_command_that_lost_a_builder_is_run_again_on_the_other() {
    let Some(stage) = Stage::start(&coordinators_may_log_in()) else { return };
    let mut builders = [stage.builder("b1", &[]), stage.builder("b2", &[])];
    let log = stage.path("command.log");
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    let mut command = coordinator(&stage, "b1 b2", r#"exec "$@" -A pausing"#);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log).unwrap());
    let mut running = command.spawn().unwrap();
    wait_for("the build to begin", PATIENCE, || said().contains("pausing has begun").then_some(()));
    let [b1, b2] = &mut builders;
    let (unlucky, lost) =
        if ["/builders/b1'", "root@b1'"].iter().any(|lane| said().contains(lane)) { (b1, "b1") } else { (b2, "b2") };
    unlucky.process.end(Signal::KILL);
    let ended = wait_for("the command to end", RUN, || running.try_wait().unwrap());
    assert!(ended.success(), "{ended}: {}", said());
    assert!(said().contains(&format!("while {lost} was lost; run again 1 begins")), "{}", said());
    assert_eq!(said().matches("pausing has begun").count(), 2, "{}", said());
}

#[test]
fn a_signal_reaches_the_command_first_and_is_its_exit_code() {
    let Some(stage) = Stage::start(&coordinators_may_log_in()) else { return };
    let mut builder = stage.builder("b1", &[]);
    let log = stage.path("command.log");
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    // The builders are still there when the command hears of it.
    let script = r#"trap 'nixtail_says=heard; echo "$nixtail_says" >&2; exit 42' TERM; echo begun >&2; while :; do sleep 0.2; done"#;
    let mut command = coordinator(&stage, "b1", script);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log).unwrap());
    let mut running = command.spawn().unwrap();
    wait_for("the command to begin", PATIENCE, || said().contains("begun").then_some(()));
    rustix::process::kill_process(rustix::process::Pid::from_child(&running), Signal::TERM).unwrap();
    let ended = wait_for("the coordinator to end", PATIENCE, || running.try_wait().unwrap());
    assert_eq!(ended.code(), Some(42), "{}", said());
    assert!(said().contains("heard"), "{}", said());
    assert!(builder.process.wait().success(), "{}", builder.process.log());
    assert_eq!(stage.nodes(), [""; 0]);
}
