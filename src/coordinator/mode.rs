//! How Nix is told: the files of a run, and the three situations in which Nix finds them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::borrowed::{
    Borrowed, Lock, PlaceError, borrowed_by_name, is_left, refuse_writable_by_others, write_atomically,
};

/// The ways in which Nix can be told of builders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Nix runs as the user, on a store of their own: it is told by environment variables.
    OwnStore,
    /// A daemon of root's does the building and trusts the user: their Nix is told by environment variables and hands it on.
    /// Whatever reaches a builder is started by root, in the daemon's own environment.
    TrustedUser,
    /// A daemon of root's does the building: it is told by `/etc/nix/machines` and `/etc/ssh/ssh_config.d`.
    System,
}

impl Mode {
    /// Its name, as `--mode` takes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OwnStore => "own-store",
            Self::TrustedUser => "trusted-user",
            Self::System => "system",
        }
    }
}

/// How the names of our files in `/etc/ssh/ssh_config.d` begin.
const SSH_CONFIG_PREFIX: &str = "nixtail-";

/// Where commands find the agent.
const SOCKET_VARIABLE: &str = "NIXTAIL_SOCKET";

/// Where the files of a run are.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The agent's socket.
    pub socket: PathBuf,
    /// The run's own folder, which only this user and root can read.
    pub run: PathBuf,
    /// `/etc/nix/machines`, or where `NIX_CONF_DIR` says.
    pub system_machines: PathBuf,
    /// `/etc/ssh/ssh_config.d`.
    pub ssh_config_d: PathBuf,
}

impl Layout {
    /// The places of this system.
    #[must_use]
    pub fn of_system(run: PathBuf, socket: PathBuf) -> Self {
        let etc = std::env::var_os("NIX_CONF_DIR").map_or_else(|| PathBuf::from("/etc/nix"), PathBuf::from);
        Self {
            socket,
            run,
            system_machines: etc.join("machines"),
            ssh_config_d: PathBuf::from("/etc/ssh/ssh_config.d"),
        }
    }

    /// The list of builders.
    #[must_use]
    pub fn machines(&self) -> PathBuf {
        self.run.join("machines")
    }

    /// What ssh needs to reach them.
    #[must_use]
    pub fn ssh_config(&self) -> PathBuf {
        self.run.join(crate::direct::SSH_CONFIG)
    }

    /// Their host keys.
    #[must_use]
    pub fn known_hosts(&self) -> PathBuf {
        self.run.join("known_hosts")
    }

    /// Says that the folder is nixtail's own, and goes with the run.
    fn made_mark(&self) -> PathBuf {
        self.run.join(".made-by-nixtail")
    }

    /// Whether the run's folder is there, and one that nixtail made.
    pub fn is_made(&self) -> bool {
        self.made_mark().exists()
    }

    /// Root's files that a coordinator which was killed has left as it had them.
    pub fn left(&self) -> Vec<PathBuf> {
        let names = fs::read_dir(&self.ssh_config_d).into_iter().flatten().filter_map(Result::ok);
        let ours = names.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let name = borrowed_by_name(&name)?;
            (name.starts_with(SSH_CONFIG_PREFIX)).then(|| self.ssh_config_d.join(name))
        });
        let machines = Some(self.system_machines.clone()).filter(|path| is_left(path));
        machines.into_iter().chain(ours).collect()
    }

    /// Lines for a shell to read: `. RUN/env`.
    #[must_use]
    pub fn env(&self) -> PathBuf {
        self.run.join("env")
    }
}

/// The files of a run, while it lasts.
#[derive(Debug)]
pub struct Told {
    mode: Mode,
    layout: Layout,
    made_run: bool,
    system: Option<SystemFiles>,
    /// Held while root's files are ours; let go last.
    _lock: Option<Lock>,
}

#[derive(Debug)]
struct SystemFiles {
    machines: Borrowed,
    /// Borrowed once a builder is to be reached over SSH.
    ssh_config: Option<Borrowed>,
    ssh_config_path: PathBuf,
}

impl Told {
    /// Makes the run's folder and, in system mode, takes over root's files.
    ///
    /// `programs` are what root's ssh will run or connect to: the binary, and the folder of the agent's socket.
    ///
    /// # Errors
    /// When a place can't be written, others could write what root would run, or another coordinator has root's files.
    /// What was taken until then is given back.
    pub fn begin(mode: Mode, layout: Layout, uid: u32, programs: &[&Path]) -> Result<Self, PlaceError> {
        let lock = match mode {
            Mode::OwnStore | Mode::TrustedUser => None,
            // First of all: what stands in the run's folder may be the other's.
            Mode::System => Some(Lock::take(&layout.system_machines)?),
        };
        // One that was killed has left its mark: then the folder is ours to remove all the same.
        let made_run = !layout.run.exists() || layout.made_mark().exists();
        let mut told = Self { mode, layout, made_run, system: None, _lock: lock };
        match told.take(uid, programs) {
            Ok(()) => Ok(told),
            Err(error) => {
                told.end_after(&error);
                Err(error)
            }
        }
    }

    fn take(&mut self, uid: u32, programs: &[&Path]) -> Result<(), PlaceError> {
        let run = self.layout.run.as_path();
        let io = |source| PlaceError::Io { doing: "make", path: run.to_owned(), source };
        fs::create_dir_all(run).map_err(io)?;
        fs::set_permissions(run, fs::Permissions::from_mode(0o700)).map_err(io)?;
        if self.made_run {
            write_atomically(&self.layout.made_mark(), b"", 0o600)?;
        }
        let mut run_by_root = programs.iter().copied().chain([run]);
        match self.mode {
            Mode::OwnStore => {}
            Mode::TrustedUser => {
                // Who can write what a trusted user runs is that user, and with that root, in any case: no reason to refuse.
                if let Some(PlaceError::WritableByOthers { path }) =
                    run_by_root.find_map(|path| refuse_writable_by_others(path, uid).err())
                {
                    let path = path.display();
                    tracing::warn!(%path, "others can write it, and a daemon that trusts this user runs as root what they put there");
                }
            }
            Mode::System => {
                run_by_root.try_for_each(|path| refuse_writable_by_others(path, uid))?;
                self.system = Some(SystemFiles::take(&self.layout)?);
            }
        }
        write_atomically(&self.layout.env(), self.shell_lines().as_bytes(), 0o600)
    }

    /// Puts everything back because of `error`, which is what the caller is to hear of.
    pub fn end_after(self, error: &dyn std::error::Error) {
        if let Err(also) = self.end() {
            tracing::warn!(%error, %also, "not everything could be put back");
        }
    }

    /// Where the files are.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Writes what ssh needs. Harmless for builders that Nix isn't told of. `system` is what root's ssh needs of it, for
    /// those that Nix reaches by it: without any, and without any before, ssh's own folder isn't touched.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn write_ssh(&mut self, ssh_config: &str, known_hosts: &str, system: &str) -> Result<(), PlaceError> {
        write_atomically(&self.layout.known_hosts(), known_hosts.as_bytes(), 0o600)?;
        write_atomically(&self.layout.ssh_config(), ssh_config.as_bytes(), 0o600)?;
        if let Some(files) = &mut self.system {
            if files.ssh_config.is_none() && !system.is_empty() {
                files.ssh_config = Some(Borrowed::take(files.ssh_config_path.clone())?);
            }
            if let Some(ssh_config) = &files.ssh_config {
                ssh_config.replace(system.as_bytes())?;
            }
        }
        Ok(())
    }

    /// Writes the list of builders. Nix reads it anew for each build.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn write_machines(&self, lines: &str) -> Result<(), PlaceError> {
        write_atomically(&self.layout.machines(), lines.as_bytes(), 0o600)?;
        if let Some(system) = &self.system {
            let mut whole = system.machines.original().to_vec();
            if !whole.is_empty() && !whole.ends_with(b"\n") {
                whole.push(b'\n');
            }
            whole.extend_from_slice(lines.as_bytes());
            system.machines.replace(&whole)?;
        }
        Ok(())
    }

    /// How Nix is told.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What Nix and ssh must find in their environment. In system mode they find their builders without it.
    #[must_use]
    pub fn environment(&self) -> BTreeMap<&'static str, String> {
        if self.system.is_some() {
            return BTreeMap::from([("NIX_CONFIG", "builders-use-substitutes = true".to_owned())]);
        }
        let config = format!("builders = @{}\nbuilders-use-substitutes = true", self.layout.machines().display());
        if self.mode == Mode::TrustedUser {
            // ssh is started elsewhere, with its file's name.
            return BTreeMap::from([("NIX_CONFIG", config)]);
        }
        // Nix before 2.26 splits this at spaces and knows no quotes: the folder's path must have none.
        let ssh = format!("-F {}", self.layout.ssh_config().display());
        BTreeMap::from([("NIX_CONFIG", config), ("NIX_SSHOPTS", ssh)])
    }

    /// The variables of a command that is to use the builders: what Nix needs, behind what the user has there already, and
    /// where our agent is.
    #[must_use]
    pub fn variables(&self) -> Vec<(OsString, OsString)> {
        let beside = |(name, value): (&str, String)| {
            let mut whole = std::env::var_os(name).filter(|own| !own.is_empty()).unwrap_or_default();
            if !whole.is_empty() {
                whole.push(if name == "NIX_CONFIG" { "\n" } else { " " });
            }
            whole.push(value);
            (OsString::from(name), whole)
        };
        let socket = (OsString::from(SOCKET_VARIABLE), self.layout.socket.clone().into_os_string());
        self.environment().into_iter().map(beside).chain([socket]).collect()
    }

    /// Whether Nix finds its builders only in an environment like that.
    #[must_use]
    pub fn is_by_environment(&self) -> bool {
        self.system.is_none()
    }

    /// Puts everything back as it was.
    ///
    /// # Errors
    /// The first thing that couldn't be put back; the rest is tried all the same.
    pub fn end(self) -> Result<(), PlaceError> {
        let mut first = Ok(());
        if let Some(system) = self.system {
            let ssh_config = system.ssh_config.map_or(Ok(()), Borrowed::give_back);
            let machines = system.machines.give_back();
            first = machines.and(ssh_config);
        }
        for file in [
            self.layout.machines(),
            self.layout.ssh_config(),
            self.layout.known_hosts(),
            self.layout.env(),
            self.layout.made_mark(),
        ] {
            // What isn't there needs no removing.
            let _ = fs::remove_file(file);
        }
        if self.made_run {
            let _ = fs::remove_dir(&self.layout.run);
        }
        first
    }

    /// Adds to what the user has there already; of two like settings Nix and ssh take the last.
    fn shell_lines(&self) -> String {
        let quote = |value: &str| format!("'{}'", value.replace('\'', r"'\''"));
        let line = |(name, value): (&&str, &String)| {
            let between = if *name == "NIX_CONFIG" { '\n' } else { ' ' };
            format!("export {name}=\"${{{name}:+${name}{between}}}\"{}\n", quote(value))
        };
        let socket = format!("export {SOCKET_VARIABLE}={}\n", quote(&self.layout.socket.display().to_string()));
        self.environment().iter().map(line).chain([socket]).collect()
    }
}

/// Puts back what a coordinator that was killed has left of root's files, and says which they are. The next coordinator
/// would do so, too.
///
/// # Errors
/// When another coordinator is at them, or one can't be put back.
pub fn put_back(layout: &Layout) -> Result<Vec<PathBuf>, PlaceError> {
    let left = layout.left();
    if left.is_empty() {
        return Ok(left);
    }
    let _lock = Lock::take(&layout.system_machines)?;
    left.iter().try_for_each(|path| Borrowed::put_back(path).map(drop))?;
    Ok(left)
}

impl SystemFiles {
    fn take(layout: &Layout) -> Result<Self, PlaceError> {
        // Whoever left them is dead: the lock is ours. Its run may have had another name.
        layout.left().iter().try_for_each(|path| Borrowed::put_back(path).map(drop))?;
        let name = layout.run.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let ssh_config_path = layout.ssh_config_d.join(format!("{SSH_CONFIG_PREFIX}{name}.conf"));
        let machines = Borrowed::take(layout.system_machines.clone())?;
        Ok(Self { machines, ssh_config: None, ssh_config_path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(root: &Path) -> Layout {
        Layout {
            socket: root.join("s"),
            run: root.join("run"),
            system_machines: root.join("etc/nix/machines"),
            ssh_config_d: root.join("etc/ssh/ssh_config.d"),
        }
    }

    fn tree(folder: &Path) -> Vec<String> {
        let mut names = Vec::new();
        for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
            names.push(entry.path().display().to_string());
            names.extend(tree(&entry.path()));
        }
        names.sort();
        names
    }

    #[test]
    fn own_store_is_told_by_a_shell_file_and_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let mut told = Told::begin(Mode::OwnStore, layout(root.path()), 0, &[]).unwrap();
        told.write_ssh("Host b\n", "b ssh-ed25519 A\n", "Host b\n").unwrap();
        told.write_machines("ssh-ng://b\n").unwrap();
        let script = ". \"$0\" && printf '%s|%s|%s' \"$NIX_CONFIG\" \"$NIX_SSHOPTS\" \"${NIXTAIL_SOCKET##*/}\"";
        let read = |own: &[(&str, &str)]| {
            let mut shell = std::process::Command::new("sh");
            shell.args(["-euc", script]).arg(told.layout().env()).env_remove("NIX_CONFIG").env_remove("NIX_SSHOPTS");
            String::from_utf8(shell.envs(own.iter().copied()).output().unwrap().stdout).unwrap()
        };
        let run = root.path().join("run").display().to_string();
        let config = format!("builders = @{run}/machines\nbuilders-use-substitutes = true");
        assert_eq!(read(&[]), format!("{config}|-F {run}/ssh_config|s"));
        let own = [("NIX_CONFIG", "cores = 1"), ("NIX_SSHOPTS", "-v")];
        assert_eq!(read(&own), format!("cores = 1\n{config}|-v -F {run}/ssh_config|s"));
        assert!(!root.path().join("etc").exists(), "nothing of the system's is touched");
        told.end().unwrap();
        assert!(tree(root.path()).is_empty());
    }

    #[test]
    fn a_trusted_users_nix_is_told_without_ssh_and_nothing_of_the_systems_is_touched() {
        let root = tempfile::tempdir().unwrap();
        let layout = layout(root.path());
        let binary = root.path().join("nixtail");
        fs::write(&binary, "").unwrap();
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o777)).unwrap();
        let told = Told::begin(Mode::TrustedUser, layout.clone(), 0, &[&binary]).unwrap();
        told.write_machines("ssh-ng://localhost?remote-program=/r/b\n").unwrap();
        let env = fs::read_to_string(layout.env()).unwrap();
        assert!(env.contains("builders = @") && !env.contains("NIX_SSHOPTS"), "{env}");
        assert!(told.is_by_environment() && !root.path().join("etc").exists());
        assert_eq!(fs::metadata(&layout.run).unwrap().permissions().mode() & 0o777, 0o700);
        told.end().unwrap();
        assert_eq!(tree(root.path()), [binary.display().to_string()]);
    }

    #[test]
    fn system_adds_to_roots_list_and_gives_it_back() {
        use std::os::unix::fs::MetadataExt as _;
        let root = tempfile::tempdir().unwrap();
        let uid = fs::metadata(root.path()).unwrap().uid();
        let layout = layout(root.path());
        fs::create_dir_all(root.path().join("etc/nix")).unwrap();
        fs::create_dir_all(root.path().join("etc/ssh/ssh_config.d")).unwrap();
        fs::write(&layout.system_machines, "ssh-ng://mine").unwrap();
        let before = tree(root.path());
        let mut told = Told::begin(Mode::System, layout.clone(), uid, &[]).unwrap();
        told.write_ssh("Host a\nHost b\n", "", "").unwrap();
        assert!(!layout.ssh_config_d.join("nixtail-run.conf").exists(), "nobody is reached over SSH yet");
        told.write_ssh("Host a\nHost b\n", "", "Host b\n").unwrap();
        told.write_machines("ssh-ng://b\n").unwrap();
        assert_eq!(fs::read_to_string(&layout.system_machines).unwrap(), "ssh-ng://mine\nssh-ng://b\n");
        assert_eq!(fs::read_to_string(layout.ssh_config_d.join("nixtail-run.conf")).unwrap(), "Host b\n");
        assert!(!told.is_by_environment());
        told.end().unwrap();
        assert_eq!(fs::read_to_string(&layout.system_machines).unwrap(), "ssh-ng://mine");
        assert_eq!(tree(root.path()), before);
    }

    #[test]
    fn what_a_killed_coordinator_left_is_put_back_by_the_next_or_by_hand() {
        use std::os::unix::fs::MetadataExt as _;
        let root = tempfile::tempdir().unwrap();
        let uid = fs::metadata(root.path()).unwrap().uid();
        fs::create_dir_all(root.path().join("etc/nix")).unwrap();
        fs::write(layout(root.path()).system_machines, "ssh-ng://mine").unwrap();
        let before = tree(root.path());
        let killed = |run: &str| {
            let layout = Layout { run: root.path().join(run), ..layout(root.path()) };
            let mut told = Told::begin(Mode::System, layout.clone(), uid, &[]).unwrap();
            told.write_ssh("Host b\n", "", "Host b\n").unwrap();
            told.write_machines("ssh-ng://b\n").unwrap();
            // It has no `Drop` that would put anything back; the lock goes as with a process that is killed.
            drop(told);
            assert_ne!(tree(root.path()), before);
            layout
        };
        // By the next, of another name; the killed one's own folder goes with the next one of its name.
        killed("one");
        let next = Layout { run: root.path().join("two"), ..layout(root.path()) };
        Told::begin(Mode::System, next, uid, &[]).unwrap().end().unwrap();
        assert_eq!(fs::read_to_string(layout(root.path()).system_machines).unwrap(), "ssh-ng://mine");
        assert!(!root.path().join("etc/ssh").exists());
        // By hand.
        let layout = killed("one");
        assert_eq!(put_back(&layout).unwrap().len(), 2);
        assert!(put_back(&layout).unwrap().is_empty());
        Told::begin(Mode::OwnStore, layout, uid, &[]).unwrap().end().unwrap();
        assert_eq!(tree(root.path()), before);
    }

    #[test]
    fn a_second_coordinator_touches_nothing_of_the_first() {
        use std::os::unix::fs::MetadataExt as _;
        let root = tempfile::tempdir().unwrap();
        let uid = fs::metadata(root.path()).unwrap().uid();
        let first = Told::begin(Mode::System, layout(root.path()), uid, &[]).unwrap();
        first.write_machines("ssh-ng://b\n").unwrap();
        let before = tree(root.path());
        for run in ["run", "another"] {
            let layout = Layout { run: root.path().join(run), ..layout(root.path()) };
            let second = Told::begin(Mode::System, layout, uid, &[]);
            assert!(matches!(second, Err(PlaceError::Held { .. })));
            assert_eq!(tree(root.path()), before);
        }
        first.end().unwrap();
        Told::begin(Mode::System, layout(root.path()), uid, &[]).unwrap().end().unwrap();
    }

    #[test]
    fn an_error_half_way_gives_back_what_was_taken() {
        use std::os::unix::fs::MetadataExt as _;
        let root = tempfile::tempdir().unwrap();
        let uid = fs::metadata(root.path()).unwrap().uid();
        let layout = layout(root.path());
        fs::create_dir_all(root.path().join("etc/nix")).unwrap();
        fs::write(&layout.system_machines, "ssh-ng://mine").unwrap();
        // No folder can be made there.
        fs::write(root.path().join("etc/ssh"), "").unwrap();
        let before = tree(root.path());
        let mut told = Told::begin(Mode::System, layout.clone(), uid, &[]).unwrap();
        let error = told.write_ssh("Host b\n", "", "Host b\n").unwrap_err();
        told.end_after(&error);
        assert_eq!(tree(root.path()), before);
        assert_eq!(fs::read_to_string(&layout.system_machines).unwrap(), "ssh-ng://mine");
    }

    #[test]
    fn root_does_not_run_what_others_can_write() {
        let root = tempfile::tempdir().unwrap();
        let binary = root.path().join("nixtail");
        fs::write(&binary, "").unwrap();
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o777)).unwrap();
        let refused = Told::begin(Mode::System, layout(root.path()), 0, &[&binary]);
        assert!(
            matches!(refused, Err(PlaceError::WritableByOthers { path }) if path == binary.canonicalize().unwrap())
        );
    }
}
