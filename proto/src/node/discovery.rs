//! Disco messages, in and out, and which relay leads to a peer.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use super::knocks::Knocker;
use super::{Destination, Node, PeerId};
use crate::disco::{self, MAX_ENDPOINTS, Message, TransactionId};
use crate::key::NodePublic;
use crate::stack::{DEFAULT_MTU, PEER_SILENCE};
use crate::tailcfg::RegionId;
use crate::tunnel::paths::{Output, Via};
use crate::tunnel::session;

/// How a pong names a relay as the place where the ping came from (`tailcfg.DerpMagicIP`); the port is the region.
const DERP_MAGIC: Ipv4Addr = Ipv4Addr::new(127, 3, 3, 40);
/// How long the datagram of a full packet is. Pings to an address are as long: a path that loses such datagrams (a firewall that
/// drops fragments, a router whose word about their length gets lost) carries handshakes and short pings, and then no data for
/// ever. Go's nodes ping shortly, and hang there; they answer long pings like any other.
const FULL_DATAGRAM: usize = DEFAULT_MTU + session::OVERHEAD;
/// Small messages that wait to be sent. Each is a datagram that its sender will repeat by itself.
const MAX_SMALL: usize = 4096;

impl Node {
    /// Takes a disco packet. `claimed` is the peer that a relay says it is from: it must be the one whose disco key this
    /// is.
    pub(super) fn handle_disco(&mut self, now: Instant, via: Via, claimed: Option<PeerId>, packet: &[u8]) {
        let sender = disco::sender(packet);
        let known = sender.and_then(|sender| self.peers.by_disco(&sender));
        let Some(id) = known.filter(|id| claimed.is_none_or(|claimed| claimed == *id)) else {
            self.drops.refused += 1;
            if let (Some(sender), None) = (sender, known) {
                self.handle_knock(now, Knocker::Disco(sender), None);
            }
            return;
        };
        let made = self.peers.with_tunnel(id, &self.identity, self.direct, &mut self.rng);
        let Some((node, tunnel)) = made else { return };
        let opened = tunnel.disco(&self.disco, node).map(|shared| shared.open(packet));
        let message = match opened {
            Some(Ok(message)) => message,
            Some(Err(error)) => {
                tracing::trace!(%error, ?via, "a disco packet is refused");
                self.drops.refused += 1;
                return;
            }
            None => return,
        };
        match message {
            Message::Ping { txid, node_key, .. } => {
                if node_key.is_some_and(|key| key != node.key) {
                    self.drops.refused += 1;
                    return;
                }
                tunnel.paths.handle_ping(now, via, txid, &mut self.rng);
            }
            Message::Pong { txid, .. } => {
                let Some(pong) = tunnel.paths.handle_pong(now, via, txid) else { return };
                tunnel.session.handle_path(now);
                let silence = tunnel.last_heard.map(|last| now.saturating_duration_since(last));
                self.handle_heard(now, id, silence.is_none_or(|silence| silence >= PEER_SILENCE), false);
                self.handle_disco_pong(id, pong);
            }
            Message::CallMeMaybe { endpoints } if claimed.is_some() => {
                tunnel.session.nudge(now);
                tunnel.paths.handle_call_me_maybe(now, &endpoints, &mut self.rng);
            }
            // Not through a relay: anybody who saw one could repeat it.
            Message::CallMeMaybe { .. } => self.drops.refused += 1,
            Message::PeerRelay(_) => self.drops.peer_relay += 1,
        }
        self.schedule.wake(id);
    }

    /// Seals the disco messages that the peer's paths want sent. Says whether there were any.
    pub(super) fn send_disco(&mut self, now: Instant, id: PeerId) -> bool {
        let mut any = false;
        while let Some(tunnel) = self.peers.get_mut(id).and_then(|peer| peer.tunnel.as_mut())
            && let Some(output) = tunnel.paths.poll_output()
        {
            any = true;
            let (to, message) = match output {
                Output::Ping { to, txid } => (to, ping(to, txid, self.key)),
                Output::Pong { to, txid } => (to, Message::Pong { txid, observed: observed(to) }),
                Output::CallMeMaybe { region } => {
                    let endpoints = self.own_endpoints(now);
                    if endpoints.is_empty() {
                        continue;
                    }
                    (Via::Derp(region), Message::CallMeMaybe { endpoints })
                }
            };
            self.send_message(id, to, &message);
        }
        any
    }

    fn send_message(&mut self, id: PeerId, to: Via, message: &Message) {
        let Some((node, tunnel)) = self.peers.with_tunnel(id, &self.identity, self.direct, &mut self.rng) else {
            return;
        };
        let peer = node.key;
        let destination = match to {
            Via::Udp(address) if self.direct => Destination::Udp(address),
            Via::Derp(region) if self.relay.is_connected(region) => Destination::Derp { region, peer },
            Via::Udp(_) | Via::Derp(_) => return,
        };
        let mut packet = vec![0; disco::sealed_len(message)];
        let sealed = tunnel.disco(&self.disco, node).map(|shared| shared.seal(message, &mut self.rng, &mut packet));
        if let Some(Ok(length)) = sealed {
            packet.truncate(length);
            self.push_small(destination, packet);
        }
    }

    fn own_endpoints(&mut self, now: Instant) -> Vec<SocketAddr> {
        if !self.netcheck.endpoints_fresh(now) {
            // They go out as they are: an old mapping mostly still holds, and the next message has the new one.
            self.netcheck.refresh(now, &mut self.rng);
        }
        let told = self.told_endpoints.iter().flatten();
        told.map(|(endpoint, _)| *endpoint).take(MAX_ENDPOINTS).collect()
    }

    /// Finds the relay that leads to the peer. If there is something to send (`wanted`) and it isn't connected, it gets
    /// dialled.
    pub(super) fn refresh_region(&mut self, now: Instant, id: PeerId, wanted: bool) {
        let Some(peer) = self.peers.get_mut(id).filter(|_| self.derp) else { return };
        let Some(tunnel) = &mut peer.tunnel else { return };
        let region: Option<RegionId> = self.relay.route(now, &peer.key, peer.node.home_region().unwrap_or(0));
        let connected = region.filter(|region| self.relay.is_connected(*region));
        tunnel.paths.set_region(connected);
        if let Some(region) = region.filter(|_| wanted && connected.is_none()) {
            self.relay.handle_wanted(now, region);
        }
    }

    /// Queues a message that is ready to go out.
    pub(super) fn push_small(&mut self, destination: Destination, message: Vec<u8>) {
        if self.small.len() >= MAX_SMALL {
            self.drops.overflow += 1;
            return;
        }
        self.small.push_back((destination, message));
    }
}

fn ping(to: Via, txid: TransactionId, own: NodePublic) -> Message {
    let with = |padding| Message::Ping { txid, node_key: Some(own), padding };
    match to {
        Via::Udp(_) => with(FULL_DATAGRAM.saturating_sub(disco::sealed_len(&with(0)))),
        // TCP cuts as it needs.
        Via::Derp(_) => with(0),
    }
}

fn observed(via: Via) -> SocketAddr {
    match via {
        Via::Udp(address) => address,
        Via::Derp(region) => SocketAddr::new(DERP_MAGIC.into(), region),
    }
}
