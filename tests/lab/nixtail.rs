//! The program under test, as a process of its own.

use std::path::PathBuf;
use std::process::{Command, ExitStatus, Output};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::network::Namespace;
use super::process::{Process, run, run_ok};
use super::{PATIENCE, wait_for};

/// A `nixtail` that is on a tailnet.
pub struct Nixtail {
    process: Process,
    folder: TempDir,
    /// From its start to its `ready` line.
    pub start_time: Duration,
}

impl Nixtail {
    /// `nixtail up` with a pre-auth key; returns when it is ready.
    pub fn up(control_url: &str, key: &str, hostname: &str, more: &[&str]) -> Self {
        Self::start("up", control_url, key, hostname, more)
    }

    /// A command that joins and stays, such as `builder`; returns when it is ready.
    pub fn start(command: &str, control_url: &str, key: &str, hostname: &str, more: &[&str]) -> Self {
        Self::start_in(command, control_url, key, hostname, more, &[])
    }

    /// As [`Self::start`], with more in its environment than the key.
    pub fn start_in(
        command: &str,
        control_url: &str,
        key: &str,
        hostname: &str,
        more: &[&str],
        environment: &[(&str, String)],
    ) -> Self {
        Self::start_on(Namespace::default(), command, control_url, key, hostname, more, environment)
    }

    /// As [`Self::start_in`], in another network.
    pub fn start_on(
        network: Namespace,
        command: &str,
        control_url: &str,
        key: &str,
        hostname: &str,
        more: &[&str],
        environment: &[(&str, String)],
    ) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let begun = Instant::now();
        let socket = folder.path().join("sock").display().to_string();
        let mut args = vec![command, "-vv", "--login-server", control_url, "--hostname", hostname, "--socket", &socket];
        args.extend(more);
        let mut env =
            vec![("TS_AUTHKEY", key), ("HOME", folder.path().to_str().expect("a plain path")), ("NO_COLOR", "1")];
        env.extend(environment.iter().map(|(name, value)| (*name, value.as_str())));
        let process = Process::start_in(network, hostname, &program(), args, env, &folder.path().join("log"));
        let mut node = Self { process, folder, start_time: Duration::ZERO };
        wait_for("nixtail to be ready", 2 * PATIENCE, || {
            assert!(node.process.ended().is_none(), "nixtail ended at once:\n{}", node.process.log());
            node.process.log().lines().any(|line| line.starts_with("ready ")).then_some(())
        });
        node.start_time = begun.elapsed();
        node
    }

    /// `nixtail ARGS`, about this agent. Fails the test when it takes longer than a minute.
    pub fn cli(&self, args: &[&str]) -> Output {
        run(&mut self.command(args), 2 * PATIENCE)
    }

    /// As [`Self::cli`], and must succeed; returns its standard output.
    pub fn cli_ok(&self, args: &[&str]) -> String {
        run_ok(&mut self.command(args), 2 * PATIENCE)
    }

    /// `nixtail ARGS` as a command to start or to alter.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(args).env_remove("TS_AUTHKEY").env("NIXTAIL_SOCKET", self.socket());
        command
    }

    /// `nixtail status --json`.
    pub fn status(&self) -> Value {
        serde_json::from_str(&self.cli_ok(&["status", "--json"])).expect("nixtail's status")
    }

    /// Its IPv4 address in the tailnet.
    pub fn ip(&self) -> String {
        self.cli_ok(&["ip", "-4"]).trim().to_owned()
    }

    /// Waits until its netmap has a peer of that name.
    pub fn wait_for_peer(&self, name: &str) {
        wait_for(&format!("nixtail to see {name}"), PATIENCE, || {
            let status = self.status();
            status["peers"].as_array()?.iter().any(|peer| peer["name"] == name).then_some(())
        });
    }

    /// Its local socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("sock")
    }

    /// What it has written.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Sends it a signal and waits for its end.
    pub fn end(&mut self, signal: Signal) -> ExitStatus {
        self.process.signal(signal);
        self.process.wait(PATIENCE)
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        self.process.wait(PATIENCE)
    }
}

/// The program under test.
pub fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_nixtail"))
}
