//! Where things are measured: machines on this one, in namespaces that end with this process.
//!
//! Each command of `nixtail-bench` that needs them starts itself again under `unshare`, as the first process of new
//! mount, process and network namespaces: whatever ends it (its end, Ctrl-C, SIGTERM, even SIGKILL) ends every process, mount and device in them.

pub(crate) mod host;
mod machine;
pub(crate) mod network;
pub(crate) mod place;
pub(crate) mod process;
pub(crate) mod sshd;
pub(crate) mod tailnet;
pub(crate) mod tailscaled;
mod who;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

pub(crate) use machine::Machine;
pub(crate) use who::Who;

/// Covered by a tmpfs of the stage's own: it holds all files of all machines.
const FOLDER: &str = "/mnt";
/// Holds two stores with 1 GiB each, and a third one to copy to.
const SIZE: &str = "size=7g,nr_inodes=0,mode=755";

/// What must be there as it is: mounted over within the stage, or used.
const FOLDERS: [&str; 2] = [FOLDER, "/dev/net"];
/// What Nix needs of it, too.
const NIX_FOLDERS: [&str; 2] = ["/nix", "/etc/nix"];
/// Programs that the stage is made with.
const PROGRAMS: [&str; 6] = ["unshare", "nsenter", "setpriv", "mount", "ip", "timeout"];
/// What Nix needs, too.
const NIX_PROGRAMS: [&str; 6] = ["ssh", "sshd", "ssh-keygen", "nix-build", "nix-daemon", "busybox"];

/// What this machine lacks for machines and a network between them, for people.
pub(crate) fn lacking_for_network() -> Vec<String> {
    let mut lacking = Vec::new();
    if !rustix::process::geteuid().is_root() {
        lacking.push("root (for namespaces, mounts and TUN devices)".to_owned());
    }
    lacking.extend(missing(&FOLDERS, &PROGRAMS));
    lacking
}

/// What this machine lacks for the Nix rows, for people.
pub(crate) fn lacking() -> Vec<String> {
    let mut lacking = lacking_for_network();
    lacking.extend(missing(&NIX_FOLDERS, &NIX_PROGRAMS));
    if find("nix-build").and_then(|nix| nix.canonicalize().ok()).is_some_and(|nix| nix.starts_with("/nix")) {
        lacking
            .push("a Nix outside of /nix, such as Debian's nix-bin (the machines have a /nix of their own)".to_owned());
    }
    lacking
}

fn missing(folders: &[&str], programs: &[&str]) -> Vec<String> {
    let folders =
        folders.iter().filter(|folder| !Path::new(folder).is_dir()).map(|folder| format!("a folder {folder}"));
    let programs = programs.iter().filter(|program| find(program).is_none());
    folders.chain(programs.map(|program| format!("{program} on PATH"))).collect()
}

/// A program on PATH, or where daemons are.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|found| found.is_file())
}

/// Runs this program again, with `arguments`, as the first process of namespaces of its own.
pub(crate) fn enter(arguments: &[String]) -> Result<ExitStatus, Box<dyn Error>> {
    let own = std::env::current_exe()?;
    let mut command = Command::new("setpriv");
    // unshare itself ignores SIGINT and SIGTERM; it is killed when we end, and its child with it.
    command.args([
        "--pdeathsig",
        "KILL",
        "unshare",
        "--mount",
        "--pid",
        "--net",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]);
    Ok(command.arg(own).args(arguments).status()?)
}

/// The stage's folder, from within: a new tmpfs, with the programs to be measured copied to it.
pub(crate) fn set(programs: &[(&str, &Path)]) -> Result<PathBuf, Box<dyn Error>> {
    let folder = PathBuf::from(FOLDER);
    // What is to be copied may be below it.
    let copies: Vec<_> =
        programs.iter().map(|(name, path)| Ok((name, fs::read(path)?))).collect::<Result<_, std::io::Error>>()?;
    process::run("mount", &["-t", "tmpfs", "-o", SIZE, "tmpfs", FOLDER])?;
    let programs = folder.join("bin");
    fs::create_dir(&programs)?;
    for (name, content) in copies {
        use std::os::unix::fs::PermissionsExt as _;
        fs::write(programs.join(name), content)?;
        fs::set_permissions(programs.join(name), fs::Permissions::from_mode(0o755))?;
    }
    process::run("ip", &["link", "set", "lo", "up"])?;
    Ok(folder)
}
