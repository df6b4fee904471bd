//! OpenSSH's server on the builder, and what the coordinator's root needs to log in there.

use std::error::Error;
use std::fs;
use std::time::Duration;

use super::process::{Running, run, wait_until};
use super::{Machine, find};

/// OpenSSH's defaults but for what would get into the way of many connections at once.
const CONFIGURATION: &str = "Port 22\nHostKey /root/host_key\nPidFile none\nPasswordAuthentication no\n\
    KbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\nPermitRootLogin prohibit-password\nMaxStartups 200\n\
    MaxSessions 200\nLogLevel ERROR\n";

/// How long it may take to start.
const PATIENCE: Duration = Duration::from_secs(20);

/// Starts sshd on `builder`; `coordinator`'s root may log in.
pub(crate) fn start(coordinator: &Machine, builder: &Machine) -> Result<Running, Box<dyn Error>> {
    for (machine, key) in [(coordinator, ".ssh/id_ed25519"), (builder, "host_key")] {
        let path = machine.home(key).display().to_string();
        run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f", &path])?;
    }
    fs::copy(coordinator.home(".ssh/id_ed25519.pub"), builder.home(".ssh/authorized_keys"))?;
    fs::write(builder.home("sshd_config"), CONFIGURATION)?;
    // sshd must be started by its full path.
    let sshd = find("sshd").ok_or("sshd isn't there")?.display().to_string();
    let running = builder.start_inside("sshd", builder.command(&sshd, &["-D", "-e", "-f", "/root/sshd_config"]))?;
    let listens = || {
        let sockets = builder.run("cat", &["/proc/net/tcp"]).ok()?;
        // The address that listens, in hexadecimal: any, port 22, state 0A.
        sockets.lines().any(|line| line.contains("00000000:0016 00000000:0000 0A")).then_some(())
    };
    wait_until("sshd listening", PATIENCE, listens)?;
    Ok(running)
}

/// Lets the coordinator's root reach sshd by these names, each at its address.
pub(crate) fn name(coordinator: &Machine, builder: &Machine, names: &[(&str, &str)]) -> Result<(), Box<dyn Error>> {
    let key = fs::read_to_string(builder.home("host_key.pub"))?;
    let (mut hosts, mut known) = (String::new(), String::new());
    for (name, address) in names {
        hosts.push_str(&format!("Host {name}\n  HostName {address}\n  StrictHostKeyChecking yes\n  BatchMode yes\n"));
        known.push_str(&format!("{address} {key}"));
    }
    fs::write(coordinator.home(".ssh/config"), hosts)?;
    fs::write(coordinator.home(".ssh/known_hosts"), known)?;
    Ok(())
}
