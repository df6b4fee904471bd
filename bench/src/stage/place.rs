//! Where programs are started: in a machine of the stage, or here, where there is no stage.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::Machine;
use super::process::{Running, run_command};

/// How long a command may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// One of the two.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place<'a> {
    /// Namespaces of its own.
    Machine(&'a Machine),
    /// This machine as it is, with a folder for logs and sockets.
    Here(&'a Path),
}

impl Place<'_> {
    /// A program to be run there, with an environment of its own. It ends with whoever starts it.
    pub(crate) fn command(self, program: &str, arguments: &[&str]) -> Command {
        match self {
            Self::Machine(machine) => machine.command(program, arguments),
            Self::Here(folder) => {
                let mut command = Command::new("setpriv");
                command.args(["--pdeathsig", "KILL", program]).args(arguments);
                command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", folder);
                command
            }
        }
    }

    /// A path of its own.
    pub(crate) fn path(self, name: &str) -> PathBuf {
        match self {
            Self::Machine(machine) => machine.path(name),
            Self::Here(folder) => folder.join(name),
        }
    }

    /// Starts a program that stays.
    pub(crate) fn start(self, name: &str, command: Command) -> Result<Running, Box<dyn Error>> {
        Running::start(name, command, &self.path(&format!("{name}.log")))
    }

    /// Runs a program to its end; returns what it wrote to stdout.
    pub(crate) fn run(self, program: &str, arguments: &[&str]) -> Result<String, Box<dyn Error>> {
        run_command(self.command(program, arguments), DEADLINE)
    }
}
