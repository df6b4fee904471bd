//! Nix connects to builders one at a time, waits for them without limit and never tries a lost build again: what of that users
//! notice with builders that freeze or never answer, at the limits that they have.

use std::time::Instant;

use crate::lab::nixnode::{NixNode, NixVersion, User};
use crate::nix_at_hand::{DERIVATIONS, TOP};
use crate::stage::{Coordinator, SINGLE_USER, Said, Stage, assert_no_lock_is_held};

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
