//! How a command joins the tailnet: flags, then environment, then default.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser as _};
use nixtail_proto::credential;
use nixtail_proto::proxy::Proxies;

use crate::agent::{Config, JOIN_DEADLINE};
use crate::auth::{self, Credential};
use crate::control::Person;
use crate::report::{Exit, Failure};
use crate::state::{KeptIdentity, StateFolder};

/// Tailscale's own control plane.
pub(super) const DEFAULT_LOGIN_SERVER: &str = "https://controlplane.tailscale.com";

/// The flags of every command that joins.
#[derive(clap::Args)]
pub(super) struct JoinArgs {
    /// What to log in with: an auth key or an OAuth client's secret, or `file:PATH` of a file that holds it, `file:-` for stdin
    /// [env: TS_AUTHKEY; TS_CLIENT_SECRET; TS_CLIENT_ID with TS_ID_TOKEN, or with TS_AUDIENCE on GitHub; each also as NAME_FILE].
    #[arg(long, value_name = "KEY")]
    auth_key: Option<String>,
    /// The control server.
    // An empty variable is an unset one, here and below: workflows set them so.
    #[arg(long, env = "TS_CONTROL_URL", value_name = "URL", default_value = DEFAULT_LOGIN_SERVER, value_parser = login_server)]
    login_server: String,
    /// The name of this node [default: this machine's].
    #[arg(long, env = "TS_HOSTNAME", value_name = "NAME")]
    hostname: Option<String>,
    /// The tags of this node, with or without `tag:`, separated by commas or spaces.
    #[arg(long, env = "TS_TAGS", value_name = "TAGS")]
    tags: Option<String>,
    /// Keep this node's identity in this folder: it isn't ephemeral then, stays known to control when it ends, and comes
    /// back as the same node without its auth key [default: memory only, a new node each time].
    #[arg(long, value_name = "FOLDER", env = "NIXTAIL_STATE_DIR", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    state_dir: Option<PathBuf>,
    /// The UDP port for direct connections; 0 takes any.
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    port: u16,
    /// Seconds that joining may take; it is tried again and again until then.
    #[arg(long, value_name = "SECONDS", default_value_t = JOIN_DEADLINE.as_secs(), value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    #[command(flatten)]
    pub(super) socket: super::socket::SocketArgs,
    /// Reach peers through relays only, as where no UDP passes. Without it, that is found out.
    #[arg(long, conflicts_with = "no_derp")]
    no_direct: bool,
    /// For tests: reach peers directly only.
    #[arg(long, hide = true)]
    no_derp: bool,
}

impl JoinArgs {
    fn state_dir(&self) -> Option<&Path> {
        self.state_dir.as_deref().filter(|folder| !folder.as_os_str().is_empty())
    }

    /// Whether anything is named that this node could log in with, or come back with. Whether it is good, [`Self::credential`] tells.
    pub(super) fn names_way_in(&self) -> bool {
        let is_set = |name: &String| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        // What GitHub gives to any job is no credential by itself.
        let mut ours = credential::variables().filter(|name| name.starts_with("TS_"));
        self.auth_key.is_some() || self.state_dir().is_some() || ours.any(|name| is_set(&name))
    }

    /// What to log in with, from wherever it was given. `None`: nothing, and a kept identity or a person may do.
    /// `asks_person`: whether one is waited for even where nobody sits at a terminal.
    pub(super) fn credential(&self, asks_person: bool) -> Result<Option<Credential>, Failure> {
        if self.auth_key.as_ref().is_some_and(|given| !given.starts_with("file:")) {
            super::say(
                &"the auth key stands on the command line, where every user of this machine can read it; \
                  use TS_AUTHKEY or --auth-key file:PATH",
            );
        }
        let found = auth::find(self.auth_key.as_deref(), |name| std::env::var(name).ok());
        let wrong = |error: &dyn std::fmt::Display| Failure::new(Exit::Configuration, error);
        let credential = found.map_err(|error| wrong(&error))?;
        if credential.is_none() && self.state_dir().is_none() && !has_person(asks_person) {
            return Err(wrong(&"there is nothing to log in with").next(
                "set TS_AUTHKEY, or give --auth-key file:PATH; Tailscale's admin console makes auth keys (Keys) and OAuth \
                 clients (Trust credentials), `headscale preauthkeys create` makes auth keys",
            ));
        }
        if let Some(credential) = &credential {
            credential.check_tags(&self.tags()?).map_err(|error| wrong(&error))?;
        }
        Ok(credential)
    }

    fn tags(&self) -> Result<Vec<String>, Failure> {
        tags(self.tags.as_deref().unwrap_or_default())
    }

    /// The folder for what is to outlive the agent, if one was named.
    pub(super) fn state_folder(&self) -> Result<Option<StateFolder>, Failure> {
        let opened = self.state_dir().map(StateFolder::open).transpose();
        opened.map_err(|error| Failure::new(Exit::Configuration, error))
    }

    /// The identity that is kept in that folder. From now on no other agent has it.
    fn identity(&self) -> Result<Option<KeptIdentity>, Failure> {
        let Some(folder) = self.state_folder()? else { return Ok(None) };
        let kept = folder.identity(&self.login_server, &mut rand::rng());
        kept.map(Some).map_err(|error| Failure::new(Exit::Configuration, error))
    }

    /// Whether this node was given a name.
    pub(super) fn has_hostname(&self) -> bool {
        self.hostname.as_ref().is_some_and(|name| !name.is_empty())
    }

    /// What the agent joins with. `person` is who is told of a login page, where somebody may be.
    pub(super) fn config(&self, credential: Option<Credential>, person: Option<Person>) -> Result<Config, Failure> {
        let hostname = self.hostname.clone().filter(|name| !name.is_empty()).unwrap_or_else(machine_name);
        let is_ephemeral =
            credential.as_ref().and_then(Credential::ephemeral).unwrap_or_else(|| self.state_dir().is_none());
        if is_ephemeral && self.state_dir().is_some() {
            let message = "control forgets an ephemeral node by itself, so that there is nothing to keep of it";
            return Err(Failure::new(Exit::Configuration, message)
                .next("drop `ephemeral=true` from the client's secret or id, or --state-dir"));
        }
        Ok(Config {
            login_server: self.login_server.clone(),
            hostname: nixtail_proto::names::valid_hostname(&hostname),
            tags: self.tags()?,
            ephemeral: is_ephemeral,
            credential,
            identity: self.identity()?,
            person,
            ssh_host_keys: Vec::new(),
            port: self.port,
            direct: !self.no_direct,
            derp: !self.no_derp,
            proxies: Proxies::read(|name| std::env::var(name).ok()),
            join_deadline: Duration::from_secs(self.timeout),
        })
    }
}

/// Whether somebody may be there to log in: at a terminal, or where the command is meant for people. Nobody is in CI.
pub(super) fn has_person(asks_person: bool) -> bool {
    let is_ci = std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false");
    !is_ci && (asks_person || std::io::IsTerminal::is_terminal(&std::io::stderr()))
}

/// The control server, which is Tailscale's where none is named.
pub(super) fn login_server(given: &str) -> Result<String, Infallible> {
    Ok(if given.is_empty() { DEFAULT_LOGIN_SERVER } else { given }.to_owned())
}

fn machine_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Reads a list of tags. The names' own rules are control's matter; what can't be one is told here.
pub(super) fn tags(list: &str) -> Result<Vec<String>, Failure> {
    let words = list.split([',', ' ']).filter(|word| !word.is_empty());
    words
        .map(|word| {
            let name = word.strip_prefix("tag:").unwrap_or(word);
            let starts_right = name.starts_with(|first: char| first.is_ascii_alphabetic());
            let is_name = |character: char| character.is_ascii_alphanumeric() || character == '-';
            if starts_right && name.chars().all(is_name) {
                Ok(format!("tag:{name}"))
            } else {
                Err(Failure::new(Exit::Usage, format!("{word:?} can't be a tag"))
                    .next("a tag is letters, digits and hyphens, and begins with a letter"))
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_come_with_or_without_their_prefix() {
        assert_eq!(tags("tag:ci, builder  x-1").unwrap(), ["tag:ci", "tag:builder", "tag:x-1"]);
        assert_eq!(tags("").unwrap(), Vec::<String>::new());
        assert_eq!(tags("tag:1a").unwrap_err().exit, Exit::Usage);
        assert!(tags("a\u{1b}[0m").is_err());
    }
}
