//! The coordinator in system mode, on a multi-user Nix in a mount namespace of its own: nothing of this machine is touched.

mod lab;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// How long the whole of it may take; it takes about five seconds.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn roots_nix_is_told_of_builders_and_has_its_files_back_afterwards() {
    // What only root may do is told like a peer that isn't there.
    if !rustix::process::geteuid().is_root() || !Path::new("/nix").is_dir() {
        lab::peers::skip("root, and a /nix to mount over");
        return;
    }
    let Some(busybox) = lab::peers::require_on_path("busybox") else { return };
    let Some(_) = lab::peers::require_on_path("nix-daemon") else { return };
    let folder = tempfile::Builder::new().prefix("nixtail-system-").tempdir_in("/var/tmp").expect("a folder");
    let mut command = Command::new("unshare");
    command
        .args(["-mpf", "--kill-child", "--mount-proc", "bash", "tests/nix/system_mode.sh"])
        .args([&lab::nixtail::program(), &busybox])
        .arg(folder.path())
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = lab::process::run(&mut command, PATIENCE);
    let said = format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("system mode: all held"), "{said}");
}
