//! SSH for a Nix that gets nothing of our environment: a link in RUN/over-ssh, named after a builder, that starts ssh with the
//! run's own configuration.
//!
//! A daemon's build hook runs as root in the daemon's environment. It has no `NIX_SSHOPTS` of ours, reads no `ssh_config` but
//! root's, and Nix before 2.31 takes no port in a URI; what reaches it from a trusted user are the lines of the machines list.
//! So the line names this link as the program to start in place of ssh, as on the direct lane.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::lane::{LaneError, link_uri, make_folder, make_link, remove};
use super::words::{say, show};

/// The folder of the links in a run's folder.
pub(super) const SSH_FOLDER: &str = "over-ssh";

/// ssh's configuration in a run's folder.
pub(crate) const SSH_CONFIG: &str = "ssh_config";

/// The longest line of ssh's that is shown in one piece.
const MAX_LINE: u64 = 16 * 1024;

/// ssh's own exit code, where there is or was no connection (`ssh(1)`).
const SSH_BROKE: u8 = 255;

/// The exit code where there is no ssh, as of nixtail's commands.
const UNAVAILABLE: u8 = 69;

/// The links of one run. [`SshLinks::end`] removes them, and so does dropping it.
#[derive(Debug)]
pub struct SshLinks {
    folder: PathBuf,
    program: PathBuf,
}

impl SshLinks {
    /// Makes the folder of links in the run's folder `run`. `program` is nixtail.
    ///
    /// # Errors
    /// When that can't be there, or its path wouldn't come through.
    pub fn start(run: &Path, program: &Path) -> Result<Self, LaneError> {
        // What holds for one builder's path holds for the folder's.
        Self::store_uri(run, "b")?;
        let folder = run.join(SSH_FOLDER);
        make_folder(&folder)?;
        Ok(Self { folder, program: program.to_owned() })
    }

    /// The URI by which Nix reaches `builder` over such a link.
    ///
    /// # Errors
    /// [`LaneError::Mangled`] where the path wouldn't come through.
    pub fn store_uri(run: &Path, builder: &str) -> Result<String, LaneError> {
        link_uri(&run.join(SSH_FOLDER), builder)
    }

    /// Lets Nix reach `builder`, of which ssh's configuration tells.
    ///
    /// # Errors
    /// When its link can't be made.
    pub fn open(&self, builder: &str) -> Result<(), LaneError> {
        make_link(&self.program, &self.folder.join(builder))
    }

    /// Removes them.
    pub fn end(&self) {
        remove(&self.folder);
    }
}

impl Drop for SshLinks {
    fn drop(&mut self) {
        self.end();
    }
}

/// Joins standard input and output with the builder's `nix-daemon --stdio`, over ssh; answers the exit code, or why there is
/// no ssh. Nix sees the end of the stream after the last of ssh's words, because this process holds it, too.
pub(super) fn serve(name: &str, run: &Path) -> Result<u8, String> {
    let config = run.join(SSH_CONFIG);
    if fs::metadata(&config).is_err() {
        return Err(format!(
            "the coordinator that offered it doesn't run any more (there is no {}); start `nixtail coordinator` again",
            config.display()
        ));
    }
    let mut ssh = Command::new("ssh");
    ssh.arg("-F").arg(&config).args(["-x", "-a", "-T", "--", name, "nix-daemon --stdio"]).stderr(Stdio::piped());
    let mut child = match ssh.spawn() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            say(name, "there is no ssh on the PATH of who builds here; install it, or use `--transport direct`");
            return Ok(UNAVAILABLE);
        }
        started => started.map_err(|error| format!("ssh can't be started: {error}"))?,
    };
    if let Some(stderr) = child.stderr.take() {
        let mut words = BufReader::new(stderr);
        let mut line = Vec::new();
        // An error ends it as the end does: there is nothing more to show.
        while matches!(words.by_ref().take(MAX_LINE).read_until(b'\n', &mut line), Ok(1..)) {
            show(&line);
            line.clear();
        }
    }
    let status = child.wait().map_err(|error| format!("ssh is lost: {error}"))?;
    match status.code() {
        Some(0) => Ok(0),
        Some(code) => {
            let next = if code == i32::from(SSH_BROKE) {
                "; look at `nixtail status`, or start `nixtail coordinator` again"
            } else {
                ""
            };
            say(name, &format!("its connection over ssh ended with exit code {code}{next}"));
            Ok(u8::try_from(code).unwrap_or(1))
        }
        None => Err(format!("ssh was ended: {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_come_and_go_with_the_run() {
        let run = tempfile::tempdir().unwrap();
        let links = SshLinks::start(run.path(), Path::new("/nonexistent/nixtail")).unwrap();
        links.open("b1").unwrap();
        links.open("b1").unwrap();
        let link = run.path().join("over-ssh/b1");
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("/nonexistent/nixtail"));
        let uri = SshLinks::store_uri(run.path(), "b1").unwrap();
        assert_eq!(uri, format!("ssh-ng://localhost?remote-program={}", link.display()));
        drop(links);
        assert_eq!(fs::read_dir(run.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_killed_run_left_is_replaced() {
        let run = tempfile::tempdir().unwrap();
        fs::create_dir(run.path().join(SSH_FOLDER)).unwrap();
        std::os::unix::fs::symlink("/old", run.path().join("over-ssh/b1")).unwrap();
        let links = SshLinks::start(run.path(), Path::new("/new")).unwrap();
        links.open("b1").unwrap();
        assert_eq!(fs::read_link(run.path().join("over-ssh/b1")).unwrap(), Path::new("/new"));
    }

    #[test]
    fn a_path_that_a_shell_would_change_is_refused() {
        let refused = SshLinks::start(Path::new("/tmp/a b"), Path::new("/new"));
        assert!(matches!(refused, Err(LaneError::Mangled(_))), "{refused:?}");
        assert!(SshLinks::store_uri(Path::new("/tmp"), "-oProxyCommand=x").is_err());
    }

    #[test]
    fn a_run_that_is_over_is_told_of() {
        let run = tempfile::tempdir().unwrap();
        let words = serve("b1", run.path()).unwrap_err();
        assert!(words.contains("doesn't run any more") && words.contains("nixtail coordinator"), "{words}");
    }
}
