//! The real client, in userspace: no TUN device, no root, no change to the machine's network.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::process::{Process, run, run_ok};
use super::{PATIENCE, peers, wait_for};

/// A `tailscaled` that has joined a tailnet.
pub struct Tailscaled {
    process: Process,
    tailscale: PathBuf,
    folder: TempDir,
    hostname: String,
}

/// Which ways a node may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Paths {
    /// Direct UDP, and DERP until that is found.
    #[default]
    Any,
    /// DERP alone: its UDP socket neither sends nor receives.
    DerpOnly,
}

impl Tailscaled {
    /// Joins the tailnet at `control_url` with the pre-auth key `key` and waits until it is running.
    /// `None` when a program is missing; see [`peers::require`].
    pub fn start(control_url: &str, key: &str, hostname: &str) -> Option<Self> {
        Self::start_with(control_url, key, hostname, Paths::Any)
    }

    /// As [`Tailscaled::start`], with a choice of paths.
    pub fn start_with(control_url: &str, key: &str, hostname: &str, paths: Paths) -> Option<Self> {
        Self::start_more(control_url, key, hostname, paths, &[])
    }

    /// As [`Tailscaled::start_with`], with more flags for `tailscale up`.
    pub fn start_more(control_url: &str, key: &str, hostname: &str, paths: Paths, more: &[&str]) -> Option<Self> {
        let [tailscaled, tailscale] = peers::require_all(["tailscaled", "tailscale"])?;
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name).display().to_string();
        let home = at("");
        let mut env = vec![
            ("HOME", home.as_str()),
            ("TS_NO_LOGS_NO_SUPPORT", "true"),
            ("TS_DISABLE_PORTMAPPER", "1"),
            ("TS_PANIC_IF_HIT_MAIN_CONTROL", "1"),
        ];
        if paths == Paths::DerpOnly {
            env.push(("TS_DEBUG_ALWAYS_USE_DERP", "1"));
        }
        let process = Process::start(
            hostname,
            &tailscaled,
            [
                "--tun=userspace-networking".to_owned(),
                "--port=0".to_owned(),
                format!("--statedir={}", at("state")),
                format!("--socket={}", at("sock")),
            ],
            env,
            &folder.path().join("log"),
        );
        let mut node = Self { process, tailscale, folder, hostname: hostname.to_owned() };
        let socket = node.socket();
        wait_for("tailscaled's socket", PATIENCE, || {
            assert!(node.process.ended().is_none(), "tailscaled ended at once");
            socket.exists().then_some(())
        });
        let up = [
            "up",
            "--login-server",
            control_url,
            "--auth-key",
            key,
            "--hostname",
            hostname,
            "--accept-dns=false",
            "--timeout=30s",
        ];
        node.cli_ok(&[&up[..], more].concat());
        wait_for("tailscaled to run", PATIENCE, || (node.status()["BackendState"] == "Running").then_some(()));
        Some(node)
    }

    /// `tailscale ARGS`. Fails the test when it takes longer than a minute.
    pub fn cli(&self, args: &[&str]) -> Output {
        run(&mut self.command(args), 2 * PATIENCE)
    }

    /// `tailscale ARGS`, which must succeed; returns its standard output.
    pub fn cli_ok(&self, args: &[&str]) -> String {
        run_ok(&mut self.command(args), 2 * PATIENCE)
    }

    /// `tailscale ARGS` as a command to start or to alter; this is also what an OpenSSH `ProxyCommand` may name.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.tailscale);
        command.arg(format!("--socket={}", self.socket().display())).args(args).env("HOME", self.folder.path());
        command
    }

    /// `tailscale status --json`.
    pub fn status(&self) -> Value {
        serde_json::from_str(&self.cli_ok(&["status", "--json"])).expect("tailscale's status")
    }

    /// Its own IPv4 address in the tailnet.
    pub fn ip(&self) -> String {
        self.cli_ok(&["ip", "-4"]).trim().to_owned()
    }

    /// Waits until it knows a peer of that name; returns the peer's first address.
    pub fn wait_for_peer(&self, hostname: &str) -> String {
        wait_for(&format!("{} to see {hostname}", self.hostname), PATIENCE, || {
            let status = self.status();
            let peers = status["Peer"].as_object()?;
            let peer = peers.values().find(|peer| peer["HostName"] == hostname)?;
            Some(peer["TailscaleIPs"][0].as_str()?.to_owned())
        })
    }

    /// `tailscale ping`: one answer by the way that `kind` names (`""` for disco, `--icmp`, `--tsmp`), direct or not.
    /// Tries until there is one, as the peer's home region may not have come round yet. Returns its line.
    pub fn ping_once(&self, address: &str, kind: &str) -> String {
        let mut args = vec!["ping", "--until-direct=false", "-c=1", "--timeout=2s"];
        if !kind.is_empty() {
            args.push(kind);
        }
        args.push(address);
        wait_for(&format!("an answer from {address} to ping {kind}"), PATIENCE, || {
            let output = self.cli(&args);
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
        })
    }

    /// `tailscale ping` until an answer comes directly; returns what it printed. Fails the test when none does.
    pub fn ping_until_direct(&self, address: &str) -> String {
        wait_for(&format!("a direct answer from {address}"), PATIENCE, || {
            let output = self.cli(&["ping", "-c=10", "--timeout=2s", address]);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            // It fails when all answers came through DERP, and when the engine doesn't know yet the peer that status tells.
            output.status.success().then_some(text)
        })
    }

    /// Its control socket, for `tailscale --socket`.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("sock")
    }

    /// The `tailscale` program that belongs to it.
    pub fn tailscale(&self) -> &Path {
        &self.tailscale
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Leaves the tailnet, as `tailscale logout` does.
    pub fn logout(&self) {
        run_ok(&mut self.command(&["logout"]), Duration::from_secs(20));
    }
}
