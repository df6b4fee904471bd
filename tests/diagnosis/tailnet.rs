//! A devnet beside the test's own thread, and commands that are run by it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Output};

use nixtail_devnet::{AuthKeyOptions, Config, Devnet, Policy};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::lab::nixtail::{Nixtail, program};
use super::lab::{PATIENCE, process};

/// A control server, a relay and a STUN server.
pub(crate) struct Tailnet {
    runtime: Runtime,
    devnet: Option<Devnet>,
    /// Where there is no agent.
    empty: TempDir,
}

impl Tailnet {
    pub(crate) fn start() -> Self {
        let runtime = Runtime::new().unwrap();
        let config = Config { policy: Policy::allow_all(), ..Config::default() };
        let devnet = runtime.block_on(Devnet::start(config)).unwrap();
        Self { runtime, devnet: Some(devnet), empty: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn devnet(&self) -> &Devnet {
        self.devnet.as_ref().unwrap()
    }

    /// Its DERP map, as JSON.
    pub(crate) fn derp_map(&self) -> Value {
        let url = self.devnet().url();
        let mut stream = TcpStream::connect(url.trim_start_matches("http://")).unwrap();
        stream.write_all(b"GET /derpmap/default HTTP/1.1\r\nHost: devnet\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap()
    }

    /// An agent that is on it.
    pub(crate) fn up(&self, hostname: &str, more: &[&str]) -> Nixtail {
        let options = AuthKeyOptions { ephemeral: true, ..AuthKeyOptions::default() };
        let key = self.devnet().add_auth_key(options).unwrap();
        Nixtail::up(&self.devnet().url(), key.expose(), hostname, more)
    }

    /// `nixtail ARGS` where no agent runs, with this devnet as its login server.
    pub(crate) fn without_agent(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TS_") || name.starts_with("NIXTAIL_")) {
            command.env_remove(name);
        }
        command.args(args).env("TS_CONTROL_URL", self.devnet().url());
        command.env("NIXTAIL_SOCKET", self.empty.path().join("sock"));
        command
    }

    /// Ends control, relay and STUN.
    pub(crate) fn end(&mut self) {
        if let Some(devnet) = self.devnet.take() {
            self.runtime.block_on(devnet.shutdown());
        }
    }
}

impl Drop for Tailnet {
    fn drop(&mut self) {
        self.end();
    }
}

/// Runs a command to its end.
pub(crate) fn run(mut command: Command) -> Output {
    process::run(&mut command, 2 * PATIENCE)
}

/// The JSON that a command has written, however it ended.
pub(crate) fn json(output: &Output) -> Value {
    let said = || String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}; {}", said()))
}
