//! The ways from the coordinator's Nix to the builder's.

use std::error::Error;
use std::process::Command;

use crate::nix::workload::LEAVES;
use crate::stage::Machine;
use crate::stage::tailnet::{NixtailPair, Transport};

/// One way.
#[derive(Debug)]
pub(crate) struct Lane {
    /// As the JSON has it.
    pub(crate) key: &'static str,
    /// As people have it.
    pub(crate) title: &'static str,
    /// Where `nix copy` copies to and from.
    pub(crate) store: String,
    /// The line for `--builders`.
    pub(crate) machine: String,
    environment: Vec<(String, String)>,
}

impl Lane {
    /// OpenSSH at both ends; `host` is a name of root's ssh_config.
    pub(crate) fn ssh(host: &'static str, title: &'static str) -> Self {
        let store = format!("ssh-ng://{host}");
        let machine = format!("{store} {SYSTEM} - {LEAVES} 1");
        Self { key: host, title, store, machine, environment: Vec::new() }
    }

    /// As a coordinator of ours tells Nix, but for `maxJobs`, which is everybody's.
    pub(crate) fn nixtail(transport: Transport, pair: &NixtailPair) -> Result<Self, Box<dyn Error>> {
        let mut columns: Vec<&str> = pair.machine.split_whitespace().collect();
        let jobs = LEAVES.to_string();
        let store = columns.first().copied().unwrap_or_default().to_owned();
        *columns.get_mut(3).ok_or("the coordinator's list of builders has a line without `maxJobs`")? = &jobs;
        let (key, title) = match transport {
            Transport::Ssh => ("nixtail-ssh", "nixtail, SSH lane"),
            Transport::Direct => ("nixtail-direct", "nixtail, direct lane"),
        };
        let environment = pair.environment.clone().into_iter().collect();
        Ok(Self { key, title, store, machine: columns.join(" "), environment })
    }

    /// A program on the coordinator that goes this way.
    pub(crate) fn command(&self, coordinator: &Machine, program: &str, arguments: &[&str]) -> Command {
        let mut command = coordinator.command(program, arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// What the builder builds for.
const SYSTEM: &str = if cfg!(target_arch = "aarch64") { "aarch64-linux" } else { "x86_64-linux" };
