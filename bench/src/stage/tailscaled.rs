//! tailscaled as a node: started, logged in, and asked for the way to others.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::place::Place;
use super::process::{Running, wait_until};

/// How long each step may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What it is started with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings<'a> {
    /// Its name, for control and for its files.
    pub(crate) name: &'a str,
    pub(crate) control: &'a str,
    pub(crate) key: &'a str,
    pub(crate) networking: Networking<'a>,
    /// Through relays alone.
    pub(crate) relayed: bool,
}

/// How programs get to the tailnet.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Networking<'a> {
    /// By a TUN device of its own.
    Tun,
    /// By a SOCKS5 proxy at this address; what comes from the tailnet goes to the same port of 127.0.0.1.
    Userspace { socks: &'a str },
}

/// A node. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Tailscaled<'a> {
    place: Place<'a>,
    /// What asks it.
    program: String,
    socket: PathBuf,
    /// Its IPv4 address in the tailnet.
    pub(crate) address: String,
    running: Running,
}

impl<'a> Tailscaled<'a> {
    /// Starts one of the programs in `programs`; returns when it is logged in.
    pub(crate) fn start(programs: &Path, place: Place<'a>, settings: &Settings<'_>) -> Result<Self, Box<dyn Error>> {
        let program = |name: &str| programs.join(name).display().to_string();
        let name = settings.name;
        let socket = place.path(&format!("{name}.sock"));
        // A socket of an earlier one.
        let _ = std::fs::remove_file(&socket);
        let socket_flag = format!("--socket={}", socket.display());
        let folder = format!("--statedir={}", place.path(&format!("{name}.state")).display());
        let mut line = vec!["--port=0", "--state=mem:", &folder, &socket_flag];
        let proxy;
        match settings.networking {
            Networking::Tun => line.push("--tun=tailscale0"),
            Networking::Userspace { socks } => {
                proxy = format!("--socks5-server={socks}");
                line.extend(["--tun=userspace-networking", &proxy]);
            }
        }
        let mut command = place.command(&program("tailscaled"), &line);
        command.envs([("TS_NO_LOGS_NO_SUPPORT", "true"), ("TS_DISABLE_PORTMAPPER", "1")]);
        if settings.relayed {
            command.env("TS_DEBUG_ALWAYS_USE_DERP", "1");
        }
        let running = place.start(name, command)?;
        wait_until("tailscaled's socket", PATIENCE, || socket.exists().then_some(()))?;
        let mut node = Self { place, program: program("tailscale"), socket, address: String::new(), running };
        let hostname = format!("--hostname={name}");
        let login = ["up", "--login-server", settings.control, "--auth-key", settings.key, &hostname];
        node.ask(&[login.as_slice(), &["--accept-dns=false", "--netfilter-mode=off", "--timeout=30s"]].concat())?;
        node.address = node.ask(&["ip", "-4"])?.trim().to_owned();
        Ok(node)
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.running.id()
    }

    /// Whether a peer answers directly now.
    ///
    /// # Errors
    /// When it doesn't answer at all.
    pub(crate) fn is_direct(&self, peer: &str) -> Result<bool, Box<dyn Error>> {
        let pong = self.ask(&["ping", "-c=1", "--timeout=2s", "--until-direct=false", peer])?;
        Ok(!pong.contains("via DERP"))
    }

    fn ask(&self, arguments: &[&str]) -> Result<String, Box<dyn Error>> {
        let socket = format!("--socket={}", self.socket.display());
        self.place.run(&self.program, &[&[socket.as_str()], arguments].concat())
    }
}
