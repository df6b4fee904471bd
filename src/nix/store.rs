//! Which store a builder serves, where it is on disk, and who opens it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use rustix::fs::Access as Permission;
use serde::{Deserialize, Serialize};

/// Nix' own folders, where nothing else is said (the Nix manual, "Common Environment Variables").
const STORE: &str = "/nix/store";
const STATE: &str = "/nix/var/nix";
const LOG: &str = "/nix/var/log/nix";

/// The first Nix whose daemon makes a chroot store of the user's where there is no `/nix`. Its other programs have done so
/// since 2.10 (`openUncachedStore` in `src/nix/unix/daemon.cc`).
const FIRST_WITH_OWN_CHROOT: (u32, u32) = (2, 34);

/// Which store a builder serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreConfig {
    /// The system's: through its daemon, or directly where this user may write it.
    System,
    /// A chroot store in a folder (`--store FOLDER`), whose store paths still begin with `/nix/store`. It needs user
    /// namespaces to build.
    Chroot {
        /// The folder.
        root: PathBuf,
    },
    /// A store of another name (`NIX_STORE_DIR` and its like): no namespaces, but both ends must have the same name.
    Private {
        /// The store: `NIX_STORE_DIR`.
        store: PathBuf,
        /// Its database: `NIX_STATE_DIR`.
        state: PathBuf,
        /// The logs of builds: `NIX_LOG_DIR`.
        log: PathBuf,
    },
}

/// Who opens a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreAccess {
    /// Our own child, `nix-daemon --stdio`.
    Direct,
    /// The system's daemon, to which our child relays.
    Daemon,
}

/// Where a store is, and who opens it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The folder on disk.
    pub on_disk: PathBuf,
    /// Who opens it.
    pub access: StoreAccess,
}

impl StoreConfig {
    /// A store in one folder: `FOLDER/store`, `FOLDER/var/nix`, `FOLDER/var/log/nix`.
    pub fn private(root: &Path) -> Self {
        Self::Private { store: root.join("store"), state: root.join("var/nix"), log: root.join("var/log/nix") }
    }

    /// What the environment names, by `NIX_STORE_DIR`, `NIX_STATE_DIR` and `NIX_LOG_DIR`: Nix' own meaning, so that whoever
    /// runs Nix with a store elsewhere serves that one. The system's where none is set.
    pub fn from_environment(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let named = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let (store, state, log) = (named("NIX_STORE_DIR"), named("NIX_STATE_DIR"), named("NIX_LOG_DIR"));
        if store.is_none() && state.is_none() && log.is_none() {
            return Self::System;
        }
        let or = |named: Option<PathBuf>, default: &str| named.unwrap_or_else(|| default.into());
        Self::Private { store: or(store, STORE), state: or(state, STATE), log: or(log, LOG) }
    }

    /// The folder that the names of store paths begin with.
    pub fn store_folder(&self) -> PathBuf {
        match self {
            Self::System | Self::Chroot { .. } => STORE.into(),
            Self::Private { store, .. } => store.clone(),
        }
    }

    /// What a client may give with `--store`, and Nix as a `remote-store` parameter.
    pub fn published(&self) -> Option<String> {
        match self {
            Self::System | Self::Private { .. } => None,
            Self::Chroot { root } => Some(root.display().to_string()),
        }
    }

    /// The socket of the daemon that serves it, if there is one.
    pub fn daemon_socket(&self) -> Option<PathBuf> {
        Some(self.state_folder()?.join("daemon-socket/socket"))
    }

    /// Where it is and who opens it, as Nix of that version decides for a user whose home is `home`
    /// (`NixOS/nix` `src/libstore/store-api.cc`, later `store-registration.cc`, "auto").
    pub fn opened(&self, home: &Path, nix_version: &str) -> Opened {
        let direct = |on_disk| Opened { on_disk, access: StoreAccess::Direct };
        let Some(state) = self.state_folder() else {
            return direct(match self {
                Self::Chroot { root } => root.clone(),
                _ => self.store_folder(),
            });
        };
        if rustix::fs::access(&state, Permission::READ_OK | Permission::WRITE_OK).is_ok() {
            return direct(self.store_folder());
        }
        if self.daemon_socket().is_some_and(|socket| socket.exists()) {
            return Opened { on_disk: self.store_folder(), access: StoreAccess::Daemon };
        }
        let has_own_chroot = *self == Self::System
            && !state.exists()
            && !rustix::process::geteuid().is_root()
            && major_and_minor(nix_version).is_some_and(|version| version >= FIRST_WITH_OWN_CHROOT);
        direct(if has_own_chroot { home.join(".local/share/nix/root") } else { self.store_folder() })
    }

    fn state_folder(&self) -> Option<PathBuf> {
        match self {
            Self::System => Some(STATE.into()),
            Self::Chroot { .. } => None,
            Self::Private { state, .. } => Some(state.clone()),
        }
    }
}

fn major_and_minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_names_a_store_as_it_does_for_nix() {
        let from = |given: &[(&str, &str)]| {
            StoreConfig::from_environment(|name| {
                given.iter().find(|(one, _)| *one == name).map(|(_, value)| OsString::from(value))
            })
        };
        assert_eq!(from(&[]), StoreConfig::System);
        assert_eq!(from(&[("NIX_STORE_DIR", "")]), StoreConfig::System);
        let all = [("NIX_STORE_DIR", "/n/store"), ("NIX_STATE_DIR", "/n/var/nix"), ("NIX_LOG_DIR", "/n/var/log/nix")];
        assert_eq!(from(&all), StoreConfig::private(Path::new("/n")));
        let StoreConfig::Private { store, state, .. } = from(&all[1..]) else { panic!("a private store") };
        assert_eq!((store, state), (STORE.into(), "/n/var/nix".into()));
    }

    #[test]
    fn a_state_folder_that_can_be_written_is_opened_directly_and_a_socket_is_the_daemons() {
        let folder = tempfile::tempdir().unwrap();
        let store = StoreConfig::private(folder.path());
        std::fs::create_dir_all(folder.path().join("var/nix/daemon-socket")).unwrap();
        let opened = store.opened(Path::new("/home/bob"), "2.8.0");
        assert_eq!(opened, Opened { on_disk: folder.path().join("store"), access: StoreAccess::Direct });
        // A chroot store is never another's.
        let chroot = StoreConfig::Chroot { root: "/home/bob/s".into() };
        let opened = Opened { on_disk: "/home/bob/s".into(), access: StoreAccess::Direct };
        assert_eq!(chroot.opened(Path::new("/home/bob"), "2.34.8"), opened);
    }

    #[test]
    fn versions_are_compared_by_number() {
        assert_eq!(major_and_minor("2.8.0"), Some((2, 8)));
        assert_eq!(major_and_minor("2.36pre20260801"), Some((2, 36)));
        assert_eq!(major_and_minor("unknown"), None);
        assert!(major_and_minor("2.8.0") < Some(FIRST_WITH_OWN_CHROOT));
    }
}
