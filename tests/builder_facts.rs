//! A builder's facts and preflight on machines that differ, made in a mount namespace: nothing of this machine is touched.

mod lab;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// How long the whole of it may take; it takes about twelve seconds.
const PATIENCE: Duration = Duration::from_secs(180);

#[test]
fn each_fact_is_found_and_each_obstacle_named_before_joining() {
    if !rustix::process::geteuid().is_root() || !Path::new("/nix").is_dir() {
        lab::peers::skip("root, and a /nix to mount over");
        return;
    }
    let Some(_) = lab::peers::require_on_path("nix-daemon") else { return };
    let folder = tempfile::Builder::new().prefix("nixtail-facts-").tempdir_in("/var/tmp").expect("a folder");
    let mut command = Command::new("unshare");
    command
        .args(["-mpf", "--kill-child", "--mount-proc", "bash", "tests/nix/builder_facts.sh"])
        .arg(lab::nixtail::program())
        .arg(folder.path())
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = lab::process::run(&mut command, PATIENCE);
    let said = format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("builder facts: all held"), "{said}");
}
