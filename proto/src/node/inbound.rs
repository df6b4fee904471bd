//! From a datagram to the peer it came from, and from there through the filter into the stack.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use super::knocks::{Knock, Knocker};
use super::{Destination, Drops, Node, PeerId};
use crate::disco;
use crate::filter::{self, DropReason, Filter, Verdict};
use crate::key::NodePublic;
use crate::packet::Packet;
use crate::stack::PEER_SILENCE;
use crate::stun;
use crate::tailcfg::{self, RegionId};
use crate::tunnel::handshake::{Admission, COOKIE_ROOM, Source};
use crate::tunnel::paths::Via;
use crate::tunnel::session::{HANDSHAKE_ROOM, SessionError};

/// Types of WireGuard messages: the first four bytes, little-endian.
pub(super) const INITIATION: u32 = 1;
const RESPONSE: u32 = 2;
const COOKIE_REPLY: u32 = 3;
const DATA: u32 = 4;

/// First byte of a response.
const RESPONSE_TYPE: u8 = 2;

/// The peer that a relay says a packet is from; `None` for one that came by UDP.
type Claimed = Option<(PeerId, NodePublic)>;

impl Node {
    /// Takes datagrams that came from one address, back to back, each `segment_size` long but the last (a GRO buffer).
    pub fn handle_datagrams(&mut self, now: Instant, from: SocketAddr, data: &mut [u8], segment_size: usize) {
        self.now = now;
        if !self.direct {
            return;
        }
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        let (mut rest, size) = (&*data, segment_size.max(1));
        while !rest.is_empty() {
            let (datagrams, after) = rest.split_at(length_of_run(rest, size));
            if stun::is_stun(datagrams) {
                self.netcheck.handle_response(now, from, datagrams, &mut self.rng);
            } else if disco::is_disco(datagrams) {
                self.handle_disco(now, Via::Udp(from), None, datagrams);
            } else if disco::is_peer_relayed(datagrams) {
                self.drops.peer_relay += 1;
            } else {
                self.handle_wireguard(now, Via::Udp(from), None, datagrams, size);
            }
            rest = after;
        }
        self.flush_incoming(now);
    }

    /// Takes packets that the relay of `region` gave us, each with whom it says it is from.
    pub fn handle_derp_packets<'a>(
        &mut self,
        now: Instant,
        region: RegionId,
        packets: impl IntoIterator<Item = (NodePublic, &'a [u8])>,
    ) {
        self.now = now;
        for (from, packet) in packets {
            self.handle_derp_packet(now, region, from, packet);
        }
        self.flush_incoming(now);
    }

    fn handle_derp_packet(&mut self, now: Instant, region: RegionId, from: NodePublic, packet: &[u8]) {
        let Some(id) = self.peers.by_key(&from).filter(|_| self.derp) else {
            self.drops.refused += 1;
            if self.derp {
                self.handle_knock(now, Knocker::Node(from), Some(region));
            }
            return;
        };
        self.relay.handle_heard(now, region, from);
        self.netcheck.handle_relay_heard(now, region);
        if disco::is_disco(packet) {
            self.handle_disco(now, Via::Derp(region), Some(id), packet);
        } else {
            self.handle_wireguard(now, Via::Derp(region), Some((id, from)), packet, packet.len().max(1));
        }
    }

    /// Takes one WireGuard message, or some that are data for the same receiver index, each `size` long but the last.
    fn handle_wireguard(&mut self, now: Instant, via: Via, claimed: Claimed, messages: &[u8], size: usize) {
        let handled = match word(messages, 0) {
            Some(DATA) => self.handle_data(now, via, claimed, messages, size),
            Some(INITIATION) => self.handle_initiation(now, via, claimed, messages),
            Some(RESPONSE) => self.handle_answer(now, via, claimed, word(messages, 8), messages),
            Some(COOKIE_REPLY) => self.handle_answer(now, via, claimed, word(messages, 4), messages),
            _ => Err(SessionError::Malformed),
        };
        match handled {
            Ok(()) => {}
            Err(SessionError::Overloaded) => self.drops.handshakes += 1,
            Err(error) => refuse(&mut self.drops, via, error),
        }
    }

    /// Opens data packets for one receiver index. An error is that of all of them.
    fn handle_data(
        &mut self,
        now: Instant,
        via: Via,
        claimed: Claimed,
        packets: &[u8],
        size: usize,
    ) -> Result<(), SessionError> {
        let id = self.by_receiver(claimed, word(packets, 4))?;
        let peer = self.peers.get_mut(id).ok_or(SessionError::NoKeys)?;
        let tunnel = peer.tunnel.as_mut().ok_or(SessionError::NoKeys)?;
        let filter = if is_jailed(&peer.node) { &mut self.jail } else { &mut self.filter };
        let (drops, mut rejections, mut is_heard, mut is_back) = (&mut self.drops, Vec::new(), false, false);
        for packet in packets.chunks(size) {
            self.incoming.push_up_to(id, packet.len(), |out| {
                let length = match tunnel.session.open(now, packet, out) {
                    Ok(length) => length,
                    // Forgeries move no timer.
                    Err(error) => {
                        refuse(drops, via, error);
                        return None;
                    }
                };
                tunnel.bytes_received += packet.len() as u64;
                let silence = tunnel.handle_heard(now);
                is_heard = true;
                is_back |= silence.is_none_or(|silence| silence >= PEER_SILENCE);
                let content = out.get(..length?)?;
                match admit(content, &peer.addresses, &peer.node, filter) {
                    Admitted::Yes => length,
                    Admitted::Spoofed => {
                        drops.spoofed += 1;
                        None
                    }
                    Admitted::Filtered(reason) => {
                        drops.filtered += 1;
                        if reason == DropReason::NoRule {
                            rejections.extend(filter::rejection(content));
                        }
                        None
                    }
                }
            });
        }
        if is_heard {
            self.handle_heard(now, id, is_back, true);
            self.schedule.wake(id);
        }
        for rejection in rejections {
            self.stack.send_packet(id, rejection);
        }
        Ok(())
    }

    fn by_receiver(&self, claimed: Claimed, receiver: Option<u32>) -> Result<PeerId, SessionError> {
        let id = receiver.and_then(|receiver| self.peers.by_index(receiver)).ok_or(SessionError::NoKeys)?;
        if claimed.is_some_and(|(claimed, _)| claimed != id) {
            return Err(SessionError::Forged);
        }
        Ok(id)
    }

    fn handle_initiation(
        &mut self,
        now: Instant,
        via: Via,
        claimed: Claimed,
        packet: &[u8],
    ) -> Result<(), SessionError> {
        let source = match (via, claimed) {
            (_, Some((_, key))) => Source::Derp(key),
            (Via::Udp(address), None) => Source::Udp(address.ip()),
            (Via::Derp(_), None) => return Err(SessionError::Unexpected),
        };
        let mut reply = [0; COOKIE_ROOM];
        let key = match self.gate.admit(now, &self.identity, source, packet, &mut reply)? {
            Admission::From(key) => key,
            Admission::Challenge(length) => {
                self.drops.handshakes += 1;
                let destination = match (via, source) {
                    (Via::Udp(address), _) => Destination::Udp(address),
                    (Via::Derp(region), Source::Derp(peer)) => Destination::Derp { region, peer },
                    (Via::Derp(_), Source::Udp(_)) => return Err(SessionError::Unexpected),
                };
                self.push_small(destination, reply.get(..length).unwrap_or_default().to_vec());
                return Ok(());
            }
        };
        if matches!(source, Source::Derp(claimed) if claimed != key) {
            return Err(SessionError::Forged);
        }
        let Some(id) = self.peers.by_key(&key) else {
            self.handle_knock(now, Knocker::Node(key), None);
            return Err(SessionError::NoKeys);
        };
        self.handle_handshake(now, via, id, source.address(), packet)
    }

    /// Somebody whom we don't know wants something. If the netmap tells of it soon, we ask it for a session.
    pub(super) fn handle_knock(&mut self, now: Instant, from: Knocker, region: Option<RegionId>) {
        tracing::trace!(?from, ?region, "a packet of somebody who isn't in the netmap, yet or any more");
        self.knocks.handle(Knock { from, region, at: now });
    }

    /// A response or cookie reply.
    fn handle_answer(
        &mut self,
        now: Instant,
        via: Via,
        claimed: Claimed,
        receiver: Option<u32>,
        packet: &[u8],
    ) -> Result<(), SessionError> {
        let id = self.by_receiver(claimed, receiver)?;
        let source = match (via, claimed) {
            (_, Some((_, key))) => Source::Derp(key),
            (Via::Udp(address), None) => Source::Udp(address.ip()),
            (Via::Derp(_), None) => return Err(SessionError::Unexpected),
        };
        self.handle_handshake(now, via, id, source.address(), packet)
    }

    fn handle_handshake(
        &mut self,
        now: Instant,
        via: Via,
        id: PeerId,
        source: IpAddr,
        packet: &[u8],
    ) -> Result<(), SessionError> {
        let made = self.peers.with_tunnel(id, &self.identity, self.direct, &mut self.rng);
        let (node, tunnel) = made.ok_or(SessionError::NoKeys)?;
        let mut out = [0; HANDSHAKE_ROOM];
        let handled = tunnel.session.handle_handshake(now, Some(source), packet, &mut out);
        if handled == Err(SessionError::Replayed) {
            // It may want to ask back.
            self.schedule.wake(id);
        }
        let length = handled?;
        tunnel.bytes_received += packet.len() as u64;
        let silence = tunnel.handle_heard(now);
        let key = node.key;
        tracing::debug!(peer = %key, ?via, answered = length > 0, "a handshake message came");
        let is_back = silence.is_none_or(|silence| silence >= PEER_SILENCE);
        // Who asks for keys has them only when it uses them.
        let has_keys = packet.first() == Some(&RESPONSE_TYPE);
        self.handle_heard(now, id, is_back, has_keys);
        self.schedule.wake(id);
        let Some(answer) = out.get(..length).filter(|answer| !answer.is_empty()) else {
            return Ok(());
        };
        self.refresh_region(now, id, true);
        let Some(tunnel) = self.peers.get_mut(id).and_then(|peer| peer.tunnel.as_mut()) else {
            return Err(SessionError::NoKeys);
        };
        tunnel.bytes_sent += answer.len() as u64;
        tunnel.paths.handle_sent(now, &mut self.rng);
        let mut route = tunnel.route(now);
        if !route.exists() {
            // The path that brought the question is the best guess for the answer.
            match via {
                Via::Udp(address) => route.udp = Some(address),
                Via::Derp(region) => route.derp = Some(region),
            }
        }
        if let Some(address) = route.udp {
            self.push_small(Destination::Udp(address), answer.to_vec());
        }
        if let Some(region) = route.derp {
            self.push_small(Destination::Derp { region, peer: key }, answer.to_vec());
        }
        self.note_activity(now);
        Ok(())
    }

    /// Something authentic came from a peer. `is_back`: after a silence; `has_keys`: it can open what we seal now.
    pub(super) fn handle_heard(&mut self, now: Instant, id: PeerId, is_back: bool, has_keys: bool) {
        let tunnel = self.peers.get_mut(id).and_then(|peer| peer.tunnel.as_mut());
        if tunnel.is_some_and(|tunnel| has_keys && std::mem::take(&mut tunnel.was_restarted)) {
            self.stack.probe_peer(now, id);
        } else if is_back {
            self.stack.handle_peer_back(now, id);
        }
    }

    fn flush_incoming(&mut self, now: Instant) {
        if !self.incoming.is_empty() {
            self.stack.handle_packets(now, &mut self.incoming);
            self.incoming.clear();
        }
    }
}

/// How much of `datagrams`, each `size` long but the last, is to be handled at once: data packets for one receiver index, else
/// one datagram.
fn length_of_run(datagrams: &[u8], size: usize) -> usize {
    let first = datagrams.get(..8);
    let is_data = word(datagrams, 0) == Some(DATA) && !stun::is_stun(datagrams);
    let alike = datagrams.chunks(size).skip(1).take_while(|datagram| is_data && datagram.get(..8) == first).count();
    datagrams.len().min(size.saturating_mul(1 + alike))
}

fn refuse(drops: &mut Drops, via: Via, error: SessionError) {
    drops.refused += 1;
    tracing::trace!(%error, ?via, "a packet is refused");
}

/// A little-endian word of a WireGuard message.
fn word(packet: &[u8], offset: usize) -> Option<u32> {
    packet.get(offset..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

enum Admitted {
    Yes,
    Spoofed,
    Filtered(DropReason),
}

/// Whether a packet out of a peer's session may go to the stack: its source must be one of the peer's own addresses, and
/// the filter must allow it.
fn admit(content: &[u8], addresses: &[IpAddr], node: &tailcfg::Node, filter: &mut Filter) -> Admitted {
    let packet = match Packet::parse(content) {
        Ok(packet) => packet,
        Err(error) => return Admitted::Filtered(DropReason::Malformed(error)),
    };
    if !addresses.contains(&packet.source) {
        return Admitted::Spoofed;
    }
    match filter.check(&packet, |capability| node.cap_map.contains_key(capability)) {
        Verdict::Accept => Admitted::Yes,
        Verdict::Drop(reason) => Admitted::Filtered(reason),
    }
}

/// Whether a peer may answer us and open nothing. One whose key isn't signed may reach the PeerAPI only, which we don't
/// have.
fn is_jailed(node: &tailcfg::Node) -> bool {
    node.is_jailed || node.unsigned_peer_api_only
}
