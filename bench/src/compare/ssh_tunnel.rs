//! OpenSSH at both ends, one port of which is forwarded: what SSH alone does over the kernel's TCP.

use std::error::Error;
use std::fs;

use crate::stage::network::RIGHT;
use crate::stage::process::Running;
use crate::stage::{Machine, sshd};

/// What is looked for on PATH.
pub(super) const PROGRAMS: [&str; 3] = ["ssh", "sshd", "ssh-keygen"];

/// Starts ssh on the left machine, which forwards port `here` of its loopback to port `there` of the right one's, and sshd.
pub(super) fn start([left, right]: [&Machine; 2], here: u16, there: u16) -> Result<[Running; 2], Box<dyn Error>> {
    // Keys of an earlier link.
    for key in [left.home(".ssh/id_ed25519"), right.home("host_key")] {
        let _ = fs::remove_file(key);
    }
    let server = sshd::start(left, right)?;
    sshd::name(left, right, &[("plain", RIGHT)])?;
    let forward = format!("127.0.0.1:{here}:127.0.0.1:{there}");
    let line = ["-N", "-o", "ExitOnForwardFailure=yes", "-L", &forward, "plain"];
    Ok([left.start_inside("ssh", left.command("ssh", &line))?, server])
}
