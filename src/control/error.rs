//! What can go wrong with control, by whose fault.

use std::io;
use std::time::Duration;

use nixtail_proto::control::{AnswerError, CompressionError, FrameError, MapError, RegisterError, printable};
use nixtail_proto::noise::NoiseError;

use crate::auth::AuthError;
use crate::net::connect::ProxyFailure;
use crate::state::StateError;

/// What went wrong with control. Each says what failed, why, and what to do next; texts from control are bounded and
/// hold no control characters.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// What was named as the login server is no URL of one.
    #[error("\"{url}\" is no login server: {why}; --login-server takes http(s)://HOST[:PORT]")]
    Url {
        /// What was named.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The network between us and control, or nobody there.
    #[error("control at {server} can't be reached: {what}: {source}; check the network, the URL and any firewall")]
    Network {
        /// Which server.
        server: String,
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Nothing came in time.
    #[error("control at {server} didn't answer within {} s: {what}; check the network, then control's own state", .after.as_secs())]
    Timeout {
        /// Which server.
        server: String,
        /// What was being done.
        what: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// This system knows no certificate authority, so nobody's certificate can be checked.
    #[error(
        "control at {server} can't be checked: {source}; install the ca-certificates package, or name a file of them in SSL_CERT_FILE"
    )]
    NoAuthorities {
        /// Which server.
        server: String,
        /// What reading them gave.
        source: rustls::Error,
    },
    /// The proxy that the environment names doesn't lead there.
    #[error("control at {server} can't be reached: {failure}")]
    Proxy {
        /// Which server.
        server: String,
        /// What the proxy did.
        failure: ProxyFailure,
    },
    /// Control took the connection and broke the handshake off, or somebody else has its address.
    #[error(
        "control at {server} didn't complete the handshake: {why}; its key has changed, something between changes the \
         traffic, or it is too new for this version of nixtail"
    )]
    Handshake {
        /// Which server.
        server: String,
        /// How it ended.
        why: String,
    },
    /// What answers isn't a control server, or a broken one.
    #[error("{server} doesn't answer like a control server: {why}; check that the URL is the one of the login server")]
    Protocol {
        /// Which server.
        server: String,
        /// What was wrong.
        why: String,
    },
    /// The encrypted connection can't be made or broke.
    #[error("the encrypted connection to control failed: {0}; if it goes on, something between changes the traffic")]
    Noise(#[from] NoiseError),
    /// The connection to control ended.
    #[error("the connection to control ended: {0}")]
    Http2(#[from] h2::Error),
    /// Control answered with something else than success.
    #[error(transparent)]
    Answer(#[from] AnswerError),
    /// Control sent a netmap that makes no sense.
    #[error(transparent)]
    Map(#[from] MapError),
    /// Control sent a message that can't be decompressed.
    #[error(transparent)]
    Compression(#[from] CompressionError),
    /// Control's stream of netmaps is out of step.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Control won't have this node: nothing changes by trying again.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// Control won't take the logout.
    #[error("control doesn't log this node out: {reason}; remove it by hand if it stays listed")]
    Logout {
        /// In control's words, fit to be shown.
        reason: String,
    },
    /// No auth key could be had.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// The key of a node that was running has ended.
    #[error(
        "this node's key has ended, so that control and the peers use it no more; start it again to log in anew (an admin \
         can switch key expiry off for a node; tagged nodes have none)"
    )]
    KeyEnded,
    /// What is to be kept of this node can't be.
    #[error(transparent)]
    State(#[from] StateError),
}

impl ControlError {
    /// Whether it is a refusal, which trying again doesn't change.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Register(_) | Self::KeyEnded | Self::Answer(AnswerError::Refused { .. }))
            || matches!(self, Self::Auth(error) if error.is_refusal())
    }

    /// Whether the user's own words or machine are at fault.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        matches!(self, Self::Url { .. } | Self::NoAuthorities { .. } | Self::State(_))
            || matches!(self, Self::Auth(error) if error.is_configuration())
            || matches!(self, Self::Proxy { failure: ProxyFailure::Variable(_), .. })
    }

    /// How long control, or the API that makes auth keys, wants to be left in peace.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Answer(AnswerError::Later(wait)) => Some(*wait),
            Self::Auth(error) => error.retry_after(),
            _ => None,
        }
    }

    /// Whether no request can be sent on this connection any more, though streams that are open may go on.
    pub(super) fn ends_connection(&self) -> bool {
        matches!(self, Self::Http2(error) if error.is_go_away() || error.is_io())
    }

    pub(super) fn handshake(server: &str, why: impl std::fmt::Display) -> Self {
        Self::Handshake { server: server.to_owned(), why: printable(why.to_string().as_bytes()) }
    }

    pub(super) fn protocol(server: &str, why: impl std::fmt::Display) -> Self {
        Self::Protocol { server: server.to_owned(), why: printable(why.to_string().as_bytes()) }
    }
}
