//! The connections of the node, and the queues to the applications that own them.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nixtail_proto::key::NodePublic;
use nixtail_proto::node::Node;
use nixtail_proto::stack::{Accepted, ConnectionError, ConnectionId, ListenError, Read};
use tokio::sync::{mpsc, oneshot};

use super::command::{ConnectFailure, StreamParts};
use crate::net::pipe::{Broken, Chunk, Doorbell, Outbound, Pipe, PipeEnd};

/// Connections of one port that the application hasn't taken yet. One peer may have a quarter of them: as many as a
/// builder serves of one node.
pub(super) const BACKLOG: usize = 256;

/// How long a stream that its application dropped may take to deliver what was written: a peer that doesn't read for
/// so long won't.
const FLUSH_TIME: Duration = Duration::from_secs(30);

/// The connections and listeners that applications own.
pub(super) struct Streams {
    open: HashMap<ConnectionId, Open>,
    dialling: HashMap<ConnectionId, Dialling>,
    listeners: HashMap<u16, mpsc::Sender<StreamParts>>,
    doorbell: Arc<Doorbell<ConnectionId>>,
    rung: Vec<ConnectionId>,
    /// What is read into.
    scratch: Chunk,
}

struct Open {
    pipe: Arc<Pipe<ConnectionId>>,
    // The stack took all it was given.
    writable: bool,
    // FIN was asked for.
    shut: bool,
    // The peer's FIN was passed on.
    ended: bool,
    // The stack said that the connection is over.
    closed: bool,
    // When the application was found to have dropped its end.
    abandoned: Option<Instant>,
}

struct Dialling {
    remote: SocketAddr,
    reply: oneshot::Sender<Result<StreamParts, ConnectFailure>>,
}

impl Streams {
    pub(super) fn new() -> Self {
        Self {
            open: HashMap::new(),
            dialling: HashMap::new(),
            listeners: HashMap::new(),
            doorbell: Arc::default(),
            rung: Vec::new(),
            scratch: Chunk::default(),
        }
    }

    /// What applications ring when their end of a queue changed.
    pub(super) fn doorbell(&self) -> Arc<Doorbell<ConnectionId>> {
        self.doorbell.clone()
    }

    pub(super) fn listen(
        &mut self,
        node: &mut Node,
        now: Instant,
        port: u16,
    ) -> Result<mpsc::Receiver<StreamParts>, ListenError> {
        if self.listeners.get(&port).is_some_and(mpsc::Sender::is_closed) {
            self.unlisten(node, now, port);
        }
        node.listen(port, BACKLOG)?;
        let (sender, receiver) = mpsc::channel(BACKLOG);
        self.listeners.insert(port, sender);
        Ok(receiver)
    }

    pub(super) fn connect(
        &mut self,
        node: &mut Node,
        now: Instant,
        remote: SocketAddr,
        reply: oneshot::Sender<Result<StreamParts, ConnectFailure>>,
    ) {
        match node.connect(now, remote) {
            Ok(id) => {
                self.dialling.insert(id, Dialling { remote, reply });
            }
            // An asker that went away doesn't want to know.
            Err(error) => drop(reply.send(Err(error.into()))),
        }
    }

    pub(super) fn handle_accepted(&mut self, node: &mut Node, now: Instant, port: u16) {
        while let Some(Accepted { id, peer, local, remote }) = node.accept(port) {
            let parts = self.insert(id, peer, local, remote);
            let offered = match self.listeners.get(&port) {
                Some(listener) => {
                    listener.try_send(parts).map_err(|error| matches!(error, mpsc::error::TrySendError::Closed(_)))
                }
                None => Err(true),
            };
            if let Err(closed) = offered {
                tracing::debug!(port, closed, "a connection is refused: nobody takes it");
                self.open.remove(&id);
                node.abort(now, id);
                node.release(now, id);
                if closed {
                    self.unlisten(node, now, port);
                    return;
                }
            }
        }
    }

    pub(super) fn handle_connected(
        &mut self,
        node: &mut Node,
        now: Instant,
        id: ConnectionId,
        peer: NodePublic,
        local: SocketAddr,
    ) {
        let Some(Dialling { remote, reply }) = self.dialling.remove(&id) else { return };
        let parts = self.insert(id, peer, local, remote);
        if reply.send(Ok(parts)).is_err() {
            self.open.remove(&id);
            node.abort(now, id);
            node.release(now, id);
        }
    }

    pub(super) fn handle_readable(&mut self, node: &mut Node, now: Instant, id: ConnectionId) {
        if let Some(open) = self.open.get_mut(&id) {
            pull(open, node, now, id, &mut self.scratch);
            self.settle(node, now, id);
        }
    }

    pub(super) fn handle_writable(&mut self, node: &mut Node, now: Instant, id: ConnectionId) {
        if let Some(open) = self.open.get_mut(&id) {
            open.writable = true;
            push(open, node, now, id);
            self.settle(node, now, id);
        }
    }

    pub(super) fn handle_closed(
        &mut self,
        node: &mut Node,
        now: Instant,
        id: ConnectionId,
        error: Option<ConnectionError>,
    ) {
        if let Some(Dialling { reply, .. }) = self.dialling.remove(&id) {
            node.release(now, id);
            // An asker that went away doesn't want to know.
            let _ = reply.send(Err(error.unwrap_or(ConnectionError::Reset).into()));
        } else if let Some(open) = self.open.get_mut(&id) {
            open.closed = true;
            pull(open, node, now, id, &mut self.scratch);
            self.settle(node, now, id);
        }
    }

    /// Looks after the streams whose applications rang.
    pub(super) fn handle_rung(&mut self, node: &mut Node, now: Instant) {
        let mut rung = std::mem::take(&mut self.rung);
        self.doorbell.take(&mut rung);
        for id in rung.drain(..) {
            if let Some(open) = self.open.get_mut(&id) {
                open.pipe.answer();
                pull(open, node, now, id, &mut self.scratch);
                push(open, node, now, id);
                self.settle(node, now, id);
            }
        }
        self.rung = rung;
    }

    /// Lets go of what applications dropped without a word: listeners, dials, and streams that nobody will ever finish.
    pub(super) fn sweep(&mut self, node: &mut Node, now: Instant) {
        let unheard = |sender: &mpsc::Sender<StreamParts>| sender.is_closed();
        let ports: Vec<u16> = self.listeners.iter().filter(|(_, s)| unheard(s)).map(|(port, _)| *port).collect();
        for port in ports {
            self.unlisten(node, now, port);
        }
        let given_up: Vec<_> =
            self.dialling.iter().filter(|(_, dial)| dial.reply.is_closed()).map(|(id, _)| *id).collect();
        for id in given_up {
            self.dialling.remove(&id);
            node.abort(now, id);
            node.release(now, id);
        }
        let overdue =
            |open: &Open| open.abandoned.is_some_and(|since| now.saturating_duration_since(since) > FLUSH_TIME);
        let overdue: Vec<_> = self.open.iter().filter(|(_, open)| overdue(open)).map(|(id, _)| *id).collect();
        for id in overdue {
            self.open.remove(&id);
            node.abort(now, id);
            node.release(now, id);
        }
    }

    /// Ends everything: this node leaves.
    pub(super) fn end_all(&mut self, node: &mut Node, now: Instant) {
        for (id, open) in self.open.drain() {
            let reason = "this node left the tailnet".to_owned();
            open.pipe.close(Some(Broken { kind: io::ErrorKind::ConnectionAborted, reason }));
            node.abort(now, id);
            node.release(now, id);
        }
        for (id, dialling) in self.dialling.drain() {
            // An asker that went away doesn't want to know.
            let _ = dialling.reply.send(Err(ConnectionError::Aborted.into()));
            node.release(now, id);
        }
        self.listeners.clear();
    }

    fn insert(&mut self, id: ConnectionId, peer: NodePublic, local: SocketAddr, remote: SocketAddr) -> StreamParts {
        let pipe = Pipe::new(id, self.doorbell.clone());
        let open =
            Open { pipe: pipe.clone(), writable: true, shut: false, ended: false, closed: false, abandoned: None };
        self.open.insert(id, open);
        StreamParts { end: PipeEnd::new(pipe), peer, local, remote }
    }

    fn unlisten(&mut self, node: &mut Node, now: Instant, port: u16) {
        self.listeners.remove(&port);
        node.unlisten(now, port);
    }

    /// Forgets a connection that is over at both of its ends.
    fn settle(&mut self, node: &mut Node, now: Instant, id: ConnectionId) {
        let Some(open) = self.open.get_mut(&id) else { return };
        let abandoned = open.pipe.is_abandoned();
        if abandoned && open.abandoned.is_none() {
            open.abandoned = Some(now);
        }
        // An application that is gone needs no more than its last bytes sent; the stack sees to the rest.
        if (open.closed && open.ended) || (abandoned && open.shut) {
            open.pipe.close(None);
            self.open.remove(&id);
            node.release(now, id);
        }
    }
}

/// Moves what the peer sent into the application's queue, as far as it has room.
fn pull(open: &mut Open, node: &mut Node, now: Instant, id: ConnectionId, scratch: &mut Chunk) {
    while !open.ended {
        let buffer = scratch.room();
        let room = open.pipe.inbound_room().min(buffer.len());
        let Some(buffer) = buffer.get_mut(..room).filter(|buffer| !buffer.is_empty()) else { return };
        match node.read(now, id, buffer) {
            Ok(Read::Bytes(length)) => open.pipe.push_inbound(scratch, length),
            Ok(Read::Eof) => {
                open.pipe.end_inbound();
                open.ended = true;
            }
            Ok(Read::Empty) => return,
            Err(error) => fail(open, error),
        }
    }
}

/// Moves what the application wrote into the stack, as far as that has room.
fn push(open: &mut Open, node: &mut Node, now: Instant, id: ConnectionId) {
    if !open.writable || open.shut {
        return;
    }
    let mut failed = None;
    let drained = open.pipe.drain_outbound(|data| match node.write(now, id, data) {
        Ok(taken) => taken,
        Err(error) => {
            failed = Some(error);
            data.len()
        }
    });
    match (failed, drained) {
        (Some(error), _) => fail(open, error),
        (None, None) => open.writable = false,
        (None, Some(Outbound::Open)) => {}
        (None, Some(Outbound::Ended)) => {
            open.shut = true;
            if let Err(error) = node.shutdown(now, id) {
                fail(open, error);
            }
        }
        (None, Some(Outbound::Aborted)) => {
            node.abort(now, id);
            fail(open, ConnectionError::Aborted);
        }
    }
}

fn fail(open: &mut Open, error: ConnectionError) {
    open.pipe.close(Some(Broken { kind: kind_of(error), reason: error.to_string() }));
    (open.ended, open.shut, open.closed) = (true, true, true);
}

fn kind_of(error: ConnectionError) -> io::ErrorKind {
    match error {
        ConnectionError::Refused | ConnectionError::RefusedByPolicy(_) => io::ErrorKind::ConnectionRefused,
        ConnectionError::ConnectTimedOut | ConnectionError::TimedOut => io::ErrorKind::TimedOut,
        ConnectionError::Aborted => io::ErrorKind::ConnectionAborted,
        ConnectionError::Shutdown => io::ErrorKind::BrokenPipe,
        ConnectionError::Unknown => io::ErrorKind::NotConnected,
        ConnectionError::Reset
        | ConnectionError::PeerKeyChanged
        | ConnectionError::PeerRemoved
        | ConnectionError::PeerGivenUp
        | ConnectionError::AddressLost => io::ErrorKind::ConnectionReset,
    }
}
