//! Nix connects to builders one at a time, waits for them without limit and never tries a lost build again: what of that users
//! notice with builders that freeze or never answer, at the limits that they have.

use std::time::{Duration, Instant};

use crate::lab::nixnode::{NixNode, NixVersion, User};
use crate::lab::{PATIENCE, wait_for};
use crate::nix_at_hand::{DERIVATIONS, TOP};
use crate::stage::{BUILD, Coordinator, SINGLE_USER, Said, Stage, assert_no_lock_is_held};

/// After how long a frozen builder's build must have failed. Our own limit is 45 s; the rest is for a busy machine.
const FOUND_FROZEN: Duration = Duration::from_secs(90);

#[test]
#[ignore = "make test-long: a freeze is found after 45 s"]
fn a_builder_frozen_in_mid_build_fails_that_build_and_the_next_one_goes_elsewhere() {
    let Some(own) = NixVersion::Own.require() else { return };
    let Some(stage) = Stage::start() else { return };
    let node = stage.node("coordinator", &own, SINGLE_USER);
    let nodes = ["b1", "b2"].map(|name| stage.node(name, &own, SINGLE_USER));
    stage.write_derivations(&node, User::Root, "freeze");
    let builders =
        [("b1", &nodes[0]), ("b2", &nodes[1])].map(|(name, node)| stage.builder(node, User::Root, name, &[]));
    let coordinator = stage.coordinator(&node, User::Root, &["b1", "b2"], &[]);

    let mut slow = coordinator.start(["nix-build", "--no-out-link", "--max-jobs", "0", "-A", "long"]);
    slow.wait_for_line("long has begun", BUILD);
    let unlucky = nodes.iter().position(|node| node.count_processes("long has begun") > 0).unwrap();
    let frozen = Instant::now();
    nodes[unlucky].freeze();
    let ended = slow.wait(FOUND_FROZEN);
    eprintln!("figure: from the freeze of a builder to the end of Nix {:.1} s", frozen.elapsed().as_secs_f64());
    assert!(!ended.success(), "{}", slow.log());
    assert!(slow.log().contains("error: "), "{}", slow.log());

    wait_for("the frozen builder to leave the list", PATIENCE, || (coordinator.store_uris().len() == 1).then_some(()));
    let begun = Instant::now();
    builds_top(&coordinator, &node);
    eprintln!("figure: a build beside a frozen builder {:.1} s", begun.elapsed().as_secs_f64());
    assert!(begun.elapsed() < PATIENCE, "the frozen builder held up the build");
    assert_no_lock_is_held(&node.path("/nix/var/nix/current-load"));

    nodes[unlucky].thaw();
    builders[unlucky].thaw();
    wait_for("the builder to be back", 2 * PATIENCE, || (coordinator.store_uris().len() == 2).then_some(()));
}

#[test]
#[ignore = "make test-long: a freeze is found after 45 s"]
fn a_builder_that_answers_nobody_any_more_does_not_hold_up_the_others() {
    let Some(own) = NixVersion::Own.require() else { return };
    let Some(stage) = Stage::start() else { return };
    let node = stage.node("coordinator", &own, SINGLE_USER);
    let nodes = ["b1", "b2"].map(|name| stage.node(name, &own, SINGLE_USER));
    stage.write_derivations(&node, User::Root, "silent");
    let _builders =
        [("b1", &nodes[0]), ("b2", &nodes[1])].map(|(name, node)| stage.builder(node, User::Root, name, &[]));
    let coordinator = stage.coordinator(&node, User::Root, &["b1", "b2"], &[]);

    // Nobody knows of it yet, so Nix is still told of both.
    nodes[0].freeze();
    let begun = Instant::now();
    builds_top(&coordinator, &node);
    eprintln!("figure: a build whose first builder has just frozen {:.1} s", begun.elapsed().as_secs_f64());
    assert!(begun.elapsed() < FOUND_FROZEN, "the frozen builder held up the build");
    assert_no_lock_is_held(&node.path("/nix/var/nix/current-load"));
}

#[test]
#[ignore = "make test-long: a daemon's silence is waited for"]
fn a_builder_whose_nix_never_answers_does_not_hold_up_the_others() {
    let Some(own) = NixVersion::Own.require() else { return };
    let Some(stage) = Stage::start() else { return };
    let node = stage.node("coordinator", &own, SINGLE_USER);
    let nodes = ["b1", "b2"].map(|name| stage.node(name, &own, SINGLE_USER));
    stage.write_derivations(&node, User::Root, "tarpit");
    let tarpit = "#!/bin/sh\n[ ! -e /tmp/stuck ] || exec sleep 1000\nexec nix-daemon \"$@\"\n";
    nodes[0].write(User::Root, "/root/nix-daemon", tarpit);
    nodes[0].run_ok(User::Root, ["chmod", "755", "/root/nix-daemon"]);
    let _stuck = stage.builder(&nodes[0], User::Root, "b1", &["--nix-daemon", "/root/nix-daemon"]);
    let _good = stage.builder(&nodes[1], User::Root, "b2", &[]);
    let coordinator = stage.coordinator(&node, User::Root, &["b1", "b2"], &[]);

    nodes[0].write(User::Root, "/tmp/stuck", "");
    let begun = Instant::now();
    builds_top(&coordinator, &node);
    eprintln!("figure: a build beside a Nix that never answers {:.1} s", begun.elapsed().as_secs_f64());
    assert_no_lock_is_held(&node.path("/nix/var/nix/current-load"));
}

/// Builds `top`, on whatever builders there are, and sees that it is right.
fn builds_top(coordinator: &Coordinator<'_>, node: &NixNode) {
    let Said { code, stdout, stderr } = coordinator.build("top", &[]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.matches(".drv' on '").count() >= DERIVATIONS, "{stderr}");
    assert_eq!(std::fs::read_to_string(node.path(stdout.trim())).unwrap(), TOP);
}
