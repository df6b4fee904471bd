//! What a builder doesn't do for those who reach it, and who doesn't reach it.

use std::process::Stdio;
use std::time::Duration;

use crate::lab::process::run;
use crate::lab::{PATIENCE, wait_for};
use crate::stage::{BUILDER, COORDINATOR, STRANGER, Stage, coordinators_may_log_in, policy};

/// How long silence must last to count as such. A dial that is let through takes milliseconds, and a first one that loses
/// its handshake less than a second.
const SILENCE: Duration = Duration::from_secs(4);

#[test]
fn a_shell_an_unlisted_command_and_a_foreign_store_are_refused() {
    let Some(stage) = Stage::start(&coordinators_may_log_in()) else { return };
    let _builder = stage.builder("b1", &[]);
    let coordinator = stage.coordinator(&["b1"]);
    let marker = stage.path("marker").display().to_string();
    let refused = [
        (&[][..], "no shell here"),
        (&["touch", &marker], "command not allowed"),
        (&["nix-daemon", "--stdio;", "touch", &marker], "command not allowed"),
        (&["nix-daemon", "--stdio", "--store", "/elsewhere"], "store not allowed: /elsewhere"),
        (&["nix-store", "--serve", "--write", "--store", "/elsewhere"], "store not allowed: /elsewhere"),
    ];
    for (command, words) in refused {
        let ended = coordinator.ssh("b1", command);
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(126), "{command:?}: {said}");
        assert!(said.starts_with("nixtail: ") && said.contains(words), "{command:?}: {said}");
        assert!(ended.stdout.is_empty(), "{command:?}: {ended:?}");
    }
    assert!(!stage.path("marker").exists());
    // The same way, and allowed: a daemon whose client has nothing to say.
    let allowed = coordinator.ssh("b1", &["nix-daemon", "--stdio"]);
    assert_ne!(allowed.status.code(), Some(126), "{allowed:?}");
}

#[test]
fn a_peer_that_the_filter_does_not_allow_gets_nothing() {
    // Nobody sees a node to which it may send nothing, so the stranger gets a port where nobody listens.
    let coordinators = format!(r#"{{"action": "accept", "src": ["{COORDINATOR}"], "dst": ["{BUILDER}:22"]}}"#);
    let strangers = format!(r#"{{"action": "accept", "src": ["{STRANGER}"], "dst": ["{BUILDER}:9"]}}"#);
    let Some(stage) = Stage::start(&policy(&format!("{coordinators}, {strangers}"), "")) else { return };
    let _builder = stage.builder("b1", &[]);
    let (allowed, stranger) = (stage.up("allowed", COORDINATOR), stage.up("stranger", STRANGER));
    for node in [&allowed, &stranger] {
        node.wait_for_peer("b1");
    }

    // Both are known to the builder, and to the stranger's tunnel the builder answers.
    let closed = run(&mut stranger.command(&["nc", "b1", "9"]), PATIENCE);
    assert_eq!(closed.status.code(), Some(69), "{closed:?}");
    assert!(String::from_utf8_lossy(&closed.stderr).contains("nothing listens there"), "{closed:?}");
    assert!(greeting(&allowed, PATIENCE).starts_with("SSH-2.0-"));

    assert_eq!(greeting(&stranger, SILENCE), "");
}

/// What port 22 says first, within `patience`.
fn greeting(node: &crate::lab::nixtail::Nixtail, patience: Duration) -> String {
    let said = tempfile::NamedTempFile::new().unwrap();
    let mut nc = node.command(&["nc", "b1", "22"]);
    let out = said.reopen().unwrap();
    let mut nc = nc.stdin(Stdio::piped()).stdout(out).stderr(Stdio::null()).spawn().unwrap();
    let deadline = std::time::Instant::now() + patience;
    let greeting = wait_for("a greeting, or the end of patience", patience + PATIENCE, || {
        let text = std::fs::read_to_string(said.path()).unwrap();
        (!text.is_empty() || std::time::Instant::now() > deadline).then_some(text)
    });
    let _ = nc.kill();
    nc.wait().unwrap();
    greeting
}
