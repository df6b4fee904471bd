//! The tailnet that joins the machines over the link: nixtail's devnet as control and relay, and what meets there.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::time::Duration;

use super::Machine;
use super::network::CONTROL;
use super::process::{Running, wait_until};

/// How long each step may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Control, relay and STUN; everybody may reach everybody.
#[derive(Debug)]
pub(crate) struct Tailnet {
    _devnet: Running,
    url: String,
    key: String,
    /// What else nixtail finds in its environment.
    environment: Vec<(String, String)>,
}

/// Which of nixtail's lanes a coordinator is told to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Ssh,
    Direct,
}

impl Transport {
    /// As `--transport` has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ssh => "ssh",
            Self::Direct => "direct",
        }
    }
}

/// A builder and its coordinator. Dropping it ends both, the coordinator first.
#[derive(Debug)]
pub(crate) struct NixtailPair {
    _coordinator: Running,
    _builder: Running,
    /// The coordinator's line of the machines file.
    pub(crate) machine: String,
    /// What Nix must find in its environment.
    pub(crate) environment: BTreeMap<String, String>,
}

/// tailscaled on either machine, each with a TUN device. Dropping it ends both.
#[derive(Debug)]
pub(crate) struct TailscaledPair {
    _coordinator: Running,
    _builder: Running,
    /// The builder's address in the tailnet.
    pub(crate) builder_address: String,
}

impl Tailnet {
    /// Starts control in our own network namespace.
    pub(crate) fn start(stage: &Path, environment: Vec<(String, String)>) -> Result<Self, Box<dyn Error>> {
        let mut command = std::process::Command::new(stage.join("bin/nixtail"));
        command.args(["devnet", "--listen", CONTROL, "--force", "--allow-all"]);
        let mut devnet = Running::start("devnet", command, &stage.join("devnet.log"))?;
        let ready = devnet.wait_until_ready(PATIENCE)?;
        let word = |name: &str| {
            let word = ready.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            word.map(str::to_owned).ok_or_else(|| format!("the devnet's ready line has no {name}"))
        };
        Ok(Self { url: word("TS_CONTROL_URL")?, key: word("TS_AUTHKEY")?, environment, _devnet: devnet })
    }

    /// Starts a builder and a coordinator of ours; returns when Nix may use the builder. `transport` is `None` where
    /// this nixtail has only one.
    pub(crate) fn nixtail(
        &self,
        stage: &Path,
        [coordinator, builder]: [&Machine; 2],
        transport: Option<Transport>,
    ) -> Result<NixtailPair, Box<dyn Error>> {
        let program = stage.join("bin/nixtail").display().to_string();
        let lane = transport.unwrap_or(Transport::Ssh).name();
        let start = |machine: &Machine, role: &str, more: &[&str]| -> Result<Running, Box<dyn Error>> {
            let name = format!("{role}-{lane}");
            // Sockets want short paths; /run is the machine's own, but the stage must see the run's files.
            let socket = machine.path(&format!("{name}.sock")).display().to_string();
            let joining =
                [role, "--login-server", &self.url, "--hostname", &name, "--socket", &socket, "--login", "root"];
            let mut command = machine.command(&program, &[&joining, more].concat());
            command.env("TS_AUTHKEY", &self.key);
            command.envs(self.environment.iter().map(|(name, value)| (name, value)));
            machine.start_inside(&name, command)
        };
        let mut building = start(builder, "builder", &["--idle-timeout", "0"])?;
        building.wait_until_ready(PATIENCE)?;
        let run = coordinator.path(&format!("run-{lane}"));
        let named = format!("builder-{lane}");
        let run_folder = run.display().to_string();
        let mut more = vec!["--builders", named.as_str(), "--mode", "own-store", "--run-dir", run_folder.as_str()];
        if let Some(transport) = transport {
            more.extend(["--transport", transport.name()]);
        }
        let mut coordinating = start(coordinator, "coordinator", &more)?;
        coordinating.wait_until_ready(2 * PATIENCE)?;
        let machines = std::fs::read_to_string(run.join("machines"))?;
        let machine = machines.lines().find(|line| !line.trim().is_empty());
        let machine = machine.ok_or("the coordinator's list of builders is empty")?.to_owned();
        // What a user's shell would have after `. RUN/env`.
        let script =
            ". \"$0\"; for name in NIX_CONFIG NIX_SSHOPTS; do eval \"printf '%s=%s\\0' $name \\\"\\$$name\\\"\"; done";
        let env = run.join("env").display().to_string();
        let told = coordinator.run("sh", &["-c", script, &env])?;
        let told = told.split('\0').filter_map(|line| line.split_once('='));
        let environment = told.filter(|(_, value)| !value.is_empty());
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Ok(NixtailPair { _coordinator: coordinating, _builder: building, machine, environment })
    }

    /// Starts tailscaled on both machines; returns when they reach each other directly.
    pub(crate) fn tailscaled(&self, stage: &Path, machines: [&Machine; 2]) -> Result<TailscaledPair, Box<dyn Error>> {
        let program = |name: &str| stage.join("bin").join(name).display().to_string();
        let mut running = Vec::new();
        let names = ["tailscaled-coordinator", "tailscaled-builder"];
        for (machine, name) in machines.into_iter().zip(names) {
            let socket = machine.path("tailscaled.sock");
            // A socket of an earlier one.
            let _ = std::fs::remove_file(&socket);
            let state = format!("--socket={}", socket.display());
            let mut command = machine.command(
                &program("tailscaled"),
                &["--tun=tailscale0", "--port=0", "--state=mem:", "--statedir=/run/tailscale", &state],
            );
            command.envs([("TS_NO_LOGS_NO_SUPPORT", "true"), ("TS_DISABLE_PORTMAPPER", "1")]);
            running.push(machine.start_inside(name, command)?);
            wait_until("tailscaled's socket", PATIENCE, || socket.exists().then_some(()))?;
            let (url, key) = (&self.url, &self.key);
            let hostname = format!("--hostname={name}");
            tailscale(
                stage,
                machine,
                &[
                    "up",
                    "--login-server",
                    url,
                    "--auth-key",
                    key,
                    &hostname,
                    "--accept-dns=false",
                    "--netfilter-mode=off",
                    "--timeout=30s",
                ],
            )?;
        }
        let address = tailscale(stage, machines[1], &["ip", "-4"])?.trim().to_owned();
        // It fails until an answer came directly.
        wait_until("a direct path between tailscaleds", PATIENCE, || {
            tailscale(stage, machines[0], &["ping", "-c=5", "--timeout=2s", &address]).ok()
        })?;
        let (Some(builder), Some(coordinator)) = (running.pop(), running.pop()) else {
            return Err("tailscaled wasn't started twice".into());
        };
        Ok(TailscaledPair { _coordinator: coordinator, _builder: builder, builder_address: address })
    }
}

fn tailscale(stage: &Path, machine: &Machine, arguments: &[&str]) -> Result<String, Box<dyn Error>> {
    let program = stage.join("bin/tailscale").display().to_string();
    let socket = format!("--socket={}", machine.path("tailscaled.sock").display());
    machine.run(&program, &[&[socket.as_str()], arguments].concat())
}
