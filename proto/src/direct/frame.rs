//! What the server answers: frames, and how they are read as they come.

use std::fmt;

/// Bytes before each payload.
pub const HEADER_LENGTH: usize = 4;

/// The longest payload, in bytes: what one read of a pipe gives.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// The longest words, in bytes. They are one sentence for a person.
pub const MAX_WORDS: usize = 1024;

/// Bytes of an `ended` payload before its words.
const CODE_LENGTH: usize = 4;

const ACCEPTED: u8 = 1;
const REFUSED: u8 = 2;
const DATA: u8 = 3;
const STDERR: u8 = 4;
const ENDED: u8 = 5;

/// Where a command's bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Its standard output.
    Data,
    /// Its standard error.
    Stderr,
}

/// Why a request was refused, for programs; the words beside it are for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// The policy doesn't let this node log in.
    Policy,
    /// The command isn't on the list.
    Command,
    /// The request can't be read, or is of another version.
    Protocol,
    /// As many sessions as there may be.
    Busy,
    /// The command couldn't be started.
    NotStarted,
    /// Of a later version: a refusal all the same.
    Other(u8),
}

impl RefusalKind {
    fn code(self) -> u8 {
        match self {
            Self::Policy => 1,
            Self::Command => 2,
            Self::Protocol => 3,
            Self::Busy => 4,
            Self::NotStarted => 5,
            Self::Other(code) => code,
        }
    }

    fn from_code(code: u8) -> Self {
        let known = [Self::Policy, Self::Command, Self::Protocol, Self::Busy, Self::NotStarted];
        known.into_iter().find(|kind| kind.code() == code).unwrap_or(Self::Other(code))
    }

    /// The exit code that says the same: those of nixtail's own commands, and 126 and 127 as shells have them.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Policy => 77,
            Self::Command => 126,
            Self::Protocol => 78,
            Self::Busy => 75,
            Self::NotStarted => 127,
            Self::Other(_) => 1,
        }
    }
}

/// The frame that lets a client in.
pub fn accepted() -> [u8; HEADER_LENGTH] {
    header(ACCEPTED, 0)
}

/// The frame that turns a client away. Words beyond [`MAX_WORDS`] are cut off.
pub fn refused(kind: RefusalKind, words: &str) -> Vec<u8> {
    with_words(REFUSED, &[kind.code()], words)
}

/// The frame that ends a session. Words beyond [`MAX_WORDS`] are cut off; empty ones say that there is nothing to tell.
pub fn ended(code: u32, words: &str) -> Vec<u8> {
    with_words(ENDED, &code.to_be_bytes(), words)
}

/// The header of `length` bytes of a command's output, at most [`MAX_PAYLOAD`]: to be written right before them.
pub fn output_header(output: Output, length: usize) -> [u8; HEADER_LENGTH] {
    debug_assert!(length <= MAX_PAYLOAD);
    let kind = match output {
        Output::Data => DATA,
        Output::Stderr => STDERR,
    };
    header(kind, length)
}

fn header(kind: u8, length: usize) -> [u8; HEADER_LENGTH] {
    // Every length here is below 2^24.
    let [_, high, middle, low] = u32::try_from(length).unwrap_or_default().to_be_bytes();
    [kind, high, middle, low]
}

fn with_words(kind: u8, code: &[u8], words: &str) -> Vec<u8> {
    let end = (0..=words.len().min(MAX_WORDS)).rev().find(|end| words.is_char_boundary(*end)).unwrap_or_default();
    let words = words.get(..end).unwrap_or_default().as_bytes();
    [&header(kind, code.len() + words.len()), code, words].concat()
}

/// What a server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// The command runs.
    Accepted,
    /// It doesn't, and nothing more comes. The words are one line without control characters.
    Refused(RefusalKind, String),
    /// Bytes of its output: as many as there were, a frame's or a part of it.
    Output(Output, &'a [u8]),
    /// It has ended with this exit code, and nothing more comes. The words, if any, are one line without control characters.
    Ended(u32, String),
}

/// Why a server's bytes aren't an answer: the server's doing, or somebody else's who sits there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// It answers with an SSH identification.
    #[error("it speaks SSH only; use the same version of nixtail at both ends")]
    Ssh,
    /// A kind that there isn't.
    #[error("it answered with a frame of unknown kind {0}; use the same version of nixtail at both ends")]
    UnknownKind(u8),
    /// More or fewer bytes than the kind may have.
    #[error("it answered with a frame of kind {kind} and {length} bytes, which can't be")]
    Length {
        /// The frame's kind.
        kind: u8,
        /// The bytes that it announced.
        length: usize,
    },
    /// A frame that mustn't come at this point.
    #[error("it answered with a frame of kind {0} out of turn")]
    OutOfTurn(u8),
}

/// Reads a server's answer as it comes. Output is handed out as it lies in what was read; only the short frames are gathered.
#[derive(Debug, Default)]
pub struct Decoder {
    stage: Stage,
    /// The bytes of a header or a short payload that have come so far.
    gathered: Vec<u8>,
    current: Option<Current>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Stage {
    #[default]
    Unanswered,
    Running,
    Over,
}

/// The frame whose payload is being read.
#[derive(Debug, Clone, Copy)]
struct Current {
    kind: u8,
    /// Bytes of the payload that are still to come.
    left: usize,
}

impl Decoder {
    /// One that has read nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the last frame has come: the stream's end is in order now, and was a break before.
    pub fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// Takes from the front of `bytes` what makes the next event; `None` when more must be read first, and then all of
    /// `bytes` is taken.
    ///
    /// # Errors
    /// When the stream makes no sense from here on.
    pub fn next_event<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Event<'a>>, FrameError> {
        loop {
            let Some(current) = &mut self.current else {
                if !self.gather(bytes, HEADER_LENGTH) {
                    return Ok(None);
                }
                let (kind, length) = self.header();
                self.check(kind, length)?;
                self.current = Some(Current { kind, left: length });
                continue;
            };
            let output = match current.kind {
                DATA => Output::Data,
                STDERR => Output::Stderr,
                kind => {
                    let length = current.left;
                    if !self.gather(bytes, length) {
                        return Ok(None);
                    }
                    self.current = None;
                    return Ok(Some(self.short_frame(kind)));
                }
            };
            if current.left == 0 {
                self.current = None;
                continue;
            }
            let length = current.left.min(bytes.len());
            if length == 0 {
                return Ok(None);
            }
            let (piece, rest) = bytes.split_at(length);
            *bytes = rest;
            current.left -= length;
            return Ok(Some(Event::Output(output, piece)));
        }
    }

    /// Moves bytes until `length` are gathered, and says whether they are.
    fn gather(&mut self, bytes: &mut &[u8], length: usize) -> bool {
        let (taken, rest) = bytes.split_at(length.saturating_sub(self.gathered.len()).min(bytes.len()));
        self.gathered.extend_from_slice(taken);
        *bytes = rest;
        self.gathered.len() >= length
    }

    fn header(&mut self) -> (u8, usize) {
        let kind = self.gathered.first().copied().unwrap_or_default();
        let length = self.gathered.iter().skip(1).fold(0, |length, byte| (length << 8) | usize::from(*byte));
        self.gathered.clear();
        (kind, length)
    }

    fn check(&self, kind: u8, length: usize) -> Result<(), FrameError> {
        let (lengths, stage) = match kind {
            ACCEPTED => (0..=0, Stage::Unanswered),
            REFUSED => (1..=1 + MAX_WORDS, Stage::Unanswered),
            DATA | STDERR => (0..=MAX_PAYLOAD, Stage::Running),
            ENDED => (CODE_LENGTH..=CODE_LENGTH + MAX_WORDS, Stage::Running),
            // "SSH-"
            b'S' if self.stage == Stage::Unanswered => return Err(FrameError::Ssh),
            _ => return Err(FrameError::UnknownKind(kind)),
        };
        if !lengths.contains(&length) {
            return Err(FrameError::Length { kind, length });
        }
        if stage != self.stage {
            return Err(FrameError::OutOfTurn(kind));
        }
        Ok(())
    }

    fn short_frame(&mut self, kind: u8) -> Event<'static> {
        let event = match (kind, self.gathered.as_slice()) {
            (ENDED, [a, b, c, d, words @ ..]) => Event::Ended(u32::from_be_bytes([*a, *b, *c, *d]), plain(words)),
            (REFUSED, [code, words @ ..]) => Event::Refused(RefusalKind::from_code(*code), plain(words)),
            _ => Event::Accepted,
        };
        self.gathered.clear();
        self.stage = if event == Event::Accepted { Stage::Running } else { Stage::Over };
        event
    }
}

/// A peer's words as one line that does nothing to a terminal.
fn plain(words: &[u8]) -> String {
    let text = String::from_utf8_lossy(words);
    let words: Vec<&str> =
        text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()).collect();
    words.join(" ")
}

impl fmt::Display for RefusalKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Policy => "refused by policy",
            Self::Command => "command refused",
            Self::Protocol => "request refused",
            Self::Busy => "too many sessions",
            Self::NotStarted => "not started",
            Self::Other(_) => "refused",
        })
    }
}
