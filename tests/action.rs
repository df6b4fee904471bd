//! The GitHub Action as workflows use it, run by act in host mode: two builders and a coordinator as parallel jobs on a devnet.
//!
//! All of it is in a machine of its own ([`lab::nixnode`]): as an ordinary user, with no network but a loopback, a home that is
//! thrown away, and nothing of this machine to write to. Steps that clean disks, install Nix or use GitHub's cache are stubs
//! (`tests/action/stubs`). Only root can make the machine.
#![allow(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

#[path = "action/documents.rs"]
mod documents;
mod lab;
#[path = "action/stage.rs"]
mod stage;
#[path = "action/troubles.rs"]
mod troubles;

use std::time::Duration;

use stage::{Ended, Stage};

/// How long a workflow may take here that takes some ten seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the repository's package holds.
const TOP: &str = "15";

#[test]
fn two_builders_and_a_coordinator_build_and_leave_nothing() {
    let Some(stage) = Stage::start() else { return };
    let ended = stage.run("farm.yml", &[], PATIENCE);
    ended.assert_succeeded(&["Builder 1", "Builder 2", "Build"]);
    assert!(ended.log.contains(&format!("| built: {TOP}")), "{}", ended.log);
    // Nix was missing and was installed; the cache failed, and nothing with it.
    for job in ["Builder 1", "Builder 2", "Build"] {
        let said = ended.of(job);
        // Had there been no /nix, its stub would have been asked.
        assert!(said.contains("makes no room on the disk: /nix is there already"), "{said}");
        assert!(said.contains("stub of install-nix-action: nix"), "{said}");
        assert!(said.contains("Failure - Main Use the workflow's cache"), "{said}");
        assert!(said.contains("nixtail: nothing is left: no node, no process, no file"), "{said}");
    }
    let outputs = ended.json("outputs: ");
    let builders: Vec<&str> = outputs["builders"].as_str().unwrap().split(' ').collect();
    assert_eq!(
        (builders.len(), &outputs["builder-count"], &outputs["systems"]),
        (2, &"2".into(), &"x86_64-linux".into())
    );
    assert!(builders.iter().all(|name| name.starts_with("nix-builder-77-1-builder-")), "{outputs}");
    assert!(outputs["hostname"].as_str().unwrap().starts_with("nix-coordinator-77-1-coordinator-"), "{outputs}");
    assert!(outputs["ip"].as_str().unwrap().starts_with("100.64."), "{outputs}");
    // The summary, as GitHub shows it, and as files for a later step.
    let said = ended.of("Build");
    assert!(said.contains("### 7 builds on 2 builders in ") && said.contains("```mermaid"), "{said}");
    assert!(!said.contains("Builders that went"), "{said}");
    for builder in builders {
        assert!(said.contains(&format!("| `{builder}` | `x86_64-linux` |")), "{said}");
        assert!(said.contains(&format!("section {builder}")), "both have built something: {said}");
    }
    assert!(said.contains("| files: summary.json summary.md timeline.svg"), "{said}");
    stage.assert_nothing_left(Duration::ZERO);
    stage.assert_no_secret_was_shown(&ended.log);
}

#[test]
fn the_original_actions_example_runs_with_its_uses_line_changed() {
    let Some(stage) = Stage::start() else { return };
    let ended =
        stage.run("setup-distributed-nix-builds.yml", &["--env", "TEST_WORKSPACE=/home/alice/repository"], PATIENCE);
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    let said = ended.log.as_str();
    assert!(said.matches("Job succeeded").count() == 6, "a config job, four builders, a coordinator: {said}");
    // Names with dots are names.
    assert!(
        said.contains("nixtail::coordinator: ready builder=nix-builder-") && said.contains("-ubuntu-24.04-1 "),
        "{said}"
    );
    assert!(said.contains("### 7 builds on 4 builders in "), "{said}");
    stage.assert_nothing_left(Duration::ZERO);
    stage.assert_no_secret_was_shown(&ended.log);
}

#[test]
fn a_user_whom_roots_daemon_trusts_coordinates_as_on_githubs_machines() {
    let Some(stage) = Stage::start() else { return };
    let _daemon = stage.start_daemon();
    let ended = stage.run("hosted.yml", &[], PATIENCE);
    ended.assert_succeeded(&["Builder", "Build"]);
    assert!(ended.of("Build").contains(&format!("| built: {TOP} by root")), "{}", ended.log);
    assert!(ended.of("Build").contains("### 7 builds on 1 builder in "), "{}", ended.log);
    stage.assert_no_secret_was_shown(&ended.log);
}

#[test]
fn a_workload_identity_does_without_a_secret() {
    let Some(stage) = Stage::start() else { return };
    let more = stage.let_jobs_ask_for_tokens();
    let ended = stage.run("workload-identity.yml", &more.iter().map(String::as_str).collect::<Vec<_>>(), PATIENCE);
    ended.assert_succeeded(&["Builder 1", "Builder 2", "Build"]);
    assert!(ended.of("Build").contains("### 7 builds on 2 builders in "), "{}", ended.log);
    stage.assert_nothing_left(Duration::ZERO);
    stage.assert_no_secret_was_shown(&ended.log);
}

#[test]
fn jobs_without_root_capabilities_tun_or_a_root_to_write_are_enough() {
    let Some(stage) = Stage::start() else { return };
    let (one, other) = (stage.another_machine("one"), stage.another_machine("other"));
    let mut builder = stage.act_contained(&one, "contained.yml", "builder");
    let mut coordinator = stage.act_contained(&other, "contained.yml", "coordinator");
    let ended = [stage.finish(&mut coordinator, PATIENCE), stage.finish(&mut builder, PATIENCE)];
    let [said, other] = ended.each_ref().map(|ended| ended.log.as_str());
    assert!(said.contains(&format!("| built: {TOP}")), "{said}{other}");
    assert!(said.contains("| capabilities: 0000000000000000\n"), "{said}");
    assert!(said.contains("| new privileges: 1, user 2001"), "{said}");
    assert!(!said.contains("| the root can be written") && !said.contains("| there is a TUN"), "{said}");
    for ended in ended {
        assert_eq!(ended.code, Some(0), "{}", ended.log);
        assert!(ended.log.contains("nothing is left"), "{}", ended.log);
    }
    stage.assert_all_gone(Duration::ZERO);
}

impl Ended {
    /// Every job of these, and the workflow.
    fn assert_succeeded(&self, jobs: &[&str]) {
        assert_eq!(self.code, Some(0), "{}", self.log);
        for job in jobs {
            assert!(self.of(job).contains("Job succeeded"), "{job}: {}", self.log);
        }
    }
}
