//! A machine: a mount and a network namespace with a Nix store (where this machine has Nix), a configuration and a root
//! of its own, all on tmpfs.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::process::{Running, run, run_command};

/// What the machines' Nix is told; `max-jobs` is how many builds a builder takes at once.
const NIX_CONF: &str = "sandbox = false\nbuild-users-group =\nexperimental-features = nix-command\nsubstituters =\n\
                        require-sigs = false\nmax-jobs = 12\n";

/// Where programs are looked for within a machine.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long starting one may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Run by `sh -ec` inside the new namespaces; `$1` is the machine's folder.
const SET_UP: &str = r#"
[ ! -d /nix ] || mount --bind "$1/nix" /nix
[ ! -d /etc/nix ] || mount --bind "$1/etc-nix" /etc/nix
mount --bind "$1/root" /root
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/shadow" /etc/shadow
mount --bind "$1/tmp" /tmp
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/sshd
ip link set lo up
echo ready
exec sleep infinity
"#;

/// A machine that runs. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Machine {
    folder: PathBuf,
    keeper: Running,
}

impl Machine {
    /// Starts a machine of that name whose files are below `stage`.
    pub(crate) fn start(stage: &Path, name: &str) -> Result<Self, Box<dyn Error>> {
        let folder = stage.join(name);
        for part in ["nix", "etc-nix", "root/.ssh", "tmp"] {
            fs::create_dir_all(folder.join(part))?;
        }
        fs::write(folder.join("etc-nix/nix.conf"), NIX_CONF)?;
        // sshd wants a user of its own, which it has only where it is installed.
        let mut users = fs::read_to_string("/etc/passwd")?;
        if !users.lines().any(|user| user.starts_with("sshd:")) {
            users.push_str("sshd:x:65534:65534::/run/sshd:/usr/sbin/nologin\n");
        }
        fs::write(folder.join("passwd"), users)?;
        // Without PAM, sshd refuses an account that is locked.
        fs::write(folder.join("shadow"), "root:*:19000::::::\n")?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--net", "sh", "-ec", SET_UP, "sh"]).arg(&folder);
        let mut keeper = Running::start(name, command, &folder.join("keeper.log"))?;
        keeper.wait_until_ready(PATIENCE)?;
        Ok(Self { folder, keeper })
    }

    /// The process whose namespaces are the machine's.
    pub(crate) fn id(&self) -> u32 {
        self.keeper.id()
    }

    /// A program to be run inside, as root, with an environment of its own.
    pub(crate) fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.id().to_string(), "-m", "-n", "--", program]).args(arguments);
        let environment =
            [("PATH", SEARCH_PATH), ("HOME", "/root"), ("USER", "root"), ("LC_ALL", "C"), ("NO_COLOR", "1")];
        command.env_clear().envs(environment);
        command
    }

    /// Runs a program inside to its end; returns what it wrote to stdout.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Result<String, Box<dyn Error>> {
        run_command(self.command(program, arguments), Duration::from_secs(120))
    }

    /// Starts a program that stays.
    pub(crate) fn start_inside(&self, name: &str, command: Command) -> Result<Running, Box<dyn Error>> {
        Running::start(name, command, &self.folder.join(format!("{name}.log")))
    }

    /// `ip ARGS`, in its network namespace.
    pub(crate) fn ip(&self, arguments: &[&str]) -> Result<(), Box<dyn Error>> {
        let id = self.id().to_string();
        run("nsenter", &[["-t", id.as_str(), "-n", "ip"].as_slice(), arguments].concat()).map(drop)
    }

    /// A path of its root's home, as the stage sees it.
    pub(crate) fn home(&self, name: &str) -> PathBuf {
        self.folder.join("root").join(name)
    }

    /// A path of its own, which it sees by the same name.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}
