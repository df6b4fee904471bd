//! `--background`: the same command again, detached, with its key on a pipe.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nixtail_proto::secret::Secret;

use crate::auth::Credential;
use crate::local::SocketPath;
use crate::report::{Exit, Failure, plain};

/// A key is a line.
const MAX_KEY: u64 = 16 << 10;
/// What of the background process' messages is shown when it fails.
const SHOWN_LOG: u64 = 16 << 10;
/// Where a child would find a key of its own.
const KEY_VARIABLES: [&str; 3] = ["TS_AUTHKEY", "TS_AUTH_KEY", "TS_AUTHKEY_FILE"];

/// Starts the background process and waits until it is ready or has failed.
pub(super) fn start(socket: &SocketPath, credential: &Credential) -> Result<(), Failure> {
    let failed = |action: &str, error: &std::io::Error| Failure::new(Exit::General, format!("{action}: {error}"));
    let program = std::env::current_exe().map_err(|error| failed("this program's own path is unknown", &error))?;
    let log_path = log_path(socket);
    let mut log = open_log(&log_path).map_err(|error| {
        failed(&format!("the log {} can't be opened", log_path.display()), &error)
            .next("name another folder with --socket")
    })?;
    let child_log = log.try_clone().map_err(|error| failed("the log can't be shared", &error))?;
    let mut command = Command::new(program);
    command.args(without_secrets(std::env::args_os().skip(1))).arg("--detached");
    for name in KEY_VARIABLES {
        command.env_remove(name);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(child_log);
    let mut child = command.spawn().map_err(|error| failed("the background process can't start", &error))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A child that is gone already is told of below, by its exit status.
        let Credential::AuthKey(key) = credential;
        let _ = stdin.write_all(key.expose().as_bytes());
    }
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        // Nothing but the ready line comes; an end without it is a failure.
        let _ = BufReader::new(stdout).take(SHOWN_LOG).read_line(&mut line);
    }
    if line.ends_with('\n') {
        return super::print(&line.trim_end());
    }
    let status = child.wait().map_err(|error| failed("the background process can't be waited for", &error))?;
    show_log(&mut log);
    remove_log(socket);
    Err(Failure::new(exit_of(status.code()), format!("the background process ended before it was ready ({status})")))
}

/// In the background process: leaves the terminal's session and takes the key from the pipe.
pub(super) fn receive() -> Result<Credential, Failure> {
    // Fails only for the leader of a group, which is detached already.
    let _ = rustix::process::setsid();
    let mut key = zeroize::Zeroizing::new(String::new());
    std::io::stdin()
        .take(MAX_KEY)
        .read_to_string(&mut key)
        .map_err(|error| Failure::new(Exit::General, format!("the key can't be read from the pipe: {error}")))?;
    Ok(Credential::AuthKey(Secret::new(key.to_string())))
}

/// Removes the log of a background process that ended well.
pub(super) fn remove_log(socket: &SocketPath) {
    // It may never have been written.
    let _ = std::fs::remove_file(log_path(socket));
}

fn log_path(socket: &SocketPath) -> PathBuf {
    socket.as_path().with_extension("log")
}

fn open_log(path: &std::path::Path) -> std::io::Result<File> {
    if let Some(folder) = path.parent() {
        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700)
            .recursive(true)
            .create(folder)?;
    }
    let no_links = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).custom_flags(no_links).open(path)
}

fn show_log(log: &mut File) {
    let length = log.metadata().map(|metadata| metadata.len()).unwrap_or_default();
    let mut text = Vec::new();
    let from = std::io::SeekFrom::Start(length.saturating_sub(SHOWN_LOG));
    if log.seek(from).and_then(|_| log.read_to_end(&mut text)).is_ok() {
        for line in String::from_utf8_lossy(&text).lines() {
            super::say(&plain(line));
        }
    }
}

fn exit_of(code: Option<i32>) -> Exit {
    let exits = [Exit::Usage, Exit::Unavailable, Exit::TryAgain, Exit::Refused, Exit::Configuration, Exit::Timeout];
    exits.into_iter().find(|exit| code == Some(exit.code().into())).unwrap_or(Exit::General)
}

/// The arguments without `--background` and without the key.
fn without_secrets(arguments: impl Iterator<Item = std::ffi::OsString>) -> Vec<std::ffi::OsString> {
    let mut kept = Vec::new();
    let mut skip = false;
    for argument in arguments {
        let text = argument.to_string_lossy();
        if std::mem::take(&mut skip) || text == "--background" || text.starts_with("--auth-key=") {
            continue;
        }
        if text == "--auth-key" {
            skip = true;
            continue;
        }
        kept.push(argument);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_child_gets_neither_the_key_nor_the_wish_for_a_child_of_its_own() {
        let given = ["up", "--auth-key", "secret", "--tags", "a", "--background", "--auth-key=secret", "-v"];
        let kept = without_secrets(given.iter().map(Into::into));
        assert_eq!(kept, ["up", "--tags", "a", "-v"]);
    }

    #[test]
    fn the_childs_exit_code_is_passed_on() {
        assert_eq!(exit_of(Some(77)), Exit::Refused);
        assert_eq!(exit_of(Some(3)), Exit::General);
        assert_eq!(exit_of(None), Exit::General);
    }
}
