//! The two bounded queues between one stream's application end and the dataplane.
//!
//! Each direction has one producer and one consumer and holds at most [`QUEUE_BYTES`] in chunks of up to [`CHUNK`] bytes. Whole
//! chunks change hands, and go back to be filled again, so that nobody copies while the other end waits for the lock. The
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

/// What is shorter is put behind what waits already, rather than handed over in a chunk of its own: chunks that wait are half full
/// at the least.
const SHORT: usize = CHUNK / 2;

/// The least room that a new chunk has.
const SMALLEST_CHUNK: usize = 4 << 10;

/// Empty chunks that are kept for the producer: one on its way each way.
const SPARES: usize = 2;

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
    chunks: VecDeque<Chunk>,
    bytes: usize,
    spares: Vec<Chunk>,
    // The producer will add no more.
    ended: bool,
    // The consumer will take no more.
    abandoned: bool,
    broken: Option<Broken>,
    waker: Option<Waker>,
}

/// Bytes on their way, in a buffer that is used again.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    // All of it is initialised; `start..end` is on its way.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
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

    /// Dataplane: adds what came from the peer, which is within [`Self::inbound_room`]: the first `length` bytes of the buffer of
    /// `chunk`, which is another one afterwards.
    pub(crate) fn push_inbound(&self, chunk: &mut Chunk, length: usize) {
        let mut queue = lock(&self.inbound);
        if queue.abandoned {
            return queue.wake();
        }
        if length < SHORT {
            queue.append(chunk.buffer.get(..length).unwrap_or_default());
            return queue.wake();
        }
        let mut full = std::mem::replace(chunk, queue.spares.pop().unwrap_or_default());
        (full.start, full.end) = (0, length);
        queue.push(full);
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
        outbound.clear();
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
        let mut queue = lock(&self.outbound);
        loop {
            if queue.abandoned {
                return Some(Outbound::Aborted);
            }
            let Some(mut chunk) = queue.chunks.pop_front() else {
                return Some(if queue.ended { Outbound::Ended } else { Outbound::Open });
            };
            // The chunk is out so that the application may add more while it is written.
            drop(queue);
            let taken = write(chunk.bytes()).min(chunk.len());
            chunk.start += taken;
            queue = lock(&self.outbound);
            queue.bytes = queue.bytes.saturating_sub(taken);
            // Half of the queue is worth a wake-up, a chunk isn't.
            if queue.bytes <= QUEUE_BYTES / 2 {
                queue.wake();
            }
            if chunk.len() > 0 {
                queue.chunks.push_front(chunk);
                return None;
            }
            queue.keep(chunk);
        }
    }

    /// Application: takes the next chunk and gives back the last one. Answers whether there was one.
    fn take_inbound(&self, reading: &mut Chunk) -> bool {
        let mut queue = lock(&self.inbound);
        let Some(next) = queue.chunks.pop_front() else { return false };
        queue.keep(std::mem::replace(reading, next));
        let before = queue.bytes;
        queue.bytes -= reading.len();
        // The dataplane stops reading from the connection only when the queue is (nearly) full.
        let made_room = before > QUEUE_BYTES / 2 && queue.bytes <= QUEUE_BYTES / 2;
        drop(queue);
        if made_room {
            self.ring();
        }
        true
    }

    fn ring(&self) {
        if !self.rung.swap(true, std::sync::atomic::Ordering::SeqCst) {
            self.doorbell.ring(self.id);
        }
    }
}

impl Chunk {
    /// All of its buffer, to be filled; at least [`CHUNK`] bytes.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        if self.buffer.len() < CHUNK {
            self.buffer.resize(CHUNK, 0);
        }
        &mut self.buffer
    }

    fn len(&self) -> usize {
        self.end - self.start
    }

    fn bytes(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Puts `data` behind what is there, if it has room.
    fn append(&mut self, data: &[u8]) -> bool {
        let end = self.end + data.len();
        let Some(room) = self.buffer.get_mut(self.end..end) else { return false };
        room.copy_from_slice(data);
        self.end = end;
        true
    }

    /// Holds `data` and nothing else.
    fn fill(&mut self, data: &[u8]) {
        if self.buffer.len() < data.len() {
            self.buffer.resize(data.len().max(SMALLEST_CHUNK), 0);
        }
        (self.start, self.end) = (0, 0);
        self.append(data);
    }
}

impl Queue {
    fn push(&mut self, chunk: Chunk) {
        self.bytes += chunk.len();
        self.chunks.push_back(chunk);
    }

    fn append(&mut self, data: &[u8]) {
        if self.chunks.back_mut().is_some_and(|last| last.append(data)) {
            self.bytes += data.len();
            return;
        }
        // A short one needs no long chunk, and those that wait for their turn would have to be made anew.
        let mut chunk = Chunk::default();
        chunk.fill(data);
        self.push(chunk);
    }

    /// Keeps an empty chunk for the producer.
    fn keep(&mut self, chunk: Chunk) {
        if self.spares.len() < SPARES && chunk.buffer.len() >= CHUNK {
            self.spares.push(chunk);
        }
    }

    /// Throws away what waits.
    fn clear(&mut self) {
        self.chunks.clear();
        self.spares.clear();
        self.bytes = 0;
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
    /// What was taken from the queue and isn't read yet.
    reading: Chunk,
}

impl<Id: Copy> PipeEnd<Id> {
    pub(crate) fn new(pipe: Arc<Pipe<Id>>) -> Self {
        Self { pipe, reading: Chunk::default() }
    }

    /// Resets the connection: what is queued either way is lost, and the peer is told.
    pub(crate) fn abort(&self) {
        let mut outbound = lock(&self.pipe.outbound);
        outbound.abandoned = true;
        outbound.clear();
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
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.remaining();
        while buf.remaining() > 0 {
            if this.reading.len() == 0 && !this.pipe.take_inbound(&mut this.reading) {
                break;
            }
            let taken = this.reading.len().min(buf.remaining());
            buf.put_slice(this.reading.bytes().get(..taken).unwrap_or_default());
            this.reading.start += taken;
        }
        if buf.remaining() < before || before == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut queue = lock(&this.pipe.inbound);
        if queue.bytes > 0 {
            // It came just now.
            drop(queue);
            return self.poll_read(cx, buf);
        }
        if let Some(broken) = &queue.broken {
            return Poll::Ready(Err(broken.to_io()));
        }
        if queue.ended {
            return Poll::Ready(Ok(()));
        }
        queue.wait(cx);
        Poll::Pending
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
        let data = data.get(..taken).unwrap_or_default();
        if taken < SHORT {
            queue.append(data);
        } else {
            let mut chunk = queue.spares.pop().unwrap_or_default();
            drop(queue);
            chunk.fill(data);
            queue = lock(&self.pipe.outbound);
            // Unless the connection ended meanwhile, which the next write says.
            if !queue.abandoned {
                queue.push(chunk);
            }
        }
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
        inbound.clear();
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

    fn receive(pipe: &Pipe<u8>, data: &[u8]) {
        let mut chunk = Chunk::default();
        chunk.room()[..data.len()].copy_from_slice(data);
        pipe.push_inbound(&mut chunk, data.len());
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
        tokio::task::yield_now().await;
        assert!(!writer.is_finished(), "a little room isn't worth a wake-up");
        let mut total = 100;
        let mut take = |data: &[u8]| {
            total += data.len();
            data.len()
        };
        assert_eq!(pipe.drain_outbound(&mut take), Some(Outbound::Open));
        let end = writer.await.unwrap();
        assert_eq!(pipe.drain_outbound(&mut take), Some(Outbound::Open));
        assert_eq!(total, QUEUE_BYTES + 10);
        assert_eq!(rings(&doorbell), 1);
        drop(end);
    }

    #[tokio::test]
    async fn bytes_of_any_lengths_come_out_in_their_order() {
        let lengths = [1, 60_000, 5, SHORT - 1, SHORT, CHUNK, 7, 4096, 4097, 40_000, 2, CHUNK - 1, 3];
        let data: Vec<u8> = (0..lengths.iter().sum::<usize>()).map(|n| (n % 249) as u8).collect();
        let (pipe, mut end, _doorbell) = pair();
        let (mut chunk, mut came, mut went) = (Chunk::default(), vec![0; data.len()], Vec::new());
        let (mut given, mut read) = (0, 0);
        for length in lengths {
            assert!(pipe.inbound_room() >= length);
            chunk.room()[..length].copy_from_slice(&data[given..given + length]);
            pipe.push_inbound(&mut chunk, length);
            end.write_all(&data[given..given + length]).await.unwrap();
            given += length;
            // The application reads in parts that fit nothing, and lags behind.
            while given - read > CHUNK {
                let part = 10_007.min(given - read);
                end.read_exact(&mut came[read..read + part]).await.unwrap();
                read += part;
            }
            let drained = pipe.drain_outbound(|data| {
                let taken = data.len().min(33_333);
                went.extend_from_slice(&data[..taken]);
                taken
            });
            assert!(drained.is_none_or(|last| last == Outbound::Open));
        }
        end.read_exact(&mut came[read..]).await.unwrap();
        while went.len() < data.len() {
            pipe.drain_outbound(|data| {
                went.extend_from_slice(data);
                data.len()
            });
        }
        assert!(came == data && went == data);
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
        receive(&pipe, b"answer");
        pipe.end_inbound();
        let mut answer = String::new();
        end.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");
    }

    #[tokio::test]
    async fn a_reset_is_told_after_the_bytes_that_came_before_it() {
        let (pipe, mut end, _doorbell) = pair();
        receive(&pipe, b"half");
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
            receive(&pipe, &[1; CHUNK]);
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
