//! `nixtail bench`: what one TCP stream through the tunnel moves, and what it costs at both ends.
//!
//! One stream carries it all. The client writes one line of JSON ([`Request`]). The sending side then writes chunks, each
//! behind its length (u32, big-endian), and a length of 0; after that each side writes its [`Cost`] as a line of JSON.

mod server;
mod usage;

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::time::timeout;

pub use server::{Busy, MAX_RUNS, Server};
pub use usage::{Cost, Usage};

/// The port that `bench serve` listens on inside the tunnel, unless told otherwise: iperf3's, which people open for such
/// things.
pub const DEFAULT_PORT: u16 = 5201;
/// The longest run that a server takes part in.
pub const MAX_DURATION: Duration = Duration::from_secs(600);

/// A chunk is as large as the dataplane's own queues carry.
const CHUNK: usize = 64 * 1024;
/// The longest line that is read from the other side.
const MAX_LINE: u64 = 4096;
/// How long the other side may be silent before the run is given up: longer than a freeze that a stream survives.
const SILENCE: Duration = Duration::from_secs(45);
/// What a run may take beyond its duration: one silence before the last chunk, and one before the costs are told. With it
/// a sender that never ends, or trickles, is given up too.
const GRACE: Duration = SILENCE.saturating_mul(2);
/// The version of [`Request`], [`Cost`] and the report.
pub const SCHEMA: u32 = 1;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Who sends.
    pub direction: Direction,
    /// For how long, in milliseconds.
    pub duration_ms: u64,
}

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The client sends.
    Upload,
    /// The server sends.
    Download,
}

/// How a run went.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Bytes that arrived.
    pub bytes: u64,
    /// From the first chunk to the word that the last one has arrived.
    pub elapsed: Duration,
    /// What it cost here.
    pub local: Cost,
    /// What it cost over there.
    pub remote: Cost,
}

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// The stream broke.
    #[error("the stream broke: {0}")]
    Stream(#[from] std::io::Error),
    /// The other side said something that isn't of this protocol.
    #[error("the other side doesn't speak this version of `nixtail bench`: {0}")]
    Protocol(&'static str),
    /// The other side fell silent.
    #[error("the other side has been silent for {} s", SILENCE.as_secs())]
    Silent,
    /// The other side goes on without end.
    #[error("the run isn't over {} s after its time", GRACE.as_secs())]
    Overdue,
    /// More was asked for than a server gives.
    #[error("a run may last {} s at most", MAX_DURATION.as_secs())]
    TooLong,
}

/// Runs one measurement over `stream` against a [`serve`] at its other end.
///
/// # Errors
/// When the stream breaks, the other side is silent or goes on too long, or speaks something else.
pub async fn run<S>(stream: S, direction: Direction, duration: Duration) -> Result<Outcome, BenchError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if duration > MAX_DURATION {
        return Err(BenchError::TooLong);
    }
    let mut stream = BufReader::with_capacity(CHUNK, stream);
    let duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let measurement = async {
        write_line(&mut stream, &Request { schema: SCHEMA, direction, duration_ms }).await?;
        exchange(&mut stream, direction == Direction::Upload, duration).await
    };
    timeout(duration + GRACE, measurement).await.map_err(|_| BenchError::Overdue)?
}

/// Takes part in one measurement that the other end of `stream` asks for.
///
/// # Errors
/// When the stream breaks, the other side is silent or goes on too long, or asks for what isn't served.
pub async fn serve<S>(stream: S) -> Result<Outcome, BenchError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    serve_within(stream, GRACE).await
}

async fn serve_within<S>(stream: S, grace: Duration) -> Result<Outcome, BenchError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut stream = BufReader::with_capacity(CHUNK, stream);
    let request: Request = read_line(&mut stream).await?;
    if request.schema != SCHEMA {
        return Err(BenchError::Protocol("another schema"));
    }
    let duration = Duration::from_millis(request.duration_ms);
    if duration > MAX_DURATION {
        return Err(BenchError::TooLong);
    }
    let exchange = exchange(&mut stream, request.direction == Direction::Download, duration);
    timeout(duration + grace, exchange).await.map_err(|_| BenchError::Overdue)?
}

async fn exchange<S>(stream: &mut BufReader<S>, sends: bool, duration: Duration) -> Result<Outcome, BenchError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (usage, started) = (Usage::now(), Instant::now());
    let bytes = if sends { send(stream, duration).await? } else { receive(stream).await? };
    // The receiver says its cost first: the sender's clock stops only when everything has arrived.
    let (local, remote) = if sends {
        let remote = read_line(stream).await?;
        let local = usage.cost();
        write_line(stream, &local).await?;
        (local, remote)
    } else {
        let local = usage.cost();
        write_line(stream, &local).await?;
        (local, read_line(stream).await?)
    };
    Ok(Outcome { bytes, elapsed: started.elapsed(), local, remote })
}

async fn send<S>(stream: &mut BufReader<S>, duration: Duration) -> Result<u64, BenchError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut chunk = vec![0x5a; 4 + CHUNK];
    let length = u32::try_from(CHUNK).expect("64 KiB fit into 32 bits");
    chunk[..4].copy_from_slice(&length.to_be_bytes());
    let started = Instant::now();
    let mut bytes = 0;
    while started.elapsed() < duration {
        timeout(SILENCE, stream.write_all(&chunk)).await.map_err(|_| BenchError::Silent)??;
        bytes += u64::from(length);
    }
    stream.write_all(&[0; 4]).await?;
    stream.flush().await?;
    Ok(bytes)
}

async fn receive<S>(stream: &mut BufReader<S>) -> Result<u64, BenchError>
where
    S: AsyncRead + Unpin,
{
    let mut chunk = vec![0; CHUNK];
    let mut bytes = 0;
    loop {
        let length = timeout(SILENCE, stream.read_u32()).await.map_err(|_| BenchError::Silent)??;
        if length == 0 {
            return Ok(bytes);
        }
        let part = usize::try_from(length).ok().and_then(|length| chunk.get_mut(..length));
        let part = part.ok_or(BenchError::Protocol("a chunk over 64 KiB"))?;
        timeout(SILENCE, stream.read_exact(part)).await.map_err(|_| BenchError::Silent)??;
        bytes += u64::from(length);
    }
}

async fn write_line<S>(stream: &mut BufReader<S>, value: &impl Serialize) -> Result<(), BenchError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut line = serde_json::to_vec(value).map_err(std::io::Error::from)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    Ok(stream.flush().await?)
}

async fn read_line<S: AsyncRead + Unpin, T: for<'de> Deserialize<'de>>(
    stream: &mut BufReader<S>,
) -> Result<T, BenchError> {
    let mut line = Vec::new();
    let mut bounded = (&mut *stream).take(MAX_LINE);
    timeout(SILENCE, bounded.read_until(b'\n', &mut line)).await.map_err(|_| BenchError::Silent)??;
    serde_json::from_slice(&line).map_err(|_| BenchError::Protocol("a line that isn't what was awaited"))
}

#[cfg(test)]
mod tests;
