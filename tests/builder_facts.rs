//! A builder's facts and preflight on machines that differ, made in a mount namespace: nothing of this machine is touched.

mod lab;

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lab::nixnode::NixVersion;
use tempfile::TempDir;

/// What is tried, in a namespace of its own.
const SCRIPT: &str = "tests/nix/builder_facts.sh";

/// How long the whole of it may take; it takes about twelve seconds.
const PATIENCE: Duration = Duration::from_secs(180);

#[test]
fn each_fact_is_found_and_each_obstacle_named_before_joining() {
    if !rustix::process::geteuid().is_root() || !Path::new("/nix").is_dir() {
        lab::peers::skip("root, and a /nix to mount over");
        return;
    }
    let Some(_) = lab::peers::require_on_path("nix-daemon") else { return };
    let folder = folder();
    all_holds(&[SCRIPT.as_ref(), lab::nixtail::program().as_os_str(), folder.path().as_os_str()]);
}

#[test]
#[ignore = "make test-long: side roots"]
fn newer_nix_is_understood_as_well() {
    for version in [NixVersion::Nix2_26, NixVersion::Nix2_34] {
        let Some(root) = version.require() else { return };
        let folder = folder();
        let program = lab::nixtail::program();
        all_holds(&[
            "tests/nix/in_root.sh".as_ref(),
            root.path(),
            folder.path().as_os_str(),
            program.as_os_str(),
            SCRIPT.as_ref(),
        ]);
    }
}

fn folder() -> TempDir {
    tempfile::Builder::new().prefix("nixtail-facts-").tempdir_in("/var/tmp").expect("a folder")
}

/// Runs a script in namespaces of its own; it says at its end that all held.
fn all_holds(script: &[&OsStr]) {
    let mut command = Command::new("unshare");
    command.args(["-mpf", "--kill-child", "--mount-proc", "bash"]).args(script).current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = lab::process::run(&mut command, PATIENCE);
    let said = format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("builder facts: all held"), "{said}");
}
