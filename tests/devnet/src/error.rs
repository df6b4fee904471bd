//! What can go wrong: with the devnet (for its user to read), and with one connection (for its log).

use std::io;
use std::net::{IpAddr, SocketAddr};

/// Why a devnet doesn't start or doesn't do what is asked of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DevnetError {
    /// An address that others than this machine could reach.
    #[error("{0} is not a loopback address, and a devnet is for tests on one machine; use 127.0.0.1, or force it")]
    NotLoopback(IpAddr),
    /// A port can't be had.
    #[error("cannot listen on {address} for the devnet's {part}: {source}; choose another address")]
    Listen {
        /// Which server.
        part: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The relay's certificate can't be made.
    #[error("cannot make a certificate for the devnet's relay: {0}")]
    Certificate(String),
    /// The system gives no randomness.
    #[error("the system gives no random bytes: {0}")]
    Random(String),
    /// More keys than a devnet holds.
    #[error("this devnet holds no more auth keys: make them reusable, or start another devnet")]
    TooManyKeys,
    /// No node has this number.
    #[error("the devnet has no node {0}")]
    UnknownNode(nixtail_proto::tailcfg::NodeId),
    /// The node can't be told anything.
    #[error("node {0} of the devnet has no map stream, or doesn't read it")]
    NoStream(nixtail_proto::tailcfg::NodeId),
    /// No person is awaited there.
    #[error("nobody is awaited to log in at {0}")]
    UnknownLogin(String),
    /// There are no more numbers and addresses for nodes.
    #[error("the devnet has no room for so many nodes")]
    TooManyNodes,
    /// Something waited for didn't come.
    #[error("waited {0:?} in vain for {1}")]
    Timeout(std::time::Duration, String),
}

/// Why one connection ended. The client's fault or its leaving: it goes to the log and nowhere else.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("the client closed the connection")]
    Closed,
    #[error("the client took too long")]
    Slow(#[from] tokio::time::error::Elapsed),
    #[error("the client sent {0}")]
    Http(&'static str),
    #[error("the node has another connection, which takes this one's place")]
    Replaced,
    #[error("ts2021: {0}")]
    Noise(#[from] nixtail_proto::noise::NoiseError),
    #[error("HTTP/2: {0}")]
    Http2(#[from] h2::Error),
    #[error("DERP: {0}")]
    Derp(#[from] nixtail_proto::derp::DerpError),
    #[error("the system gives no random bytes: {0}")]
    Random(String),
    #[error("an answer that can't be sent: {0}")]
    Answer(http::Error),
    #[error("a message that can't be written: {0}")]
    Json(#[from] serde_json::Error),
}
