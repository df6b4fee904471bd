//! What two ends of a measurement say to each other, over any stream.
//!
//! A connection begins with one frame of nine bytes: [`MAGIC`], one byte for what the dialler wants, and, little-endian, how
//! long the writes of a source are to be. Then bytes go until one side closes. tests/interop/tailscale/tsnet-peer/load.go is
//! the same in Go.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// What a frame begins with; another version gets another one.
const MAGIC: [u8; 4] = *b"nxb1";
/// A frame's length.
const FRAME: usize = 9;
/// The length of reads and writes: what the dataplane's own queues carry.
pub(super) const CHUNK: u32 = 64 << 10;
/// The longest write that a source can be asked for.
const MAX_CHUNK: u32 = 1 << 20;

/// What a dialler wants of the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Read, and throw away.
    Sink,
    /// Write until the dialler has enough.
    Source,
    /// Write back what comes.
    Echo,
}

/// The first bytes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Frame {
    wanted: Wanted,
    /// How long a source's writes are.
    chunk: u32,
}

impl Frame {
    fn new(wanted: Wanted) -> Self {
        Self { wanted, chunk: CHUNK }
    }

    /// As it goes over the wire.
    fn encode(self) -> [u8; FRAME] {
        let mut bytes = [0; FRAME];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = match self.wanted {
            Wanted::Sink => 1,
            Wanted::Source => 2,
            Wanted::Echo => 3,
        };
        bytes[5..].copy_from_slice(&self.chunk.to_le_bytes());
        bytes
    }

    /// From the wire.
    ///
    /// # Errors
    /// Whatever isn't a frame of this version.
    fn decode(bytes: [u8; FRAME]) -> io::Result<Self> {
        let [a, b, c, d, kind, length @ ..] = bytes;
        let wanted = match (kind, [a, b, c, d] == MAGIC) {
            (1, true) => Wanted::Sink,
            (2, true) => Wanted::Source,
            (3, true) => Wanted::Echo,
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "this isn't a connection of the bench's ends")),
        };
        Ok(Self { wanted, chunk: u32::from_le_bytes(length).clamp(1, MAX_CHUNK) })
    }
}

/// Small requests and their answers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Requests {
    /// The length of each.
    pub(super) bytes: usize,
    /// How many are under way at a time.
    pub(super) depth: usize,
    /// The pause after each answer, where one is under way at a time.
    pub(super) pause: Duration,
    pub(super) duration: Duration,
}

/// What became of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Answers {
    pub(super) count: u64,
    pub(super) elapsed: Duration,
    /// What each took, where one was under way at a time.
    pub(super) took: Vec<Duration>,
}

/// Takes part in what the other end of a new connection wants, until it has enough. `received` counts what a sink reads.
///
/// # Errors
/// The connection's. A dialler that breaks it off is one of them, and is done.
pub(super) async fn serve<S>(stream: &mut S, received: &AtomicU64) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut frame = [0; FRAME];
    stream.read_exact(&mut frame).await?;
    let Frame { wanted, chunk } = Frame::decode(frame)?;
    match wanted {
        Wanted::Sink => drain(stream, received).await,
        Wanted::Source => pour(stream, chunk).await,
        Wanted::Echo => echo(stream).await,
    }
}

/// Says to the other end what is wanted of it.
///
/// # Errors
/// The connection's.
pub(super) async fn ask<S: AsyncWrite + Unpin>(stream: &mut S, wanted: Wanted) -> io::Result<()> {
    stream.write_all(&Frame::new(wanted).encode()).await?;
    stream.flush().await
}

/// Writes without end.
///
/// # Errors
/// The connection's: so it ends.
pub(super) async fn pour<S: AsyncWrite + Unpin>(stream: &mut S, chunk: u32) -> io::Result<()> {
    let chunk = vec![0x5a; usize::try_from(chunk).unwrap_or_default().max(1)];
    loop {
        stream.write_all(&chunk).await?;
    }
}

/// Reads to the end, and counts.
///
/// # Errors
/// The connection's.
pub(super) async fn drain<S: AsyncRead + Unpin>(stream: &mut S, received: &AtomicU64) -> io::Result<()> {
    let mut buffer = buffer();
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        received.fetch_add(length as u64, Ordering::Relaxed);
    }
}

async fn echo<S>(stream: &mut S) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut buffer = buffer();
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(buffer.get(..length).unwrap_or_default()).await?;
        stream.flush().await?;
    }
}

/// Sends requests over a stream that is echoed, for a time.
///
/// # Errors
/// The connection's.
pub(super) async fn request<S>(stream: &mut S, requests: &Requests) -> io::Result<Answers>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let begun = Instant::now();
    let mut answers = Answers::default();
    if requests.depth > 1 {
        answers.count = pipeline(stream, requests, begun).await?;
    } else {
        let mut message = vec![0; requests.bytes.max(1)];
        while begun.elapsed() < requests.duration {
            let sent = Instant::now();
            stream.write_all(&message).await?;
            stream.flush().await?;
            stream.read_exact(&mut message).await?;
            answers.took.push(sent.elapsed());
            answers.count += 1;
            if !requests.pause.is_zero() {
                tokio::time::sleep(requests.pause).await;
            }
        }
    }
    answers.elapsed = begun.elapsed();
    Ok(answers)
}

/// Keeps that many requests under way: for each answer another one goes.
async fn pipeline<S>(stream: &mut S, requests: &Requests, begun: Instant) -> io::Result<u64>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let length = requests.bytes.max(1);
    let mut messages = vec![0; length * requests.depth];
    stream.write_all(&messages).await?;
    stream.flush().await?;
    let (mut count, mut part) = (0, 0);
    while begun.elapsed() < requests.duration {
        let read = stream.read(&mut messages).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let whole = (part + read) / length;
        part = (part + read) % length;
        count += whole as u64;
        stream.write_all(messages.get(..whole * length).unwrap_or_default()).await?;
        stream.flush().await?;
    }
    Ok(count)
}

fn buffer() -> Vec<u8> {
    vec![0; usize::try_from(CHUNK).unwrap_or_default()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_the_one_that_go_knows() {
        let frame = Frame { wanted: Wanted::Source, chunk: 0x0001_0203 };
        assert_eq!(frame.encode(), *b"nxb1\x02\x03\x02\x01\x00");
        for wanted in [Wanted::Sink, Wanted::Source, Wanted::Echo] {
            assert_eq!(Frame::decode(Frame::new(wanted).encode()).unwrap(), Frame::new(wanted));
        }
    }

    #[test]
    fn what_is_no_frame_is_refused_and_what_is_too_large_is_cut() {
        assert!(Frame::decode(*b"nxb2\x01\0\0\0\0").is_err());
        assert!(Frame::decode(*b"nxb1\x04\0\0\0\0").is_err());
        assert_eq!(Frame::decode(*b"nxb1\x02\xff\xff\xff\xff").unwrap().chunk, MAX_CHUNK);
        assert_eq!(Frame::decode(*b"nxb1\x02\0\0\0\0").unwrap().chunk, 1, "a source of nothing would never end");
    }

    /// A served stream, and what it counts.
    fn served() -> (tokio::io::DuplexStream, std::sync::Arc<AtomicU64>, tokio::task::JoinHandle<io::Result<()>>) {
        let (client, mut server) = tokio::io::duplex(4 * CHUNK as usize);
        let received = std::sync::Arc::new(AtomicU64::new(0));
        let counter = received.clone();
        (client, received, tokio::spawn(async move { serve(&mut server, &counter).await }))
    }

    #[tokio::test]
    async fn a_sink_counts_what_comes() {
        let (mut client, received, server) = served();
        ask(&mut client, Wanted::Sink).await.unwrap();
        client.write_all(&[0; 100_000]).await.unwrap();
        drop(client);
        server.await.unwrap().unwrap();
        assert_eq!(received.load(Ordering::Relaxed), 100_000);
    }

    #[tokio::test]
    async fn a_source_writes_until_nobody_reads() {
        let (mut client, _, server) = served();
        ask(&mut client, Wanted::Source).await.unwrap();
        client.read_exact(&mut vec![0; 300_000]).await.unwrap();
        drop(client);
        assert!(server.await.unwrap().is_err());
    }

    #[tokio::test]
    async fn requests_are_answered_one_at_a_time_and_many_at_once() {
        for depth in [1, 64] {
            let (mut client, _, server) = served();
            ask(&mut client, Wanted::Echo).await.unwrap();
            let duration = Duration::from_millis(20);
            let requests = Requests { bytes: 64, depth, pause: Duration::ZERO, duration };
            let answers = request(&mut client, &requests).await.unwrap();
            assert!(answers.count > 0 && answers.elapsed >= duration, "{answers:?}");
            assert_eq!(answers.took.len() as u64, if depth == 1 { answers.count } else { 0 });
            drop(client);
            // What was under way when the time was over has nobody to go to.
            let _ = server.await.unwrap();
        }
    }
}
