//! The one line with which a client begins.

use std::fmt;

use super::GREETING;
use crate::nix_command::{MAX_COMMAND_LENGTH, Shown};

/// The version of the lane spoken here. Frames that change their meaning get a new number.
pub const PROTOCOL: u32 = 1;

/// The longest login name, in bytes. Linux has 32; directories of organisations have longer ones.
const MAX_LOGIN: usize = 256;

/// The longest request, in bytes, its end of line included.
pub const MAX_REQUEST: usize = GREETING.len() + 12 + MAX_LOGIN + 1 + MAX_COMMAND_LENGTH + 1;

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    login: String,
    command: String,
}

/// Why a request can't be written or isn't taken. Where it was read, it is the client's doing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// It doesn't begin as one.
    #[error("unreadable request: it doesn't begin with `nixtail-direct`")]
    NotARequest,
    /// Another version of nixtail at the other end.
    #[error(
        "nixtail-direct {offered} isn't spoken here, only {PROTOCOL}; use the same version of nixtail at both ends"
    )]
    Version {
        /// The version that was asked for.
        offered: Shown,
    },
    /// No login or no command.
    #[error("unreadable request: it needs a login and a command")]
    Incomplete,
    /// A login that isn't one word, or too long a one.
    #[error("unreadable login {0}: it must be one word of at most {MAX_LOGIN} bytes")]
    Login(Shown),
    /// A command with a line break, or too long a one.
    #[error("unreadable command: it must be one line of at most {MAX_COMMAND_LENGTH} bytes")]
    Command,
    /// No end of line within [`MAX_REQUEST`].
    #[error("unreadable request: longer than {MAX_REQUEST} bytes")]
    TooLong,
    /// Not UTF-8.
    #[error("unreadable request: not UTF-8")]
    NotText,
}

impl Request {
    /// To run `command` as `login`. What may be run is for the other end to say.
    ///
    /// # Errors
    /// When either can't stand in a request.
    pub fn new(login: &str, command: &str) -> Result<Self, RequestError> {
        let is_word = |text: &str| !text.is_empty() && !text.chars().any(|c| c.is_whitespace() || c.is_control());
        if login.len() > MAX_LOGIN || !is_word(login) {
            return Err(RequestError::Login(Shown::new(login)));
        }
        if command.len() > MAX_COMMAND_LENGTH || command.contains('\n') {
            return Err(RequestError::Command);
        }
        if command.is_empty() {
            return Err(RequestError::Incomplete);
        }
        Ok(Self { login: login.to_owned(), command: command.to_owned() })
    }

    /// Reads the request at the beginning of `bytes`, and says how long it is: what follows it is the command's input.
    /// `None` while its end hasn't come.
    ///
    /// # Errors
    /// When no more bytes can make it a request.
    pub fn read(bytes: &[u8]) -> Result<Option<(Self, usize)>, RequestError> {
        let shortest = bytes.len().min(GREETING.len());
        if bytes.get(..shortest) != GREETING.get(..shortest) {
            return Err(RequestError::NotARequest);
        }
        let Some(end) = bytes.iter().take(MAX_REQUEST).position(|byte| *byte == b'\n') else {
            return if bytes.len() < MAX_REQUEST { Ok(None) } else { Err(RequestError::TooLong) };
        };
        let line = bytes.get(GREETING.len()..end).ok_or(RequestError::NotARequest)?;
        let line = std::str::from_utf8(line).map_err(|_| RequestError::NotText)?;
        let (version, rest) = line.split_once(' ').unwrap_or((line, ""));
        if version != PROTOCOL.to_string() {
            return Err(RequestError::Version { offered: Shown::new(version) });
        }
        let (login, command) = rest.split_once(' ').ok_or(RequestError::Incomplete)?;
        Ok(Some((Self::new(login, command)?, end + 1)))
    }

    /// Who wants to log in.
    pub fn login(&self) -> &str {
        &self.login
    }

    /// What is to be run, for [`crate::nix_command::parse_command`].
    pub fn command(&self) -> &str {
        &self.command
    }
}

/// The line, with its end.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "nixtail-direct {PROTOCOL} {} {}", self.login, self.command)
    }
}
