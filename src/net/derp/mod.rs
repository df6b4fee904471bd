//! One connection to a DERP region: a tokio task over TLS, with bounded queues on both sides.
//!
//! It dials once. When the connection can't be made or ends, [`DerpEventKind::Disconnected`] is its last event;
//! [`nixtail_proto::relay::Relay`] decides whether and when there is another. Packets of a connection are taken before
//! it is up: they wait in its queue. The wire format is [`nixtail_proto::derp`], the course of a connection that of
//! `tailscale/tailscale` `derp/derphttp/derphttp_client.go`.

use std::sync::Arc;
use std::time::Duration;

use nixtail_proto::derp::{DerpError, MAX_PACKET_LEN, PeerGoneReason};
use nixtail_proto::key::{NodePrivate, NodePublic};
use nixtail_proto::packet::PacketBatch;
use nixtail_proto::proxy::Proxies;
use nixtail_proto::tailcfg::{DerpRegion, RegionId};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

mod dial;
mod outbound;
mod probe;
mod session;
mod trust;

use outbound::Outbound;
pub(crate) use probe::probe;

pub use crate::net::connect::ProxyFailure;

/// How long [`DerpConnection::close`] waits for the task to say goodbye, before it ends it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What happened on a connection.
#[derive(Debug)]
pub struct DerpEvent {
    /// The region that was dialled.
    pub region: RegionId,
    /// The number that [`DerpConfig::connection`] gave: events of a connection that was closed meanwhile may still be in
    /// the channel, and are told apart by it.
    pub connection: u64,
    /// What.
    pub kind: DerpEventKind,
}

/// See [`DerpEvent`].
#[derive(Debug)]
pub enum DerpEventKind {
    /// The relay took us: packets go out, and come in.
    Connected,
    /// Packets of peers, or of anybody else who has our key, by sender.
    Packets(PacketBatch<NodePublic>),
    /// A peer isn't on this relay, or left it.
    PeerGone {
        /// The peer.
        peer: NodePublic,
        /// Why.
        reason: PeerGoneReason,
    },
    /// What the relay finds wrong with this connection, fit to be shown; empty when it is well again.
    Health(String),
    /// The relay restarts: it will soon disconnect, and wants us back after this time.
    Restarting {
        /// When to reconnect.
        reconnect_in: Duration,
        /// For how long to try then, before it counts as an outage.
        try_for: Duration,
    },
    /// The connection couldn't be made, or ended without our asking. The last event.
    Disconnected(DerpFailure),
}

/// Why there is no connection to a DERP region (any more).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DerpFailure {
    /// The DERP map has no relay for the region that could be dialled. Control's fault.
    #[error("the DERP map names no relay that can be dialled in this region; check the control server's DERP map")]
    NoRelay,
    /// A relay's name has no address.
    #[error("looking up the relay {host}: {source}; check DNS")]
    Lookup {
        /// Its host name.
        host: String,
        /// What the resolver said.
        source: std::io::Error,
    },
    /// No TCP connection to a relay.
    #[error("connecting to the relay {host}: {source}; check that a firewall lets TCP through to it")]
    Connect {
        /// Its host name.
        host: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The proxy that the environment names doesn't lead to the relay.
    #[error(transparent)]
    Proxy(#[from] ProxyFailure),
    /// The relay isn't who the DERP map says, or speaks no TLS.
    #[error("TLS with the relay {host}: {source}; check its certificate against the DERP map")]
    Tls {
        /// Its host name.
        host: String,
        /// What TLS said.
        source: std::io::Error,
    },
    /// The relay, or something before it, answered another thing than DERP.
    #[error("the relay {host} answered HTTP {status} instead of switching to DERP; is a proxy in between?")]
    Upgrade {
        /// Its host name.
        host: String,
        /// The HTTP status; 0 for an answer that isn't HTTP.
        status: u16,
    },
    /// The relay's frames make no sense. The relay's fault.
    #[error("the relay broke the DERP protocol: {0}")]
    Protocol(#[from] DerpError),
    /// The relay hung up before it took us. It does so without a word when it is told to serve known nodes only.
    #[error("the relay closed the connection before it took us; it may not know this node yet")]
    Refused,
    /// The relay hung up.
    #[error("the relay closed the connection")]
    Closed,
    /// A step of the way in took too long.
    #[error("the relay was too slow in {step}")]
    TooSlow {
        /// Which step.
        step: &'static str,
    },
    /// Our own ping wasn't answered.
    #[error("the relay didn't answer when it was asked after a change of the network")]
    Unanswered,
    /// Nothing came for two minutes, not even a keep-alive.
    #[error("the relay fell silent")]
    Silent,
    /// The connection broke.
    #[error("the connection to the relay broke: {0}")]
    Io(#[from] std::io::Error),
}

/// What a connection is made with.
#[derive(Debug)]
pub struct DerpConfig {
    /// The region, as the DERP map has it.
    pub region: DerpRegion,
    /// Who we are to the relay.
    pub node_key: NodePrivate,
    /// The proxies that lead out of here.
    pub proxies: Arc<Proxies>,
    /// Whether this is our home region.
    pub home: bool,
    /// Which of the region's relays to try first, by its place among those that can be dialled, modulo their number.
    pub first_node: usize,
    /// A number that comes back in every event.
    pub connection: u64,
}

/// What went through a connection, and what didn't.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DerpStats {
    /// Packets that were sent.
    pub sent: u64,
    /// Packets that came and were handed on.
    pub received: u64,
    /// Packets that a full queue had no room for, because the relay took them too slowly.
    pub dropped_outbound: u64,
    /// Packets that came and were dropped because they weren't taken from the event channel.
    pub dropped_inbound: u64,
}

/// A connection: the handle of its task. Dropped without [`Self::close`], the task ends by itself, soon and unwatched.
#[derive(Debug)]
pub struct DerpConnection {
    outbound: Arc<Outbound>,
    task: Option<JoinHandle<()>>,
}

impl DerpConnection {
    /// Starts to dial, on the runtime of the caller. What happens is told through `events`: [`DerpEventKind::Packets`]
    /// are dropped when the channel stays full, the other events wait.
    #[must_use]
    pub fn spawn(config: DerpConfig, events: mpsc::Sender<DerpEvent>) -> Self {
        let outbound = Arc::new(Outbound::new(config.home));
        let task = tokio::spawn(session::run(config, Arc::clone(&outbound), events));
        Self { outbound, task: Some(task) }
    }

    /// Queues a packet for `peer`. Never waits: when the queue is full, it is dropped. A packet of more than 64 KiB, which no
    /// relay takes, is dropped too.
    pub fn send(&self, peer: &NodePublic, packet: &[u8]) {
        debug_assert!(packet.len() <= MAX_PACKET_LEN);
        self.send_train(peer, packet, packet.len());
    }

    /// As [`Self::send`], for packets back to back in `train`, each `size` bytes long but the last.
    pub fn send_train(&self, peer: &NodePublic, train: &[u8], size: usize) {
        self.outbound.push_train(peer, train, size);
    }

    /// Tells the relay whether this is our home region.
    pub fn set_home(&self, home: bool) {
        self.outbound.set_home(home);
    }

    /// Asks the relay for a sign of life; one that doesn't answer within 3 s is lost. Before the connection is up, it asks then.
    pub fn check(&self) {
        self.outbound.check();
    }

    /// What went through so far.
    #[must_use]
    pub fn stats(&self) -> DerpStats {
        self.outbound.stats()
    }

    /// Ends the connection and waits for its task. No event follows, but some may be in the channel still.
    pub async fn close(mut self) {
        self.outbound.close();
        if let Some(mut task) = self.task.take()
            && tokio::time::timeout(CLOSE_TIMEOUT, &mut task).await.is_err()
        {
            task.abort();
            // Cancelled or done, both are its end.
            let _ = task.await;
        }
    }
}

impl Drop for DerpConnection {
    fn drop(&mut self) {
        self.outbound.close();
    }
}
