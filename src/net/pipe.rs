//! The two bounded queues between one stream's application end and the dataplane.
//!
//! Each direction has one producer and one consumer and holds at most [`QUEUE_BYTES`] in chunks of [`CHUNK`] bytes. The
//! application end is woken through its task's waker, the dataplane through the [`Doorbell`] that all streams share.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

/// Bytes that one chunk holds: what one pass of the dataplane moves.
pub(crate) const CHUNK: usize = 64 << 10;

/// Bytes that wait in one direction before its producer has to wait: enough that neither end idles while the other
/// works on a chunk, and a few hundred KiB for each stream at the most.
pub(crate) const QUEUE_BYTES: usize = 4 * CHUNK;

/// Why a stream ended other than by both sides' FIN. Its words are shown to people.
#[derive(Clone, Debug)]
pub(crate) struct Broken {
    pub(crate) kind: io::ErrorKind,
    pub(crate) reason: String,
}

impl Broken {
    fn to_io(&self) -> io::Error {
        io::Error::new(self.kind, self.reason.clone())
    }
}

/// Tells the dataplane which streams' queues changed at their application end.
#[derive(Debug)]
pub(crate) struct Doorbell<Id> {
    // Holds an id at most once for each live pipe (`Pipe::rung`), so it is bounded by their number.
    rung: Mutex<Vec<Id>>,
    notify: Notify,
}

impl<Id> Default for Doorbell<Id> {
    fn default() -> Self {
        Self { rung: Mutex::new(Vec::new()), notify: Notify::new() }
    }
}

impl<Id> Doorbell<Id> {
    /// Waits until a stream rings.
    pub(crate) async fn rung(&self) {
        self.notify.notified().await;
    }

    /// Takes the streams that rang, into `ids`.
    pub(crate) fn take(&self, ids: &mut Vec<Id>) {
        ids.append(&mut lock(&self.rung));
    }

    fn ring(&self, id: Id) {
        lock(&self.rung).push(id);
        self.notify.notify_one();
    }
}

/// What the application's end and the dataplane's end of a stream share.
#[derive(Debug)]
pub(crate) struct Pipe<Id> {
    id: Id,
    doorbell: Arc<Doorbell<Id>>,
    rung: std::sync::atomic::AtomicBool,
    inbound: Mutex<Queue>,
    outbound: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    chunks: VecDeque<Vec<u8>>,
    // How much of the first chunk is consumed.
    offset: usize,
    bytes: usize,
    // The producer will add no more.
    ended: bool,
    // The consumer will take no more.
    abandoned: bool,
    broken: Option<Broken>,
    waker: Option<Waker>,
}

/// What the dataplane finds in a stream's outbound queue once it is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outbound {
    /// More may come.
    Open,
    /// The application shut its side: send FIN.
    Ended,
    /// The application asked for a reset.
    Aborted,
}

impl<Id: Copy> Pipe<Id> {
    pub(crate) fn new(id: Id, doorbell: Arc<Doorbell<Id>>) -> Arc<Self> {
        Arc::new(Self { id, doorbell, rung: false.into(), inbound: Mutex::default(), outbound: Mutex::default() })
    }

    /// Dataplane: call before looking at the queues, so that a later change rings again.
    pub(crate) fn answer(&self) {
        self.rung.store(false, std::sync::atomic::Ordering::SeqCst);
    }

    /// Dataplane: how many bytes the inbound queue takes now.
    pub(crate) fn inbound_room(&self) -> usize {
        QUEUE_BYTES.saturating_sub(lock(&self.inbound).bytes)
    }

    /// Dataplane: adds what came from the peer; `data` is within [`Self::inbound_room`].
    pub(crate) fn push_inbound(&self, data: &[u8]) {
        let mut queue = lock(&self.inbound);
        if !queue.abandoned {
            queue.push(data);
        }
        queue.wake();
    }

    /// Dataplane: the peer sent FIN and everything before it was pushed.
    pub(crate) fn end_inbound(&self) {
        let mut queue = lock(&self.inbound);
        queue.ended = true;
        queue.wake();
    }

    /// Dataplane: the connection is gone, with an error or in order. The first reason given stands.
    pub(crate) fn close(&self, broken: Option<Broken>) {
        let mut outbound = lock(&self.outbound);
        outbound.abandoned = true;
        outbound.chunks.clear();
        outbound.bytes = 0;
        outbound.broken = outbound.broken.take().or_else(|| broken.clone());
        outbound.wake();
        drop(outbound);
        let mut inbound = lock(&self.inbound);
        inbound.ended = true;
        inbound.broken = inbound.broken.take().or(broken);
        inbound.wake();
    }

    /// Dataplane: whether the application dropped its end, so that nobody will read on.
    pub(crate) fn is_abandoned(&self) -> bool {
        lock(&self.inbound).abandoned
    }

    /// Dataplane: offers the outbound bytes to `write`, which says how many it took; stops when it takes less than
    /// offered. Answers what remains to be done when the queue is empty, `None` while it is not.
    pub(crate) fn drain_outbound(&self, mut write: impl FnMut(&[u8]) -> usize) -> Option<Outbound> {
        loop {
            // The chunk is taken out so that the application may add more while it is written.
            let (chunk, offset) = {
                let mut queue = lock(&self.outbound);
                let offset = queue.offset;
                match queue.chunks.pop_front() {
                    Some(chunk) => (chunk, offset),
                    None if queue.abandoned => return Some(Outbound::Aborted),
                    None if queue.ended => return Some(Outbound::Ended),
                    None => return Some(Outbound::Open),
                }
            };
            let offered = chunk.get(offset..).unwrap_or_default();
            let (length, taken) = (offered.len(), write(offered).min(offered.len()));
            let mut queue = lock(&self.outbound);
            queue.bytes = queue.bytes.saturating_sub(taken);
            if taken < length {
                queue.offset = offset + taken;
                queue.chunks.push_front(chunk);
            } else {
                queue.offset = 0;
            }
            if taken > 0 {
                queue.wake();
            }
            if taken < length {
                return None;
            }
        }
    }

    fn ring(&self) {
        if !self.rung.swap(true, std::sync::atomic::Ordering::SeqCst) {
            self.doorbell.ring(self.id);
        }
    }
}

impl Queue {
    fn push(&mut self, data: &[u8]) {
        self.bytes += data.len();
        match self.chunks.back_mut() {
            Some(last) if last.len() + data.len() <= CHUNK => last.extend_from_slice(data),
            _ => self.chunks.push_back(data.to_vec()),
        }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn wait(&mut self, cx: &Context<'_>) {
        self.waker = Some(cx.waker().clone());
    }
}

/// The application's end: what [`crate::agent::Stream`] reads from and writes to.
#[derive(Debug)]
pub(crate) struct PipeEnd<Id: Copy> {
    pipe: Arc<Pipe<Id>>,
}

impl<Id: Copy> PipeEnd<Id> {
    pub(crate) fn new(pipe: Arc<Pipe<Id>>) -> Self {
        Self { pipe }
    }

    /// Resets the connection: what is queued either way is lost, and the peer is told.
    pub(crate) fn abort(&self) {
        let mut outbound = lock(&self.pipe.outbound);
        outbound.abandoned = true;
        outbound.chunks.clear();
        outbound.offset = 0;
        outbound.bytes = 0;
        outbound.broken.get_or_insert_with(|| Broken {
            kind: io::ErrorKind::ConnectionAborted,
            reason: "the connection was reset by this side".to_owned(),
        });
        outbound.wake();
        drop(outbound);
        self.pipe.ring();
    }
}

impl<Id: Copy + Unpin> AsyncRead for PipeEnd<Id> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut queue = lock(&self.pipe.inbound);
        if queue.bytes == 0 {
            if let Some(broken) = &queue.broken {
                return Poll::Ready(Err(broken.to_io()));
            }
            if queue.ended {
                return Poll::Ready(Ok(()));
            }
            queue.wait(cx);
            return Poll::Pending;
        }
        let before = queue.bytes;
        while buf.remaining() > 0 {
            let offset = queue.offset;
            let Some(chunk) = queue.chunks.front() else { break };
            let rest = chunk.get(offset..).unwrap_or_default();
            let taken = rest.len().min(buf.remaining());
            buf.put_slice(rest.get(..taken).unwrap_or_default());
            if taken == rest.len() {
                queue.chunks.pop_front();
                queue.offset = 0;
            } else {
                queue.offset = offset + taken;
            }
            queue.bytes -= taken;
        }
        // The dataplane stops reading from the connection only when the queue is (nearly) full.
        let made_room = before > QUEUE_BYTES / 2 && queue.bytes <= QUEUE_BYTES / 2;
        drop(queue);
        if made_room {
            self.pipe.ring();
        }
        Poll::Ready(Ok(()))
    }
}

impl<Id: Copy + Unpin> AsyncWrite for PipeEnd<Id> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut queue = lock(&self.pipe.outbound);
        if let Some(broken) = &queue.broken {
            return Poll::Ready(Err(broken.to_io()));
        }
        if queue.ended || queue.abandoned {
            let reason = "this side of the stream is already closed";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, reason)));
        }
        let taken = data.len().min(CHUNK).min(QUEUE_BYTES.saturating_sub(queue.bytes));
        if taken == 0 && !data.is_empty() {
            queue.wait(cx);
            return Poll::Pending;
        }
        queue.push(data.get(..taken).unwrap_or_default());
        drop(queue);
        self.pipe.ring();
        Poll::Ready(Ok(taken))
    }

    /// Always ready, as a kernel's socket is: what was written is sent without being asked for. To wait here for the
    /// dataplane would wake the writer once more for each message, only to find nothing to do.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &lock(&self.pipe.outbound).broken {
            Some(broken) => Poll::Ready(Err(broken.to_io())),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut queue = lock(&self.pipe.outbound);
        let first = !queue.ended && !queue.abandoned;
        queue.ended = true;
        drop(queue);
        if first {
            self.pipe.ring();
        }
        Poll::Ready(Ok(()))
    }
}

impl<Id: Copy> Drop for PipeEnd<Id> {
    fn drop(&mut self) {
        lock(&self.pipe.outbound).ended = true;
        let mut inbound = lock(&self.pipe.inbound);
        inbound.abandoned = true;
        inbound.chunks.clear();
        inbound.bytes = 0;
        drop(inbound);
        self.pipe.ring();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code panics while it holds one of these; a poisoned queue is still a consistent one.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn pair() -> (Arc<Pipe<u8>>, PipeEnd<u8>, Arc<Doorbell<u8>>) {
        let doorbell = Arc::new(Doorbell::default());
        let pipe = Pipe::new(7, doorbell.clone());
        (pipe.clone(), PipeEnd::new(pipe), doorbell)
    }

    fn rings(doorbell: &Doorbell<u8>) -> usize {
        let mut ids = Vec::new();
        doorbell.take(&mut ids);
        ids.len()
    }

    #[tokio::test]
    async fn a_writer_stops_at_the_bound_and_goes_on_when_the_dataplane_took_some() {
        let (pipe, mut end, doorbell) = pair();
        let writer = tokio::spawn(async move {
            end.write_all(&vec![5; QUEUE_BYTES + 10]).await.unwrap();
            end
        });
        tokio::time::timeout(std::time::Duration::from_secs(1), doorbell.rung()).await.unwrap();
        tokio::task::yield_now().await;
        assert!(!writer.is_finished());
        assert_eq!(lock(&pipe.outbound).bytes, QUEUE_BYTES);
        assert_eq!(rings(&doorbell), 1, "one entry for a pipe, however often it is written");
        pipe.answer();
        assert_eq!(pipe.drain_outbound(|_| 100), None);
        let end = writer.await.unwrap();
        let mut total = 100;
        let last = pipe.drain_outbound(|data| {
            total += data.len();
            data.len()
        });
        assert_eq!((last, total), (Some(Outbound::Open), QUEUE_BYTES + 10));
        assert_eq!(rings(&doorbell), 1);
        drop(end);
    }

    #[tokio::test]
    async fn half_close_ends_one_direction_and_leaves_the_other() {
        let (pipe, mut end, _doorbell) = pair();
        end.write_all(b"request").await.unwrap();
        end.shutdown().await.unwrap();
        assert_eq!(end.write(b"more").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let mut sent = Vec::new();
        let last = pipe.drain_outbound(|data| {
            sent.extend_from_slice(data);
            data.len()
        });
        assert_eq!((last, sent.as_slice()), (Some(Outbound::Ended), &b"request"[..]));
        pipe.push_inbound(b"answer");
        pipe.end_inbound();
        let mut answer = String::new();
        end.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");
    }

    #[tokio::test]
    async fn a_reset_is_told_after_the_bytes_that_came_before_it() {
        let (pipe, mut end, _doorbell) = pair();
        pipe.push_inbound(b"half");
        pipe.close(Some(Broken { kind: io::ErrorKind::ConnectionReset, reason: "the peer reset it".to_owned() }));
        let mut buf = [0; 16];
        assert_eq!(end.read(&mut buf).await.unwrap(), 4);
        pipe.close(None);
        let error = end.read(&mut buf).await.unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (io::ErrorKind::ConnectionReset, "the peer reset it"));
        assert_eq!(end.write(b"x").await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn reading_below_the_half_rings_so_that_the_dataplane_fills_up_again() {
        let (pipe, mut end, doorbell) = pair();
        for _ in 0..4 {
            pipe.push_inbound(&vec![1; CHUNK]);
        }
        assert_eq!(pipe.inbound_room(), 0);
        let mut buf = vec![0; CHUNK];
        end.read_exact(&mut buf).await.unwrap();
        assert_eq!(rings(&doorbell), 0);
        end.read_exact(&mut buf).await.unwrap();
        assert_eq!(rings(&doorbell), 1);
    }

    #[test]
    fn dropping_the_end_closes_and_aborting_it_resets() {
        let (pipe, end, doorbell) = pair();
        end.abort();
        assert_eq!(pipe.drain_outbound(<[u8]>::len), Some(Outbound::Aborted));
        let (pipe, end, _) = (pipe, end, doorbell);
        drop(end);
        assert!(pipe.is_abandoned());
    }
}
