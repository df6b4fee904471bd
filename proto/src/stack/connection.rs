//! What a stack keeps for each connection besides the engine.

use std::net::SocketAddr;
use std::time::Instant;

use super::engine::Engine;
use super::{CONNECT_TIMEOUT, ConnectionError, HALF_OPEN_TIMEOUT, PEER_SILENCE, SILENCE_TIMEOUT};

/// What makes a connection: both ends, and through whose WireGuard session it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Flow<P> {
    pub(super) peer: P,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

/// Whose the connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// A peer's handshake isn't finished; nobody knows of it yet.
    HalfOpen,
    /// Established, and in the listener's queue.
    Waiting,
    /// Ours, and not established yet.
    Dialling,
    /// Its owner has it.
    Owned,
    /// Its owner has forgotten it; it closes by itself until the instant.
    Released { until: Instant },
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Clean,
    Failed(ConnectionError),
}

/// Bytes that outlive the engine until they are read.
#[derive(Debug, Default)]
pub(super) struct Leftover {
    bytes: Vec<u8>,
    read: usize,
}

impl Leftover {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, read: 0 }
    }

    pub(super) fn read(&mut self, into: &mut [u8]) -> usize {
        let rest = self.bytes.get(self.read..).unwrap_or_default();
        let length = rest.len().min(into.len());
        for (to, from) in into.iter_mut().zip(rest) {
            *to = *from;
        }
        self.read += length;
        if self.read >= self.bytes.len() {
            *self = Self::default();
        }
        length
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// The engine while the connection lives, and its end after that.
pub(super) enum Life {
    Running(Box<Engine>),
    Ended { end: End, leftover: Leftover },
}

pub(super) struct Connection<P> {
    pub(super) flow: Flow<P>,
    pub(super) stage: Stage,
    pub(super) life: Life,
    pub(super) opened: Instant,
    /// When a packet of this connection arrived last.
    pub(super) last_heard: Instant,
    /// When the peer was last asked at once because something was heard, or known, of it.
    pub(super) asked: Option<Instant>,
    /// It is in the queue of those with something to send.
    pub(super) dirty: bool,
    /// Its entry among the timers.
    pub(super) timer: Option<Instant>,
    /// `read` found nothing, so the next bytes are an event.
    pub(super) wants_read: bool,
    /// `write` found no room, so the next room is an event.
    pub(super) wants_write: bool,
    /// `shutdown` was called.
    pub(super) shut_down: bool,
}

impl<P> Connection<P> {
    pub(super) fn new(flow: Flow<P>, stage: Stage, engine: Engine, now: Instant) -> Self {
        Self {
            flow,
            stage,
            life: Life::Running(Box::new(engine)),
            opened: now,
            last_heard: now,
            asked: None,
            dirty: false,
            timer: None,
            wants_read: true,
            wants_write: false,
            shut_down: false,
        }
    }

    pub(super) fn engine(&mut self) -> Option<&mut Engine> {
        match &mut self.life {
            Life::Running(engine) => Some(engine),
            Life::Ended { .. } => None,
        }
    }

    /// Whether nothing came from the peer for a while, and it wasn't asked just now either.
    pub(super) fn is_quiet(&self, now: Instant) -> bool {
        let since = self.asked.map_or(self.last_heard, |at| at.max(self.last_heard));
        now.saturating_duration_since(since) >= PEER_SILENCE
    }

    /// By when it must have got further, and what it fails with else.
    pub(super) fn deadline(&self) -> (Instant, ConnectionError) {
        let silence = (self.last_heard + SILENCE_TIMEOUT, ConnectionError::TimedOut);
        match self.stage {
            Stage::HalfOpen => (self.opened + HALF_OPEN_TIMEOUT, ConnectionError::ConnectTimedOut),
            Stage::Dialling => (self.opened + CONNECT_TIMEOUT, ConnectionError::ConnectTimedOut),
            Stage::Waiting | Stage::Owned => silence,
            Stage::Released { until } => {
                if until < silence.0 {
                    (until, ConnectionError::Aborted)
                } else {
                    silence
                }
            }
        }
    }
}
