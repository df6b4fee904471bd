//! Where a coordinator writes what Nix reads, and how each place looks afterwards: as before, to the byte.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation};
use tempfile::NamedTempFile;

/// What a kept original is called, behind the file's own name.
const KEPT: &str = ".before-nixtail";
/// What the mark is called that there was no file.
const ABSENT: &str = ".absent-before-nixtail";
/// How often a lock's file may vanish between its opening and its locking: each time another run has just ended.
const LOCK_TRIES: usize = 5;

/// A file that is replaced whole while a coordinator runs, and put back at its end.
///
/// The original itself, be it a file or a symlink, is kept beside it as `<name>.before-nixtail` until then, so that the
/// next run can put it back where this one was killed.
#[derive(Debug)]
pub struct Borrowed {
    path: PathBuf,
    original: Option<Original>,
}

#[derive(Debug)]
struct Original {
    bytes: Vec<u8>,
    /// The mode and the owner of what is read there, which the replacement gets too: who could read the one reads the other.
    mode: u32,
    owner: (u32, u32),
}

/// A place that can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// The system said no.
    #[error("can't {doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another coordinator uses it.
    #[error(
        "another coordinator tells this machine's Nix of its builders (it holds {}); stop it first with `nixtail down --socket ITS-SOCKET`, or use `--mode own-store`",
        path.display()
    )]
    Held {
        /// The lock's file.
        path: PathBuf,
    },
    /// Others could put something of theirs where root's Nix would run it.
    #[error(
        "{} can be written by others, and a root daemon would run what they put there; move it to a folder that only root can write, or use `--mode own-store`",
        path.display()
    )]
    WritableByOthers {
        /// The file or folder.
        path: PathBuf,
    },
}

impl Borrowed {
    /// Takes over the file at `path`, which need not exist.
    ///
    /// # Errors
    /// When it can't be read, or the copy can't be kept.
    pub fn take(path: PathBuf) -> Result<Self, PlaceError> {
        let kept = kept_beside(&path);
        // A run that was killed left the true original here; what stands at `path` is its work.
        if let Some(original) = Original::read(&kept)? {
            return Ok(Self { path, original: Some(original) });
        }
        if fs::exists(absence_beside(&path)).unwrap_or(false) {
            return Ok(Self { path, original: None });
        }
        let original = Original::read(&path)?;
        match &original {
            // A second name for the same thing: owner, mode and, where it is one, the symlink come back with it.
            Some(_) => rustix::fs::linkat(rustix::fs::CWD, &path, rustix::fs::CWD, &kept, AtFlags::empty())
                .map_err(|error| PlaceError::Io { doing: "keep", path: path.clone(), source: error.into() })?,
            None => {
                let folders: Vec<String> =
                    missing_folders(&path).iter().map(|path| path.display().to_string()).collect();
                write_atomically(&absence_beside(&path), folders.join("\n").as_bytes(), 0o600)?;
            }
        }
        Ok(Self { path, original })
    }

    /// What was there before; empty if nothing was.
    #[must_use]
    pub fn original(&self) -> &[u8] {
        self.original.as_ref().map(|original| original.bytes.as_slice()).unwrap_or_default()
    }

    /// Replaces the file in one step, so that a reader sees either the old or the new one.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn replace(&self, bytes: &[u8]) -> Result<(), PlaceError> {
        let mode = self.original.as_ref().map_or(0o644, |original| original.mode);
        write_atomically_for(&self.path, bytes, mode, self.original.as_ref().map(|original| original.owner))
    }

    /// Puts back what a run that was killed has left of the file at `path`; says whether there was anything. Nobody else may
    /// be at it.
    ///
    /// # Errors
    /// When it can't be put back.
    pub fn put_back(path: &Path) -> Result<bool, PlaceError> {
        if !is_left(path) {
            return Ok(false);
        }
        Self::take(path.to_owned())?.give_back().map(|()| true)
    }

    /// Puts back what was there before.
    ///
    /// # Errors
    /// When that can't be written; the kept copy stays then.
    pub fn give_back(self) -> Result<(), PlaceError> {
        match &self.original {
            Some(_) => {
                let kept = kept_beside(&self.path);
                fs::rename(&kept, &self.path).map_err(|source| PlaceError::Io {
                    doing: "put back",
                    path: self.path.clone(),
                    source,
                })?;
                // Where nothing was replaced both names are of one file, and rename(2) does nothing.
                remove(&kept)
            }
            None => {
                remove(&self.path)?;
                let absence = absence_beside(&self.path);
                let made = fs::read_to_string(&absence).unwrap_or_default();
                remove(&absence)?;
                made.lines().for_each(remove_if_empty);
                Ok(())
            }
        }
    }
}

impl Original {
    fn read(path: &Path) -> Result<Option<Self>, PlaceError> {
        let io = |source| PlaceError::Io { doing: "read", path: path.to_owned(), source };
        let absent = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        match fs::symlink_metadata(path) {
            Err(error) if absent(&error) => return Ok(None),
            found => found.map_err(io)?,
        };
        let bytes = match fs::read(path) {
            // A symlink to nothing.
            Err(error) if absent(&error) => return Ok(Some(Self { bytes: Vec::new(), mode: 0o644, owner: (0, 0) })),
            read => read.map_err(io)?,
        };
        let metadata = fs::metadata(path).map_err(io)?;
        let owner = (metadata.uid(), metadata.gid());
        Ok(Some(Self { bytes, mode: metadata.permissions().mode() & 0o7777, owner }))
    }
}

/// A lock beside a file that one process at a time may borrow. It ends with the process, however that ends.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    /// The folders that were made for it.
    made: Vec<PathBuf>,
    _file: fs::File,
}

impl Lock {
    /// Locks the file at `path`, which need not exist.
    ///
    /// # Errors
    /// [`PlaceError::Held`] when another process has it, and when the lock's own file can't be made.
    pub fn take(path: &Path) -> Result<Self, PlaceError> {
        let path = with_suffix(path, ".nixtail-lock");
        let io = |source| PlaceError::Io { doing: "lock", path: path.clone(), source };
        let made = missing_folders(&path);
        fs::create_dir_all(path.parent().unwrap_or_else(|| Path::new("/"))).map_err(io)?;
        for _ in 0..LOCK_TRIES {
            let mut options = fs::OpenOptions::new();
            // Its mode keeps others from locking it.
            options
                .write(true)
                .create(true)
                .mode(0o600)
                .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
            let file = options.open(&path).map_err(io)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(rustix::io::Errno::WOULDBLOCK) => break,
                locked => locked.map_err(|error| io(error.into()))?,
            }
            // Its last holder removed it while we waited to open it: then it locks nothing.
            let ours = file.metadata().map_err(io)?;
            if fs::metadata(&path).is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
                return Ok(Self { path, made, _file: file });
            }
        }
        Err(PlaceError::Held { path })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // One that stays locks nothing.
        let _ = fs::remove_file(&self.path);
        self.made.iter().for_each(remove_if_empty);
    }
}

/// Refuses a path that somebody besides root and `uid` could change, or put another thing in the place of.
///
/// # Errors
/// When it can be written by others, or can't be looked at.
pub fn refuse_writable_by_others(path: &Path, uid: u32) -> Result<(), PlaceError> {
    let whole =
        path.canonicalize().map_err(|source| PlaceError::Io { doing: "find", path: path.to_owned(), source })?;
    for part in whole.ancestors() {
        let metadata =
            fs::metadata(part).map_err(|source| PlaceError::Io { doing: "look at", path: part.to_owned(), source })?;
        let sticky_folder = metadata.is_dir() && metadata.mode() & 0o1000 != 0 && part != whole;
        let others_write = metadata.mode() & 0o022 != 0 && !sticky_folder;
        if others_write || (metadata.uid() != 0 && metadata.uid() != uid) {
            return Err(PlaceError::WritableByOthers { path: part.to_owned() });
        }
    }
    Ok(())
}

/// Writes a file in one step: beside it first, then over it.
///
/// # Errors
/// When the folder can't be written.
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> Result<(), PlaceError> {
    write_atomically_for(path, bytes, mode, None)
}

fn write_atomically_for(path: &Path, bytes: &[u8], mode: u32, owner: Option<(u32, u32)>) -> Result<(), PlaceError> {
    let io = |source| PlaceError::Io { doing: "write", path: path.to_owned(), source };
    let folder = path.parent().unwrap_or_else(|| Path::new("/"));
    fs::create_dir_all(folder).map_err(io)?;
    let mut file = NamedTempFile::new_in(folder).map_err(io)?;
    file.write_all(bytes).map_err(io)?;
    if let Some((uid, gid)) = owner {
        // Only root may; anybody else's file is their own in any case.
        let _ = std::os::unix::fs::fchown(file.as_file(), Some(uid), Some(gid));
    }
    file.as_file().set_permissions(fs::Permissions::from_mode(mode)).map_err(io)?;
    file.persist(path).map_err(|error| io(error.error))?;
    Ok(())
}

fn remove(path: &Path) -> Result<(), PlaceError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(PlaceError::Io { doing: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// The folders above `path` that aren't there, the deepest first.
fn missing_folders(path: &Path) -> Vec<PathBuf> {
    path.ancestors().skip(1).take_while(|folder| !folder.exists()).map(Path::to_path_buf).collect()
}

/// A folder in which somebody has something by now stays.
fn remove_if_empty(folder: impl AsRef<Path>) {
    let _ = fs::remove_dir(folder);
}

/// Whether a run has borrowed the file at `path` and not given it back.
pub fn is_left(path: &Path) -> bool {
    fs::symlink_metadata(kept_beside(path)).is_ok() || absence_beside(path).exists()
}

/// The file that a kept copy, or the mark of an absence, stands beside.
pub fn borrowed_by_name(name: &str) -> Option<&str> {
    [KEPT, ABSENT].iter().find_map(|suffix| name.strip_suffix(suffix))
}

fn kept_beside(path: &Path) -> PathBuf {
    with_suffix(path, KEPT)
}

/// Marks that there was no file before.
fn absence_beside(path: &Path) -> PathBuf {
    with_suffix(path, ABSENT)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_comes_back_to_the_byte() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("machines");
        fs::write(&path, b"old\xff\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let borrowed = Borrowed::take(path.clone()).unwrap();
        assert_eq!(borrowed.original(), b"old\xff\n");
        borrowed.replace(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        borrowed.give_back().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old\xff\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
        assert_eq!(names(folder.path()), ["machines"]);
    }

    #[test]
    fn the_very_same_file_or_symlink_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("elsewhere"), "old").unwrap();
        for target in [None, Some("elsewhere"), Some("nowhere")] {
            let path = folder.path().join("machines");
            match target {
                None => fs::write(&path, "old").unwrap(),
                Some(target) => std::os::unix::fs::symlink(target, &path).unwrap(),
            }
            let before = fs::symlink_metadata(&path).unwrap();
            for replaced in [true, false] {
                let borrowed = Borrowed::take(path.clone()).unwrap();
                assert_eq!(borrowed.original(), if target == Some("nowhere") { &b""[..] } else { b"old" });
                if replaced {
                    borrowed.replace(b"new").unwrap();
                    assert_eq!(fs::read(&path).unwrap(), b"new");
                }
                borrowed.give_back().unwrap();
                let after = fs::symlink_metadata(&path).unwrap();
                assert_eq!((after.ino(), after.mode(), after.uid()), (before.ino(), before.mode(), before.uid()));
                assert_eq!(fs::read_link(&path).ok().as_deref(), target.map(Path::new));
                assert_eq!(names(folder.path()), ["elsewhere", "machines"]);
            }
            fs::remove_file(&path).unwrap();
        }
        assert_eq!(fs::read_to_string(folder.path().join("elsewhere")).unwrap(), "old");
    }

    #[test]
    fn one_at_a_time_may_borrow() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("etc").join("machines");
        let first = Lock::take(&path).unwrap();
        assert!(matches!(Lock::take(&path), Err(PlaceError::Held { .. })));
        drop(first);
        drop(Lock::take(&path).unwrap());
        assert!(names(folder.path()).is_empty(), "the folder that was made for it is gone, too");
    }

    #[test]
    fn what_was_not_there_is_gone_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("machines");
        let borrowed = Borrowed::take(path).unwrap();
        borrowed.replace(b"new").unwrap();
        borrowed.give_back().unwrap();
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn folders_that_were_made_are_removed_even_after_a_kill() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a").join("b").join("file");
        for killed in [false, true] {
            let borrowed = Borrowed::take(path.clone()).unwrap();
            borrowed.replace(b"new").unwrap();
            if killed {
                drop(borrowed);
                assert!(Borrowed::put_back(&path).unwrap());
                assert!(!Borrowed::put_back(&path).unwrap(), "there is nothing left to put back");
            } else {
                borrowed.give_back().unwrap();
            }
            assert!(names(folder.path()).is_empty());
        }
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let borrowed = Borrowed::take(path.clone()).unwrap();
        borrowed.give_back().unwrap();
        assert!(path.parent().unwrap().exists(), "what was there stays");
    }

    #[test]
    fn a_killed_run_is_undone_by_the_next() {
        let folder = tempfile::tempdir().unwrap();
        for before in [Some("old"), None] {
            let path = folder.path().join("machines");
            if let Some(before) = before {
                fs::write(&path, before).unwrap();
            }
            let killed = Borrowed::take(path.clone()).unwrap();
            killed.replace(b"of the killed run").unwrap();
            drop(killed);
            let next = Borrowed::take(path.clone()).unwrap();
            assert_eq!(next.original(), before.unwrap_or_default().as_bytes());
            next.replace(b"of the next run").unwrap();
            next.give_back().unwrap();
            assert_eq!(fs::read_to_string(&path).ok().as_deref(), before);
            let _ = fs::remove_file(&path);
            assert!(names(folder.path()).is_empty());
        }
    }

    #[test]
    fn what_others_can_write_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let uid = fs::metadata(folder.path()).unwrap().uid();
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let file = inner.join("nixtail");
        fs::write(&file, b"").unwrap();
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(refuse_writable_by_others(&file, uid).is_ok());
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(
            matches!(refuse_writable_by_others(&file, uid), Err(PlaceError::WritableByOthers { path }) if path == inner.canonicalize().unwrap())
        );
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(refuse_writable_by_others(&file, uid).is_err());
    }
}
