//! `--background`: the same command again, detached, with its credential on a pipe.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nixtail_proto::credential;

use crate::auth::Credential;
use crate::local::SocketPath;
use crate::report::{Exit, Failure, plain};

/// A credential with an id token is some KiB.
const MAX_CREDENTIAL: u64 = 128 << 10;
/// What stands before a login page's URL on the background process' stdout.
const LOGIN: &str = "login ";
/// What of the background process' messages is shown when it fails.
const SHOWN_LOG: u64 = 16 << 10;
/// What the background process gets through the pipe.
#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct HandedOver {
    /// What to log in with, if there is something.
    pub(super) credential: Option<Credential>,
    /// Whether somebody may be there to log in: who waits for the ready line, and not the process behind it, can tell.
    pub(super) has_person: bool,
}

/// Starts the background process and waits until it is ready or has failed.
pub(super) fn start(socket: &SocketPath, handed_over: &HandedOver) -> Result<(), Failure> {
    let failed = |action: &str, error: &std::io::Error| Failure::new(Exit::General, format!("{action}: {error}"));
    let program = std::env::current_exe().map_err(|error| failed("this program's own path is unknown", &error))?;
    let log_path = log_path(socket);
    let mut log = Log::open(log_path.clone()).map_err(|error| {
        failed(&format!("the log {} can't be opened", log_path.display()), &error)
            .next("name another folder with --socket")
    })?;
    let child_log = log.file.try_clone().map_err(|error| failed("the log can't be shared", &error))?;
    let mut command = Command::new(program);
    command.args(without_secrets(std::env::args_os().skip(1))).arg("--detached");
    for name in credential::variables() {
        command.env_remove(name);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(child_log);
    let mut child = command.spawn().map_err(|error| failed("the background process can't start", &error))?;
    if let Some(mut stdin) = child.stdin.take() {
        let text = serde_json::to_vec(handed_over).map(zeroize::Zeroizing::new);
        let text = text.map_err(|error| failed("the credential can't be handed over", &error.into()))?;
        // A child that is gone already is told of below, by its exit status.
        let _ = stdin.write_all(&text);
    }
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        // Login pages, and the ready line; an end without it is a failure.
        let mut lines = BufReader::new(stdout).take(SHOWN_LOG);
        while lines.read_line(&mut line).is_ok_and(|length| length > 0) {
            let Some(url) = line.strip_prefix(LOGIN) else { break };
            super::session::ask_to_log_in(url.trim_end());
            line.clear();
        }
    }
    if line.ends_with('\n') {
        return super::print(&line.trim_end());
    }
    let status = child.wait().map_err(|error| failed("the background process can't be waited for", &error))?;
    for line in log.new_words().lines() {
        super::say(&plain(line));
    }
    log.remove_if_new();
    Err(Failure::new(exit_of(status.code()), format!("the background process ended before it was ready ({status})")))
}

/// In the background process: leaves the terminal's session and takes what it is to know from the pipe.
pub(super) fn receive() -> Result<HandedOver, Failure> {
    // Fails only for the leader of a group, which is detached already.
    let _ = rustix::process::setsid();
    let mut text = zeroize::Zeroizing::new(Vec::new());
    let read = std::io::stdin().take(MAX_CREDENTIAL).read_to_end(&mut text);
    let failed = |why: &str| Failure::new(Exit::General, format!("the credential can't be read from the pipe: {why}"));
    read.map_err(|error| failed(&error.to_string()))?;
    // Not its words: they may quote what they can't read.
    serde_json::from_slice(&text).map_err(|_| failed("it isn't whole"))
}

/// In the background process: hands a login page to whoever waits for the ready line.
pub(super) fn pass_login_on(url: &str) {
    // One that nobody reads is in vain, as the login is.
    let _ = super::print(&format_args!("{LOGIN}{url}"));
}

/// Removes the log of a background process that ended well.
pub(super) fn remove_log(socket: &SocketPath) {
    // It may never have been written.
    let _ = std::fs::remove_file(log_path(socket));
}

fn log_path(socket: &SocketPath) -> PathBuf {
    socket.as_path().with_extension("log")
}

/// The log as the background process finds it. It may be another one's, which runs: that is neither shown nor removed.
struct Log {
    path: PathBuf,
    file: File,
    /// Its length before the background process wrote.
    before: u64,
    is_new: bool,
}

impl Log {
    fn open(path: PathBuf) -> std::io::Result<Self> {
        if let Some(folder) = path.parent() {
            std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700)
                .recursive(true)
                .create(folder)?;
        }
        let no_links = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        let mut options = OpenOptions::new();
        options.read(true).append(true).mode(0o600).custom_flags(no_links);
        let (file, is_new) = match options.clone().create_new(true).open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                (options.create(true).open(&path)?, false)
            }
            created => (created?, true),
        };
        let before = file.metadata()?.len();
        Ok(Self { path, file, before, is_new })
    }

    /// The last of what was written since it was opened.
    fn new_words(&mut self) -> String {
        let length = self.file.metadata().map(|metadata| metadata.len()).unwrap_or_default();
        let from = std::io::SeekFrom::Start(length.saturating_sub(SHOWN_LOG).max(self.before));
        let mut text = Vec::new();
        // What can't be read can't be shown; the exit status says that it failed.
        let _ = self.file.seek(from).and_then(|_| self.file.read_to_end(&mut text));
        String::from_utf8_lossy(&text).into_owned()
    }

    fn remove_if_new(self) {
        if self.is_new {
            // Whoever has removed it before did what was to be done.
            let _ = std::fs::remove_file(self.path);
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
    fn the_log_of_one_that_runs_is_neither_shown_nor_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made").join("agent.log");
        let mut first = Log::open(path.clone()).unwrap();
        first.file.write_all(b"of the first\n").unwrap();
        assert_eq!(first.new_words(), "of the first\n");
        let mut second = Log::open(path.clone()).unwrap();
        assert_eq!(second.new_words(), "");
        second.file.write_all(b"of the second\n").unwrap();
        assert_eq!(second.new_words(), "of the second\n");
        second.remove_if_new();
        assert!(path.exists());
        first.remove_if_new();
        assert!(!path.exists());
    }

    #[test]
    fn the_childs_exit_code_is_passed_on() {
        assert_eq!(exit_of(Some(77)), Exit::Refused);
        assert_eq!(exit_of(Some(3)), Exit::General);
        assert_eq!(exit_of(None), Exit::General);
    }
}
