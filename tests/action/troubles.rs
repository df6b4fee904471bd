//! What goes wrong: who ends, how soon, and what is said of it.

use std::time::Duration;

use crate::PATIENCE;
use crate::stage::Stage;

/// What leaving takes on a busy machine.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_failed_build_ends_the_builders_too() {
    let Some(stage) = Stage::start() else { return };
    let ended = stage.run("trouble.yml", &["--input", "script=exit 3"], PATIENCE);
    assert_eq!(ended.code, Some(1));
    assert!(ended.of("Build").contains("Job failed"), "{}", ended.log);
    for builder in ["Builder 1", "Builder 2"] {
        let said = ended.of(builder);
        assert!(
            said.contains("the builder ends: its coordinator stopped it") && said.contains("Job succeeded"),
            "{said}"
        );
    }
    stage.assert_nothing_left(SOON);
}

#[test]
fn one_builder_too_few_is_told_with_its_exit_code() {
    let Some(stage) = Stage::start() else { return };
    let ended = stage.run("trouble.yml", &["--input", "builders=3", "--input", "wait=8s"], PATIENCE);
    let said = ended.of("Build");
    assert!(
        said.contains("::error title=nixtail%3A try again::")
            && said.contains("2 of 3 ready")
            && said.contains("exit code 75"),
        "{said}"
    );
    assert!(ended.of("Builder 1").contains("Job succeeded"), "{}", ended.log);
    stage.assert_nothing_left(SOON);
    stage.assert_no_secret_was_shown(&ended.log);
}

#[test]
fn a_builder_that_nobody_claims_ends_well_unless_told_otherwise() {
    let Some(stage) = Stage::start() else { return };
    let alone = ["-j", "builder", "--input", "timeout=3s"];
    let ended = stage.run("trouble.yml", &alone, PATIENCE);
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.of("Builder 1").contains("no coordinator claimed it within 3 s"), "{}", ended.log);
    let ended = stage.run("trouble.yml", &[&alone[..], &["--input", "unclaimed=failure"]].concat(), PATIENCE);
    assert_eq!(ended.code, Some(1), "{}", ended.log);
    let said = ended.of("Builder 2");
    assert!(said.contains("no coordinator claimed it within 3 s (exit code 75)"), "{said}");
    assert!(said.contains("nothing is left"), "{said}");
    stage.assert_nothing_left(SOON);
}

#[test]
fn a_coordinator_that_is_cancelled_while_it_waits_lets_its_builders_go() {
    let Some(stage) = Stage::start() else { return };
    let mut act = stage.act("trouble.yml", &["--input", "builders=3"]);
    stage.wait_for_log(&act, "waiting: 2 of 3 ready");
    // As the runner cancels: SIGINT to the step's own process.
    stage.signal_launchers("coordinator", "INT");
    let ended = stage.finish(&mut act, PATIENCE);
    let said = ended.of("Build");
    assert!(said.contains("SIGINT ended this coordinator") && said.contains("nothing is left"), "{said}");
    for builder in ["Builder 1", "Builder 2"] {
        assert!(ended.of(builder).contains("the builder ends: its coordinator"), "{}", ended.log);
    }
    stage.assert_nothing_left(SOON);
}

#[test]
fn a_cancelled_builder_leaves_the_tailnet() {
    let Some(stage) = Stage::start() else { return };
    let mut act = stage.act("trouble.yml", &["-j", "builder", "--input", "timeout=10s"]);
    stage.wait_for_nodes(2);
    stage.signal_launchers("builder", "INT");
    let ended = stage.finish(&mut act, PATIENCE);
    assert!(ended.log.contains("SIGINT ended this builder"), "{}", ended.log);
    stage.assert_nothing_left(SOON);
}

#[test]
#[ignore = "make test-long: control takes half a minute to forget a killed node"]
fn a_second_attempt_takes_no_notice_of_what_a_killed_one_left() {
    let Some(stage) = Stage::start() else { return };
    let mut act = stage.act("trouble.yml", &["-j", "builder"]);
    stage.wait_for_nodes(2);
    stage.signal_agents("builder", "KILL", 2);
    let ended = stage.finish(&mut act, PATIENCE);
    for builder in ["Builder 1", "Builder 2"] {
        let said = ended.of(builder);
        assert!(said.contains("it was killed by SIGKILL") && said.contains("left behind"), "{said}");
    }
    assert_eq!(stage.nodes().len(), 2, "control hasn't forgotten them");
    let ended = stage.run("trouble.yml", &["--env", "GITHUB_RUN_ATTEMPT=2"], PATIENCE);
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(
        ended.log.contains("builder=nix-builder-77-2-") && !ended.log.contains("builder=nix-builder-77-1-"),
        "{}",
        ended.log
    );
    stage.assert_nothing_left(Duration::from_secs(60));
}

#[test]
#[ignore = "make test-long: control takes half a minute to forget a killed node"]
fn a_build_goes_on_without_a_builder_that_was_killed() {
    let Some(stage) = Stage::start() else { return };
    let script = "script=until [ -e $REPORT/go ]; do sleep 0.2; done; nix build -L --max-jobs 0; nix store cat $(readlink result) >$REPORT/built";
    let mut act = stage.act("trouble.yml", &["--input", script]);
    stage.wait_for_log(&act, "with 2 builders");
    stage.signal_agents("builder", "KILL", 1);
    stage.wait_for_builders(1);
    stage.let_go();
    let ended = stage.finish(&mut act, PATIENCE);
    assert!(ended.of("Build").contains("Job succeeded"), "{}", ended.log);
    assert!(ended.log.contains("killed by SIGKILL"), "{}", ended.log);
    stage.assert_nothing_left(Duration::from_secs(60));
}

#[test]
#[ignore = "make test-long: control takes half a minute to forget a killed node"]
fn builders_end_when_their_coordinator_was_killed() {
    let Some(stage) = Stage::start() else { return };
    let script = "script=until [ -e $REPORT/go ]; do sleep 0.2; done";
    let mut act = stage.act("trouble.yml", &["--input", script]);
    stage.wait_for_log(&act, "with 2 builders");
    stage.signal_agents("coordinator", "KILL", 1);
    stage.wait_for_log(&act, "the builder ends: its coordinator");
    stage.let_go();
    let ended = stage.finish(&mut act, PATIENCE);
    let said = ended.of("Build");
    assert!(said.contains("left behind") && said.contains("ephemeral"), "{said}");
    stage.assert_nothing_left(Duration::from_secs(60));
}

#[test]
fn agents_end_when_their_runner_was_killed() {
    let Some(stage) = Stage::start() else { return };
    let script = "script=until [ -e $REPORT/go ]; do sleep 0.2; done";
    let act = stage.act("trouble.yml", &["--input", script]);
    stage.wait_for_log(&act, "with 2 builders");
    stage.kill_runner();
    drop(act);
    stage.assert_all_gone(SOON);
}
