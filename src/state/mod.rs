//! What outlives an agent, for who wants that: a folder with one file a thing.
//!
//! The folder is for its owner alone (0700, files 0600). A file is written whole or not at all, and never replaced by a
//! new thing because the old one can't be read: then the start fails, and somebody looks.

mod file;
mod identity;

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

pub use identity::KeptIdentity;

#[cfg(feature = "ssh-nix")]
use crate::ssh::{HostKey, HostKeyError};

/// The host key of the SSH endpoint, in OpenSSH's form.
#[cfg(feature = "ssh-nix")]
const HOST_KEY: &str = "ssh_host_ed25519_key";

/// A folder of state. One agent at a time should use it.
#[derive(Debug, Clone)]
pub struct StateFolder {
    path: PathBuf,
}

/// What is wrong with a folder of state, or with what is in it. All of it is for its owner to mend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The folder can't be used.
    #[error("can't use the state folder {path}: {source}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is something else than a folder.
    #[error("{0} is no folder (a link to one isn't followed); name a folder")]
    NotAFolder(PathBuf),
    /// It, or a file in it, belongs to another user.
    #[error("{path} belongs to uid {owner}, and this process is uid {own}; use a folder of your own")]
    Foreign {
        /// The folder or file.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        own: u32,
    },
    /// Others may read or write it.
    #[error(
        "{path} is open to other users (mode {mode:03o}); run `chmod {wanted:03o} {path}` if nobody has read it, else remove it"
    )]
    Open {
        /// The folder or file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
        /// The permissions that it should have.
        wanted: u32,
    },
    /// A file can't be read or written.
    #[error("can't use {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds something else than it should, or not all of it.
    #[cfg(feature = "ssh-nix")]
    #[error("{path} holds no host key that can be used: {source}; restore it, or remove it to get a new key")]
    HostKey {
        /// The file.
        path: PathBuf,
        /// Why.
        source: HostKeyError,
    },
    /// A file holds something else than an identity, or not all of it.
    #[error("{path} holds no identity that can be used: {why}; restore it, or remove it to join as a new node")]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The identity is one towards another control server, which this one doesn't know.
    #[error(
        "{path} holds the identity of a node of {of}, not of {wanted}; give each control server its own --state-dir"
    )]
    OtherServer {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        of: String,
        /// Which one is to be joined.
        wanted: String,
    },
    /// Another agent has this identity. Two of them would take the tailnet's packets from each other.
    #[error("another nixtail uses the state folder {0}; stop it, or name another folder with --state-dir")]
    InUse(PathBuf),
}

impl StateFolder {
    /// Opens it; makes it, with its parents, where there is none.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let unusable = |source| StateError::Folder { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => StateError::NotAFolder(path.to_owned()),
            _ => unusable(error),
        })?;
        let metadata = fs::symlink_metadata(path).map_err(unusable)?;
        if !metadata.is_dir() {
            return Err(StateError::NotAFolder(path.to_owned()));
        }
        check_private(path, &metadata, 0o700)?;
        Ok(Self { path: path.to_owned() })
    }

    /// The host key that is kept here; a new one from `rng`, which is then kept, where there is none.
    #[cfg(feature = "ssh-nix")]
    pub fn host_key(&self, rng: &mut dyn rand::CryptoRng) -> Result<HostKey, StateError> {
        let path = self.path.join(HOST_KEY);
        let failed = |source| StateError::HostKey { path: path.clone(), source };
        if let Some(text) = file::read(&path)? {
            return HostKey::from_openssh(&text).map_err(failed);
        }
        let key = HostKey::generate(rng).map_err(failed)?;
        if file::create(&path, key.to_openssh().map_err(failed)?.as_bytes())? {
            return Ok(key);
        }
        // Another agent was faster; what it wrote is whole.
        let text = file::read(&path)?.unwrap_or_default();
        HostKey::from_openssh(&text).map_err(failed)
    }
}

/// Whether nobody but us has access.
fn check_private(path: &Path, metadata: &fs::Metadata, wanted: u32) -> Result<(), StateError> {
    let own = rustix::process::geteuid().as_raw();
    if metadata.uid() != own {
        return Err(StateError::Foreign { path: path.to_owned(), owner: metadata.uid(), own });
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(StateError::Open { path: path.to_owned(), mode, wanted });
    }
    Ok(())
}

#[cfg(test)]
#[cfg(feature = "ssh-nix")]
mod tests;
