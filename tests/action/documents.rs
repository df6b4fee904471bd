//! Workflows that the documents show, as they stand there.

use std::time::Duration;

use crate::PATIENCE;
use crate::stage::Stage;

#[test]
fn the_shortest_workflow_builds_and_leaves_nothing() {
    let Some(stage) = Stage::start() else { return };
    let ended = stage.run("shortest.yml", &[], PATIENCE);
    ended.assert_succeeded(&["Builder 1", "Builder 2", "Builder 3", "Builder 4", "Build"]);
    assert!(ended.of("Build").contains("### 7 builds on 4 builders in "), "{}", ended.log);
    stage.assert_nothing_left(Duration::ZERO);
}

#[test]
fn a_builder_in_the_background_lets_steps_run_beside_it_and_is_waited_for() {
    let Some(stage) = Stage::start() else { return };
    let ended = stage.run("background.yml", &[], PATIENCE);
    ended.assert_succeeded(&["Builder 1", "Builder 2", "Build"]);
    for said in ["Builder 1", "Builder 2"].map(|job| ended.of(job)) {
        let version = said.find("nix (Nix)").unwrap_or_else(|| panic!("no step beside the builder: {said}"));
        let end = said.find("the agent has ended").unwrap_or_else(|| panic!("not waited for: {said}"));
        assert!(version < end, "{said}");
        // What happens to a builder is told by the step that waits.
        assert!(said.contains("claimed by nix-coordinator-77-1-"), "{said}");
    }
    stage.assert_nothing_left(Duration::ZERO);
}

#[test]
fn a_pull_request_from_a_fork_builds_on_one_machine() {
    let Some(stage) = Stage::start() else { return };
    let ended = stage.run_for_fork("pull-requests.yml", PATIENCE);
    ended.assert_succeeded(&["Builder 1", "Builder 2", "Builder 3", "Builder 4", "Build"]);
    for (job, words) in [("Builder 1", "this builder has nothing to do"), ("Build", "Nix builds on this machine alone")]
    {
        let said = ended.of(job);
        assert!(said.contains("nixtail%3A local build") && said.contains(words), "{said}");
    }
    assert!(ended.of("Build").contains("building top") || ended.of("Build").contains("top.drv"), "{}", ended.log);
    stage.assert_nothing_left(Duration::ZERO);
}
