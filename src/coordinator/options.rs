//! What a coordinator is told before it begins.

use std::path::PathBuf;
use std::time::Duration;

use super::mode::{Layout, Mode};
use crate::builder::SSH_PORT;
use crate::nix::config::{ConfigError, SshHost};

/// What a coordinator is made of.
#[derive(Debug, Clone)]
pub struct Options {
    /// The builders' names in the tailnet.
    pub builders: Vec<String>,
    /// The user to log in as at each of them.
    pub login: String,
    /// How long to wait until all are ready.
    pub wait: Duration,
    /// How Nix is told.
    pub mode: Mode,
    /// Where the files are.
    pub layout: Layout,
    /// This program, which ssh starts.
    pub nixtail: PathBuf,
    /// The socket of this agent.
    pub socket: PathBuf,
    /// `nix-build`, for probes.
    pub nix_build: PathBuf,
    /// The store that Nix is used with, if it isn't the default one.
    pub store: Option<String>,
}

impl Options {
    /// Whether what is known before the login can stand in ssh's configuration at all.
    ///
    /// # Errors
    /// The first path, name or login that can't.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.builders.iter().try_for_each(|name| self.ssh_host(name).block().map(drop))
    }

    pub(super) fn ssh_host(&self, name: &str) -> SshHost {
        SshHost {
            alias: name.to_owned(),
            node: name.to_owned(),
            port: SSH_PORT,
            user: self.login.clone(),
            nixtail: self.nixtail.clone(),
            socket: self.socket.clone(),
            known_hosts: self.layout.known_hosts(),
        }
    }
}
