//! What a client of the SSH endpoint may run: a fixed list, read word by word, with no shell anywhere.
//!
//! Nix joins its words with blanks and expects a shell at the far end. There is none here: everything after
//! ` --store `, less a trailing ` --process-ops`, is one argument. Nix before 2.20 puts it in single quotes, later ones
//! send it as it is (`NixOS/nix` `src/libstore/ssh.cc`, `ssh-store.cc`, `legacy-ssh-store.cc`).

use std::fmt;

/// The longest command line that is read, in bytes: Nix sends well under 200, and a store URI has no need of more.
pub const MAX_COMMAND_LENGTH: usize = 4096;

/// The version of `nixtail-control` spoken here. A verb that changes its meaning gets a new number.
pub const CONTROL_PROTOCOL: u32 = 1;

/// How many arguments a control verb may have; the longest one takes three.
const MAX_CONTROL_ARGUMENTS: usize = 16;

/// How much of a refused command is shown again, in characters.
const SHOWN_LENGTH: usize = 80;

/// A command that a client may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NixCommand {
    /// `nix-daemon --stdio`, also as `nix daemon --stdio`: the worker protocol (`ssh-ng://`).
    Daemon {
        /// The store that the client named; it is the published one.
        store: Option<String>,
        /// `--process-ops`, which `mounted-ssh-ng://` sends.
        process_ops: bool,
    },
    /// `nix-store --serve --write`: the older protocol (`ssh://`).
    Serve {
        /// The store that the client named; it is the published one.
        store: Option<String>,
    },
    /// One of nixtail's own verbs.
    Control(ControlRequest),
}

/// `nixtail-control 1 VERB ARGUMENT…`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlRequest {
    /// What is asked for.
    pub verb: ControlVerb,
    /// Words of `A-Z a-z 0-9 . _ : @ / = + , -`; what they mean is the verb's.
    pub arguments: Vec<String>,
}

/// nixtail's own verbs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlVerb {
    /// What this builder is, as JSON.
    Facts,
    /// Take this builder, or extend the claim. One argument, the claimer's run, unless it has none.
    Claim,
    /// Give the claim back.
    Release,
    /// End this builder.
    Stop,
    /// Answer at once.
    Ping,
    /// Report as long as the builder lives, one line of JSON each time. One argument, the last event that is known already.
    Watch,
}

impl ControlVerb {
    /// The word on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Facts => "facts",
            Self::Claim => "claim",
            Self::Release => "release",
            Self::Stop => "stop",
            Self::Ping => "ping",
            Self::Watch => "watch",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        [Self::Facts, Self::Claim, Self::Release, Self::Stop, Self::Ping, Self::Watch]
            .into_iter()
            .find(|verb| verb.as_str() == word)
    }
}

impl ControlRequest {
    /// The command line that asks for this.
    pub fn to_command_line(&self) -> String {
        let mut line = format!("nixtail-control {CONTROL_PROTOCOL} {}", self.verb.as_str());
        for argument in &self.arguments {
            line.push(' ');
            line.push_str(argument);
        }
        line
    }
}

/// Why a command isn't run. All of these are the client's doing; the text is one line, safe to show.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandRefusal {
    /// No shell is to be had.
    #[error("no shell here: this endpoint runs only `nix-daemon --stdio` and `nix-store --serve --write`")]
    Shell,
    /// Not on the list.
    #[error("command not allowed: {0}; this endpoint runs only `nix-daemon --stdio` and `nix-store --serve --write`")]
    NotAllowed(Shown),
    /// A store that this builder didn't publish.
    #[error("store not allowed: {wanted}; this builder serves {published}")]
    ForeignStore {
        /// The one asked for.
        wanted: Shown,
        /// The one to ask for.
        published: Shown,
    },
    /// The `--store` argument's quotes don't match.
    #[error("unreadable --store argument: {0}")]
    Quoting(Shown),
    /// Longer than [`MAX_COMMAND_LENGTH`], not UTF-8, or with control characters.
    #[error("unreadable command: not plain text of at most {MAX_COMMAND_LENGTH} bytes")]
    Unreadable,
    /// Another version of nixtail at the other end.
    #[error(
        "nixtail-control {offered} isn't spoken here, only {CONTROL_PROTOCOL}; use the same version of nixtail at both ends"
    )]
    ControlProtocol {
        /// The version that was asked for.
        offered: Shown,
    },
    /// No such verb, or arguments that can't be.
    #[error("unknown control request: {0}")]
    Control(Shown),
}

/// Untrusted text made fit to show: bounded, and without control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown(String);

impl Shown {
    /// Makes `text` fit to show.
    pub fn new(text: &str) -> Self {
        let mut shown: String =
            text.chars().take(SHOWN_LENGTH).map(|c| if is_plain(c) { c } else { '\u{fffd}' }).collect();
        if text.chars().nth(SHOWN_LENGTH).is_some() {
            shown.push('…');
        }
        Self(shown)
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads the string of an SSH `exec` request. `published_store` is the only store that `--store` may name; where there
/// is none, no `--store` is allowed.
pub fn parse_command(line: &[u8], published_store: Option<&str>) -> Result<NixCommand, CommandRefusal> {
    let line = std::str::from_utf8(line).map_err(|_| CommandRefusal::Unreadable)?;
    if line.len() > MAX_COMMAND_LENGTH || !line.chars().all(is_plain) {
        return Err(CommandRefusal::Unreadable);
    }
    if line.is_empty() {
        return Err(CommandRefusal::Shell);
    }
    let not_allowed = || CommandRefusal::NotAllowed(Shown::new(line));

    for prefix in ["nix-daemon --stdio", "nix daemon --stdio"] {
        if let Some(rest) = strip_words(line, prefix) {
            let (rest, process_ops) = match rest.strip_suffix(" --process-ops") {
                Some(rest) => (rest, true),
                None => (rest, false),
            };
            let store = parse_store(rest, published_store).ok_or_else(not_allowed)??;
            return Ok(NixCommand::Daemon { store, process_ops });
        }
    }
    if let Some(rest) = strip_words(line, "nix-store --serve --write") {
        let store = parse_store(rest, published_store).ok_or_else(not_allowed)??;
        return Ok(NixCommand::Serve { store });
    }
    if let Some(rest) = line.strip_prefix("nixtail-control ") {
        return parse_control(rest).map(NixCommand::Control);
    }
    Err(not_allowed())
}

/// `line` without the words of `prefix`; what is left is empty or begins with a blank.
fn strip_words<'a>(line: &'a str, prefix: &str) -> Option<&'a str> {
    line.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with(' '))
}

/// What follows the fixed words: nothing, or ` --store ` and one argument. `None` is anything else.
fn parse_store(rest: &str, published: Option<&str>) -> Option<Result<Option<String>, CommandRefusal>> {
    if rest.is_empty() {
        return Some(Ok(None));
    }
    let argument = rest.strip_prefix(" --store ")?;
    let Some(wanted) = unquote(argument) else {
        return Some(Err(CommandRefusal::Quoting(Shown::new(argument))));
    };
    Some(if published == Some(wanted.as_str()) {
        Ok(Some(wanted))
    } else {
        Err(CommandRefusal::ForeignStore {
            wanted: Shown::new(&wanted),
            published: Shown::new(published.unwrap_or("its default store, without --store")),
        })
    })
}

/// Undoes what Nix' `shellEscape` does: the whole in single quotes, a quote within as `'\''`. Text that doesn't begin
/// with a quote is taken as it is.
fn unquote(argument: &str) -> Option<String> {
    if !argument.starts_with('\'') {
        return Some(argument.to_owned());
    }
    let inner = argument.strip_prefix('\'')?.strip_suffix('\'')?;
    let pieces: Vec<&str> = inner.split(r"'\''").collect();
    pieces.iter().all(|piece| !piece.contains('\'')).then(|| pieces.join("'"))
}

fn parse_control(rest: &str) -> Result<ControlRequest, CommandRefusal> {
    let refused = || CommandRefusal::Control(Shown::new(rest));
    let mut words = rest.split(' ');
    let version = words.next().unwrap_or_default();
    if version != CONTROL_PROTOCOL.to_string() {
        return Err(CommandRefusal::ControlProtocol { offered: Shown::new(version) });
    }
    let verb = words.next().and_then(ControlVerb::from_word).ok_or_else(refused)?;
    let arguments: Vec<String> = words.map(str::to_owned).collect();
    let is_word = |word: &String| {
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:@/=+,-".contains(&b))
    };
    if arguments.len() > MAX_CONTROL_ARGUMENTS || !arguments.iter().all(is_word) {
        return Err(refused());
    }
    Ok(ControlRequest { verb, arguments })
}

/// Neither a control character nor one that reorders or hides text on a terminal.
fn is_plain(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests;
