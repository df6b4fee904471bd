//! The stream beneath russh: reads rest while the [`Gate`] is shut, writes go on.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::flow::Gate;

/// How much is read ahead while a write waits.
const READ_AHEAD: usize = 4 * 1024 * 1024;

/// How much is read at once while reading ahead.
const READ_CHUNK: usize = 64 * 1024;

/// How long a write may wait for the client to take a single byte. OpenSSH and the like take all that comes, whatever
/// becomes of it; a client that doesn't is frozen for good or gone.
const STALLED_WRITE: Duration = Duration::from_secs(60);

/// A stream whose reads obey a [`Gate`].
///
/// russh doesn't read while it writes. Against a peer that does the same, both would wait for ever once the buffers
/// between them are full; so whenever a write must wait, this reads ahead what the peer has sent, up to [`READ_AHEAD`].
#[derive(Debug)]
pub(crate) struct GatedStream<S> {
    inner: S,
    gate: Arc<Gate>,
    pause: Pin<Box<Sleep>>,
    abort: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Since when a write waits, plus [`STALLED_WRITE`].
    stalled: Option<Pin<Box<Sleep>>>,
    goodbye: CancellationToken,
    ahead: BytesMut,
    /// How the stream ended while reading ahead.
    ended: Option<io::Result<()>>,
}

impl<S> GatedStream<S> {
    /// Puts `gate` before the reads of `inner`. With `abort` both directions break.
    pub(crate) fn new(inner: S, gate: Arc<Gate>, abort: CancellationToken) -> Self {
        let pause = Box::pin(tokio::time::sleep_until(tokio::time::Instant::now()));
        let abort = Box::pin(abort.cancelled_owned());
        let goodbye = CancellationToken::new();
        Self { inner, gate, pause, abort, stalled: None, goodbye, ahead: BytesMut::new(), ended: None }
    }

    /// Cancelled when russh is done writing: either side has disconnected.
    pub(crate) fn goodbye(&self) -> CancellationToken {
        self.goodbye.clone()
    }

    /// An error once writes have waited for too long without a byte taken.
    fn check_progress<T>(&mut self, write: &Poll<io::Result<T>>, cx: &mut Context<'_>) -> io::Result<()> {
        if write.is_ready() {
            self.stalled = None;
            return Ok(());
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALLED_WRITE)));
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }

    fn check_abort(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.abort.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> GatedStream<S> {
    fn read_ahead(&mut self, cx: &mut Context<'_>) {
        while self.ended.is_none() && self.ahead.len() < READ_AHEAD {
            let filled = self.ahead.len();
            self.ahead.resize(filled + READ_CHUNK, 0);
            let Some(room) = self.ahead.get_mut(filled..) else {
                return;
            };
            let mut buffer = ReadBuf::new(room);
            let poll = Pin::new(&mut self.inner).poll_read(cx, &mut buffer);
            let read = buffer.filled().len();
            self.ahead.truncate(filled + read);
            match poll {
                Poll::Pending => return,
                Poll::Ready(Ok(())) if read > 0 => {}
                Poll::Ready(end) => self.ended = Some(end),
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for GatedStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check_abort(cx)?;
        while let Some(until) = ready!(this.gate.poll_open(Instant::now(), cx)) {
            this.pause.as_mut().reset(until.into());
            ready!(this.pause.as_mut().poll(cx));
        }
        if !this.ahead.is_empty() {
            let length = buffer.remaining().min(this.ahead.len());
            buffer.put_slice(this.ahead.get(..length).unwrap_or_default());
            this.ahead.advance(length);
            return Poll::Ready(Ok(()));
        }
        if let Some(end) = this.ended.take() {
            return Poll::Ready(end);
        }
        Pin::new(&mut this.inner).poll_read(cx, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for GatedStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check_abort(cx)?;
        let poll = Pin::new(&mut this.inner).poll_write(cx, data);
        this.check_progress(&poll, cx)?;
        if poll.is_pending() {
            this.read_ahead(cx);
        }
        poll
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check_abort(cx)?;
        let poll = Pin::new(&mut this.inner).poll_flush(cx);
        this.check_progress(&poll, cx)?;
        if poll.is_pending() {
            this.read_ahead(cx);
        }
        poll
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check_abort(cx)?;
        this.goodbye.cancel();
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::super::flow::MemoryBudget;
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn gate() -> Arc<Gate> {
        Arc::new(Gate::new(MemoryBudget::new(usize::MAX).share()))
    }

    #[tokio::test]
    async fn a_shut_gate_rests_reads_and_not_writes() {
        let gate = gate();
        let (mut far, near) = tokio::io::duplex(64);
        let mut near = GatedStream::new(near, Arc::clone(&gate), CancellationToken::new());
        far.write_all(b"hello").await.unwrap();
        gate.shut();
        let mut buffer = [0; 5];
        assert!(tokio::time::timeout(Duration::from_millis(100), near.read(&mut buffer)).await.is_err());
        near.write_all(b"out").await.unwrap();
        let opener = Arc::clone(&gate);
        let task = tokio::spawn(async move { opener.drained() });
        assert_eq!(near.read(&mut buffer).await.unwrap(), 5);
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_pause_runs_out() {
        let gate = gate();
        let (mut far, near) = tokio::io::duplex(64);
        let mut near = GatedStream::new(near, Arc::clone(&gate), CancellationToken::new());
        far.write_all(b"hello").await.unwrap();
        let begun = Instant::now();
        gate.pause(begun);
        let mut buffer = [0; 5];
        assert_eq!(near.read(&mut buffer).await.unwrap(), 5);
        assert!(begun.elapsed() >= super::super::flow::TRICKLE_PAUSE);
    }

    #[tokio::test]
    async fn an_abort_breaks_a_waiting_read() {
        let abort = CancellationToken::new();
        let (_far, near) = tokio::io::duplex(64);
        let mut near = GatedStream::new(near, gate(), abort.clone());
        let task = tokio::spawn(async move { near.read(&mut [0; 5]).await.map_err(|error| error.kind()) });
        tokio::task::yield_now().await;
        abort.cancel();
        assert_eq!(task.await.unwrap(), Err(io::ErrorKind::ConnectionAborted));
    }

    #[tokio::test]
    async fn two_ends_that_write_before_they_read_both_finish() {
        let (one, two) = tokio::io::duplex(1024);
        let end = |stream| async move {
            let mut stream = GatedStream::new(stream, gate(), CancellationToken::new());
            stream.write_all(&[7; 500_000]).await.unwrap();
            let mut all = vec![0; 500_000];
            stream.read_exact(&mut all).await.unwrap();
            assert!(all.iter().all(|byte| *byte == 7));
            stream
        };
        let both = async { tokio::join!(end(one), end(two)) };
        tokio::time::timeout(Duration::from_secs(10), both).await.unwrap();
    }

    #[tokio::test]
    async fn a_goodbye_is_told_at_once() {
        let (_far, near) = tokio::io::duplex(64);
        let mut near = GatedStream::new(near, gate(), CancellationToken::new());
        let goodbye = near.goodbye();
        assert!(!goodbye.is_cancelled());
        near.shutdown().await.unwrap();
        assert!(goodbye.is_cancelled());
    }
}
