//! Which agent a command talks to.

use std::path::PathBuf;

use crate::local::{BindError, Client, SocketPath};
use crate::report::{Exit, Failure};

/// The flag that names an agent's socket.
#[derive(clap::Args)]
pub(super) struct SocketArgs {
    /// The agent's Unix socket [default: $XDG_RUNTIME_DIR/nixtail.sock, or /tmp/nixtail-UID/nixtail.sock].
    #[arg(long, env = "NIXTAIL_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl SocketArgs {
    pub(super) fn path(&self) -> Result<SocketPath, Failure> {
        // An empty variable is an unset one.
        let asked = self.socket.as_deref().filter(|path| !path.as_os_str().is_empty());
        SocketPath::choose(asked).map_err(|error| refused(&error))
    }

    pub(super) fn client(&self) -> Result<Client, Failure> {
        Ok(Client::new(self.path()?))
    }
}

/// Why the socket can't be had, with a way out.
pub(super) fn refused(error: &BindError) -> Failure {
    let next = match error {
        BindError::TooLong { .. } => "name a shorter one with --socket",
        BindError::InUse(_) => "stop it with `nixtail down`, or give this one a path of its own with --socket",
        BindError::NotASocket(_) => "name another path with --socket; the file is left as it is",
        BindError::UnsafeFolder(_) => "name a path in a folder of your own with --socket",
        BindError::Io { .. } => "name a path that this user can write with --socket",
    };
    Failure::new(Exit::Configuration, error).next(next)
}
