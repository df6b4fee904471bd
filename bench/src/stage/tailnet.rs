//! The tailnet that joins the machines over the link: nixtail's devnet as control and relay, and what meets there.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::time::Duration;

use super::Machine;
use super::network::CONTROL;
use super::place::Place;
use super::process::{Running, wait_until, word};
use super::tailscaled::{Networking, Settings, Tailscaled};

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
pub(crate) struct TailscaledPair<'a> {
    _coordinator: Tailscaled<'a>,
    _builder: Tailscaled<'a>,
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
        let (url, key) = (word(&ready, "TS_CONTROL_URL")?, word(&ready, "TS_AUTHKEY")?);
        Ok(Self { url, key, environment, _devnet: devnet })
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
    pub(crate) fn tailscaled<'a>(
        &self,
        stage: &Path,
        machines: [&'a Machine; 2],
    ) -> Result<TailscaledPair<'a>, Box<dyn Error>> {
        let start = |machine: &'a Machine, name: &str| {
            let (control, key) = (self.url.as_str(), self.key.as_str());
            let settings = Settings { name, control, key, networking: Networking::Tun, relayed: false };
            Tailscaled::start(&stage.join("bin"), Place::Machine(machine), &settings)
        };
        let coordinator = start(machines[0], "tailscaled-coordinator")?;
        let builder = start(machines[1], "tailscaled-builder")?;
        wait_until("a direct path between tailscaleds", PATIENCE, || {
            coordinator.is_direct(&builder.address).ok()?.then_some(())
        })?;
        Ok(TailscaledPair { _coordinator: coordinator, builder_address: builder.address.clone(), _builder: builder })
    }
}
