//! A client of Nix' worker protocol, just large enough to let a daemon build one derivation, as a coordinator's Nix does, and
//! to ask it whether it trusts us.
//!
//! Format: `NixOS/nix` `src/libstore/worker-protocol.*` and `daemon.cc`, versions 1.25 (Nix 2.4) to 1.35. Everything is a
//! 64-bit little-endian number, or a string of such a length filled up with zeros to a multiple of eight.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::report::plain;

const CLIENT_MAGIC: u64 = 0x6e69_7863;
const DAEMON_MAGIC: u64 = 0x6478_696f;

/// The version that we speak: the first whose daemon says whether it trusts us. Later ones add nothing that is needed here.
const VERSION: u64 = version(35);
/// The oldest daemon that is understood, that of Nix 2.4.
const OLDEST: u64 = version(25);

const fn version(minor: u64) -> u64 {
    1 << 8 | minor
}

const ADD_TO_STORE: u64 = 7;
const BUILD_PATHS: u64 = 9;
const BUILD_DERIVATION: u64 = 36;

/// `bmRepair` (`enum BuildMode` in `store-api.hh`).
const REPAIR: u64 = 1;

/// What comes before the answer to an operation (`enum` at the top of `worker-protocol.hh`).
mod stderr {
    pub(super) const NEXT: u64 = 0x6f6c_6d67;
    pub(super) const ERROR: u64 = 0x6378_7470;
    pub(super) const LAST: u64 = 0x616c_7473;
    pub(super) const START_ACTIVITY: u64 = 0x5354_5254;
    pub(super) const STOP_ACTIVITY: u64 = 0x5354_4f50;
    pub(super) const RESULT: u64 = 0x5253_4c54;
}

/// `resBuildLogLine`: a line that a build has written.
const BUILD_LOG_LINE: u64 = 101;

/// The longest string that is read; paths and messages have some hundred bytes.
const MAX_STRING: u64 = 64 * 1024;
/// The most members of a set that are read, and the most messages before an answer.
const MAX_MEMBERS: u64 = 4096;
/// The most lines of a build that are kept: a probe writes some twenty.
const MAX_LINES: usize = 200;
/// The most bytes of one frame that are sent.
const FRAME: usize = 64 * 1024;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum WorkerError {
    /// The daemon's own words.
    #[error("{0}")]
    Refused(String),
    /// It ended, or its pipe broke.
    #[error("the daemon ended the connection: {0}")]
    Connection(#[from] io::Error),
    /// It said what isn't in the protocol.
    #[error("the daemon isn't understood: {0}")]
    Protocol(String),
}

/// A connection to a daemon after the greeting.
#[derive(Debug)]
pub(super) struct Worker<R, W> {
    reader: R,
    writer: W,
    /// Whether the daemon trusts us, where it says so: from protocol 1.35 (Nix 2.15) on.
    pub(super) trusted: Option<bool>,
}

/// A derivation without inputs that must be built first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Derivation {
    pub(super) path: String,
    pub(super) output: String,
    pub(super) sources: Vec<String>,
    pub(super) system: String,
    pub(super) builder: String,
    pub(super) arguments: Vec<String>,
    pub(super) environment: Vec<(String, String)>,
}

/// How a build ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Built {
    /// What the build wrote.
    pub(super) lines: Vec<String>,
    /// Why it failed, in Nix' words.
    pub(super) error: String,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Worker<R, W> {
    /// Greets the daemon.
    pub(super) async fn greet(reader: R, writer: W) -> Result<Self, WorkerError> {
        let mut worker = Self { reader, writer, trusted: None };
        let mut words = Message::default();
        words.number(CLIENT_MAGIC);
        worker.send(words).await?;
        if worker.number().await? != DAEMON_MAGIC {
            return Err(WorkerError::Protocol("it doesn't greet".into()));
        }
        let theirs = worker.number().await?;
        if theirs >> 8 != VERSION >> 8 || theirs < OLDEST {
            return Err(WorkerError::Protocol(format!("its protocol is {}.{}", theirs >> 8, theirs & 0xff)));
        }
        let mut words = Message::default();
        // Our version; no processor affinity; no space reserved.
        words.number(VERSION).number(0).number(0);
        worker.send(words).await?;
        if theirs >= version(33) {
            worker.string().await?;
        }
        if theirs >= version(35) {
            worker.trusted = match worker.number().await? {
                1 => Some(true),
                2 => Some(false),
                _ => None,
            };
        }
        worker.answer().await?;
        Ok(worker)
    }

    /// Adds an archive (a NAR) under its own content's name; returns its store path.
    pub(super) async fn add_archive(&mut self, name: &str, archive: &[u8]) -> Result<String, WorkerError> {
        let mut words = Message::default();
        // No references, no repair.
        words.number(ADD_TO_STORE).string(name).string("fixed:r:sha256").number(0).number(0);
        for frame in archive.chunks(FRAME) {
            words.number(frame.len() as u64).0.extend_from_slice(frame);
        }
        words.number(0);
        self.send(words).await?;
        self.answer().await?;
        let path = self.string().await?;
        // Its deriver, hash, references, registration time, size, whether it was built here, signatures, content address.
        self.string().await?;
        self.string().await?;
        self.strings().await?;
        for _ in 0..3 {
            self.number().await?;
        }
        self.strings().await?;
        self.string().await?;
        Ok(path)
    }

    /// Lets the daemon build. The connection is of no use afterwards: only the beginning of the answer is read.
    pub(super) async fn build(mut self, derivation: &Derivation) -> Result<Built, WorkerError> {
        let mut words = Message::default();
        words.number(BUILD_DERIVATION).string(&derivation.path);
        words.number(1).string("out").string(&derivation.output).string("").string("");
        words.strings(&derivation.sources).string(&derivation.system).string(&derivation.builder);
        words.strings(&derivation.arguments).number(derivation.environment.len() as u64);
        for (name, value) in &derivation.environment {
            words.string(name).string(value);
        }
        // The normal mode.
        words.number(0);
        self.send(words).await?;
        let lines = self.answer().await?;
        let _status = self.number().await?;
        let error = self.string().await?;
        Ok(Built { lines, error: without_colours(&error) })
    }

    /// Lets the daemon repair nothing at all, which it refuses to whom it doesn't trust, and does without a trace for others:
    /// the question whether it trusts us, for daemons that don't say so in their greeting.
    pub(super) async fn repair_nothing(mut self) -> Result<(), WorkerError> {
        let mut words = Message::default();
        words.number(BUILD_PATHS).strings(&[]).number(REPAIR);
        self.send(words).await?;
        self.answer().await?;
        self.number().await?;
        Ok(())
    }

    /// What precedes an answer: the lines of builds are kept, an error ends it.
    async fn answer(&mut self) -> Result<Vec<String>, WorkerError> {
        let mut lines = Vec::new();
        for _ in 0..MAX_MEMBERS {
            match self.number().await? {
                stderr::LAST => return Ok(lines),
                stderr::NEXT => drop(self.string().await?),
                stderr::ERROR => return Err(WorkerError::Refused(self.error().await?)),
                stderr::START_ACTIVITY => {
                    // Its number, level and kind, what it is, its fields, its parent.
                    for _ in 0..3 {
                        self.number().await?;
                    }
                    self.string().await?;
                    self.fields().await?;
                    self.number().await?;
                }
                stderr::STOP_ACTIVITY => drop(self.number().await?),
                stderr::RESULT => {
                    self.number().await?;
                    let kind = self.number().await?;
                    let mut fields = self.fields().await?.into_iter();
                    if let (BUILD_LOG_LINE, Some(line), true) = (kind, fields.next(), lines.len() < MAX_LINES) {
                        lines.push(line);
                    }
                }
                other => return Err(WorkerError::Protocol(format!("message {other:#x}"))),
            }
        }
        Err(WorkerError::Protocol("too many messages".into()))
    }

    /// Kind, level, name, message, no position, traces.
    async fn error(&mut self) -> Result<String, WorkerError> {
        self.string().await?;
        self.number().await?;
        self.string().await?;
        let message = self.string().await?;
        Ok(plain(&without_colours(&message)))
    }

    /// The strings among some fields, each of which is a number or a string.
    async fn fields(&mut self) -> Result<Vec<String>, WorkerError> {
        let mut strings = Vec::new();
        for _ in 0..self.count().await? {
            match self.number().await? {
                0 => drop(self.number().await?),
                1 => strings.push(self.string().await?),
                other => return Err(WorkerError::Protocol(format!("field of kind {other}"))),
            }
        }
        Ok(strings)
    }

    async fn strings(&mut self) -> Result<(), WorkerError> {
        for _ in 0..self.count().await? {
            self.string().await?;
        }
        Ok(())
    }

    async fn count(&mut self) -> Result<u64, WorkerError> {
        let count = self.number().await?;
        if count > MAX_MEMBERS { Err(WorkerError::Protocol(format!("{count} members"))) } else { Ok(count) }
    }

    async fn number(&mut self) -> Result<u64, WorkerError> {
        Ok(self.reader.read_u64_le().await?)
    }

    async fn string(&mut self) -> Result<String, WorkerError> {
        let length = self.number().await?;
        if length > MAX_STRING {
            return Err(WorkerError::Protocol(format!("a string of {length} bytes")));
        }
        let mut bytes = vec![0; length.next_multiple_of(8) as usize];
        self.reader.read_exact(&mut bytes).await?;
        bytes.truncate(length as usize);
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    async fn send(&mut self, words: Message) -> Result<(), WorkerError> {
        self.writer.write_all(&words.0).await?;
        Ok(self.writer.flush().await?)
    }
}

/// Numbers and strings as they go over the wire; NARs are made of the same strings.
#[derive(Debug, Default)]
pub(super) struct Message(pub(super) Vec<u8>);

impl Message {
    fn number(&mut self, number: u64) -> &mut Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    pub(super) fn string(&mut self, string: &str) -> &mut Self {
        self.bytes(string.as_bytes())
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.number(bytes.len() as u64).0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        self
    }

    fn strings(&mut self, strings: &[String]) -> &mut Self {
        self.number(strings.len() as u64);
        strings.iter().fold(self, |words, string| words.string(string))
    }
}

/// Nix colours its messages: `ESC [ … m`.
fn without_colours(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |kept, part| kept + part.split_once('m').map_or("", |(_, rest)| rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_fill_up_to_eight_bytes() {
        let mut words = Message::default();
        words.string("nix").string("");
        assert_eq!(words.0, b"\x03\0\0\0\0\0\0\0nix\0\0\0\0\0\0\0\0\0\0\0\0\0");
    }

    #[test]
    fn colours_are_taken_out() {
        assert_eq!(without_colours("\u{1b}[31;1merror:\u{1b}[0m no '\u{1b}[35;1mx\u{1b}[0m'"), "error: no 'x'");
        assert_eq!(without_colours("plain \u{1b}[cut"), "plain ");
    }

    async fn greeting_of(daemon: &[u64]) -> Result<Option<bool>, WorkerError> {
        let mut words = Message::default();
        daemon.iter().fold(&mut words, |words, number| words.number(*number));
        let worker = Worker::greet(words.0.as_slice(), tokio::io::sink()).await?;
        Ok(worker.trusted)
    }

    #[tokio::test]
    async fn a_daemon_says_whether_it_trusts_us_from_135_on() {
        // An empty string is a zero.
        assert_eq!(greeting_of(&[DAEMON_MAGIC, version(34), 0, stderr::LAST]).await.unwrap(), None);
        assert_eq!(greeting_of(&[DAEMON_MAGIC, version(38), 0, 1, stderr::LAST]).await.unwrap(), Some(true));
        assert_eq!(greeting_of(&[DAEMON_MAGIC, version(35), 0, 2, stderr::LAST]).await.unwrap(), Some(false));
    }

    #[tokio::test]
    async fn what_is_no_daemon_is_an_error() {
        for bad in [
            &[][..],
            &[1],
            &[DAEMON_MAGIC],
            &[DAEMON_MAGIC, version(24)],
            &[DAEMON_MAGIC, 2 << 8],
            &[DAEMON_MAGIC, version(34), u64::MAX],
            &[DAEMON_MAGIC, version(34), 0, 7],
            &[DAEMON_MAGIC, version(34), 0, stderr::RESULT, 0, 0, u64::MAX],
        ] {
            assert!(greeting_of(bad).await.is_err(), "{bad:?}");
        }
    }
}
