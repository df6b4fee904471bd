//! What waits to be written to a relay, shared between the handle and the task.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nixtail_proto::derp::{Frame, write_send_packet};
use nixtail_proto::key::NodePublic;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::DerpStats;

/// Bytes of packets that wait at most: what a stream may have under way to a relay that is a few milliseconds away, so that it
/// loses nothing here. What comes beyond is dropped, which TCP mends more easily than a hole at the front.
const MAX_BYTES: usize = 1 << 20;
/// How many pongs wait at most; a relay that asks faster than it reads gets no answer.
const MAX_PONGS: usize = 4;

/// The queue of one connection.
#[derive(Debug)]
pub(super) struct Outbound {
    state: Mutex<State>,
    /// Wakes the writer.
    changed: Notify,
    /// A sign of life is wanted.
    check: Notify,
    /// One came.
    alive: Notify,
    closed: CancellationToken,
}

#[derive(Debug)]
struct State {
    /// Frames, ready to be written, and how many.
    packets: Vec<u8>,
    count: u64,
    pongs: VecDeque<[u8; 8]>,
    /// Our own, which isn't written yet.
    ping: Option<[u8; 8]>,
    home: bool,
    told_home: bool,
    stats: DerpStats,
}

impl Outbound {
    pub(super) fn new(home: bool) -> Self {
        let state = State {
            packets: Vec::new(),
            count: 0,
            pongs: VecDeque::new(),
            ping: None,
            home,
            told_home: false,
            stats: DerpStats::default(),
        };
        let (changed, check, alive) = (Notify::new(), Notify::new(), Notify::new());
        Self { state: Mutex::new(state), changed, check, alive, closed: CancellationToken::new() }
    }

    /// Queues packets for one peer, back to back in `train`, each `size` long but the last.
    pub(super) fn push_train(&self, peer: &NodePublic, train: &[u8], size: usize) {
        let mut state = self.lock();
        for packet in train.chunks(size.max(1)) {
            let has_room = state.packets.len() + packet.len() <= MAX_BYTES;
            if has_room && write_send_packet(peer, packet, &mut state.packets).is_ok() {
                state.count += 1;
            } else {
                state.stats.dropped_outbound += 1;
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    pub(super) fn push_pong(&self, data: [u8; 8]) {
        let mut state = self.lock();
        if state.pongs.len() < MAX_PONGS {
            state.pongs.push_back(data);
            self.changed.notify_one();
        }
    }

    pub(super) fn set_home(&self, home: bool) {
        self.lock().home = home;
        self.changed.notify_one();
    }

    pub(super) fn check(&self) {
        self.check.notify_one();
    }

    /// Waits for [`Self::check`].
    pub(super) async fn check_wanted(&self) {
        self.check.notified().await;
    }

    /// Queues a ping and waits for a sign of life; anything that comes will do.
    pub(super) async fn ping(&self) {
        let alive = self.alive.notified();
        self.lock().ping = Some(*b"nixtail?");
        self.changed.notify_one();
        alive.await;
    }

    pub(super) fn handle_sign_of_life(&self) {
        self.alive.notify_waiters();
    }

    pub(super) fn close(&self) {
        self.closed.cancel();
    }

    /// Waits for [`Self::close`].
    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Waits for something to write and puts all of it into `out`.
    pub(super) async fn take(&self, out: &mut Vec<u8>) {
        loop {
            self.lock().take(out);
            if !out.is_empty() {
                return;
            }
            self.changed.notified().await;
        }
    }

    pub(super) fn count_received(&self, packets: usize, dropped: bool) {
        let packets = u64::try_from(packets).unwrap_or(u64::MAX);
        let mut state = self.lock();
        match dropped {
            true => state.stats.dropped_inbound += packets,
            false => state.stats.received += packets,
        }
    }

    pub(super) fn stats(&self) -> DerpStats {
        self.lock().stats
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nobody panics with it, and it holds no invariant that could be broken half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, out: &mut Vec<u8>) {
        // These frames are of a few bytes: writing them doesn't fail.
        for data in self.pongs.drain(..) {
            let _ = Frame::Pong(data).write(out);
        }
        if let Some(data) = self.ping.take() {
            let _ = Frame::Ping(data).write(out);
        }
        if self.home != self.told_home {
            self.told_home = self.home;
            let _ = Frame::NotePreferred(self.home).write(out);
        }
        self.stats.sent += std::mem::take(&mut self.count);
        if out.is_empty() {
            std::mem::swap(out, &mut self.packets);
        } else {
            out.append(&mut self.packets);
        }
    }
}
