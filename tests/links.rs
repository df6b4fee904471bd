//! Two nodes with two links between them, which come and go: in network namespaces of their own.

mod lab;

use std::process::Command;
use std::time::Duration;

/// How long the whole of it may take; it takes about half a minute.
const PATIENCE: Duration = Duration::from_secs(240);

/// Several interfaces, IPv6 outside and inside of the tunnel, and addresses that are removed and added while bytes flow.
#[test]
fn paths_follow_the_addresses_of_the_machine_and_no_stream_breaks() {
    let Some(_) = lab::peers::require_on_path("ip") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new("unshare");
    command
        .args(["-rnm", "--kill-child", "--fork", "bash", "tests/links/two_links.sh"])
        .arg(lab::nixtail::program())
        .arg(folder.path())
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = lab::process::run(&mut command, PATIENCE);
    let said = format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    assert!(output.status.success() && said.contains("two links: all held"), "{said}");
}
