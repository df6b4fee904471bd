//! Whom a run is against, and how it is reached.

use std::future::Future;
use std::sync::OnceLock;

use nixtail_proto::key::NodePublic;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::agent::{Agent, DialError, Path, Stream};

/// The node that a run is against.
pub trait Target: Sync {
    /// A connection to it.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// Opens a connection to its server.
    fn dial(&self) -> impl Future<Output = Result<Self::Stream, DialError>> + Send;
    /// The path that packets to it take.
    fn path(&self) -> impl Future<Output = Path> + Send;
}

/// A node that an agent reaches.
#[derive(Debug)]
pub struct Through {
    agent: Agent,
    host: String,
    port: u16,
    peer: OnceLock<NodePublic>,
}

impl Through {
    /// A target at a peer's name or address.
    #[must_use]
    pub fn new(agent: Agent, host: String, port: u16) -> Self {
        Self { agent, host, port, peer: OnceLock::new() }
    }
}

impl Target for Through {
    type Stream = Stream;

    async fn dial(&self) -> Result<Stream, DialError> {
        let stream = self.agent.dial(&self.host, self.port).await?;
        self.peer.get_or_init(|| stream.peer());
        Ok(stream)
    }

    async fn path(&self) -> Path {
        match self.peer.get() {
            Some(peer) => self.agent.path_to(peer).await,
            None => Path::None,
        }
    }
}
