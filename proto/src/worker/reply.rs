//! A daemon's answer to a request for builds.
//!
//! In the worker protocol it begins with messages, of which each begins with its number and has a form of its own, up to
//! the one that says that the work is done or has failed; then comes the result. In the serve protocol it is the result alone.

use super::{BuildOutcome, Protocol};

// Messages of the worker protocol (`worker-protocol.hh`).
const STDERR_NEXT: u64 = 0x6f6c_6d67;
const STDERR_READ: u64 = 0x6461_7461;
const STDERR_WRITE: u64 = 0x6461_7416;
const STDERR_LAST: u64 = 0x616c_7473;
const STDERR_ERROR: u64 = 0x6378_7470;
const STDERR_START_ACTIVITY: u64 = 0x5354_5254;
const STDERR_STOP_ACTIVITY: u64 = 0x5354_4f50;
const STDERR_RESULT: u64 = 0x5253_4c54;

/// The longest text in a message; what claims to be longer isn't a message. A whole log line goes into one.
const MAX_TEXT: u64 = 1 << 30;
/// The most fields of a message; Nix has up to four.
const MAX_FIELDS: u64 = 1024;
/// What is kept of results at once while a path is looked for in them, beyond the path itself.
const SEARCHED_AT_ONCE: usize = 64 * 1024;

/// What kind of request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `BuildDerivation`: the result of one.
    Derivation,
    /// `BuildPaths`: all or an error.
    Paths,
    /// `BuildPathsWithResults`: a list of paths and their results.
    PathsWithResults,
    /// The serve protocol's `BuildDerivation`.
    ServedDerivation,
    /// The serve protocol's `BuildPaths`.
    ServedPaths,
}

impl Kind {
    /// The kind of an operation's number, if it builds.
    pub(super) fn of(protocol: Protocol, operation: u64) -> Option<Self> {
        match (protocol, operation) {
            (Protocol::Worker, 9) => Some(Self::Paths),
            (Protocol::Worker, 36) => Some(Self::Derivation),
            (Protocol::Worker, 46) => Some(Self::PathsWithResults),
            (Protocol::Serve, 6) => Some(Self::ServedPaths),
            (Protocol::Serve, 8) => Some(Self::ServedDerivation),
            _ => None,
        }
    }
}

/// An answer as far as it has come.
#[derive(Debug)]
pub(super) struct Reply {
    kind: Kind,
    /// What the request named, in its order.
    wanted: Vec<Vec<u8>>,
    /// Of how many of them the outcome is known.
    answered: usize,
    /// What comes next; the last one first.
    expected: Vec<Token>,
    /// Bytes of a text that are yet to pass.
    skip: u64,
    /// A number of which not all bytes have come.
    word: Vec<u8>,
    /// Results in which the next path is looked for.
    results: Option<Vec<u8>>,
}

#[derive(Debug, Clone, Copy)]
enum Token {
    Message,
    Number,
    Text,
    Fields,
    Field(u64),
    Status,
}

/// How far an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// More is to come.
    Waiting,
    /// All that there is to know is known.
    Over,
    /// It isn't what it should be.
    Lost,
}

impl Reply {
    pub(super) fn new(kind: Kind, wanted: Vec<Vec<u8>>) -> Self {
        let first = match kind {
            Kind::Derivation | Kind::Paths | Kind::PathsWithResults => Token::Message,
            Kind::ServedDerivation | Kind::ServedPaths => Token::Status,
        };
        Self { kind, wanted, answered: 0, expected: vec![first], skip: 0, word: Vec::new(), results: None }
    }

    /// Whether the client may have had the whole answer, though not all was found in it.
    pub(super) fn may_be_over(&self) -> bool {
        self.results.is_some()
    }

    /// The builds of which nothing is known, by their place in the request.
    pub(super) fn unanswered(&self) -> impl Iterator<Item = usize> + use<> {
        self.answered..self.wanted.len()
    }

    /// More of it. `tell` gets each build whose outcome is known now.
    pub(super) fn push(&mut self, mut bytes: &[u8], mut tell: impl FnMut(usize, BuildOutcome)) -> Progress {
        while !bytes.is_empty() {
            if self.results.is_some() {
                return self.search(bytes, tell);
            }
            if self.skip > 0 {
                let skipped = bytes.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
                bytes = bytes.get(skipped..).unwrap_or_default();
                self.skip -= skipped as u64;
                continue;
            }
            let missing = bytes.len().min(8 - self.word.len());
            let (more, rest) = bytes.split_at(missing);
            self.word.extend_from_slice(more);
            bytes = rest;
            let Ok(word) = <[u8; 8]>::try_from(self.word.as_slice()) else { break };
            self.word.clear();
            match self.take(u64::from_le_bytes(word)) {
                Taken::On => {}
                Taken::Lost => return Progress::Lost,
                Taken::All(outcome) => {
                    self.unanswered().for_each(|index| tell(index, outcome));
                    self.answered = self.wanted.len();
                    return Progress::Over;
                }
            }
        }
        Progress::Waiting
    }

    fn take(&mut self, word: u64) -> Taken {
        let Some(token) = self.expected.pop() else { return Taken::Lost };
        match token {
            Token::Number => {}
            Token::Text if word <= MAX_TEXT => self.skip = word.next_multiple_of(8),
            Token::Fields if word <= MAX_FIELDS => self.expected.push(Token::Field(word)),
            Token::Text | Token::Fields => return Taken::Lost,
            Token::Field(left) => {
                // `Field` with none left never stays on top (see below), so this word is a field's type.
                self.expected.push(Token::Field(left.saturating_sub(1)));
                match word {
                    0 => self.expected.push(Token::Number),
                    1 => self.expected.push(Token::Text),
                    _ => return Taken::Lost,
                }
            }
            Token::Status => return Taken::All(self.outcome(word)),
            Token::Message => return self.take_message(word),
        }
        while let Some(Token::Field(0)) = self.expected.last() {
            self.expected.pop();
        }
        Taken::On
    }

    fn take_message(&mut self, number: u64) -> Taken {
        use Token::{Fields, Message, Number, Text};
        // Backwards: the last one is taken first.
        let form: &[Token] = match number {
            STDERR_NEXT | STDERR_WRITE => &[Message, Text],
            STDERR_READ | STDERR_STOP_ACTIVITY => &[Message, Number],
            // Activity, level, type, text, fields, parent.
            STDERR_START_ACTIVITY => &[Message, Number, Fields, Text, Number, Number, Number],
            // Activity, type, fields.
            STDERR_RESULT => &[Message, Fields, Number, Number],
            STDERR_ERROR => return Taken::All(BuildOutcome::Failed),
            STDERR_LAST => match self.kind {
                Kind::Paths => return Taken::All(BuildOutcome::Built),
                Kind::PathsWithResults => {
                    self.results = Some(Vec::new());
                    &[]
                }
                _ => &[Token::Status],
            },
            _ => return Taken::Lost,
        };
        self.expected.extend_from_slice(form);
        Taken::On
    }

    fn outcome(&self, status: u64) -> BuildOutcome {
        let built = match self.kind {
            // An exit status.
            Kind::ServedPaths => status == 0,
            _ => is_success(status),
        };
        if built { BuildOutcome::Built } else { BuildOutcome::Failed }
    }

    /// The form of a result differs from version to version, but each begins with the path as it was asked for, and the status.
    fn search(&mut self, bytes: &[u8], mut tell: impl FnMut(usize, BuildOutcome)) -> Progress {
        let results = self.results.get_or_insert_default();
        for piece in bytes.chunks(SEARCHED_AT_ONCE) {
            results.extend_from_slice(piece);
            while let Some(asked) = self.wanted.get(self.answered) {
                let mut needle = (asked.len() as u64).to_le_bytes().to_vec();
                needle.extend_from_slice(asked);
                needle.resize(needle.len().next_multiple_of(8), 0);
                let Some(at) = results.windows(needle.len()).position(|window| window == needle) else {
                    let kept = results.len().min(needle.len());
                    results.drain(..results.len() - kept);
                    break;
                };
                let after = at + needle.len();
                let Some(status) = results.get(after..).and_then(|after| after.first_chunk()) else {
                    results.drain(..at);
                    break;
                };
                let built = is_success(u64::from_le_bytes(*status));
                tell(self.answered, if built { BuildOutcome::Built } else { BuildOutcome::Failed });
                self.answered += 1;
                results.drain(..after + 8);
            }
        }
        if self.answered == self.wanted.len() { Progress::Over } else { Progress::Waiting }
    }
}

enum Taken {
    On,
    Lost,
    /// The same goes for all that were asked for.
    All(BuildOutcome),
}

/// `BuildResult::Status` (`build-result.hh`): Built, Substituted, AlreadyValid, ResolvesToAlreadyValid.
fn is_success(status: u64) -> bool {
    matches!(status, 0..=2 | 13)
}
