//! The program that Nix starts instead of ssh: a link to nixtail named after a builder, with the one argument `--stdio`.
//!
//! In a lane it hands its standard input and output to the agent and waits for the last word. Nix starts one for each build and waits
//! for it inside its scheduler, so there is no runtime here, no parser of arguments, no logger.

use std::ffi::OsStr;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nixtail_proto::direct::{Decoder, Event};

use super::lane::LANE_FOLDER;
use super::over_ssh::{self, SSH_FOLDER};
use super::words::{say, show};
use super::{LANE_SOCKET, handover};
use crate::net::peer_user::peer_user;

/// The exit code where the agent isn't there, as of nixtail's commands.
const UNAVAILABLE: u8 = 69;

/// What the agent says at once is a line or two.
const BUFFER: usize = 4096;

/// Does the work if this process was started as RUN/builders/NAME or RUN/over-ssh/NAME with `--stdio` and nothing else;
/// `None` otherwise.
#[must_use]
pub fn run_if_called() -> Option<ExitCode> {
    let mut arguments = std::env::args_os();
    let program = PathBuf::from(arguments.next()?);
    let call = called(&program, arguments.next().as_deref(), arguments.next().as_deref())?;
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let served = match call {
        Call::Lane(folder) => serve(&name, &folder.join(LANE_SOCKET)),
        Call::OverSsh(run) => over_ssh::serve(&name, run),
    };
    Some(match served {
        Ok(code) => ExitCode::from(code),
        Err(words) => {
            say(&name, &words);
            ExitCode::from(UNAVAILABLE)
        }
    })
}

/// What a builder's link was called for.
#[derive(Debug, PartialEq, Eq)]
enum Call<'a> {
    /// The direct lane of this folder.
    Lane(&'a Path),
    /// ssh, with the configuration in this run's folder.
    OverSsh(&'a Path),
}

/// What a builder's link that is called as Nix calls it stands for.
fn called<'a>(program: &'a Path, first: Option<&OsStr>, more: Option<&OsStr>) -> Option<Call<'a>> {
    if first != Some(OsStr::new("--stdio")) || more.is_some() {
        return None;
    }
    let folder = program.parent().filter(|folder| !folder.as_os_str().is_empty())?;
    // A link may be there without the socket, where the agent has just ended: that must not read as wrong usage.
    let is_link = || std::fs::symlink_metadata(program).is_ok_and(|found| found.is_symlink());
    let is_in = |name: &str| folder.file_name() == Some(OsStr::new(name)) && is_link();
    if is_in(SSH_FOLDER) {
        return folder.parent().map(Call::OverSsh);
    }
    (is_in(LANE_FOLDER) || folder.join(LANE_SOCKET).exists()).then_some(Call::Lane(folder))
}

/// Hands everything over; answers the exit code, or why there is nobody to hand it to.
fn serve(name: &str, socket: &Path) -> Result<u8, String> {
    let gone = |error: &io::Error| {
        let path = socket.display();
        format!(
            "the coordinator that offered it doesn't run any more ({path}: {error}); start `nixtail coordinator` again"
        )
    };
    let mut agent = UnixStream::connect(socket).map_err(|error| gone(&error))?;
    let theirs = peer_user(&agent).map_err(|error| gone(&error))?;
    let own = rustix::process::getuid();
    if theirs != own && !theirs.is_root() && !own.is_root() {
        return Err(format!("the process at {} belongs to another user (uid {})", socket.display(), theirs.as_raw()));
    }
    handover::send(&agent, name, io::stdin().as_fd(), io::stdout().as_fd()).map_err(|error| gone(&error))?;
    let (mut decoder, mut buffer) = (Decoder::new(), [0; BUFFER]);
    loop {
        let length = match agent.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Ok(0) => return Err("the coordinator's agent ended in mid-build; its own log says why".to_owned()),
            read => read.map_err(|error| gone(&error))?,
        };
        let mut rest = buffer.get(..length).unwrap_or_default();
        while let Some(event) = decoder.next_event(&mut rest).map_err(|error| format!("the agent: {error}"))? {
            match event {
                Event::Accepted => {}
                Event::Output(_, text) => show(text),
                Event::Ended(0, _) => return Ok(0),
                Event::Ended(code, words) => {
                    say(name, &words);
                    return Ok(u8::try_from(code).unwrap_or(1));
                }
                Event::Refused(kind, words) => {
                    say(name, &words);
                    return Ok(kind.exit_code());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_link_in_a_lane_with_one_argument_is_called_by_nix() {
        let run = tempfile::tempdir().unwrap();
        let folder = run.path().join(LANE_FOLDER);
        std::fs::create_dir(&folder).unwrap();
        let (link, elsewhere) = (folder.join("b1"), run.path().join("nixtail"));
        let stdio = Some(OsStr::new("--stdio"));
        assert_eq!(called(&link, stdio, None), None, "no such link, no socket");
        for link in [&link, &elsewhere] {
            std::os::unix::fs::symlink("/nonexistent/nixtail", link).unwrap();
        }
        assert_eq!(called(&link, stdio, None), Some(Call::Lane(&folder)));
        assert_eq!(called(&elsewhere, stdio, None), None);
        std::fs::write(run.path().join(LANE_SOCKET), "").unwrap();
        assert_eq!(called(&elsewhere, stdio, None), Some(Call::Lane(run.path())));
        assert_eq!(called(&link, stdio, Some(OsStr::new("--store"))), None);
        assert_eq!(called(&link, Some(OsStr::new("status")), None), None);
        assert_eq!(called(&link, None, None), None);
        assert_eq!(called(Path::new("nixtail"), stdio, None), None);
    }

    #[test]
    fn a_link_for_ssh_means_its_runs_folder() {
        let run = tempfile::tempdir().unwrap();
        let link = run.path().join(SSH_FOLDER).join("b1");
        let stdio = Some(OsStr::new("--stdio"));
        assert_eq!(called(&link, stdio, None), None, "no such link");
        std::fs::create_dir(run.path().join(SSH_FOLDER)).unwrap();
        std::os::unix::fs::symlink("/nonexistent/nixtail", &link).unwrap();
        assert_eq!(called(&link, stdio, None), Some(Call::OverSsh(run.path())));
        assert_eq!(called(&link, Some(OsStr::new("status")), None), None);
    }
}
