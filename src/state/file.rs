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
pub(super) fn create(path: &Path, content: &[u8]) -> Result<bool, StateError> {
    let failed = |source| StateError::File { path: path.to_owned(), source };
    let folder = path.parent().unwrap_or_else(|| Path::new("/"));
    // Its permissions are 0600 from the start.
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    file.write_all(content).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
    match file.persist_noclobber(path) {
        Ok(_) => {}
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(failed(error.error)),
    }
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    Ok(true)
}
