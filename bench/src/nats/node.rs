//! A node at a site, ours or tailscaled, and the control server that both have: nixtail's devnet.

use std::error::Error;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::Programs;
use super::sites::{CONTROL, MORE_STUN, Place, Side, Sites};
use crate::stage::process::{Running, run_command, wait_until, word};

/// How long each step may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one packet's answer is waited for.
const ANSWER: &str = "5";

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    Nixtail,
    Tailscaled,
}

/// Control, relay and STUN. Dropped, it ends.
#[derive(Debug)]
pub(super) struct Control {
    url: String,
    key: String,
    folder: Folder,
    _running: Running,
}

/// A folder of this process's own for sockets and logs. Dropped, it is removed.
#[derive(Debug)]
struct Folder(PathBuf);

/// A node that has joined. Dropped, it ends.
#[derive(Debug)]
pub(super) struct Node {
    who: Who,
    /// nixtail or tailscale: what asks the node.
    program: PathBuf,
    socket: PathBuf,
    _running: Running,
}

impl Control {
    pub(super) fn start(programs: &Programs, sites: &Sites) -> Result<Self, Box<dyn Error>> {
        let folder = Folder::new()?;
        let mut command = sites.command(Place::Internet, programs.nixtail());
        command.args(["devnet", "--listen", CONTROL, "--stun", MORE_STUN, "--force", "--allow-all"]);
        let mut running = Running::start("devnet", command, &folder.0.join("devnet.log"))?;
        let ready = running.wait_until_ready(PATIENCE)?;
        let (url, key) = (word(&ready, "TS_CONTROL_URL")?, word(&ready, "TS_AUTHKEY")?);
        Ok(Self { url, key, folder, _running: running })
    }
}

impl Folder {
    fn new() -> Result<Self, Box<dyn Error>> {
        let name = format!("nixtail-bench-{:016x}", rand::random::<u64>());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Node {
    /// Joins, with that UDP port (0 is any).
    pub(super) fn start(
        programs: &Programs,
        who: Who,
        sites: &Sites,
        side: Side,
        port: u16,
        control: &Control,
    ) -> Result<Self, Box<dyn Error>> {
        let (name, port) = (side.to_string(), port.to_string());
        let at = |name: String| control.folder.0.join(name);
        let socket = at(format!("{name}.sock"));
        let shown = socket.display().to_string();
        let log = at(format!("{name}.log"));
        if who == Who::Nixtail {
            let mut command = sites.command(Place::Host(side), programs.nixtail());
            command.args([
                "up",
                "--login-server",
                &control.url,
                "--hostname",
                &name,
                "--socket",
                &shown,
                "--port",
                &port,
            ]);
            let mut running = Running::start(&name, with_key(command, &control.key), &log)?;
            running.wait_until_ready(PATIENCE)?;
            return Ok(Self { who, program: programs.nixtail().to_owned(), socket, _running: running });
        }
        let [tailscaled, tailscale] = programs.tailscale.clone().ok_or("there is no tailscaled")?;
        let mut command = sites.command(Place::Host(side), &tailscaled);
        command.args(["--tun=userspace-networking", "--state=mem:", &format!("--port={port}")]);
        command.args([format!("--statedir={}", at(name.clone()).display()), format!("--socket={shown}")]);
        command.envs([("TS_NO_LOGS_NO_SUPPORT", "true"), ("TS_DISABLE_PORTMAPPER", "1")]);
        let running = Running::start(&name, command, &log)?;
        let node = Self { who, program: tailscale, socket, _running: running };
        wait_until("tailscaled's socket", PATIENCE, || node.socket.exists().then_some(()))?;
        let up = ["up", "--login-server", &control.url, "--auth-key", &control.key, "--hostname", &name];
        node.ask(&[up.as_slice(), &["--accept-dns=false", "--timeout=30s"]].concat())?;
        Ok(node)
    }

    /// Its IPv4 address in the tailnet.
    pub(super) fn address(&self) -> Result<String, Box<dyn Error>> {
        Ok(self.ask(&["ip", "-4"])?.trim().to_owned())
    }

    /// Waits until it knows the other one, and at which relay that is.
    pub(super) fn wait_for_peer(&self) -> Result<(), Box<dyn Error>> {
        wait_until("the peer in the netmap", PATIENCE, || {
            let status = self.status().ok()?;
            match self.who {
                Who::Nixtail => (status["peers"].as_array()?.len() == 1).then_some(()),
                Who::Tailscaled => status["Peer"].as_object()?.values().any(|peer| peer["Relay"] != "").then_some(()),
            }
        })
    }

    /// Whether it sends directly to the peer now.
    pub(super) fn is_direct(&self) -> Result<bool, Box<dyn Error>> {
        let status = self.status()?;
        Ok(match self.who {
            Who::Nixtail => {
                let peers = status["peers"].as_array();
                peers.is_some_and(|peers| peers.iter().any(|peer| peer["path"]["kind"] == "direct"))
            }
            Who::Tailscaled => {
                let peers = status["Peer"].as_object();
                peers.is_some_and(|peers| {
                    peers.values().any(|peer| peer["CurAddr"].as_str().is_some_and(|at| !at.is_empty()))
                })
            }
        })
    }

    /// Whether a disco ping of its own comes back directly.
    pub(super) fn pings_directly(&self, address: &str) -> Result<bool, Box<dyn Error>> {
        let more: &[&str] = match self.who {
            Who::Nixtail => &["--until-direct", "--timeout", ANSWER],
            Who::Tailscaled => &["--until-direct", "--timeout", "5s"],
        };
        Ok(self.ask(&[&["ping", "-c", "5"], more, &[address]].concat()).is_ok())
    }

    /// A program that sends one packet through the tunnel, and succeeds when it was answered.
    pub(super) fn ping_through_tunnel(&self, address: &str) -> Command {
        match self.who {
            Who::Nixtail => self.command(&["ping", "--tsmp", "-c", "1", "--timeout", ANSWER, address]),
            Who::Tailscaled => self.command(&["ping", "--tsmp", "-c", "1", "--timeout", "5s", address]),
        }
    }

    fn status(&self) -> Result<Value, Box<dyn Error>> {
        Ok(serde_json::from_str(&self.ask(&["status", "--json"])?)?)
    }

    fn ask(&self, arguments: &[&str]) -> Result<String, Box<dyn Error>> {
        run_command(self.command(arguments), PATIENCE)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        if self.who == Who::Tailscaled {
            command.arg(format!("--socket={}", self.socket.display()));
        }
        command.args(arguments).env("NIXTAIL_SOCKET", &self.socket).env("HOME", "/nonexistent");
        command
    }
}

/// The key goes by the environment, as always.
fn with_key(mut command: Command, key: &str) -> Command {
    command.env("TS_AUTHKEY", key);
    command
}
