//! Versions of Nix, each as the coordinator's with each as the builder's, over both lanes.

use std::time::Instant;

use crate::lab::nixnode::{NixNode, NixVersion, User};
use crate::lab::process::run_ok;
use crate::nix_at_hand::{DERIVATIONS, TOP};
use crate::stage::{BUILD, SINGLE_USER, Stage, assert_no_lock_is_held};

const ALL: [NixVersion; 3] = [NixVersion::Own, NixVersion::Nix2_26, NixVersion::Nix2_34];

#[test]
#[ignore = "make test-long: side roots, and half a minute"]
fn this_machines_nix_builds_with_every_version() {
    builds_with_every_version(NixVersion::Own);
}

#[test]
#[ignore = "make test-long: side roots, and half a minute"]
fn nix_2_26_builds_with_every_version() {
    builds_with_every_version(NixVersion::Nix2_26);
}

#[test]
#[ignore = "make test-long: side roots, and half a minute"]
fn nix_2_34_builds_with_every_version() {
    builds_with_every_version(NixVersion::Nix2_34);
}

fn builds_with_every_version(version: NixVersion) {
    let Some(root) = version.require() else { return };
    let Some(roots) = ALL.map(NixVersion::require).into_iter().collect::<Option<Vec<_>>>() else { return };
    let Some(stage) = Stage::start() else { return };
    let coordinator = stage.node("coordinator", &root, SINGLE_USER);
    for (number, builders_root) in roots.iter().enumerate() {
        let name = format!("builder-{number}");
        let builder = stage.node(&name, builders_root, SINGLE_USER);
        let begun = Instant::now();
        let direct = builds_fails_and_copies(&stage, &coordinator, &builder, &name, "auto");
        assert!(direct, "a pair that could have the direct lane was given SSH");
        let seconds = begun.elapsed().as_secs_f64();
        eprintln!("figure: Nix {} with a builder's Nix {}, direct: {seconds:.1} s", root.nix, builders_root.nix);
        if root.nix == builders_root.nix {
            continue;
        }
        let begun = Instant::now();
        let name = format!("{name}-over-ssh");
        let direct = builds_fails_and_copies(&stage, &coordinator, &builder, &name, "ssh");
        assert!(!direct, "`--transport ssh` used the direct lane");
        let seconds = begun.elapsed().as_secs_f64();
        eprintln!("figure: Nix {} with a builder's Nix {}, ssh: {seconds:.1} s", root.nix, builders_root.nix);
    }
}

/// All that Nix does with a builder: a graph, log lines while they come, a failure, a copy of what is there. Says whether it went
/// over the direct lane.
fn builds_fails_and_copies(stage: &Stage, node: &NixNode, builders: &NixNode, name: &str, transport: &str) -> bool {
    stage.write_derivations(node, User::Root, name);
    let mut builder = stage.builder(builders, User::Root, name, &[]);
    let mut coordinator = stage.coordinator(node, User::Root, &[name], &["--transport", transport]);

    let graph = coordinator.build("top", &[]);
    assert_eq!(graph.code, Some(0), "{}", graph.stderr);
    assert_eq!(std::fs::read_to_string(node.path(graph.stdout.trim())).unwrap(), TOP);
    assert_eq!(graph.count_sent(), DERIVATIONS, "{}", graph.stderr);

    let words = ["nix-build", "--no-out-link", "--max-jobs", "0", "-A", "ticking"];
    let mut ticking = coordinator.start(words);
    ticking.wait_for_line("tick 1", BUILD);
    assert!(!ticking.log().contains("tick 3"), "log lines come at the end only: {}", ticking.log());
    assert!(ticking.wait(BUILD).success(), "{}", ticking.log());
    assert!(ticking.log().contains("tick 3"), "{}", ticking.log());

    let failing = coordinator.build("failing", &[]);
    assert_ne!(failing.code, Some(0));
    assert!(failing.stderr.contains("the last words of failing"), "{}", failing.stderr);
    assert!(failing.stderr.contains("exit code 7"), "{}", failing.stderr);

    let uris = coordinator.store_uris();
    let [uri] = uris.as_slice() else { panic!("{uris:?}") };
    let copy = ["nix", "--extra-experimental-features", "nix-command", "copy", "--no-check-sigs"];
    let copy = copy.into_iter().chain(["--from", uri, "--to", "/tmp/copied", graph.stdout.trim()]);
    run_ok(&mut coordinator.command(copy), BUILD);
    let direct = uri.contains("remote-program=");
    let copied = node.path("/tmp/copied").join(graph.stdout.trim().trim_start_matches('/'));
    assert_eq!(std::fs::read_to_string(copied).unwrap(), TOP);

    assert_no_lock_is_held(&node.path("/nix/var/nix/current-load"));
    coordinator.end();
    assert!(builder.wait(BUILD).success(), "{}", builder.log());
    direct
}
