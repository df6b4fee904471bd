//! Where the local API's socket is, and how it gets there and goes away.

use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use thiserror::Error;

/// The longest path that fits into `sockaddr_un`, without its NUL.
const MAX_PATH: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// A path at which an agent serves the local API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketPath(PathBuf);

/// A listener at its path. Callers queue until it is served. The file goes when this is dropped.
#[derive(Debug)]
pub struct BoundSocket {
    pub(super) listener: UnixListener,
    path: SocketPath,
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        let path = self.path.as_path();
        if let Err(error) = std::fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "the local socket couldn't be removed");
        }
    }
}

/// Why the local API can't be served at a path.
#[derive(Debug, Error)]
pub enum BindError {
    /// It doesn't fit into a socket address.
    #[error("the socket path {path} is {length} bytes long, and the system takes {MAX_PATH} at the most")]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// Another agent answers there.
    #[error("another agent already runs at {0}")]
    InUse(PathBuf),
    /// Something that is no socket stands there.
    #[error("{0} exists and is no socket")]
    NotASocket(PathBuf),
    /// The folder belongs to somebody else, or others may write to it.
    #[error("the folder {0} isn't private to this user")]
    UnsafeFolder(PathBuf),
    /// The system refused.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl SocketPath {
    /// The path that was asked for, or else the default of this user: `$XDG_RUNTIME_DIR/nixtail.sock`, or
    /// `/tmp/nixtail-UID/nixtail.sock` where there is no such folder.
    ///
    /// # Errors
    /// A path that no socket can have.
    pub fn choose(asked: Option<&Path>) -> Result<Self, BindError> {
        let path = match asked {
            Some(path) => std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
            None => default_path(),
        };
        let length = path.as_os_str().len();
        if length > MAX_PATH {
            return Err(BindError::TooLong { path, length });
        }
        Ok(Self(path))
    }

    /// The path itself.
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// Binds a listener, mode 0600. A socket that nobody serves any more is replaced.
    ///
    /// # Errors
    /// Why that can't be done here.
    pub fn bind(&self) -> Result<BoundSocket, BindError> {
        let folder = self.0.parent().unwrap_or_else(|| Path::new("/"));
        prepare_folder(folder, self.0 == default_path())?;
        // Two agents that find the same stale socket must not remove each other's new one.
        let open = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder_lock =
            rustix::fs::open(folder, open, Mode::empty()).map_err(self.failed("can't open the folder of"))?;
        rustix::fs::flock(&folder_lock, FlockOperation::LockExclusive)
            .map_err(self.failed("can't lock the folder of"))?;
        self.clear_stale()?;
        let listener = UnixListener::bind(&self.0).map_err(self.failed("can't bind"))?;
        let owner_only = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&self.0, owner_only).map_err(self.failed("can't set the mode of"))?;
        Ok(BoundSocket { listener, path: self.clone() })
    }

    fn clear_stale(&self) -> Result<(), BindError> {
        let metadata = match std::fs::symlink_metadata(&self.0) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(self.failed("can't look at")(error)),
        };
        if !metadata.file_type().is_socket() {
            return Err(BindError::NotASocket(self.0.clone()));
        }
        match UnixStream::connect(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(&self.0).map_err(self.failed("can't remove the stale socket"))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Ok(_) => Err(BindError::InUse(self.0.clone())),
            Err(error) => Err(self.failed("can't probe")(error)),
        }
    }

    fn failed<E: Into<io::Error>>(&self, action: &'static str) -> impl FnOnce(E) -> BindError {
        let path = self.0.clone();
        move |source| BindError::Io { action, path, source: source.into() }
    }
}

fn default_path() -> PathBuf {
    let uid = rustix::process::getuid().as_raw();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|folder| folder.is_absolute());
    match runtime.filter(|folder| folder.is_dir()) {
        Some(folder) => folder.join("nixtail.sock"),
        None => PathBuf::from(format!("/tmp/nixtail-{uid}/nixtail.sock")),
    }
}

/// Makes the folder if it's missing, 0700. Our own default folder must be private: in /tmp anyone may have made it first.
fn prepare_folder(folder: &Path, is_default: bool) -> Result<(), BindError> {
    let made = std::fs::DirBuilder::new().mode(0o700).create(folder);
    match made {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => return Err(BindError::Io { action: "can't make the folder", path: folder.to_owned(), source }),
    }
    let metadata = std::fs::symlink_metadata(folder).map_err(|source| BindError::Io {
        action: "can't look at the folder",
        path: folder.to_owned(),
        source,
    })?;
    let private = metadata.uid() == rustix::process::getuid().as_raw() && metadata.mode() & 0o022 == 0;
    if is_default && !(metadata.is_dir() && private) {
        return Err(BindError::UnsafeFolder(folder.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = SocketPath::choose(Some(&folder.path().join("a.sock"))).unwrap();
        let first = path.bind().unwrap();
        assert!(matches!(path.bind(), Err(BindError::InUse(_))));
        drop(first);
        drop(UnixListener::bind(path.as_path()).unwrap());
        assert!(path.as_path().exists(), "an agent that was killed leaves its socket");
        let second = path.bind().unwrap();
        let mode = std::fs::metadata(path.as_path()).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(second);
        assert!(!path.as_path().exists());
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("precious");
        std::fs::write(&file, "data").unwrap();
        let error = SocketPath::choose(Some(&file)).unwrap().bind().unwrap_err();
        assert!(matches!(error, BindError::NotASocket(_)));
        assert_eq!(std::fs::read(&file).unwrap(), b"data");
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_refused_with_its_length() {
        let long = PathBuf::from(format!("/{}", "x".repeat(200)));
        let error = SocketPath::choose(Some(&long)).unwrap_err();
        assert!(error.to_string().contains("201 bytes"), "{error}");
    }

    #[test]
    fn the_default_folder_must_be_private() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(prepare_folder(folder.path(), true), Err(BindError::UnsafeFolder(_))));
        assert!(prepare_folder(folder.path(), false).is_ok());
    }
}
