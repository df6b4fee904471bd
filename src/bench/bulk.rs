//! One stream of a run: bytes that mean nothing, for as long as it takes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::wire::Arrived;
use super::{BenchError, CHUNK, SILENCE};

/// Sends until `until` or until `stop` is cancelled, and shuts this side of the stream. Counts in `sent` what the tunnel has taken.
///
/// # Errors
/// The stream breaks, or takes nothing for [`SILENCE`].
pub(super) async fn send<S>(
    stream: &mut S,
    until: Instant,
    stop: &CancellationToken,
    sent: &AtomicU64,
) -> Result<(), BenchError>
where
    S: AsyncWrite + Unpin,
{
    let chunk = vec![0x5a; CHUNK];
    let (over, stopped) = (sleep_until(until.into()), stop.cancelled());
    tokio::pin!(over, stopped);
    loop {
        let written = tokio::select! {
            biased;
            () = &mut stopped => break,
            () = &mut over => break,
            written = timeout(SILENCE, stream.write(&chunk)) => written.map_err(|_| BenchError::Silent)??,
        };
        if written == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::WriteZero).into());
        }
        sent.fetch_add(written as u64, Ordering::Relaxed);
    }
    Ok(timeout(SILENCE, stream.shutdown()).await.map_err(|_| BenchError::Silent)??)
}

/// Receives to the end of the stream, and tells what came when, counted from `began`. Counts in `received` as it comes.
///
/// # Errors
/// The stream breaks, or nothing comes for [`SILENCE`].
pub(super) async fn receive<S>(
    stream: &mut S,
    number: u16,
    began: Instant,
    received: &AtomicU64,
) -> Result<Arrived, BenchError>
where
    S: AsyncRead + Unpin,
{
    let mut chunk = vec![0; CHUNK];
    let mut arrived = Arrived { number, ..Arrived::default() };
    loop {
        let length = timeout(SILENCE, stream.read(&mut chunk)).await.map_err(|_| BenchError::Silent)??;
        if length == 0 {
            return Ok(arrived);
        }
        let at = began.elapsed().as_secs_f64();
        if arrived.bytes == 0 {
            arrived.from_s = at;
        }
        arrived.to_s = at;
        arrived.bytes += length as u64;
        received.fetch_add(length as u64, Ordering::Relaxed);
    }
}
