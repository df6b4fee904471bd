//! Pings that somebody asked for, and their answers.

use std::time::{Duration, Instant};

use super::{Event, Node, Path, PeerId, PingError, PingId, PingKind};
use crate::key::NodePublic;
use crate::packet::icmp::Echo;
use crate::tunnel::paths::PongReceived;

/// A ping without an answer fails after this long.
pub const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// How many may be under way.
pub const MAX_PINGS: usize = 256;
/// A disco ping is repeated this often until it is answered: its first path may not be up yet.
const PROBE_EVERY: Duration = Duration::from_secs(1);
const ECHO_DATA: &[u8] = b"nixtail";

#[derive(Debug, Clone, Copy)]
struct Ping {
    id: PingId,
    kind: PingKind,
    peer: PeerId,
    started: Instant,
    /// When a disco ping is repeated.
    again: Option<Instant>,
}

impl Ping {
    fn timeout(&self) -> Instant {
        let end = self.started + PING_TIMEOUT;
        self.again.map_or(end, |again| again.min(end))
    }
}

#[derive(Debug, Default)]
pub(super) struct Pings {
    under_way: Vec<Ping>,
    next: u64,
}

impl Pings {
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.under_way.iter().map(Ping::timeout).min()
    }

    /// Takes out the ping that an answer belongs to.
    fn take(&mut self, wanted: impl Fn(&Ping) -> bool) -> Option<Ping> {
        let found = self.under_way.iter().position(wanted)?;
        Some(self.under_way.swap_remove(found))
    }
}

impl Node {
    /// Asks a peer for a sign of life. [`Event::PingReply`] or, after [`PING_TIMEOUT`], [`Event::PingFailed`] tells how
    /// it went.
    ///
    /// # Errors
    /// If the question can't be asked.
    pub fn ping(&mut self, now: Instant, peer: NodePublic, kind: PingKind) -> Result<PingId, PingError> {
        self.now = now;
        let id = self.peers.by_key(&peer).ok_or(PingError::UnknownPeer)?;
        if self.pings.under_way.len() >= MAX_PINGS {
            return Err(PingError::TooMany);
        }
        let ping = PingId(self.pings.next);
        self.pings.next += 1;
        let mut again = None;
        match kind {
            PingKind::Disco => {
                self.probe(now, id);
                again = Some(now + PROBE_EVERY);
            }
            PingKind::Tsmp | PingKind::Icmp => {
                let addresses = self.peers.get(id).map(|peer| peer.addresses.clone()).unwrap_or_default();
                let asked = addresses.into_iter().any(|address| match kind {
                    PingKind::Tsmp => self.stack.send_tsmp_ping(id, address, tsmp_data(ping)),
                    _ => self.stack.send_echo(id, address, echo(ping), ECHO_DATA),
                });
                if !asked {
                    return Err(PingError::NotSent);
                }
            }
        }
        self.pings.under_way.push(Ping { id: ping, kind, peer: id, started: now, again });
        Ok(ping)
    }

    fn probe(&mut self, now: Instant, id: PeerId) {
        if self.peers.with_tunnel(id, &self.identity, self.direct, &mut self.rng).is_none() {
            return;
        }
        self.refresh_region(now, id, true);
        if let Some(tunnel) = self.peers.get_mut(id).and_then(|peer| peer.tunnel.as_mut()) {
            tunnel.paths.probe(now, &mut self.rng);
            self.schedule.wake(id);
        }
    }

    pub(super) fn handle_disco_pong(&mut self, peer: PeerId, pong: PongReceived) {
        let wanted = |ping: &Ping| ping.kind == PingKind::Disco && ping.peer == peer && ping.started <= pong.sent;
        while let Some(ping) = self.pings.take(wanted) {
            let path = Path::from(Some(pong.via));
            self.events.push_back(Event::PingReply { id: ping.id, kind: ping.kind, latency: pong.latency, path });
        }
    }

    pub(super) fn handle_echo_reply(&mut self, peer: PeerId, answer: Echo) {
        let wanted = |ping: &Ping| ping.kind == PingKind::Icmp && ping.peer == peer && echo(ping.id) == answer;
        let ping = self.pings.take(wanted);
        self.answered(ping);
    }

    pub(super) fn handle_tsmp_pong(&mut self, peer: PeerId, data: [u8; 8]) {
        let wanted = |ping: &Ping| ping.kind == PingKind::Tsmp && ping.peer == peer && tsmp_data(ping.id) == data;
        let ping = self.pings.take(wanted);
        self.answered(ping);
    }

    fn answered(&mut self, ping: Option<Ping>) {
        let Some(ping) = ping else { return };
        let tunnel = self.peers.get(ping.peer).and_then(|peer| peer.tunnel.as_ref());
        let path = tunnel.and_then(|tunnel| tunnel.paths.path(self.now)).into();
        let latency = self.now.saturating_duration_since(ping.started);
        self.events.push_back(Event::PingReply { id: ping.id, kind: ping.kind, latency, path });
    }

    pub(super) fn handle_ping_timeouts(&mut self, now: Instant) {
        while let Some(ping) = self.pings.take(|ping| ping.started + PING_TIMEOUT <= now) {
            self.events.push_back(Event::PingFailed { id: ping.id, error: PingError::TimedOut });
        }
        while let Some(ping) = self.pings.take(|ping| ping.again.is_some_and(|again| again <= now)) {
            self.probe(now, ping.peer);
            self.pings.under_way.push(Ping { again: Some(now + PROBE_EVERY), ..ping });
        }
    }

    pub(super) fn fail_pings_of(&mut self, peer: PeerId, error: PingError) {
        while let Some(ping) = self.pings.take(|ping| ping.peer == peer) {
            self.events.push_back(Event::PingFailed { id: ping.id, error });
        }
    }
}

fn tsmp_data(id: PingId) -> [u8; 8] {
    id.0.to_be_bytes()
}

fn echo(id: PingId) -> Echo {
    let [.., a, b, c, d] = id.0.to_be_bytes();
    Echo { identifier: u16::from_be_bytes([a, b]), sequence: u16::from_be_bytes([c, d]) }
}
