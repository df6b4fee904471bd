//! How the program that Nix starts says something: so that a person sees it, whatever Nix does with its stderr.

use std::io::{self, Write as _};

/// One clear line.
pub(super) fn say(builder: &str, words: &str) {
    if !words.is_empty() {
        write_line(&format!("nixtail: builder {builder}: {words}"));
    }
}

/// What somebody else's program wrote to its stderr, without what could do something to a terminal.
pub(super) fn show(text: &[u8]) {
    for line in String::from_utf8_lossy(text).lines().filter(|line| !line.is_empty()) {
        write_line(&line.replace(|c: char| c.is_control() && c != '\t', ""));
    }
}

/// Writes a line where a person sees it; a stderr that nobody reads is no reason to fail.
///
/// Once a build hook has accepted a build, Nix shows no plain line of its children any more, and a daemon writes those from
/// before only into its own log. A line in the form of Nix's own messages reaches whoever asked for the build
/// (`handleJSONLogMessage` in `NixOS/nix` `src/libutil/logging.cc`).
fn write_line(line: &str) {
    let line = if is_started_by_build_hook() {
        format!("@nix {}", serde_json::json!({ "action": "msg", "level": 0, "msg": line }))
    } else {
        line.to_owned()
    };
    // In one piece: the hook writes to the same pipe.
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Whether this process' parent is `nix __build-remote` (as Nix before 2.4 has it: `build-remote`).
fn is_started_by_build_hook() -> bool {
    let parent = rustix::process::getppid().map_or(0, |parent| parent.as_raw_nonzero().get());
    let line = command_line(parent);
    line.split(|byte| [0, b' '].contains(byte)).take(2).any(|word| word.ends_with(b"build-remote"))
}

/// The words that a process was started with, each ended by a zero byte; nothing where that can't be found out.
#[cfg(target_os = "linux")]
fn command_line(process: i32) -> Vec<u8> {
    std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default()
}

/// The same from ps(1), with blanks between.
#[cfg(not(target_os = "linux"))]
fn command_line(process: i32) -> Vec<u8> {
    let asked = std::process::Command::new("/bin/ps").args(["-ww", "-o", "args=", "-p", &process.to_string()]).output();
    asked.map(|answer| answer.stdout).unwrap_or_default()
}
