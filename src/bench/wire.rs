//! What client and server say to each other.
//!
//! Each connection of a run begins with a line of JSON from the client, [`Hello`]. On the first, words follow, a line each:
//!
//! ```text
//! client                          server
//! hello: run, and the plan  ───►
//!                           ◄───  accepted (with a number for the run), or refused (and why)
//!    … opens a connection for each stream, and one for pings; each says which run it is of …
//!                           ◄───  ready: all are there
//! go                        ───►
//!    … both send; whose time is up shuts its side of the stream; stop ends them before their time …
//! done: all has arrived     ───►
//!                           ◄───  ended: what arrived there, and what it cost
//! ```
//!
//! Streams carry bytes that mean nothing, pings come back as they are.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};

use super::plan::{Plan, Way};
use super::usage::Cost;
use super::{BenchError, SCHEMA};

/// The longest line: `ended` of [`super::MAX_STREAMS`] streams, twice.
const MAX_LINE: usize = 16 << 10;

/// Names a run; only who asked for it knows it.
pub(super) type RunId = String;

/// The first line of each connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    /// [`SCHEMA`].
    pub(super) schema: u32,
    #[serde(flatten)]
    pub(super) purpose: Purpose,
}

/// What a connection is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Purpose {
    /// The words of a new run.
    Run(Plan),
    /// One stream.
    Stream { run: RunId, way: Way, number: u16 },
    /// Pings.
    Pings { run: RunId },
}

impl Purpose {
    pub(super) fn hello(self) -> Hello {
        Hello { schema: SCHEMA, purpose: self }
    }
}

/// What every version of a hello has.
#[derive(Debug, Deserialize)]
pub(super) struct AnyHello {
    pub(super) schema: u32,
}

/// What a client says after its hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ClientWord {
    /// Begin to send.
    Go,
    /// Send no more.
    Stop,
    /// Everything has arrived here.
    Done,
}

/// What a server says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ServerWord {
    /// Open the streams.
    Accepted { run: RunId },
    /// No such run, in words for people.
    Refused { reason: Refusal, words: String },
    /// All streams are there.
    Ready,
    /// The end: what arrived here, and what all of it cost.
    Ended { upload: Vec<Arrived>, cost: Cost },
}

/// Why a run is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Refusal {
    /// Not now.
    Busy,
    /// Not in this version.
    Version { schema: u32 },
    /// Out of this server's bounds.
    Plan,
}

/// What arrived of one stream, and when, in seconds after the run began there.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Arrived {
    pub(super) number: u16,
    pub(super) bytes: u64,
    /// When the first bytes came.
    pub(super) from_s: f64,
    /// When the last ones did.
    pub(super) to_s: f64,
}

/// Lines of JSON, each of a bounded length.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    reader: BufReader<R>,
    line: Vec<u8>,
    max: usize,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    /// Lines of at most `max` bytes.
    pub(crate) fn bounded(reader: R, max: usize) -> Self {
        Self { reader: BufReader::new(reader), line: Vec::new(), max }
    }

    /// The lines of a run.
    pub(super) fn new(reader: R) -> Self {
        Self::bounded(reader, MAX_LINE)
    }

    /// The next line. Cancel safe.
    ///
    /// # Errors
    /// The stream breaks or ends, or the line is too long or something else. The caller has the deadline.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<T, BenchError> {
        self.fill().await?;
        let value = serde_json::from_slice(&self.line);
        self.line.clear();
        value.map_err(|_| BenchError::Protocol("a line that isn't what was awaited"))
    }

    /// What is read so far stays in `line` where this is cancelled.
    async fn fill(&mut self) -> Result<(), BenchError> {
        let room = self.max.saturating_sub(self.line.len()) as u64;
        (&mut self.reader).take(room).read_until(b'\n', &mut self.line).await?;
        if self.line.ends_with(b"\n") {
            Ok(())
        } else if self.line.len() >= self.max {
            Err(BenchError::Protocol("a line that is too long"))
        } else {
            Err(BenchError::Ended)
        }
    }

    /// A client's first line, and the stream with whatever came behind it.
    pub(super) async fn hello(mut self) -> Result<(Result<Hello, u32>, BufReader<R>), BenchError> {
        self.fill().await?;
        let strange = |_| BenchError::Protocol("a first line that isn't a client's");
        let AnyHello { schema } = serde_json::from_slice(&self.line).map_err(strange)?;
        if schema != SCHEMA {
            return Ok((Err(schema), self.reader));
        }
        Ok((Ok(serde_json::from_slice(&self.line).map_err(strange)?), self.reader))
    }
}

/// Writes one line.
///
/// # Errors
/// The stream breaks.
pub(crate) async fn write_line<W: AsyncWrite + Unpin>(to: &mut W, value: &impl Serialize) -> Result<(), BenchError> {
    let mut line = serde_json::to_vec(value).map_err(std::io::Error::from)?;
    line.push(b'\n');
    to.write_all(&line).await?;
    Ok(to.flush().await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::MAX_STREAMS;

    #[tokio::test]
    async fn lines_survive_being_cancelled_and_are_bounded() {
        let (mut near, far) = tokio::io::duplex(64);
        let mut lines = Lines::bounded(far, 20);
        near.write_all(b"\"g").await.unwrap();
        let half = tokio::time::timeout(std::time::Duration::from_millis(10), lines.next::<ClientWord>()).await;
        assert!(half.is_err());
        near.write_all(b"o\"\n\"done\"\n").await.unwrap();
        assert_eq!(lines.next::<ClientWord>().await.unwrap(), ClientWord::Go);
        assert_eq!(lines.next::<ClientWord>().await.unwrap(), ClientWord::Done);
        near.write_all(&[b'x'; 30]).await.unwrap();
        assert!(matches!(lines.next::<ClientWord>().await, Err(BenchError::Protocol(_))));
    }

    #[test]
    fn the_longest_word_fits_into_a_line() {
        let arrived = Arrived { number: u16::MAX, bytes: u64::MAX, from_s: 599.123_456_789, to_s: 689.123_456_789 };
        let cost = Cost { cpu_s: 689.123_456_789, rss_bytes: Some(u64::MAX) };
        let word = ServerWord::Ended { upload: vec![arrived; MAX_STREAMS.into()], cost };
        assert!(serde_json::to_vec(&word).unwrap().len() < MAX_LINE / 2);
    }

    #[test]
    fn a_hello_is_one_object() {
        let hello = Purpose::Stream { run: "ab".into(), way: Way::Upload, number: 3 }.hello();
        let json = serde_json::to_string(&hello).unwrap();
        assert_eq!(json, r#"{"schema":2,"stream":{"run":"ab","way":"upload","number":3}}"#);
        assert_eq!(serde_json::from_str::<Hello>(&json).unwrap(), hello);
    }
}
