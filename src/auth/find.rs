//! The credential that this process was given.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use nixtail_proto::secret::Secret;
use zeroize::Zeroizing;

use super::{AuthError, Credential};
use nixtail_proto::credential::is_stdin;

/// Bytes of a file at most. A key is a line; an id token is some KiB.
const MAX_FILE: usize = 64 << 10;

/// The credential of the flag `--auth-key` or, without one, of the environment, where `variable` looks. See
/// [`Credential::find`] for names and order. `None`: there is none.
///
/// # Errors
/// When there are two, or one that can't be used.
pub fn find(flag: Option<&str>, variable: impl Fn(&str) -> Option<String>) -> Result<Option<Credential>, AuthError> {
    Credential::find(flag, variable, read_file)
}

/// What a file holds that `from` named. It may be a pipe; `-` is stdin, which holds one credential.
pub(super) fn read_file(from: &str, path: &Path) -> Result<Secret, AuthError> {
    let failed = |source| AuthError::File { from: from.to_owned(), path: path.display().to_string(), source };
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FILE + 1));
    let limit = u64::try_from(MAX_FILE).unwrap_or(u64::MAX) + 1;
    let read = if is_stdin(path) {
        io::stdin().take(limit).read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes))
    };
    read.map_err(failed)?;
    if bytes.len() > MAX_FILE {
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, "it is too long")));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| failed(io::ErrorKind::InvalidData.into()))?;
    Ok(Secret::new(text.to_owned()))
}
