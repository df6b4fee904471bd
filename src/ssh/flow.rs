//! Flow control from the client to the children: bounded memory, and never a deadlock.
//!
//! russh gives window back when data *arrives*, not when it is consumed, and one task reads, handles and writes. Waiting
//! in its `Handler::data` would stop the connection whole; ceasing to read it would also cease to see the client's own
//! window adjustments, so that a child which waits for its output to go before it takes input would wait for ever. So:
//!
//! 1. [`InputQueue`] takes every byte at once, without waiting.
//! 2. [`Windows`] decides, each time russh is about to give window back, how much the next grant may be, so that what is
//!    queued and what is granted never exceed [`QUEUE_WINDOWS`] windows. russh has no grant of nothing that could be taken
//!    back later; the smallest that still makes it ask again is [`TRICKLE`] bytes.
//! 3. Each trickle shuts the [`Gate`] before the connection's reader for [`TRICKLE_PAUSE`]. A client whose child is stuck
//!    thus sends some hundred bytes a second, while its window adjustments go through at most one pause late.
//!
//! 4. What all connections have queued counts against one [`MemoryBudget`]. While it is exceeded, connections that have
//!    queued anything are read only as their children take it ([`Gate::poll_open`]). One of them whose child wants its
//!    output gone first may then wait in vain, and ends as silent; that needs hundreds of MiB for stuck children.
//!
//! A client that ignores its window is cut off: [`Windows::data`] says so.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::task::AtomicWaker;
use tokio::sync::Notify;

/// A session's queue holds so many windows at most, queued and granted together. Two is the least with which a child that
/// keeps up always finds a full window granted.
pub(crate) const QUEUE_WINDOWS: usize = 2;

/// The smallest grant: russh gives back window when less than half of the target is left, so with a target of two at
/// none, and with one never again.
pub(crate) const TRICKLE: u32 = 2;

/// How long the reader rests after a trickle. Window adjustments come up to this late, so a client with a 2 MiB window
/// (OpenSSH) still takes 100 MiB/s.
pub(crate) const TRICKLE_PAUSE: Duration = Duration::from_millis(20);

/// What trickles may add to a stuck session beyond [`QUEUE_WINDOWS`] before nothing is read any more: hours of it.
pub(crate) const TRICKLE_SLACK: usize = 1024 * 1024;

/// Grants below this are not worth a round trip: the child gets some room first.
const SMALLEST_USEFUL_GRANT: usize = 128 * 1024;

/// The longest packet that russh hands over (its `MAXIMUM_PACKET_LEN`).
const LONGEST_PACKET: usize = 256 * 1024;

/// Queued bytes are kept in pieces of this size, so that many small packets cost no more than a few large ones.
const PIECE: usize = 64 * 1024;

/// How often a connection that rests for the sake of the budget looks whether it must.
const BUDGET_PAUSE: Duration = Duration::from_millis(50);

/// What a child is yet to read. One side pushes, the other pops; neither holds the lock while it waits.
#[derive(Debug)]
pub(crate) struct InputQueue {
    share: Arc<MemoryShare>,
    state: Mutex<QueueState>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct QueueState {
    pieces: VecDeque<Bytes>,
    tail: BytesMut,
    queued: usize,
    highest: usize,
    finished: bool,
    discards: bool,
}

impl InputQueue {
    /// An empty one, whose bytes count in `share`.
    pub(crate) fn new(share: Arc<MemoryShare>) -> Self {
        Self { share, state: Mutex::default(), changed: Notify::new() }
    }

    /// Takes `data` unless the child takes no more; never waits.
    pub(crate) fn push(&self, data: &[u8]) {
        let mut state = lock(&self.state);
        if state.discards || state.finished {
            return;
        }
        if state.tail.capacity() - state.tail.len() < data.len() {
            let fresh = BytesMut::with_capacity(data.len().max(PIECE));
            let full = std::mem::replace(&mut state.tail, fresh).freeze();
            if !full.is_empty() {
                state.pieces.push_back(full);
            }
        }
        state.tail.extend_from_slice(data);
        state.queued += data.len();
        self.share.add(data.len());
        state.highest = state.highest.max(state.queued);
        drop(state);
        self.changed.notify_one();
    }

    /// No more will come: the client sent EOF.
    pub(crate) fn finish(&self) {
        lock(&self.state).finished = true;
        self.changed.notify_one();
    }

    /// The child takes no more: what is queued and what will come is dropped.
    pub(crate) fn discard(&self) {
        let mut state = lock(&self.state);
        let highest = state.highest;
        self.share.remove(state.queued);
        *state = QueueState { discards: true, highest, ..QueueState::default() };
        drop(state);
        self.changed.notify_one();
    }

    /// The next piece, which counts as queued until [`InputQueue::written`]; `None` at the end.
    pub(crate) async fn pop(&self) -> Option<Bytes> {
        loop {
            {
                let mut state = lock(&self.state);
                if let Some(piece) = state.pieces.pop_front() {
                    return Some(piece);
                }
                if !state.tail.is_empty() {
                    return Some(state.tail.split().freeze());
                }
                if state.finished || state.discards {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }

    /// The child took `length` bytes.
    pub(crate) fn written(&self, length: usize) {
        let mut state = lock(&self.state);
        // A queue that was discarded meanwhile counts nothing any more.
        let length = length.min(state.queued);
        state.queued -= length;
        self.share.remove(length);
    }

    /// Bytes that the child hasn't taken.
    pub(crate) fn queued(&self) -> usize {
        lock(&self.state).queued
    }

    /// The most that was ever queued.
    pub(crate) fn highest(&self) -> usize {
        lock(&self.state).highest
    }
}

impl Drop for InputQueue {
    fn drop(&mut self) {
        self.share.remove(self.queued());
    }
}

/// The client sent more than it was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WindowExceeded;

/// The windows of one connection's sessions, and what the next grant may be. russh has one target for all of a
/// connection's channels, so the fullest session decides.
#[derive(Debug)]
pub(crate) struct Windows<K> {
    window: u32,
    sessions: HashMap<K, SessionWindow>,
}

#[derive(Debug)]
struct SessionWindow {
    queue: Arc<InputQueue>,
    /// Bytes that the client may send.
    granted: usize,
    /// russh is giving window back with the packet that it is about to hand over.
    regrant: Option<u32>,
}

impl<K: std::hash::Hash + Eq> Windows<K> {
    /// For channels that begin with `window` bytes.
    pub(crate) fn new(window: u32) -> Self {
        Self { window, sessions: HashMap::new() }
    }

    /// A channel begins.
    pub(crate) fn open(&mut self, channel: K, queue: Arc<InputQueue>) {
        let window = self.window as usize;
        self.sessions.insert(channel, SessionWindow { queue, granted: window, regrant: None });
    }

    /// A channel ends.
    pub(crate) fn close(&mut self, channel: &K) {
        self.sessions.remove(channel);
    }

    /// russh gave `granted` bytes to `channel` (its data comes right after this call); returns the next target, for
    /// whichever channel then asks.
    pub(crate) fn regrant(&mut self, channel: &K, granted: u32) -> u32 {
        if let Some(session) = self.sessions.get_mut(channel) {
            session.regrant = Some(granted);
        }
        let limit = self.window as usize * QUEUE_WINDOWS;
        let room = |session: &SessionWindow| {
            let granted = session.regrant.map_or(session.granted, |regrant| regrant as usize + LONGEST_PACKET);
            limit.saturating_sub(session.queue.queued() + granted)
        };
        let least = self.sessions.values().map(room).min().unwrap_or(limit);
        if least < SMALLEST_USEFUL_GRANT {
            TRICKLE
        } else {
            u32::try_from(least).unwrap_or(self.window).min(self.window)
        }
    }

    /// `length` bytes of `channel` arrived.
    pub(crate) fn data(&mut self, channel: &K, length: usize) -> Result<(), WindowExceeded> {
        let Some(session) = self.sessions.get_mut(channel) else {
            return Ok(());
        };
        session.granted = session.granted.checked_sub(length).ok_or(WindowExceeded)?;
        if let Some(regrant) = session.regrant.take() {
            session.granted = regrant as usize;
        }
        Ok(())
    }

    /// Whether this session holds more than even trickles may bring.
    pub(crate) fn is_overfull(&self, channel: &K) -> bool {
        let limit = self.window as usize * QUEUE_WINDOWS + TRICKLE_SLACK;
        self.sessions.get(channel).is_some_and(|session| session.queue.queued() > limit)
    }
}

/// Before the reader of a connection: shut for a while, or until a child takes something.
#[derive(Debug)]
pub(crate) struct Gate {
    share: Arc<MemoryShare>,
    shut: Mutex<Shut>,
    waker: AtomicWaker,
    times_shut: AtomicUsize,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Shut {
    #[default]
    Open,
    Until(Instant),
    UntilDrained,
}

impl Gate {
    /// An open one, before a connection that queues in `share`.
    pub(crate) fn new(share: Arc<MemoryShare>) -> Self {
        Self { share, shut: Mutex::default(), waker: AtomicWaker::new(), times_shut: AtomicUsize::new(0) }
    }

    /// Shuts it for [`TRICKLE_PAUSE`].
    pub(crate) fn pause(&self, now: Instant) {
        *lock(&self.shut) = Shut::Until(now + TRICKLE_PAUSE);
        self.times_shut.fetch_add(1, Ordering::Relaxed);
    }

    /// Shuts it until [`Gate::drained`].
    pub(crate) fn shut(&self) {
        *lock(&self.shut) = Shut::UntilDrained;
        self.times_shut.fetch_add(1, Ordering::Relaxed);
    }

    /// A child took something: what was shut for that reason opens. Pauses run out by themselves.
    pub(crate) fn drained(&self) {
        let mut shut = lock(&self.shut);
        if *shut == Shut::UntilDrained {
            *shut = Shut::Open;
            drop(shut);
            self.waker.wake();
        }
    }

    /// Whether the reader may read; where not, `cx` is woken when that may have changed, except that a time must be
    /// waited for by the caller.
    pub(crate) fn poll_open(&self, now: Instant, cx: &Context<'_>) -> Poll<Option<Instant>> {
        self.waker.register(cx.waker());
        let mut shut = lock(&self.shut);
        match *shut {
            Shut::Until(until) if now < until => Poll::Ready(Some(until)),
            Shut::UntilDrained => Poll::Pending,
            _ if self.share.must_rest() => {
                self.times_shut.fetch_add(1, Ordering::Relaxed);
                let until = now + BUDGET_PAUSE;
                *shut = Shut::Until(until);
                Poll::Ready(Some(until))
            }
            Shut::Open | Shut::Until(_) => {
                *shut = Shut::Open;
                Poll::Ready(None)
            }
        }
    }

    /// How often it was shut.
    pub(crate) fn times_shut(&self) -> usize {
        self.times_shut.load(Ordering::Relaxed)
    }
}

/// The bytes that the queues of all connections may come to, and what they do.
#[derive(Debug)]
pub(crate) struct MemoryBudget {
    limit: usize,
    queued: AtomicUsize,
}

/// One connection's part of it.
#[derive(Debug)]
pub(crate) struct MemoryShare {
    budget: Arc<MemoryBudget>,
    queued: AtomicUsize,
}

impl MemoryBudget {
    /// A budget of so many bytes.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, queued: AtomicUsize::new(0) })
    }

    /// A connection begins.
    pub(crate) fn share(self: &Arc<Self>) -> Arc<MemoryShare> {
        Arc::new(MemoryShare { budget: Arc::clone(self), queued: AtomicUsize::new(0) })
    }
}

impl MemoryShare {
    fn add(&self, bytes: usize) {
        self.queued.fetch_add(bytes, Ordering::Relaxed);
        self.budget.queued.fetch_add(bytes, Ordering::Relaxed);
    }

    fn remove(&self, bytes: usize) {
        self.queued.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.queued.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Whether the connection must wait for its own children first. One that has queued nothing needn't, so that none
    /// waits for the children of others alone; it may overshoot by a packet.
    fn must_rest(&self) -> bool {
        self.budget.queued.load(Ordering::Relaxed) > self.budget.limit && self.queued.load(Ordering::Relaxed) > 0
    }
}

/// A poisoned lock guards numbers and bytes only, which stay usable.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
