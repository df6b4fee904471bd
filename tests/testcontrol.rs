//! Tailscale's own test control server as a judge: it panics on anything unexpected. The tests proper are Go's
//! (`tests/interop/testcontrol`); each is run here by its name, with the `nixtail` of this build.

#![cfg(feature = "cli")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests may panic")]

mod lab;

use std::process::Command;

use lab::peers;

fn judge(test: &str) {
    let Some(judge) = peers::require("testcontrol.test") else { return };
    // A folder of its own, and short: sockets lie in it.
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let output = Command::new(judge)
        .args(["-test.v", "-test.timeout=180s", "-test.run"])
        .arg(format!("^{test}$"))
        .current_dir(folder.path())
        .env("TMPDIR", folder.path())
        .env("NIXTAIL", env!("CARGO_BIN_EXE_nixtail"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains(&format!("--- PASS: {test}")), "{said}");
}

#[test]
fn it_survives_a_join_a_map_an_update_c2n_and_a_leave() {
    judge("TestJoinMapUpdateC2NLeave");
}

#[test]
fn its_refusal_of_a_key_is_final() {
    judge("TestWrongKeyIsRefused");
}
