//! A stranger's client over a stranger's tunnel: OpenSSH through real tailscaled.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::lab::process::{run, run_ok};
use crate::lab::tailscaled::Tailscaled;
use crate::lab::{PATIENCE, wait_for};
use crate::nix_at_hand::Place;
use crate::stage::{COORDINATOR, STRANGER, Stage, coordinators_may_log_in};

/// Writes what ssh needs to reach `builder` through `tailscaled`: its host key is the one that control passes on.
fn ssh_config(stage: &Stage, tailscaled: &Tailscaled, builder: &str) -> PathBuf {
    let host_keys = wait_for("the builder's host key in tailscaled's status", PATIENCE, || {
        let status = tailscaled.status();
        let peer = status["Peer"].as_object()?.values().find(|peer| peer["HostName"] == builder)?.clone();
        let keys: Vec<String> = serde_json::from_value(peer["sshHostKeys"].clone()).ok()?;
        (!keys.is_empty()).then_some(keys)
    });
    let known_hosts = stage.path("known_hosts");
    let lines: String = host_keys.iter().map(|key| format!("{builder} {key}\n")).collect();
    fs::write(&known_hosts, lines).unwrap();
    let config = stage.path("ssh_config");
    let text = format!(
        "Host *\n  ProxyCommand {} --socket={} nc %h %p\n  UserKnownHostsFile {}\n  GlobalKnownHostsFile /dev/null\n  \
         StrictHostKeyChecking yes\n  IdentityFile none\n  IdentitiesOnly yes\n",
        tailscaled.tailscale().display(),
        tailscaled.socket().display(),
        known_hosts.display(),
    );
    fs::write(&config, text).unwrap();
    config
}

fn own_user() -> String {
    run_ok(Command::new("id").arg("-un"), PATIENCE).trim().to_owned()
}

#[test]
fn openssh_over_tailscale_nc_pings_the_builders_store() {
    let Some(stage) = Stage::start(&coordinators_may_log_in()) else { return };
    let Some(theirs) = Tailscaled::start(stage.headscale.url(), &stage.key(COORDINATOR), "theirs") else { return };
    let _builder = stage.builder("b1", &[]);
    let config = ssh_config(&stage, &theirs, "b1");
    let place = Place::make(stage.path("theirs"), 0);
    let mut ping = place.command(&stage.programs.nix);
    ping.args(["--extra-experimental-features", "nix-command", "store", "ping", "--store"]);
    ping.arg(format!("ssh-ng://{}@b1", own_user())).env("NIX_SSHOPTS", format!("-F {}", config.display()));
    run_ok(&mut ping, PATIENCE);
}

#[test]
fn a_peer_that_the_policy_does_not_allow_is_refused_with_words() {
    let Some(stage) = Stage::start(&coordinators_may_log_in()) else { return };
    let Some(theirs) = Tailscaled::start(stage.headscale.url(), &stage.key(STRANGER), "theirs") else { return };
    let _builder = stage.builder("b1", &[]);
    let config = ssh_config(&stage, &theirs, "b1");
    // ssh would ask this program for a password, and the file would tell.
    let (asking, asked) = (stage.path("askpass"), stage.path("asked"));
    fs::write(&asking, format!("#!/bin/sh\ntouch {}\necho guess\n", asked.display())).unwrap();
    fs::set_permissions(&asking, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();

    let mut ssh = Place::make(stage.path("theirs"), 0).command(Path::new("ssh"));
    ssh.env("SSH_ASKPASS", &asking).env("SSH_ASKPASS_REQUIRE", "force");
    let login = format!("{}@b1", own_user());
    let refused = run(ssh.arg("-F").arg(config).args([&login, "nix-daemon", "--stdio"]), PATIENCE);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(255), "{said}");
    assert_eq!(said.matches("nixtail: tailnet policy").count(), 1, "{said}");
    assert!(!asked.exists(), "ssh asked for a password: {said}");
    assert!(refused.stdout.is_empty(), "{refused:?}");
}
