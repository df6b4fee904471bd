//! What an application does with a node: listen, connect, read, write.

use std::net::SocketAddr;
use std::time::Instant;

use super::{Event, Node, PeerId};
use crate::key::NodePublic;
use crate::stack::{Accepted, ConnectError, ConnectionError, ConnectionId, ListenError, Read, StackEvent};

impl Node {
    /// Takes connections to `port` on all our addresses, at most `backlog` that `accept` hasn't taken yet.
    ///
    /// # Errors
    /// Port 0, or a port that is listened to already.
    pub fn listen(&mut self, port: u16, backlog: usize) -> Result<(), ListenError> {
        self.stack.listen(port, backlog)
    }

    /// Takes no more connections to `port`; those that nobody has accepted are reset.
    pub fn unlisten(&mut self, now: Instant, port: u16) {
        self.stack.unlisten(now, port);
    }

    /// The next connection to `port`, with the node key of the WireGuard session that it came through.
    pub fn accept(&mut self, port: u16) -> Option<Accepted<NodePublic>> {
        loop {
            let Accepted { id, peer, local, remote } = self.stack.accept(port)?;
            // One whose peer has left meanwhile is over already, and nobody will ask for it.
            match self.peers.get(peer) {
                Some(peer) => return Some(Accepted { id, peer: peer.key, local, remote }),
                None => self.stack.release(self.now, id),
            }
        }
    }

    /// Opens a connection to an address of a peer. [`Event::Connected`] or [`Event::Closed`] tells how it went, the
    /// latter after [`crate::stack::CONNECT_TIMEOUT`] at the latest.
    ///
    /// # Errors
    /// At once if the address is no peer's, or no attempt can be made.
    pub fn connect(&mut self, now: Instant, remote: SocketAddr) -> Result<ConnectionId, ConnectError> {
        self.now = now;
        let peer = self.peers.by_address(remote.ip()).ok_or(ConnectError::NoPeer)?;
        self.stack.connect(now, remote, None, peer)
    }

    /// Takes received bytes.
    ///
    /// # Errors
    /// Why the connection failed.
    pub fn read(&mut self, now: Instant, id: ConnectionId, into: &mut [u8]) -> Result<Read, ConnectionError> {
        self.stack.read(now, id, into)
    }

    /// Queues bytes for sending and says how many were taken.
    ///
    /// # Errors
    /// Why the connection can't send any more.
    pub fn write(&mut self, now: Instant, id: ConnectionId, bytes: &[u8]) -> Result<usize, ConnectionError> {
        self.stack.write(now, id, bytes)
    }

    /// Closes our way of the connection after what is queued; reading goes on.
    ///
    /// # Errors
    /// If there is no such connection.
    pub fn shutdown(&mut self, now: Instant, id: ConnectionId) -> Result<(), ConnectionError> {
        self.stack.shutdown(now, id)
    }

    /// Ends the connection at once, with a reset for the peer.
    pub fn abort(&mut self, now: Instant, id: ConnectionId) {
        self.stack.abort(now, id, ConnectionError::Aborted);
    }

    /// Ends all connections with a peer at once, with a reset for it, though it may not hear it: their owners read that it was
    /// given up. The peer itself stays, and may be connected to again.
    pub fn reset_streams(&mut self, now: Instant, peer: &NodePublic) {
        if let Some(peer) = self.peers.by_key(peer) {
            self.stack.abort_peer(now, peer, ConnectionError::PeerGivenUp);
        }
    }

    /// Forgets the connection, which closes by itself.
    pub fn release(&mut self, now: Instant, id: ConnectionId) {
        self.stack.release(now, id);
    }

    pub(super) fn handle_stack_event(&mut self, event: StackEvent<PeerId>) {
        let event = match event {
            StackEvent::Accepted { port } => Event::Accepted { port },
            StackEvent::Connected { id } => match self.connected(id) {
                Some(event) => event,
                None => return,
            },
            StackEvent::Readable { id } => Event::Readable { id },
            StackEvent::Writable { id } => Event::Writable { id },
            StackEvent::Closed { id, error } => Event::Closed { id, error },
            StackEvent::EchoReply { peer, echo, .. } => return self.handle_echo_reply(peer, echo),
            StackEvent::TsmpPong { peer, data, .. } => return self.handle_tsmp_pong(peer, data),
        };
        self.events.push_back(event);
    }

    /// `None` if the peer has left since: [`Event::Closed`] follows.
    fn connected(&self, id: ConnectionId) -> Option<Event> {
        let (peer, local) = self.stack.ends(id)?;
        Some(Event::Connected { id, peer: self.peers.get(peer)?.key, local })
    }
}
