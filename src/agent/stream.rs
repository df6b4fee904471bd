//! A TCP stream inside the tunnel.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use nixtail_proto::key::NodePublic;
use nixtail_proto::stack::ConnectionId;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;

use crate::net::dataplane::StreamParts;
use crate::net::pipe::PipeEnd;

/// A TCP stream to or from a peer.
///
/// Shutting it down sends FIN and leaves reading as it is. A stream that failed says why in its [`io::Error`], after
/// the bytes that came before. Dropping it delivers what was written, as far as the peer reads on.
#[derive(Debug)]
pub struct Stream {
    end: PipeEnd<ConnectionId>,
    peer: NodePublic,
    local: SocketAddr,
    remote: SocketAddr,
}

impl Stream {
    pub(super) fn new(StreamParts { end, peer, local, remote }: StreamParts) -> Self {
        Self { end, peer, local, remote }
    }

    /// The node key of the WireGuard session that the stream goes through: who the peer is, beyond doubt.
    pub fn peer(&self) -> NodePublic {
        self.peer
    }

    /// Our end's address.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The peer's end's address: one of the peer's own.
    pub fn remote_addr(&self) -> SocketAddr {
        self.remote
    }

    /// Ends the stream at once (RST): what is under way either way is lost.
    pub fn abort(self) {
        self.end.abort();
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.end).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.end).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.end).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.end).poll_shutdown(cx)
    }
}

/// Takes streams from peers to one port. Dropping it closes the port; streams that nobody accepted are reset.
#[derive(Debug)]
pub struct Listener {
    port: u16,
    streams: mpsc::Receiver<StreamParts>,
}

impl Listener {
    pub(super) fn new(port: u16, streams: mpsc::Receiver<StreamParts>) -> Self {
        Self { port, streams }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The next stream.
    ///
    /// # Errors
    /// The agent left the tailnet.
    pub async fn accept(&mut self) -> io::Result<Stream> {
        let parts = self.streams.recv().await;
        parts.map(Stream::new).ok_or_else(|| {
            io::Error::new(io::ErrorKind::ConnectionAborted, "this node left the tailnet, so nobody can connect")
        })
    }
}
