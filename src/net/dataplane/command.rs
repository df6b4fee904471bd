//! What the rest of the process asks of the dataplane.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nixtail_proto::key::NodePublic;
use nixtail_proto::netmap::Netmap;
use nixtail_proto::node::{Path, PeerStatus, PingError, PingKind};
use nixtail_proto::stack::{ConnectError, ConnectionError, ConnectionId, ListenError};
use nixtail_proto::tailcfg::RegionId;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use crate::net::pipe::PipeEnd;

/// One question or order. Answers come through the `reply` channels; an asker that went away is no error.
pub(crate) enum Command {
    /// The netmap changed.
    Netmap(Arc<Netmap>),
    /// Whether control can be told things now.
    HasControl(bool),
    /// The addresses of the DERP map's STUN servers were resolved.
    StunServers(Vec<(RegionId, SocketAddr)>),
    /// Open a connection.
    Connect { remote: SocketAddr, reply: oneshot::Sender<Result<StreamParts, ConnectFailure>> },
    /// Take connections to a port; the receiver gives them.
    Listen { port: u16, reply: oneshot::Sender<Result<mpsc::Receiver<StreamParts>, ListenError>> },
    /// Ping a peer.
    Ping { peer: NodePublic, kind: PingKind, reply: oneshot::Sender<Result<PongFact, PingError>> },
    /// End all connections with a peer at once.
    ResetStreams { peer: NodePublic },
    /// How each peer is reached.
    Peers { reply: oneshot::Sender<Vec<PeerStatus>> },
}

/// What a stream is made of.
#[derive(Debug)]
pub(crate) struct StreamParts {
    pub(crate) end: PipeEnd<ConnectionId>,
    pub(crate) peer: NodePublic,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
}

/// Why no connection came about.
#[derive(Clone, Debug, Error)]
pub(crate) enum ConnectFailure {
    /// No attempt could be made.
    #[error(transparent)]
    Attempt(#[from] ConnectError),
    /// The attempt failed.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
}

/// A ping's answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PongFact {
    pub(crate) latency: Duration,
    pub(crate) path: Path,
}
