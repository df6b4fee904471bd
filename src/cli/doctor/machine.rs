//! This machine's limits, and what a killed coordinator or agent left on it.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::process::{Resource, getrlimit};

use super::check::Check;
use crate::coordinator::mode::Layout;

/// Each session of a builder has some four descriptors, and each stream of a coordinator two.
const DESCRIPTORS: u64 = 1024;
/// What Linux says of user namespaces, with the values that refuse them to users.
const NAMESPACE_KNOBS: [(&str, &str); 3] = [
    ("/proc/sys/user/max_user_namespaces", "0"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0"),
    ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"),
];

/// How many files this process may have open.
pub(super) fn descriptors() -> Check {
    let limit = getrlimit(Resource::Nofile);
    let maximum = limit.maximum.map_or_else(|| "any number".to_owned(), |maximum| maximum.to_string());
    match limit.current {
        Some(current) if current < DESCRIPTORS => Check::warning(
            "descriptors",
            format!("only {current} files may be open at once (and {maximum} where it is asked for)"),
            format!("`ulimit -n {DESCRIPTORS}` before the start: every build of a busy builder takes some"),
        ),
        Some(current) => Check::ok("descriptors", format!("{current} files may be open at once")),
        None => Check::ok("descriptors", "any number of files may be open"),
    }
}

/// Whether users can make namespaces, which chroot stores and Nix' sandbox need without root.
pub(super) fn namespaces() -> Check {
    if rustix::process::geteuid().is_root() {
        return Check::ok("user-namespaces", "not needed: this is root");
    }
    let refuses = |(path, value): &&(&str, &str)| fs::read_to_string(path).is_ok_and(|text| text.trim() == *value);
    match NAMESPACE_KNOBS.iter().find(refuses) {
        Some((path, value)) => Check::warning(
            "user-namespaces",
            format!("refused to users ({path} is {value}): `--store FOLDER` and its sandbox don't work here"),
            "have root change it, or use Nix' daemon or `--private-store FOLDER`",
        ),
        None => Check::ok("user-namespaces", "nothing refuses them"),
    }
}

/// What is left of agents and coordinators that were killed. Nothing, where one runs: then it is in use.
pub(super) fn leftovers(socket: &Path, has_agent: bool) -> Check {
    if has_agent {
        return Check::ok("leftovers", "what is there belongs to the running agent");
    }
    let layout = Layout::of_system(socket.with_extension("run"), socket.to_owned());
    let files = layout.left();
    if let Some(first) = files.first() {
        let found =
            format!("{} is as a coordinator has it that was killed, or runs at another socket", first.display());
        return Check::warning("leftovers", found, "where none runs, `nixtail down` by root puts it back");
    }
    let is_dead = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    if UnixStream::connect(socket).is_err_and(is_dead) {
        let found = format!("the socket {} of an agent that was killed", socket.display());
        return Check::warning("leftovers", found, "the next agent replaces it");
    }
    if layout.is_made() {
        let found = format!("the folder {} of a coordinator that was killed", layout.run.display());
        return Check::warning("leftovers", found, "the next coordinator takes it over; nothing uses it until then");
    }
    Check::ok("leftovers", "none")
}
