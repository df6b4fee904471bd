//! What a [`super::Node`] is told, what it asks for, and what it says.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::key::{DiscoPrivate, NodePrivate, NodePublic};
use crate::stack::{ConnectionError, ConnectionId};
use crate::tailcfg::{EndpointType, NetInfo, RegionId};
use crate::tunnel::paths::Via;

/// What a node starts with.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Who it is.
    pub node_key: NodePrivate,
    /// Its key for path discovery: new with every start.
    pub disco_key: DiscoPrivate,
    /// Whether UDP may be used; without it, everything goes through relays.
    pub direct: bool,
    /// Whether relays may be used.
    pub derp: bool,
}

/// Where a transmit goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// A UDP address.
    Udp(SocketAddr),
    /// A peer, through the connection to this region.
    Derp {
        /// The region.
        region: RegionId,
        /// The peer.
        peer: NodePublic,
    },
}

/// Datagrams for one destination, back to back in the buffer that they were polled into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit {
    /// Where they go.
    pub destination: Destination,
    /// Bytes of all of them.
    pub len: usize,
    /// Bytes of each; the last one may be shorter.
    pub segment_size: usize,
}

/// How a peer is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Path {
    /// Not at the moment, or nobody has tried.
    #[default]
    None,
    /// By UDP at this address.
    Direct(SocketAddr),
    /// Through this region's relay.
    Derp(RegionId),
}

impl From<Option<Via>> for Path {
    fn from(via: Option<Via>) -> Self {
        match via {
            None => Self::None,
            Some(Via::Udp(address)) => Self::Direct(address),
            Some(Via::Derp(region)) => Self::Derp(region),
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("no path"),
            Self::Direct(address) => write!(f, "direct {address}"),
            Self::Derp(region) => write!(f, "relay of region {region}"),
        }
    }
}

/// What is asked of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PingKind {
    /// A disco ping on the path in use: outside the session.
    Disco,
    /// A TSMP ping: through the session, answered by the node itself.
    Tsmp,
    /// An ICMP echo: through the session and the peer's filter.
    Icmp,
}

/// Names one ping; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PingId(pub(super) u64);

/// Why a ping has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PingError {
    /// No usable peer has this key.
    #[error("no peer with this key is in the network map")]
    UnknownPeer,
    /// We have no address of the peer's family, or too much else is to be sent.
    #[error("the question can't be asked now: no address in common, or too many packets wait")]
    NotSent,
    /// [`super::MAX_PINGS`] are under way.
    #[error("too many pings are under way")]
    TooMany,
    /// Nothing came back.
    #[error("the peer did not answer")]
    TimedOut,
    /// The peer left the network map, or has a new key.
    #[error("the peer left the network map")]
    PeerRemoved,
}

/// Something that the world around the node may want to act on.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// Dial the relay of this region once, and report how it went.
    DialDerp {
        /// The region.
        region: RegionId,
    },
    /// Close the connection to this region, or give up dialling.
    CloseDerp {
        /// The region.
        region: RegionId,
    },
    /// Ask the relay of this region for a sign of life, and report it as lost when none comes.
    CheckDerp {
        /// The region.
        region: RegionId,
    },
    /// The relay of this region finds something wrong with its connection. At most every 10 s.
    DerpHealth {
        /// The region.
        region: RegionId,
        /// What, fit to be shown; empty when it is well again.
        problem: String,
    },
    /// Measure the round trip to this region's relay over TCP, once, and report it or that there is none.
    MeasureRelay {
        /// The region.
        region: RegionId,
    },
    /// Control should know these addresses of ours.
    Endpoints(Vec<(SocketAddr, EndpointType)>),
    /// Control should know our home region.
    HomeRegion(RegionId),
    /// Control may want to know what our network is like.
    NetInfo(NetInfo),
    /// `accept(port)` has a connection.
    Accepted {
        /// The port.
        port: u16,
    },
    /// A connection of ours is established.
    Connected {
        /// The connection.
        id: ConnectionId,
        /// The node key of the session that it runs through.
        peer: NodePublic,
        /// Our end.
        local: SocketAddr,
    },
    /// `read` has bytes or the end.
    Readable {
        /// The connection.
        id: ConnectionId,
    },
    /// `write` has room again.
    Writable {
        /// The connection.
        id: ConnectionId,
    },
    /// The connection is over.
    Closed {
        /// The connection.
        id: ConnectionId,
        /// Why it failed; `None` if both sides closed it.
        error: Option<ConnectionError>,
    },
    /// The peer answered.
    PingReply {
        /// Which ping.
        id: PingId,
        /// What was asked.
        kind: PingKind,
        /// Round-trip time.
        latency: Duration,
        /// The path: of the ping itself for disco, in use for the others.
        path: Path,
    },
    /// The peer didn't answer.
    PingFailed {
        /// Which ping.
        id: PingId,
        /// Why.
        error: PingError,
    },
    /// A peer is reached otherwise than before.
    PathChanged {
        /// Who.
        peer: NodePublic,
        /// How now.
        path: Path,
    },
}

/// How things are with one peer that was talked to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// Who.
    pub key: NodePublic,
    /// How it is reached; where nothing was sent lately, how it was.
    pub path: Path,
    /// Round-trip time of that path, as last measured.
    pub rtt: Option<Duration>,
    /// Whether packets were sent to it lately, which keeps a direct path known.
    pub is_active: bool,
    /// Bytes sent to it, sealed.
    pub bytes_sent: u64,
    /// Bytes received from it, sealed.
    pub bytes_received: u64,
    /// When the keys in use were made; `None` if there are none.
    pub last_handshake: Option<Instant>,
}

/// Packets that were thrown away, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Drops {
    /// Not ours, not authentic, repeated, or from nobody that we know.
    pub refused: u64,
    /// Handshakes beyond the budget.
    pub handshakes: u64,
    /// Inner source address that isn't one of the sender's own.
    pub spoofed: u64,
    /// Not allowed by the packet filter.
    pub filtered: u64,
    /// To a peer that is no longer there.
    pub orphaned: u64,
    /// Our own small messages (handshakes, disco) beyond what waits to be sent.
    pub overflow: u64,
    /// Messages of the peer-relay protocol, in which we don't take part.
    pub peer_relay: u64,
}
