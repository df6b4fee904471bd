//! A file of state: read and written whole, for its owner alone.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use zeroize::Zeroizing;

use super::{StateError, check_private};

/// Far more than any file of state has.
const MAX_LENGTH: u64 = 64 * 1024;

/// What `path` holds; `None` where there is no such file. Links aren't followed.
pub(super) fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, StateError> {
    let failed = |source| StateError::File { path: path.to_owned(), source };
    // Not to wait for a writer, where it is a pipe.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() || metadata.len() > MAX_LENGTH {
        return Err(failed(io::Error::other("no file of state: not an ordinary file, or too long")));
    }
    check_private(path, &metadata, 0o600)?;
    let mut content = Zeroizing::new(Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or_default() + 1));
    (&file).take(MAX_LENGTH).read_to_end(&mut content).map_err(failed)?;
    Ok(Some(content))
}

/// Makes `path` with this content, in one step: after a crash it is there whole or not at all. False where there is one
/// already, which stays as it is.
#[cfg(feature = "ssh-nix")]
pub(super) fn create(path: &Path, content: &[u8]) -> Result<bool, StateError> {
    let failed = |source| StateError::File { path: path.to_owned(), source };
    match write_beside(path, content)?.persist_noclobber(path) {
        Ok(_) => {}
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(failed(error.error)),
    }
    sync_folder(path)?;
    Ok(true)
}

/// Puts this content at `path`, in one step: after a crash the file has the old content or the new one.
pub(super) fn replace(path: &Path, content: &[u8]) -> Result<(), StateError> {
    let persisted = write_beside(path, content)?.persist(path);
    persisted.map_err(|error| StateError::File { path: path.to_owned(), source: error.error })?;
    sync_folder(path)
}

/// Removes it, if it is there.
pub(super) fn remove(path: &Path) -> Result<(), StateError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(StateError::File { path: path.to_owned(), source })
        }
        _ => sync_folder(path),
    }
}

/// Locks `path`, which is made where it isn't there, until what is returned is dropped. `None`: somebody else has it.
pub(super) fn lock(path: &Path) -> Result<Option<File>, StateError> {
    let failed = |source| StateError::File { path: path.to_owned(), source };
    let flags = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or_default();
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(0o600).custom_flags(flags).open(path);
    let file = file.map_err(failed)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(failed(error.into())),
    }
}

/// A new file in the folder of `path`, with this content, that isn't called anything yet.
fn write_beside(path: &Path, content: &[u8]) -> Result<tempfile::NamedTempFile, StateError> {
    let failed = |source| StateError::File { path: path.to_owned(), source };
    // Its permissions are 0600 from the start.
    let mut file = tempfile::NamedTempFile::new_in(folder_of(path)).map_err(failed)?;
    file.write_all(content).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
    Ok(file)
}

fn sync_folder(path: &Path) -> Result<(), StateError> {
    let synced = File::open(folder_of(path)).and_then(|folder| folder.sync_all());
    synced.map_err(|source| StateError::File { path: path.to_owned(), source })
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or_else(|| Path::new("/"))
}
