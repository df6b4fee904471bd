//! What a coordinator is told before it begins.

use std::path::PathBuf;
use std::time::Duration;

use nixtail_proto::run::{Wanted, Who};

use super::mode::{Layout, Mode};
use crate::builder::SSH_PORT;
use crate::direct::{LaneError, SshLinks, store_uri};
use crate::nix::config::{ConfigError, SshHost};

/// What a coordinator is made of.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which builders, and how many.
    pub wanted: Wanted,
    /// The run that builders are claimed for.
    pub run: Option<String>,
    /// What Nix is told of builders instead of what they say themselves.
    pub offer: Offer,
    /// The user to log in as at each of them.
    pub login: String,
    /// After how long a builder that says nothing is lost; see [`nixtail_proto::run::BUILDER_SILENCE`].
    pub builder_silence: Duration,
    /// How Nix is told.
    pub mode: Mode,
    /// By which lanes Nix may reach builders.
    pub transport: Transport,
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

/// What stands in the machines list instead of a builder's own word.
#[derive(Debug, Clone, Default)]
pub struct Offer {
    /// Builds at once on each builder.
    pub max_jobs: Option<u32>,
    /// The speed factor of each builder.
    pub speed_factor: Option<u32>,
    /// Only builds that ask for all of these features go to the builders.
    pub mandatory_features: Vec<String>,
}

/// By which lanes Nix may reach builders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// The direct one where a probe build proves it, else SSH.
    Auto,
    /// The direct one only: no ssh, no host keys.
    Direct,
    /// SSH only.
    Ssh,
}

/// Something that is known before the login can't stand where Nix or ssh are to read it.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub enum OptionsError {
    /// In ssh's configuration.
    Ssh(#[from] ConfigError),
    /// In the URI of a link.
    Link(#[from] LaneError),
}

impl Options {
    /// Whether what is known before the login can stand in the files that Nix and ssh read.
    ///
    /// # Errors
    /// The first path, name or login that can't.
    pub fn check(&self) -> Result<(), OptionsError> {
        let check = |name: &str| -> Result<(), OptionsError> {
            match self.transport {
                Transport::Direct => store_uri(&self.layout.run, name).map(drop)?,
                Transport::Auto | Transport::Ssh => {
                    self.ssh_host(name).block()?;
                    self.ssh_uri(name)?;
                }
            }
            Ok(())
        };
        match &self.wanted.who {
            Who::Named(names) => names.iter().try_for_each(|name| check(name)),
            // Their names are looked at when they are met.
            Who::Tagged { .. } => check("builder"),
        }
    }

    /// How Nix is to reach a builder over SSH.
    pub(super) fn ssh_uri(&self, name: &str) -> Result<String, LaneError> {
        match self.mode {
            Mode::TrustedUser => SshLinks::store_uri(&self.layout.run, name),
            Mode::OwnStore | Mode::System => Ok(format!("ssh-ng://{}@{name}", self.login)),
        }
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
