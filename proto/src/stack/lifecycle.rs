//! What happens to a connection between packets: sending, changes of state, deadlines, and its end.

use std::hash::Hash;
use std::mem;
use std::time::Instant;

use super::connection::{Connection, End, Leftover, Life, Stage};
use super::engine::{Engine, Phase};
use super::{ConnectionError, ConnectionId, OWN_FREEZE, RETRY, Stack, StackEvent, count_down};
use crate::packet::PacketBatch;

impl<P: Copy + Eq + Hash> Stack<P> {
    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.forgive_own_freeze(now);
        self.time_waits.expire(now);
        while let Some((at, id)) = self.timers.first().copied()
            && at <= now
        {
            self.timers.remove(&(at, id));
            let Some(connection) = self.connections.get_mut(&id) else {
                continue;
            };
            connection.timer = None;
            let (deadline, error) = connection.deadline();
            if deadline <= now {
                self.reset(now, id, error);
            } else {
                self.mark(id);
            }
        }
    }

    /// `peer` was heard again after a silence: what it owes is repeated at once instead of within
    /// [`super::REPEAT_WITHIN`].
    pub fn handle_peer_back(&mut self, now: Instant, peer: P) {
        for id in self.ids(|connection| connection.flow.peer == peer && connection.is_quiet(now)) {
            let owes = |connection: &mut Connection<P>| connection.engine().is_some_and(|engine| engine.owes());
            if self.connections.get_mut(&id).is_some_and(owes) {
                self.ask(now, id);
            }
        }
    }

    /// `peer` may have been restarted and know nothing of its connections: each asks it for a sign of life at once. A RST is one, too.
    pub fn probe_peer(&mut self, now: Instant, peer: P) {
        for id in self.ids(|connection| connection.flow.peer == peer) {
            self.ask(now, id);
        }
    }

    fn ask(&mut self, now: Instant, id: ConnectionId) {
        let engine_now = self.clock.engine_time(now);
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.asked = Some(now);
            connection.engine().into_iter().for_each(|engine| engine.hasten(engine_now));
            self.mark(id);
        }
    }

    /// If we were frozen ourselves, the peers could not be heard: their silence starts anew.
    fn forgive_own_freeze(&mut self, now: Instant) {
        let due = self.timers.first().map(|(at, _)| *at);
        let late = due.map_or(OWN_FREEZE, |due| now.saturating_duration_since(due));
        if late > OWN_FREEZE {
            for connection in self.connections.values_mut() {
                connection.last_heard = (connection.last_heard + late).min(now);
            }
        }
    }

    /// Puts a connection into the queue of those that may have something to send.
    pub(super) fn mark(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&id)
            && matches!(connection.life, Life::Running(_))
            && !mem::replace(&mut connection.dirty, true)
        {
            self.dirty.push_back(id);
        }
    }

    /// A connection's turn to send.
    pub(super) fn transmit(&mut self, now: Instant, id: ConnectionId, out: &mut PacketBatch<P>, budget: usize) {
        let engine_now = self.clock.engine_time(now);
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        connection.dirty = false;
        let peer = connection.flow.peer;
        let Some(engine) = connection.engine() else {
            return;
        };
        let more = engine.transmit(engine_now, peer, out, budget);
        let done = engine.phase() == Phase::TimeWait;
        if more {
            self.mark(id);
        } else if done {
            // The last acknowledgement is out: a memory of it is enough from here on.
            self.finish(now, id, End::Clean);
            return;
        } else {
            self.schedule(now, id);
        }
        self.settle(now, id);
    }

    /// Sets the timer of a connection that has nothing to send now. An earlier timer is left: it does no harm, and an
    /// acknowledgement that moves a deadline by some milliseconds should not cost a change of the set.
    fn schedule(&mut self, now: Instant, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let (deadline, _) = connection.deadline();
        let Life::Running(engine) = &mut connection.life else {
            return;
        };
        let wanted = engine.poll_at(&mut self.clock, now).map_or(deadline, |at| at.max(now + RETRY).min(deadline));
        if connection.timer.is_some_and(|at| at <= wanted) {
            return;
        }
        if let Some(old) = connection.timer.replace(wanted) {
            self.timers.remove(&(old, id));
        }
        self.timers.insert((wanted, id));
    }

    /// Looks at what a packet, a call or the time has made of a connection, and says so.
    pub(super) fn settle(&mut self, now: Instant, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let Life::Running(engine) = &mut connection.life else {
            return;
        };
        match (connection.stage, engine.phase()) {
            // Both ways are closed and acknowledged. (A reset comes by `peer_reset`.)
            (Stage::Owned | Stage::Waiting | Stage::Released { .. }, Phase::Closed) => {
                self.finish(now, id, End::Clean);
            }
            (Stage::Dialling, Phase::Closed) => {
                self.finish(now, id, End::Failed(ConnectionError::Aborted));
            }
            // The peer took its SYN back, or it was none that the engine takes.
            (Stage::HalfOpen, Phase::Closed | Phase::Listening) => self.remove(id),
            (Stage::HalfOpen, Phase::Open | Phase::TimeWait) => self.established(now, id),
            (Stage::Dialling, Phase::Open | Phase::TimeWait) => {
                connection.stage = Stage::Owned;
                self.events.push_back(StackEvent::Connected { id });
                self.notify(id);
            }
            (Stage::Owned, _) => self.notify(id),
            _ => {}
        }
    }

    fn established(&mut self, now: Instant, id: ConnectionId) {
        self.count_half_open_down(id);
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        connection.stage = Stage::Waiting;
        let port = connection.flow.local.port();
        match self.listeners.get_mut(&port) {
            Some(listener) => {
                listener.ready.push_back(id);
                self.events.push_back(StackEvent::Accepted { port });
            }
            None => self.reset(now, id, ConnectionError::Aborted),
        }
    }

    /// Tells an owner that waits for bytes or for room.
    pub(super) fn notify(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let Life::Running(engine) = &connection.life else {
            return;
        };
        if connection.wants_read && engine.is_readable() {
            connection.wants_read = false;
            self.events.push_back(StackEvent::Readable { id });
        }
        // Not for every acknowledgement: a quarter of the buffer is worth a wake-up.
        if connection.wants_write && engine.send_room() >= self.config.send_buffer / 4 {
            connection.wants_write = false;
            self.events.push_back(StackEvent::Writable { id });
        }
    }

    /// The peer sent a RST that the engine believed.
    pub(super) fn peer_reset(&mut self, now: Instant, id: ConnectionId) {
        let stage = self.connections.get(&id).map(|connection| connection.stage);
        let error = match stage {
            Some(Stage::Dialling) => ConnectionError::Refused,
            _ => ConnectionError::Reset,
        };
        self.finish(now, id, End::Failed(error));
    }

    /// A peer says that it won't have this connection; counts only until it is established.
    pub(super) fn refuse(&mut self, now: Instant, id: ConnectionId, error: ConnectionError) {
        let stage = self.connections.get(&id).map(|connection| connection.stage);
        if stage == Some(Stage::Dialling) {
            self.finish(now, id, End::Failed(error));
        }
    }

    /// Sends a RST and ends the connection with `reason`.
    pub(super) fn reset(&mut self, now: Instant, id: ConnectionId, reason: ConnectionError) {
        let engine_now = self.clock.engine_time(now);
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let peer = connection.flow.peer;
        if let Some(engine) = connection.engine() {
            engine.abort();
            engine.transmit(engine_now, peer, &mut self.replies, 1);
        }
        self.finish(now, id, End::Failed(reason));
    }

    /// Takes the engine from a connection and keeps what its owner may still want to know.
    pub(super) fn finish(&mut self, now: Instant, id: ConnectionId, end: End) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let Life::Running(engine) = &mut connection.life else {
            return;
        };
        let leftover = Leftover::new(engine.drain());
        let flow = connection.flow;
        let last = engine.last_sent().filter(|_| end == End::Clean && waits(engine));
        connection.life = Life::Ended { end, leftover };
        if let Some(timer) = connection.timer.take() {
            self.timers.remove(&(timer, id));
        }
        self.by_flow.remove(&flow);
        if let Some(segment) = last {
            self.time_waits.insert(now, flow, segment);
        }
        match connection.stage {
            Stage::Owned | Stage::Dialling => {
                let wants_read = mem::replace(&mut connection.wants_read, false);
                let wants_write = mem::replace(&mut connection.wants_write, false);
                connection.stage = Stage::Owned;
                if wants_read {
                    self.events.push_back(StackEvent::Readable { id });
                }
                if wants_write {
                    self.events.push_back(StackEvent::Writable { id });
                }
                self.events.push_back(StackEvent::Closed { id, error: end.failure() });
            }
            Stage::HalfOpen | Stage::Waiting | Stage::Released { .. } => self.remove(id),
        }
    }

    /// Forgets a connection altogether.
    pub(super) fn remove(&mut self, id: ConnectionId) {
        self.count_half_open_down(id);
        let Some(connection) = self.connections.remove(&id) else {
            return;
        };
        if let Some(timer) = connection.timer {
            self.timers.remove(&(timer, id));
        }
        if self.by_flow.get(&connection.flow) == Some(&id) {
            self.by_flow.remove(&connection.flow);
        }
        if matches!(connection.stage, Stage::HalfOpen | Stage::Waiting)
            && let Some(listener) = self.listeners.get_mut(&connection.flow.local.port())
        {
            listener.ready.retain(|ready| *ready != id);
            count_down(&mut listener.unaccepted, connection.flow.peer);
        }
    }

    fn count_half_open_down(&mut self, id: ConnectionId) {
        let Some(Connection { flow, stage: Stage::HalfOpen, .. }) = self.connections.get(&id) else {
            return;
        };
        count_down(&mut self.half_open, flow.peer);
    }
}

fn waits(engine: &Engine) -> bool {
    engine.phase() == Phase::TimeWait
}

impl End {
    pub(super) fn failure(self) -> Option<ConnectionError> {
        match self {
            Self::Clean => None,
            Self::Failed(error) => Some(error),
        }
    }

    /// What a write to the ended connection is told.
    pub(super) fn error(self) -> ConnectionError {
        self.failure().unwrap_or(ConnectionError::Shutdown)
    }
}
