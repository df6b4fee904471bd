//! "Machines" with a Nix each, on this one: mount and pid namespaces with an own `/nix`, `/etc/nix`, `/home`, `/tmp` and users,
//! on this machine's own programs or on a side root's (`scripts/nix-roots`), which has another version of Nix.
//!
//! They share the network with the test, so that loopback is where headscale is, or have a loopback of their own and nothing
//! else. Only root can make them.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, Signal, geteuid, kill_process};

use super::nixtail::program;
use super::process::{Process, run_ok};
use super::{PATIENCE, peers, wait_for};

/// A version of Nix to test with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NixVersion {
    /// This machine's own; 2.8 on Debian 12.
    Own,
    /// Debian 13's.
    Nix2_26,
    /// That of Debian's testing suite, in November 2026.
    Nix2_34,
}

/// What a node stands on.
#[derive(Clone, Debug)]
pub struct Root {
    path: PathBuf,
    /// Its Nix, such as `2.26.3`.
    pub nix: String,
}

/// Who runs a program in a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    Root,
    /// An ordinary user.
    Alice,
    /// Another one.
    Bob,
}

/// Which network a node is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Network {
    /// The test's.
    Shared,
    /// A loopback of its own.
    Alone,
    /// That of another process: another node's first one, say.
    Beside(u32),
}

/// A machine of its own, as far as Nix can tell.
pub struct NixNode {
    network: Network,
    init: Process,
    name: String,
    folder: PathBuf,
    /// The number of its first process, as this machine counts.
    pid: u32,
}

/// A program that runs in a node.
pub struct NodeProcess {
    entering: Process,
    /// The program itself, as this machine counts; it may be gone.
    pid: u32,
}

impl NixVersion {
    /// The root that has it. `None`, and the test is skipped by name, where there is none or nobody may mount it.
    pub fn require(self) -> Option<Root> {
        if !geteuid().is_root() || ["/nix", "/etc/nix"].iter().any(|place| !Path::new(place).is_dir()) {
            peers::skip("root, and a /nix and /etc/nix to mount over");
            return None;
        }
        let suite = match self {
            Self::Own => {
                let nix = peers::require_on_path("nix-store")?;
                let said = run_ok(Command::new(nix).arg("--version"), PATIENCE);
                let version = said.split_whitespace().last().expect("a version").to_owned();
                return Some(Root { path: PathBuf::from("/"), nix: version });
            }
            Self::Nix2_26 => "trixie",
            Self::Nix2_34 => "forky",
        };
        let path = peers::require_nix_root(suite)?;
        let nix = fs::read_to_string(path.join(".nixtail-nix-version")).expect("the version of a side root's Nix");
        Some(Root { path, nix })
    }
}

impl Root {
    /// Its folder.
    pub fn path(&self) -> &OsStr {
        self.path.as_os_str()
    }
}

impl User {
    fn id(self) -> u32 {
        match self {
            Self::Root => 0,
            Self::Alice => 2001,
            Self::Bob => 2002,
        }
    }

    /// The name, as logins have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Alice => "alice",
            Self::Bob => "bob",
        }
    }

    /// The home folder, as the node sees it.
    pub fn home(self) -> PathBuf {
        match self {
            Self::Root => PathBuf::from("/root"),
            other => Path::new("/home").join(other.name()),
        }
    }
}

impl NixNode {
    /// Starts one that keeps all its files in `folder/name`; `nix_conf` is its `/etc/nix/nix.conf`.
    pub fn start(folder: &Path, name: &str, root: &Root, nix_conf: &str) -> Self {
        Self::start_in(folder, name, root, nix_conf, Network::Shared)
    }

    /// As [`Self::start`], with no network but a loopback of its own: what runs in it reaches nobody.
    pub fn start_alone(folder: &Path, name: &str, root: &Root, nix_conf: &str) -> Self {
        Self::start_in(folder, name, root, nix_conf, Network::Alone)
    }

    /// As [`Self::start`], in the network of `other`, which is alone but for this one.
    pub fn start_beside(other: &Self, folder: &Path, name: &str, root: &Root, nix_conf: &str) -> Self {
        Self::start_in(folder, name, root, nix_conf, Network::Beside(other.pid))
    }

    /// As [`Self::start`], in the network of process `id`.
    pub fn start_in_network_of(id: u32, folder: &Path, name: &str, root: &Root, nix_conf: &str) -> Self {
        Self::start_in(folder, name, root, nix_conf, Network::Beside(id))
    }

    fn start_in(folder: &Path, name: &str, root: &Root, nix_conf: &str, network: Network) -> Self {
        let folder = folder.join(name);
        for (place, mode) in [("nix", 0o755), ("etc/nix", 0o755), ("home", 0o755), ("root", 0o700), ("tmp", 0o1777)] {
            fs::create_dir_all(folder.join(place)).expect("make a node's folder");
            fs::set_permissions(folder.join(place), fs::Permissions::from_mode(mode)).expect("open a node's folder");
        }
        fs::create_dir_all(folder.join("etc/ssh/ssh_config.d")).expect("make a node's folder");
        fs::write(folder.join("etc/ssh/ssh_config"), "Include /etc/ssh/ssh_config.d/*.conf\n").expect("write a file");
        fs::write(folder.join("etc/nix/nix.conf"), nix_conf).expect("write nix.conf");
        for user in [User::Alice, User::Bob] {
            let home = folder.join("home").join(user.name());
            fs::create_dir_all(&home).expect("make a home");
            chown(&home, Some(user.id()), Some(user.id())).expect("give a home to its user");
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/nixnode.sh");
        let pid_file = folder.join("pid");
        let (before, more, last) = match network {
            Network::Shared => (String::new(), "", ""),
            Network::Alone => (String::new(), "--net", "alone"),
            Network::Beside(pid) => (format!("nsenter --net=/proc/{pid}/ns/net"), "", ""),
        };
        let start =
            format!("exec {before} unshare --mount --pid {more} --fork --kill-child bash \"$@\" {last} 3>\"$0\"");
        let paths = [&pid_file, &script, &root.path, &folder, &program()].map(|path| path.display().to_string());
        let args = ["-c", &start].map(str::to_owned).into_iter().chain(paths);
        let mut init = Process::start(name, Path::new("bash"), args, [], &folder.join("log"));
        let pid = wait_for("a node's first process", PATIENCE, || {
            assert!(init.ended().is_none(), "the node {name} could not be made:\n{}", init.log());
            fs::read_to_string(&pid_file).ok()?.trim().parse().ok()
        });
        Self { network, init, name: name.to_owned(), folder, pid }
    }

    /// Where `inside`, a path as the node sees it below `/nix`, `/etc/nix`, `/etc/ssh`, `/home`, `/root` or `/tmp`, is for the test.
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        self.folder.join(inside.as_ref().strip_prefix("/").expect("an absolute path"))
    }

    /// Writes a file that belongs to `user`.
    pub fn write(&self, user: User, inside: impl AsRef<Path>, text: &str) {
        let path = self.path(inside);
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        chown(&path, Some(user.id()), Some(user.id())).expect("give a file to its user");
    }

    /// A program with arguments, in the node, as `user`, in their home and with an environment like that of a login.
    pub fn command<'a>(
        &self,
        user: User,
        words: impl IntoIterator<Item = &'a str>,
        environment: &[(&str, &str)],
    ) -> Command {
        let mut command = Command::new("nsenter");
        command.args(self.entrance(user, words, environment));
        command
    }

    /// As [`Self::command`], and must succeed within a minute; returns its standard output.
    pub fn run_ok<'a>(&self, user: User, words: impl IntoIterator<Item = &'a str>) -> String {
        run_ok(&mut self.command(user, words, &[]), 2 * PATIENCE)
    }

    /// Starts a program that stays.
    pub fn start_process<'a>(
        &self,
        user: User,
        words: impl IntoIterator<Item = &'a str>,
        environment: &[(&str, &str)],
    ) -> NodeProcess {
        let words: Vec<&str> = words.into_iter().collect();
        let number = fs::read_dir(&self.folder).expect("a node's folder").count();
        let log = self.folder.join(format!("log-{number}"));
        let name = format!("{}: {}", self.name, words.join(" "));
        let mut entering =
            Process::start(&name, Path::new("nsenter"), self.entrance(user, words, environment), [], &log);
        // nsenter waits for one child, which becomes the program.
        let id = entering.id();
        let pid = wait_for("a program in a node", PATIENCE, || {
            let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
            children
                .split_whitespace()
                .next()
                .and_then(|child| child.parse().ok())
                .or_else(|| entering.ended().map(|_| 0))
        });
        NodeProcess { entering, pid }
    }

    /// Starts `nix-daemon` as root, with no more in its environment than systemd gives it, and waits until it listens.
    pub fn start_daemon(&self) -> NodeProcess {
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let daemon = self.start_process(User::Root, ["env", "-i", path, "nix-daemon"], &[]);
        wait_for("nix-daemon to listen", PATIENCE, || {
            self.path("/nix/var/nix/daemon-socket/socket").exists().then_some(())
        });
        daemon
    }

    /// How many processes run in it whose command line holds `mark`.
    pub fn count_processes(&self, mark: &str) -> usize {
        let said = self.run_ok(User::Root, ["ps", "-eo", "args"]);
        said.lines().filter(|line| line.contains(mark)).count()
    }

    /// Stops all that runs in it, as if the machine stood still. Its network stays silent.
    pub fn freeze(&self) {
        self.run_ok(User::Root, ["sh", "-c", "kill -STOP -1"]);
    }

    /// Lets it go on. What entered it by [`Self::start_process`] needs [`NodeProcess::thaw`], too.
    pub fn thaw(&self) {
        self.run_ok(User::Root, ["sh", "-c", "kill -CONT -1"]);
    }

    /// The arguments of `nsenter` for a program in the node. It dies with `nsenter`.
    fn entrance<'a>(
        &self,
        user: User,
        words: impl IntoIterator<Item = &'a str>,
        environment: &[(&str, &str)],
    ) -> Vec<String> {
        let (id, pid) = (user.id().to_string(), self.pid.to_string());
        let mut args: Vec<String> = ["--target", &pid, "--mount", "--pid"].map(str::to_owned).into();
        args.extend((self.network != Network::Shared).then(|| "--net".to_owned()));
        args.push("--".to_owned());
        args.extend(["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"].map(str::to_owned));
        args.extend(["--pdeathsig", "KILL", "--", "env", "-i"].map(str::to_owned));
        args.extend([
            format!("--chdir={}", user.home().display()),
            "PATH=/run/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin".to_owned(),
            format!("HOME={}", user.home().display()),
            format!("USER={}", user.name()),
            format!("XDG_RUNTIME_DIR=/run/user/{id}"),
            "LANG=C.UTF-8".to_owned(),
            "NO_COLOR=1".to_owned(),
        ]);
        args.extend(environment.iter().map(|(name, value)| format!("{name}={value}")));
        args.extend(words.into_iter().map(str::to_owned));
        args
    }
}

impl Drop for NixNode {
    fn drop(&mut self) {
        // Its first process takes all others with it.
        self.init.stop();
    }
}

impl NodeProcess {
    /// What it has written.
    pub fn log(&self) -> String {
        self.entering.log()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.entering.ended()
    }

    /// Waits for its end. Fails the test after `patience`.
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        self.entering.wait(patience)
    }

    /// Sends `signal` to the program alone.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            // It may be gone already.
            let _ = kill_process(pid, signal);
        }
    }

    /// Lets `nsenter` go on, which stands still with its program.
    pub fn thaw(&self) {
        self.entering.signal(Signal::CONT);
    }

    /// Sends it `signal` and waits for its end.
    pub fn end(&mut self, signal: Signal) -> ExitStatus {
        if self.ended().is_none() {
            self.signal(signal);
        }
        self.wait(PATIENCE)
    }

    /// Waits for a line of its output that begins with `start`, and returns it. Fails the test when it ends before.
    pub fn wait_for_line(&mut self, start: &str, patience: Duration) -> String {
        wait_for(&format!("a line that begins with {start:?}"), patience, || {
            let ended = self.ended();
            let log = self.log();
            let found = log.lines().find(|line| line.starts_with(start)).map(str::to_owned);
            assert!(found.is_some() || ended.is_none(), "it ended ({ended:?}) without a line {start:?}:\n{log}");
            found
        })
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        // The program first: its end is what nsenter reports.
        if self.entering.ended().is_none() {
            self.signal(Signal::TERM);
            self.thaw();
            let begun = std::time::Instant::now();
            while self.entering.ended().is_none() && begun.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(super::GLANCE);
            }
        }
    }
}
