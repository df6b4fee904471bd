//! A node behind a real HTTP proxy (tinyproxy), in network and mount namespaces of its own.

mod lab;

use std::process::Command;
use std::time::Duration;

/// How long the whole of it may take; it takes about fifteen seconds.
const PATIENCE: Duration = Duration::from_secs(180);

#[test]
fn control_and_relays_are_reached_through_a_real_proxy() {
    let Some(_) = lab::peers::require_on_path("tinyproxy") else { return };
    let Some(_) = lab::peers::require_on_path("ip") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new("unshare");
    command
        .args(["-rnm", "--kill-child", "--fork", "bash", "tests/proxy/behind_tinyproxy.sh"])
        .arg(lab::nixtail::program())
        .arg(folder.path())
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = lab::process::run(&mut command, PATIENCE);
    let said = format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("behind a proxy: all held"), "{said}");
}
