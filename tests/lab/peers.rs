//! Where the real peers are, and what a test does when one isn't there.

use std::env;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::thread;

/// The program `name` (`headscale`, `derper`, `tailscale`, `tailscaled`) as `scripts/peers` built it, in `$NIXTAIL_PEERS` or
/// `.cache/peers`. Without it the test is skipped, by name, on standard error; with `NIXTAIL_REQUIRE_PEERS=1` it fails.
pub fn require(name: &str) -> Option<PathBuf> {
    let path = folder().join(name);
    found(path.is_file().then_some(path), name, "make peers")
}

/// The folder `name` (`python`) as `scripts/ssh-clients` filled it, beside the programs; else as [`require`].
pub fn require_folder(name: &str) -> Option<PathBuf> {
    let path = folder().join(name);
    found(path.is_dir().then_some(path), name, "make peers")
}

/// A program of the system's own, such as `nix-build`, as `PATH` has it; else as [`require`].
pub fn require_on_path(name: &str) -> Option<PathBuf> {
    let folders = env::var_os("PATH").unwrap_or_default();
    let path = env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| path.is_file());
    found(path, name, "scripts/needs test")
}

/// As [`require_on_path`], for a program that may be where only root looks, such as `nft`.
pub fn require_system_program(name: &str) -> Option<PathBuf> {
    let folders = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&folders).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let path = folders.map(|folder| folder.join(name)).find(|path| path.is_file());
    found(path, name, "scripts/needs test")
}

/// A root with another Nix, as `scripts/nix-roots` made it from Debian's `suite`, in `$NIXTAIL_NIX_ROOTS` or `.cache/nix-roots`;
/// else as [`require`].
pub fn require_nix_root(suite: &str) -> Option<PathBuf> {
    let path = cached("NIXTAIL_NIX_ROOTS", ".cache/nix-roots").join(suite);
    let is_whole = path.join(".nixtail-key").is_file();
    found(is_whole.then_some(path), &format!("the Nix of Debian's {suite}"), "scripts/nix-roots")
}

fn found(path: Option<PathBuf>, name: &str, remedy: &str) -> Option<PathBuf> {
    if path.is_some() {
        return path;
    }
    let test = thread::current().name().unwrap_or("a test").to_owned();
    assert!(
        env::var_os("NIXTAIL_REQUIRE_PEERS").is_none_or(|value| value != "1"),
        "{test} needs {name}, which is neither in our own folders nor on PATH: {remedy}"
    );
    skipped(&test, name, remedy);
    None
}

/// Skips a test, by name, that needs what no script can bring: root, or a kernel's permission. No failure even where peers
/// are required.
pub fn skip(what: &str) {
    skipped(thread::current().name().unwrap_or("a test"), what, "run it where there is");
}

fn skipped(test: &str, what: &str, remedy: &str) {
    say(&format!("skipped: {test} needs {what} ({remedy})"));
}

/// Says a line past the test harness, which hides what a passing test prints.
pub fn say(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// All of `names`, or `None` when one is missing; see [`require`].
pub fn require_all<const N: usize>(names: [&str; N]) -> Option<[PathBuf; N]> {
    let mut found = [const { None }; N];
    for (slot, name) in found.iter_mut().zip(names) {
        *slot = Some(require(name)?);
    }
    Some(found.map(|path| path.expect("each was found")))
}

fn folder() -> PathBuf {
    cached("NIXTAIL_PEERS", ".cache/peers")
}

/// The folder that `variable` names, or its usual place in this tree.
fn cached(variable: &str, usual: &str) -> PathBuf {
    env::var_os(variable).map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(usual), PathBuf::from)
}
