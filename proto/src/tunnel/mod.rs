//! One peer: its WireGuard [`session`] and the [`paths`] by which packets reach it.
//!
//! A tunnel turns IP packets into sealed datagrams and back. It knows nothing of TCP, the filter or other peers; what
//! peers share (static key, handshake budget, receiver indices) is lent to it by the node.

use std::time::{Duration, Instant};

use crate::disco::SharedKey;
use crate::key::DiscoPrivate;
use crate::tailcfg::Node;

pub mod handshake;
pub mod paths;
pub mod session;

use handshake::Identity;
use paths::{Paths, Route, Via};
use session::Session;

/// A peer that was heard within this time may hold keys of ours that it has lost: it is asked for new ones when it
/// shows that it restarted.
const RECENT: Duration = Duration::from_secs(180);
/// How long to wait for the answer to the n-th initiation, or round of pings, before the next: they go out at 0, 0.25, 0.5,
/// 1, 2 and 4 s. Peers drop both silently while the netmap with our keys is still on its way to them, so the first ones
/// come close.
const RETRY_AFTER: [Duration; 5] = [
    Duration::from_millis(250),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
];
/// How long to wait after all those.
const RETRY_LAST: Duration = Duration::from_secs(5);

fn retry_after(sent_before: usize) -> Duration {
    RETRY_AFTER.get(sent_before).copied().unwrap_or(RETRY_LAST)
}

/// Session, paths and counters of one peer.
pub struct Tunnel {
    /// Its WireGuard session.
    pub session: Session,
    /// The paths to it.
    pub paths: Paths,
    /// The key for path discovery that we have in common, once it was needed.
    disco: Option<SharedKey>,
    index: u32,
    /// Bytes sent to the peer, sealed.
    pub bytes_sent: u64,
    /// Bytes received from the peer, sealed.
    pub bytes_received: u64,
    /// When something authentic last came from the peer.
    pub last_heard: Option<Instant>,
    /// It was restarted, and what it knows of our connections hasn't been asked yet: that takes keys that it has.
    pub was_restarted: bool,
    /// The path that was last told to the world.
    pub told_path: Option<Via>,
}

impl Tunnel {
    /// A tunnel to a peer that nothing was sent to yet. `index` is below 2^24 and nobody else's.
    pub fn new(identity: &Identity, node: &Node, index: u32, direct: bool) -> Self {
        let mut paths = Paths::new(direct);
        paths.handle_endpoints(&node.endpoints);
        Self {
            session: Session::new(identity, &node.key, index),
            paths,
            disco: None,
            index,
            bytes_sent: 0,
            bytes_received: 0,
            last_heard: None,
            was_restarted: false,
            told_path: None,
        }
    }

    /// The receiver index of its sessions, without their number.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The peer's entry in the netmap changed from `old` to `new`, which have the same node key.
    pub fn handle_node(&mut self, now: Instant, old: &Node, new: &Node) {
        if old.endpoints != new.endpoints {
            self.paths.handle_endpoints(&new.endpoints);
        }
        if old.disco_key != new.disco_key {
            // It restarted: it knows no keys any more, and listens elsewhere.
            self.disco = None;
            self.was_restarted = true;
            self.paths.forget();
            if self.last_heard.is_some_and(|last| now.saturating_duration_since(last) < RECENT) {
                self.session.renew(now);
            }
        }
        self.nudge(now);
    }

    /// Something authentic came from the peer. Answers how long it had been silent; `None` if it never was heard.
    pub fn handle_heard(&mut self, now: Instant) -> Option<Duration> {
        self.last_heard.replace(now).map(|last| now.saturating_duration_since(last))
    }

    /// Something about the peer, or a relay, changed: what waits for an answer is tried again at once.
    pub fn nudge(&mut self, now: Instant) {
        self.session.nudge(now);
        self.paths.nudge(now);
    }

    /// The key that our disco key and the peer's have in common; `None` if the peer has none.
    pub fn disco(&mut self, own: &DiscoPrivate, peer: &Node) -> Option<&SharedKey> {
        if peer.disco_key.is_zero() {
            return None;
        }
        Some(self.disco.get_or_insert_with(|| SharedKey::new(own, &peer.disco_key)))
    }

    /// Lets what is due happen.
    pub fn handle_timeout(&mut self, now: Instant, identity: &Identity, rng: &mut dyn rand_core::CryptoRng) {
        self.session.handle_timeout(now, identity);
        self.paths.set_waiting(now, self.session.wants_path());
        self.paths.handle_timeout(now, rng);
    }

    /// When [`Tunnel::handle_timeout`] or a transmit is due.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let session = self.session.poll_timeout(self.route(now).exists());
        session.into_iter().chain(self.paths.poll_timeout()).min()
    }

    /// Where packets go now.
    pub fn route(&self, now: Instant) -> Route {
        self.paths.route(now)
    }
}
