//! Runs and coordinators beside each other on one tailnet.

use crate::lab::PATIENCE;
use crate::lab::process::run;
use crate::stage::{Stage, coordinators_may_log_in};

#[test]
fn two_runs_and_two_coordinators_do_not_disturb_each_other() {
    let Some(stage) = Stage::start(&coordinators_may_log_in()) else { return };
    // One is found by its name, one by its own word, and one is another run's.
    let _ours = [stage.builder("nb-77-1-0", &[]), stage.builder_of_run("second", "77-1")];
    let other = stage.builder_of_run("nb-78-1-0", "78-1");
    let coordinator = stage.coordinator_that_wants(&["--run", "77-1", "--builders", "2"]);
    let ready = coordinator.process.log();
    assert!(ready.contains("with 2 builders (x86_64-linux)"), "{ready}");
    let machines = std::fs::read_to_string(coordinator.run_folder.join("machines")).unwrap();
    // `ssh-ng://localhost?remote-program=RUN/builders/NAME`, or `ssh-ng://USER@NAME`.
    let uris = machines.lines().filter_map(|line| line.split(' ').next());
    let mut names: Vec<&str> = uris.filter_map(|uri| uri.rsplit(['/', '@']).next()).collect();
    names.sort_unstable();
    assert_eq!(names, ["nb-77-1-0", "second"]);
    assert!(machines.lines().all(|line| line.split(' ').count() == 8), "{machines}");
    assert!(!other.process.log().contains("claimed"), "{}", other.process.log());

    // A second coordinator of the run is told who has them, one of another run whose they are.
    let attempt = |wanted: &[&str]| {
        let ended = run(&mut stage.coordinator_command("loser", wanted, "2s", &stage.programs.nix_build), 2 * PATIENCE);
        assert_eq!(ended.status.code(), Some(75), "{ended:?}");
        String::from_utf8_lossy(&ended.stderr).into_owned()
    };
    let said = attempt(&["--run", "77-1", "--builders", "1"]);
    assert!(
        said.contains("nb-77-1-0: taken by coordinator") && said.contains("second: taken by coordinator"),
        "{said}"
    );
    let said = attempt(&["--run", "77-1", "--builders", "nb-78-1-0"]);
    assert!(said.contains("this builder is of run 78-1, not of 77-1"), "{said}");
    let said = attempt(&["--builders", "3"]);
    assert!(said.contains("0 of 3 ready") && said.contains("no node with tag:nix-ci-builder in the netmap"), "{said}");
}
