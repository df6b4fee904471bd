//! The Nix at hand, and how its daemon is run for a builder's store.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::spawn::ChildSpec;
pub use super::store::StoreConfig;

/// Where Nix is looked for after `PATH`: logins that aren't interactive often lack it there.
const USUAL_FOLDERS: [&str; 4] =
    ["/run/current-system/sw/bin", "/nix/var/nix/profiles/default/bin", "/usr/local/bin", "/usr/bin"];

/// The socket of a system's daemon.
pub const DAEMON_SOCKET: &str = "/nix/var/nix/daemon-socket/socket";

/// Why there is no Nix to run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NixMissing {
    /// No such program anywhere.
    #[error(
        "can't find `{program}` in PATH or the usual folders; install Nix (on Debian and Ubuntu: apt-get install nix-bin)"
    )]
    Program {
        /// What was looked for.
        program: &'static str,
    },
}

/// Absolute paths of the programs of one Nix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NixPrograms {
    /// `nix-daemon`.
    pub nix_daemon: PathBuf,
    /// `nix-store`.
    pub nix_store: PathBuf,
    /// `nix`.
    pub nix: PathBuf,
}

impl NixPrograms {
    /// Finds them along `path` (the value of `PATH`), then in the usual folders.
    pub fn find(path: Option<&OsString>) -> Result<Self, NixMissing> {
        let folders: Vec<PathBuf> = path
            .map(|path| std::env::split_paths(path).collect::<Vec<PathBuf>>())
            .unwrap_or_default()
            .into_iter()
            .chain(USUAL_FOLDERS.map(PathBuf::from))
            .filter(|folder: &PathBuf| folder.is_absolute())
            .collect();
        let find = |program: &'static str| {
            folders
                .iter()
                .map(|folder| folder.join(program))
                .find(|path| is_executable(path))
                .ok_or(NixMissing::Program { program })
        };
        Ok(Self { nix_daemon: find("nix-daemon")?, nix_store: find("nix-store")?, nix: find("nix")? })
    }
}

/// The absolute path of a program that a person's shell would find: the first on this process' `PATH`.
pub fn on_path(program: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&folders).map(|folder| folder.join(program)).find(|path| path.is_file());
    found.filter(|path| path.is_absolute())
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// One Nix, its store, and the environment that its children get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NixHost {
    /// The programs.
    pub programs: NixPrograms,
    /// The store.
    pub store: StoreConfig,
    /// The home folder of the children.
    pub home: PathBuf,
    /// The user that they run as: what Nix calls it where the system has no name for its number, as in containers.
    pub user: String,
    /// The folder of the `nix.conf` that the children read instead of the system's.
    pub configuration: Option<PathBuf>,
    /// The children's `NIX_CONFIG`: lines of nix.conf that win against every file. See [`super::configuration`].
    pub settings: String,
}

impl NixHost {
    /// `nix-daemon --stdio`. Where a daemon of the system runs it relays to that; else, or with a store of its own, it is
    /// the daemon itself.
    pub fn daemon(&self) -> ChildSpec {
        self.child(&self.programs.nix_daemon, &["--stdio"])
    }

    /// `nix-store --serve --write`.
    pub fn serve(&self) -> ChildSpec {
        self.child(&self.programs.nix_store, &["--serve", "--write"])
    }

    /// `nix` with the given words, with the command interface switched on.
    pub fn nix(&self, words: &[&str]) -> ChildSpec {
        let all: Vec<&str> = ["--extra-experimental-features", "nix-command"].iter().chain(words).copied().collect();
        self.child(&self.programs.nix, &all)
    }

    /// A child of this Nix: its environment holds what Nix needs to find its store and its configuration, no more.
    fn child(&self, program: &Path, words: &[&str]) -> ChildSpec {
        let mut spec = ChildSpec::new(program, words)
            .with_variable("PATH", self.search_path())
            .with_variable("HOME", &self.home)
            .with_variable("USER", &self.user)
            .with_variable("LANG", "C.UTF-8");
        if let Some(folder) = &self.configuration {
            spec = spec.with_variable("NIX_CONF_DIR", folder);
        }
        if !self.settings.is_empty() {
            spec = spec.with_variable("NIX_CONFIG", &self.settings);
        }
        match &self.store {
            StoreConfig::System => {}
            StoreConfig::Chroot { root } => {
                spec.arguments.extend(["--store".into(), root.into()]);
            }
            StoreConfig::Private { store, state, log } => {
                spec = spec
                    .with_variable("NIX_STORE_DIR", store)
                    .with_variable("NIX_STATE_DIR", state)
                    .with_variable("NIX_LOG_DIR", log);
            }
        }
        spec
    }

    /// Nix finds `nix __build-remote`, `tar` and its like along `PATH`.
    fn search_path(&self) -> OsString {
        let own = self.programs.nix.parent().map(Path::to_path_buf);
        let folders: Vec<PathBuf> = own
            .into_iter()
            .chain(USUAL_FOLDERS.map(PathBuf::from))
            .chain(["/bin", "/usr/sbin", "/sbin"].map(PathBuf::from))
            .collect();
        // Only a folder with a colon in its name can't be joined.
        std::env::join_paths(folders).unwrap_or_else(|_| "/usr/bin:/bin".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(store: StoreConfig) -> NixHost {
        let program = |name: &str| PathBuf::from("/opt/nix/bin").join(name);
        let programs =
            NixPrograms { nix_daemon: program("nix-daemon"), nix_store: program("nix-store"), nix: program("nix") };
        NixHost {
            programs,
            store,
            home: "/home/bob".into(),
            user: "bob".to_owned(),
            configuration: Some("/run/x/etc".into()),
            settings: String::new(),
        }
    }

    fn variables(spec: &ChildSpec) -> Vec<String> {
        spec.environment.iter().map(|(name, value)| format!("{}={}", name.display(), value.display())).collect()
    }

    #[test]
    fn the_system_store_needs_no_words() {
        let spec = host(StoreConfig::System).daemon();
        assert_eq!(
            (spec.program.to_str(), spec.arguments.as_slice()),
            (Some("/opt/nix/bin/nix-daemon"), &["--stdio".into()][..])
        );
        let variables = variables(&spec);
        assert_eq!(
            variables.get(1..),
            Some(
                &[
                    "HOME=/home/bob".to_owned(),
                    "USER=bob".into(),
                    "LANG=C.UTF-8".into(),
                    "NIX_CONF_DIR=/run/x/etc".into()
                ][..]
            )
        );
        assert!(variables[0].starts_with("PATH=/opt/nix/bin:"), "{variables:?}");
    }

    #[test]
    fn a_chroot_store_is_named_and_published() {
        let host = host(StoreConfig::Chroot { root: "/home/bob/s".into() });
        assert_eq!(host.serve().arguments, ["--serve", "--write", "--store", "/home/bob/s"]);
        assert_eq!(host.store.published().as_deref(), Some("/home/bob/s"));
        assert_eq!(host.store.store_folder(), Path::new("/nix/store"));
    }

    #[test]
    fn settings_go_by_environment() {
        let spec = NixHost { settings: "cores = 2\n".into(), ..host(StoreConfig::System) }.daemon();
        assert!(variables(&spec).contains(&"NIX_CONFIG=cores = 2\n".to_owned()));
    }

    #[test]
    fn a_private_store_goes_by_environment() {
        let host = host(StoreConfig::private(Path::new("/tmp/nl")));
        let spec = host.daemon();
        assert!(variables(&spec).contains(&"NIX_STORE_DIR=/tmp/nl/store".to_owned()));
        assert_eq!((spec.arguments.len(), host.store.published()), (1, None));
        assert_eq!(host.store.store_folder(), Path::new("/tmp/nl/store"));
    }

    #[test]
    fn programs_are_found_along_path_first() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["nix-daemon", "nix-store", "nix"] {
            let path = folder.path().join(name);
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        let path = OsString::from(format!("relative:{}", folder.path().display()));
        assert_eq!(NixPrograms::find(Some(&path)).unwrap().nix, folder.path().join("nix"));
    }
}
