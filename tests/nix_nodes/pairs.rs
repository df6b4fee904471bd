//! Whose Nix it is, on each side: root's daemon, a user that it trusts, a user with a store of their own.

use std::fs;
use std::path::Path;

use crate::lab::PATIENCE;
use crate::lab::nixnode::{NixNode, NixVersion, Root, User};
use crate::stage::{BUILD, MULTI_USER, SINGLE_USER, Stage, assert_no_lock_is_held};

#[test]
fn a_multi_user_pair_builds_with_a_builder_of_roots_and_of_a_trusted_user() {
    let Some(own) = NixVersion::Own.require() else { return };
    multi_user_pair(&own, &own, &[User::Root, User::Bob]);
}

#[test]
#[ignore = "make test-long: side roots"]
fn multi_user_pairs_of_different_versions_build() {
    let Some(own) = NixVersion::Own.require() else { return };
    let Some(new) = NixVersion::Nix2_34.require() else { return };
    multi_user_pair(&own, &new, &[User::Bob]);
    multi_user_pair(&new, &own, &[User::Bob]);
}

/// Root's daemon on either side; `coordinators` is told of builders by root and used by an ordinary user.
fn multi_user_pair(coordinators: &Root, builders: &Root, logins: &[User]) {
    let Some(stage) = Stage::start() else { return };
    let node = stage.node("coordinator", coordinators, MULTI_USER);
    let _daemon = node.start_daemon();
    let far = stage.node("builder", builders, &format!("{MULTI_USER}trusted-users = root bob\n"));
    let _far_daemon = far.start_daemon();
    let before = files_that_are_lent(&node);
    for login in logins {
        stage.write_derivations(&node, User::Alice, login.name());
        let mut builder = stage.builder(&far, *login, "builder", &[]);
        let mut coordinator = stage.coordinator(&node, User::Root, &["builder"], &["--login", login.name()]);
        coordinator.client = User::Alice;
        coordinator.builds_top(&[], "/");
        coordinator.end();
        assert!(builder.wait(BUILD).success(), "{}", builder.log());
        // In 2.8 a user's own process only passes the bytes on; in 2.34 it brings its settings to builds, as root's does.
        let facts = far.run_ok(*login, ["nixtail", "builder", "--print-facts", "--json"]);
        let settings_reach = facts.contains(r#""settings_reach_builds": true"#);
        assert!(settings_reach || *login != User::Root, "{facts}");
        let joins = builder.log().contains("the direct lane joins the daemon's socket");
        assert_eq!(joins, !settings_reach, "{}", builder.log());
        assert!(!builder.log().contains("takes no connection"), "{}", builder.log());
        assert_eq!(files_that_are_lent(&node), before, "root's files are not as they were");
    }
    assert_no_lock_is_held(&node.path("/nix/var/nix/current-load"));
}

/// The names of what is in root's configuration of Nix and ssh, with sizes.
fn files_that_are_lent(node: &NixNode) -> Vec<(String, u64)> {
    let folders = ["/etc/nix", "/etc/ssh/ssh_config.d"].map(|folder| fs::read_dir(node.path(folder)).unwrap());
    let entries = folders.into_iter().flatten().map(Result::unwrap);
    entries.map(|entry| (entry.path().display().to_string(), entry.metadata().unwrap().len())).collect()
}

#[test]
fn a_rootless_pair_builds_in_stores_of_their_own() {
    let Some(own) = NixVersion::Own.require() else { return };
    let more = ["--store", "/home/alice/store"];
    rootless_pair(&own, &own, &more, &["--store", "/home/bob/store"], "/home/alice/store");
}

#[test]
#[ignore = "make test-long: side roots"]
fn rootless_pairs_of_different_versions_build() {
    let Some(own) = NixVersion::Own.require() else { return };
    let Some(new) = NixVersion::Nix2_34.require() else { return };
    let Some(middle) = NixVersion::Nix2_26.require() else { return };
    let (alices, bobs) = (["--store", "/home/alice/store"], ["--store", "/home/bob/store"]);
    // Nix since 2.10 makes itself a store where it may not write the usual one; its daemon does so in 2.34, not yet in 2.26.
    let made = "/home/alice/.local/share/nix/root";
    rootless_pair(&new, &middle, &[], &bobs, made);
    rootless_pair(&own, &new, &alices, &[], alices[1]);
    rootless_pair(&middle, &own, &[], &bobs, made);
}

/// Alice builds with Bob's builder; nobody may write `/nix`, and there is no daemon. `store` is where Alice's paths are.
fn rootless_pair(coordinators: &Root, builders: &Root, alices: &[&str], bobs: &[&str], store: &str) {
    let Some(stage) = Stage::start() else { return };
    let node = stage.node("coordinator", coordinators, "substituters =\n");
    let far = stage.node("builder", builders, "substituters =\n");
    stage.write_derivations(&node, User::Alice, store);
    let mut builder = stage.builder(&far, User::Bob, "builder", bobs);
    let args = [&["--login", "bob"], alices].concat();
    let mut coordinator = stage.coordinator(&node, User::Alice, &["builder"], &args);
    coordinator.builds_top(alices, store);
    assert_no_lock_is_held(&node.path(Path::new(store).join("nix/var/nix/current-load")));
    coordinator.end();
    assert!(builder.wait(BUILD).success(), "{}", builder.log());
    for node in [&node, &far] {
        assert_eq!(fs::read_dir(node.path("/nix")).unwrap().count(), 0, "something was written where nobody may");
    }
}

#[test]
fn a_user_whom_the_builders_daemon_does_not_trust_is_told_before_joining() {
    let Some(own) = NixVersion::Own.require() else { return };
    let Some(stage) = Stage::start() else { return };
    let node = stage.node("builder", &own, MULTI_USER);
    let _daemon = node.start_daemon();
    let mut builder = stage.unready_builder(&node, User::Bob, "builder", &[], &[]);
    let status = builder.wait(2 * PATIENCE);
    assert_eq!(status.code(), Some(78), "{}", builder.log());
    assert!(builder.log().contains("trusted-users"), "{}", builder.log());
    assert!(stage.headscale.nodes().is_empty(), "it joined all the same");
}

#[test]
fn a_pair_with_the_store_elsewhere_builds_without_namespaces() {
    let Some(own) = NixVersion::Own.require() else { return };
    let Some(stage) = Stage::start() else { return };
    let elsewhere = [
        ("NIX_STORE_DIR", "/tmp/elsewhere/store"),
        ("NIX_STATE_DIR", "/tmp/elsewhere/var/nix"),
        ("NIX_LOG_DIR", "/tmp/elsewhere/var/log/nix"),
    ];
    let conf = format!("{SINGLE_USER}sandbox = false\n");
    let (node, far) = (stage.node("coordinator", &own, &conf), stage.node("builder", &own, &conf));
    stage.write_derivations(&node, User::Alice, "elsewhere");
    let _builder = stage.builder_in(&far, User::Bob, "builder", &[], &elsewhere);
    let coordinator = stage.coordinator_in(&node, User::Alice, &["builder"], &["--login", "bob"], &elsewhere);
    coordinator.builds_top(&[], "/");
}
