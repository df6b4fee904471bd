//! What may fail with an agent, and how a person is told.

use std::io;
use std::time::Duration;

use nixtail_proto::names::NameError;
use nixtail_proto::stack::{ConnectionError, ListenError as PortError};
use thiserror::Error;

use crate::control::ControlError;
use crate::net::dataplane::ConnectFailure;
use crate::report::{Exit, Failure};

/// Why an agent didn't join.
#[derive(Debug, Error)]
pub enum JoinError {
    /// Control refused it or can't be reached.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Control let it in and took that back, in these words.
    #[error("{0}")]
    Refused(String),
    /// Control let it in, and no admin has approved the machine so far.
    #[error("no admin has approved this machine ({name}) within {} s", .after.as_secs())]
    Unapproved {
        /// The time that there was.
        after: Duration,
        /// What control calls it.
        name: String,
    },
    /// The sockets can't be had.
    #[error("no UDP socket can be bound: {0}")]
    Sockets(#[from] io::Error),
    /// It took longer than it was given.
    #[error("not ready after {} s: {missing}", .after.as_secs())]
    Deadline {
        /// The time that it was given.
        after: Duration,
        /// What was still missing.
        missing: &'static str,
    },
    /// It was told to stop before it was ready.
    #[error("stopped before it was ready")]
    Cancelled,
}

/// Why there is no stream to a peer.
#[derive(Debug, Error)]
pub enum DialError {
    /// The name or address leads to nobody in the netmap.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The peer answered nothing.
    #[error("{host} doesn't answer on port {port}{}", if *.offline { ": control says that it is offline" } else { "" })]
    Silent {
        /// Who was dialled.
        host: String,
        /// The port.
        port: u16,
        /// Control says that the peer isn't there.
        offline: bool,
    },
    /// The peer is there and nothing listens.
    #[error("{host} refuses connections to port {port}: nothing listens there")]
    Refused {
        /// Who was dialled.
        host: String,
        /// The port.
        port: u16,
    },
    /// The peer says that the tailnet's policy doesn't allow it.
    #[error("{host} says that the tailnet's policy doesn't allow port {port}: {reason}")]
    Policy {
        /// Who was dialled.
        host: String,
        /// The port.
        port: u16,
        /// In the peer's terms.
        reason: String,
    },
    /// Something else ended the attempt.
    #[error("no connection to {host} port {port}: {reason}")]
    Failed {
        /// Who was dialled.
        host: String,
        /// The port.
        port: u16,
        /// Why.
        reason: String,
    },
    /// The agent isn't on a tailnet (any more).
    #[error("this node is not on a tailnet")]
    NotRunning,
}

impl DialError {
    pub(super) fn new(failure: ConnectFailure, host: &str, port: u16, offline: bool) -> Self {
        let host = host.to_owned();
        match failure {
            ConnectFailure::Connection(ConnectionError::Refused) => Self::Refused { host, port },
            ConnectFailure::Connection(ConnectionError::RefusedByPolicy(reason)) => {
                Self::Policy { host, port, reason: reason.to_string() }
            }
            ConnectFailure::Connection(ConnectionError::ConnectTimedOut | ConnectionError::TimedOut) => {
                Self::Silent { host, port, offline }
            }
            other => Self::Failed { host, port, reason: other.to_string() },
        }
    }
}

/// Why a port can't be listened to.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The port can't be had.
    #[error("port {port}: {source}")]
    Port {
        /// Which.
        port: u16,
        /// Why.
        source: PortError,
    },
    /// The agent isn't on a tailnet (any more).
    #[error("this node is not on a tailnet")]
    NotRunning,
}

/// Why a ping has no answer.
#[derive(Debug, Error)]
pub enum PingError {
    /// The name or address leads to nobody in the netmap.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The address belongs to no node.
    #[error("{0} is the address of no node")]
    NoNode(String),
    /// No answer in time.
    #[error("no answer from {host} within {:.1} s", .after.as_secs_f64())]
    Silent {
        /// Who was asked.
        host: String,
        /// How long.
        after: Duration,
    },
    /// The question couldn't be asked.
    #[error("{host} can't be pinged: {reason}")]
    Failed {
        /// Who should have been asked.
        host: String,
        /// Why not.
        reason: String,
    },
    /// The agent isn't on a tailnet (any more).
    #[error("this node is not on a tailnet")]
    NotRunning,
}

/// What didn't work while leaving. The agent is down all the same.
#[derive(Debug, Error)]
pub enum LeaveError {
    /// Control didn't hear of it, or what was kept of the node is still there. Control will find out by itself, and remove
    /// an ephemeral node after a while.
    #[error("control wasn't told that this node left: {0}")]
    Logout(#[from] ControlError),
    /// Something didn't end in time.
    #[error("the dataplane didn't end in time")]
    Dataplane,
}

impl From<JoinError> for Failure {
    fn from(error: JoinError) -> Self {
        match error {
            JoinError::Control(error) => {
                let exit = if error.is_refusal() {
                    Exit::Refused
                } else if error.is_configuration() {
                    Exit::Configuration
                } else {
                    Exit::Unavailable
                };
                // It says itself what to do next.
                Self::new(exit, error)
            }
            JoinError::Refused(_) => Self::new(Exit::Refused, error),
            JoinError::Unapproved { .. } => Self::new(Exit::Refused, error).next(
                "use an auth key that is pre-approved (for OAuth: `?preauthorized=true` behind the secret), or approve it in \
                 the admin console under Machines while it waits (--timeout makes that longer); a node without --state-dir \
                 is another machine at its next start",
            ),
            JoinError::Sockets(_) => Self::new(Exit::Configuration, error).next("this machine must allow UDP sockets"),
            JoinError::Deadline { .. } => Self::new(Exit::Timeout, error).next("`-vv` shows what was tried"),
            JoinError::Cancelled => Self::new(Exit::General, error),
        }
    }
}

impl From<DialError> for Failure {
    fn from(error: DialError) -> Self {
        let (exit, next) = match &error {
            DialError::Name(_) => (Exit::Unavailable, "`nixtail status` lists the nodes that this one may see"),
            DialError::Silent { .. } => (
                Exit::Timeout,
                "`nixtail ping HOST` tells whether the node is there; if it is, the policy may forbid this port",
            ),
            DialError::Refused { .. } => (Exit::Unavailable, "start what should listen there, or check the port"),
            DialError::Policy { .. } => (Exit::Refused, "allow it in the tailnet's policy (grants or acls)"),
            DialError::Failed { .. } => (Exit::Unavailable, "`nixtail status` tells how the node is reached"),
            DialError::NotRunning => (Exit::Unavailable, "start the agent again: `nixtail up`"),
        };
        Self::new(exit, error).next(next)
    }
}

impl From<ListenError> for Failure {
    fn from(error: ListenError) -> Self {
        Self::new(Exit::Unavailable, error).next("another role of this agent may have the port; start the agent again")
    }
}

impl From<PingError> for Failure {
    fn from(error: PingError) -> Self {
        let (exit, next) = match &error {
            PingError::Name(_) | PingError::NoNode(_) => {
                (Exit::Unavailable, "`nixtail status` lists the nodes that this one may see")
            }
            PingError::Silent { .. } => (Exit::Timeout, "it may be offline: `nixtail status` shows what control says"),
            PingError::Failed { .. } => (Exit::Unavailable, "`nixtail status` tells how the node is reached"),
            PingError::NotRunning => (Exit::Unavailable, "start the agent again: `nixtail up`"),
        };
        Self::new(exit, error).next(next)
    }
}

impl From<LeaveError> for Failure {
    fn from(error: LeaveError) -> Self {
        Self::new(Exit::Unavailable, error).next("the agent has stopped; remove the node by hand if it stays listed")
    }
}
