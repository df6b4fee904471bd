//! A coordinator of an ordinary user whom root's daemon trusts: as on GitHub's hosted runners. The daemon's build hook is root's and
//! has the daemon's environment; what it needs of the user it finds in the user's folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::process::Signal;

use crate::lab::nixnode::{NixNode, NixVersion, Root, User};
use crate::lab::process::run;
use crate::lab::{PATIENCE, peers, wait_for};
use crate::stage::{BUILD, Coordinator, MULTI_USER, SINGLE_USER, Said, Stage, assert_no_lock_is_held};

/// Where a coordinator of alice's has its files.
const RUN: &str = "/run/user/2001/nixtail.run";

/// By which lane, and what Nix is told to start.
const LANES: [(&str, &str); 2] = [("auto", "builders"), ("ssh", "over-ssh")];

fn trusting_alice() -> String {
    format!("{MULTI_USER}trusted-users = root alice\n")
}

#[test]
fn a_user_whom_the_daemon_trusts_builds_by_it_over_both_lanes() {
    let Some(own) = NixVersion::Own.require() else { return };
    builds_over_both_lanes(&own);
}

#[test]
#[ignore = "make test-long: side roots"]
fn a_user_whom_a_daemon_of_2_26_trusts_builds_by_it_over_both_lanes() {
    let Some(root) = NixVersion::Nix2_26.require() else { return };
    builds_over_both_lanes(&root);
}

#[test]
#[ignore = "make test-long: side roots"]
fn a_user_whom_a_daemon_of_2_34_trusts_builds_by_it_over_both_lanes() {
    let Some(root) = NixVersion::Nix2_34.require() else { return };
    builds_over_both_lanes(&root);
}

fn builds_over_both_lanes(root: &Root) {
    let Some(own) = NixVersion::Own.require() else { return };
    let Some(stage) = Stage::start() else { return };
    let node = stage.node("coordinator", root, &trusting_alice());
    let _daemon = node.start_daemon();
    let far = stage.node("builder", &own, SINGLE_USER);
    let before = all_but_the_store(&node);
    for (transport, folder) in LANES {
        stage.write_derivations(&node, User::Alice, transport);
        let mut builder = stage.builder(&far, User::Root, "builder", &[]);
        let begun = Instant::now();
        let more = ["--login", "root", "--transport", transport];
        let mut coordinator = stage.coordinator(&node, User::Alice, &["builder"], &more);
        eprintln!("figure: Nix {}, {transport}: ready after {:.1} s", root.nix, begun.elapsed().as_secs_f64());
        let uri = format!("ssh-ng://localhost?remote-program={RUN}/{folder}/builder");
        assert_eq!(coordinator.store_uris(), [uri]);
        let status = node.run_ok(User::Alice, ["nixtail", "status", "--json"]);
        assert!(status.contains(r#""mode": "trusted-user""#), "{status}");

        let begun = Instant::now();
        coordinator.builds_top(&[], "/");
        eprintln!("figure: Nix {}, {transport}: `top` in {:.1} s", root.nix, begun.elapsed().as_secs_f64());
        let failing = coordinator.build("failing", &[]);
        assert!(failing.stderr.contains("the last words of failing"), "{}", failing.stderr);
        // Who isn't trusted can say what they like; and what stands in alice's folder is for her and root.
        others_get_nowhere(&coordinator, &node, folder);

        coordinator.end();
        assert!(builder.wait(BUILD).success(), "{}", builder.log());
        assert_eq!(all_but_the_store(&node), before, "something is left");
        assert_eq!(node.run_ok(User::Alice, ["ls", "-A", "/run/user/2001"]), "");
    }
    assert_no_lock_is_held(&node.path("/nix/var/nix/current-load"));
}

/// Bob is not trusted. He copies what alice's shell has read, and calls what root's hook calls.
fn others_get_nowhere(coordinator: &Coordinator<'_>, node: &NixNode, folder: &str) {
    let link = format!("{RUN}/{folder}/builder");
    let refused = run(&mut node.command(User::Bob, [link.as_str(), "--stdio"], &[]), PATIENCE);
    assert!(!refused.status.success(), "bob may call {link}");
    // Even where the folders' permissions don't keep him out.
    node.run_ok(User::Root, ["chmod", "-R", "a+rwX", "/run/user/2001"]);
    let refused = Said::of(run(&mut node.command(User::Bob, [link.as_str(), "--stdio"], &[]), PATIENCE));
    assert!(refused.code != Some(0) && refused.stderr.contains("belongs to another user"), "{}", refused.stderr);
    if let ("builders", Some(perl)) = (folder, peers::require_on_path("perl")) {
        // Nor one of bob's own programs that asks nobody whom it talks to.
        let perl = perl.display().to_string();
        let script = format!("my $s = IO::Socket::UNIX->new('{RUN}/builders/.lane') or die $!; print <$s>");
        let said = run(&mut node.command(User::Bob, [&perl, "-MIO::Socket::UNIX", "-e", &script], &[]), PATIENCE);
        assert!(said.status.success() && said.stdout.is_empty(), "{said:?}");
        wait_for("the lane to say who tried", PATIENCE, || {
            coordinator.process.log().contains("a process of another user tried the lane's socket").then_some(())
        });
    }
    let expression = node.path("/home/alice/default.nix");
    let text = fs::read_to_string(expression).unwrap().replace("has begun", "begins for bob");
    node.write(User::Bob, "/home/bob/default.nix", &text);
    let config = ("NIX_CONFIG", format!("builders = @{RUN}/machines"));
    let words = ["nix-build", "--no-out-link", "--max-jobs", "0", "-A", "brief"];
    let bobs = run(&mut node.command(User::Bob, words, &[(config.0, &config.1)]), BUILD);
    let bobs = Said::of(bobs);
    assert!(bobs.code != Some(0) && bobs.count_sent() == 0, "{}", bobs.stderr);
    node.run_ok(User::Root, ["chmod", "-R", "go-rwx", "/run/user/2001"]);
    assert_eq!(coordinator.store_uris().len(), 1);
}

#[test]
fn an_agent_that_is_killed_leaves_a_clear_failure_and_files_that_the_next_one_takes_over() {
    let Some(own) = NixVersion::Own.require() else { return };
    let Some(stage) = Stage::start() else { return };
    let node = stage.node("coordinator", &own, &trusting_alice());
    let _daemon = node.start_daemon();
    let far = stage.node("builder", &own, SINGLE_USER);
    for (transport, _) in LANES {
        stage.write_derivations(&node, User::Alice, &format!("killed-{transport}"));
        let mut builder = stage.builder(&far, User::Root, &format!("killed-{transport}"), &[]);
        let more = ["--login", "root", "--transport", transport];
        let mut coordinator = stage.coordinator(&node, User::Alice, &[&format!("killed-{transport}")], &more);
        let mut slow = coordinator.start(["nix-build", "--no-out-link", "--max-jobs", "0", "-A", "long"]);
        slow.wait_for_line("long has begun", BUILD);

        coordinator.process.end(Signal::KILL);
        let killed = Instant::now();
        assert!(!slow.wait(BUILD).success(), "{}", slow.log());
        eprintln!("figure: {transport}: Nix failed {:.1} s after the kill", killed.elapsed().as_secs_f64());
        assert!(slow.log().contains("nixtail: builder killed-"), "{}", slow.log());
        // The shell still has what it read.
        let next = coordinator.build("top", &[]);
        let reason = if transport == "ssh" { "no agent runs at" } else { "doesn't run any more" };
        assert!(next.code != Some(0) && next.stderr.contains(reason), "{}", next.stderr);
        // Without a drain: the build is lost already.
        builder.end(Signal::INT);
    }
    // The next one of that name takes the folder over, and leaves nothing.
    stage.write_derivations(&node, User::Alice, "after");
    let _builder = stage.builder(&far, User::Root, "builder", &[]);
    let mut coordinator = stage.coordinator(&node, User::Alice, &["builder"], &["--login", "root"]);
    coordinator.builds_top(&[], "/");
    coordinator.end();
    assert_eq!(node.run_ok(User::Alice, ["ls", "-A", "/run/user/2001"]), "");
}

#[test]
fn a_coordinator_whom_the_daemon_does_not_trust_is_told_all_ways_out_before_joining() {
    let Some(own) = NixVersion::Own.require() else { return };
    not_trusted(&own);
}

#[test]
#[ignore = "make test-long: side roots"]
fn daemons_of_other_versions_say_too_whom_they_do_not_trust() {
    for version in [NixVersion::Nix2_26, NixVersion::Nix2_34] {
        let Some(root) = version.require() else { return };
        not_trusted(&root);
    }
}

fn not_trusted(root: &Root) {
    let Some(stage) = Stage::start() else { return };
    let node = stage.node("coordinator", root, &format!("{}allowed-users = alice bob\n", trusting_alice()));
    let daemon = node.start_daemon();
    let refused = |more: &[&str], words: &[&str]| {
        let mut process = stage.start_coordinator(&node, User::Bob, &[&["--builders", "builder"], more].concat(), &[]);
        let status = process.wait(2 * PATIENCE);
        let log = process.log();
        assert_eq!(status.code(), Some(78), "{log}");
        for word in words {
            assert!(log.contains(word), "no {word:?} in {log}");
        }
        assert!(stage.headscale.nodes().is_empty(), "it joined all the same");
    };
    for more in [&[][..], &["--mode", "trusted-user"]] {
        refused(more, &["doesn't trust this user", "trusted-users = root bob", "--store FOLDER"]);
    }
    refused(&["--mode", "own-store"], &["no store of your own"]);
    refused(&["--mode", "trusted-user", "--store", "/home/bob/store"], &["isn't the daemon's"]);
    drop(daemon);
    refused(&[], &["doesn't say whether it trusts this user", "nix-daemon's log"]);
}

/// Names, sizes and modes of all that a coordinator might touch.
fn all_but_the_store(node: &NixNode) -> Vec<(PathBuf, u64, u32)> {
    use std::os::unix::fs::MetadataExt as _;
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = ["/etc/nix", "/etc/ssh", "/root", "/tmp"].map(|folder| node.path(folder)).into();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let metadata = entry.metadata().unwrap();
            found.push((entry.path(), metadata.len(), metadata.mode()));
            if metadata.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    found.retain(|(path, ..)| !is_nixs(path));
    found.sort();
    found
}

/// What Nix itself leaves at root's.
fn is_nixs(path: &Path) -> bool {
    path.components()
        .any(|part| [".cache", ".nix-defexpr", ".nix-profile", ".local"].iter().any(|name| part.as_os_str() == *name))
}

#[test]
fn trusted_user_mode_needs_a_daemon() {
    // Kept apart from the others: it needs no headscale.
    let Some(own) = NixVersion::Own.require() else { return };
    let folder = tempfile::tempdir().unwrap();
    let node = NixNode::start(folder.path(), "alone", &own, &trusting_alice());
    let words =
        ["nixtail", "coordinator", "--builders", "b", "--mode", "trusted-user", "--login-server", "http://127.0.0.1:1"];
    let mut command = node.command(User::Alice, words, &[("TS_AUTHKEY", "tskey-auth-x")]);
    let said = Said::of(run(&mut command, PATIENCE));
    assert_eq!(said.code, Some(78), "{}", said.stderr);
    assert!(said.stderr.contains("no daemon here") && said.stderr.contains("own-store"), "{}", said.stderr);
}
