//! What a [`super::Stack`] is told and what it says.

use std::net::{IpAddr, SocketAddr};

use thiserror::Error;

use crate::packet::icmp::Echo;
use crate::packet::tsmp::RejectReason;

/// Bytes that a connection may hold unread, and unsent, unless the configuration says otherwise. One window of this
/// size fills 1 Gbit/s at 30 ms. The memory is touched only as far as it gets used, where the allocator gives what the system has zeroed.
pub const DEFAULT_BUFFER: usize = 4 << 20;
/// The tunnel's MTU: what every Tailscale node uses.
pub const DEFAULT_MTU: usize = 1280;

/// What a stack starts with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Our addresses inside the tailnet.
    pub addresses: Vec<IpAddr>,
    /// Largest IP packet in bytes; at least 1280.
    pub mtu: usize,
    /// Bytes that a connection keeps for its owner to read.
    pub receive_buffer: usize,
    /// Bytes that a connection keeps until the peer has acknowledged them.
    pub send_buffer: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { addresses: Vec::new(), mtu: DEFAULT_MTU, receive_buffer: DEFAULT_BUFFER, send_buffer: DEFAULT_BUFFER }
    }
}

/// Names one connection of one stack; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub(super) u64);

/// Why a port can't be listened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ListenError {
    /// Port 0.
    #[error("port 0 can't be listened to")]
    PortZero,
    /// Somebody listens there already.
    #[error("the port is in use")]
    InUse,
}

/// Why no attempt to connect was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ConnectError {
    /// The remote address belongs to no usable peer.
    #[error("no peer in the network map has this address")]
    NoPeer,
    /// We have no address of the remote's family, or not the one that was asked for.
    #[error("this node has no address to connect from")]
    NoAddress,
    /// No connection can have this remote address.
    #[error("the remote address can't be connected to")]
    BadRemote,
    /// [`super::MAX_CONNECTIONS`] is reached.
    #[error("too many connections are open")]
    TooMany,
    /// All local ports towards this remote address are in use.
    #[error("no local port is free")]
    NoPort,
}

/// How a connection came to its end, other than by both sides closing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ConnectionError {
    /// There is no such connection (any more): ours.
    #[error("no such connection")]
    Unknown,
    /// Written to after `shutdown`: ours.
    #[error("this side of the connection is closed")]
    Shutdown,
    /// Ended by our own side.
    #[error("the connection was aborted on this side")]
    Aborted,
    /// The peer listens to no such port.
    #[error("connection refused: nothing listens on that port")]
    Refused,
    /// The peer says that its policy forbids it.
    #[error("connection refused by the peer's policy: {0}")]
    RefusedByPolicy(RejectReason),
    /// The peer ended it.
    #[error("connection reset by the peer")]
    Reset,
    /// The peer never answered the first packet.
    #[error("the peer did not answer")]
    ConnectTimedOut,
    /// The peer fell silent.
    #[error("the peer answered nothing for 45 seconds")]
    TimedOut,
    /// The peer has another node key now, so it isn't the one that this connection was with.
    #[error("the peer's key changed")]
    PeerKeyChanged,
    /// The peer has left the network map.
    #[error("the peer left the tailnet")]
    PeerRemoved,
    /// Whoever uses the peer has given it up: it shows no sign of life.
    #[error("the peer shows no sign of life and was given up")]
    PeerGivenUp,
    /// The address on our side isn't ours any more.
    #[error("this node lost the address that the connection used")]
    AddressLost,
}

/// What `read` gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// So many bytes.
    Bytes(usize),
    /// The peer has sent all it will send.
    Eof,
    /// Nothing at the moment.
    Empty,
}

/// An established connection from a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted<P> {
    /// The connection.
    pub id: ConnectionId,
    /// Through whose WireGuard session it came.
    pub peer: P,
    /// Our end.
    pub local: SocketAddr,
    /// The peer's end.
    pub remote: SocketAddr,
}

/// Something that the owner may want to act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StackEvent<P> {
    /// `accept(port)` has a connection.
    Accepted {
        /// The port.
        port: u16,
    },
    /// A connection of ours is established.
    Connected {
        /// The connection.
        id: ConnectionId,
    },
    /// `read` has bytes or the end, after it had given [`Read::Empty`].
    Readable {
        /// The connection.
        id: ConnectionId,
    },
    /// `write` has room again, after it had taken less than it was given.
    Writable {
        /// The connection.
        id: ConnectionId,
    },
    /// The connection is over: both sides have closed it, or it failed. What it had received stays readable until `release`.
    Closed {
        /// The connection.
        id: ConnectionId,
        /// Why it failed; `None` if both sides closed it and everything sent was acknowledged.
        error: Option<ConnectionError>,
    },
    /// A peer answered our ICMP echo request.
    EchoReply {
        /// Who.
        peer: P,
        /// From which address.
        from: IpAddr,
        /// Which question.
        echo: Echo,
    },
    /// A peer answered our TSMP ping.
    TsmpPong {
        /// Who.
        peer: P,
        /// The ping's data.
        data: [u8; 8],
        /// The port of its PeerAPI, 0 if it has none.
        peer_api_port: u16,
    },
}
