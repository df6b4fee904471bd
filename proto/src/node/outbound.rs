//! From the stack's packets to sealed datagrams, in trains for one destination.

use std::time::Instant;

use super::inbound::INITIATION;
use super::{Destination, Event, Node, PeerId, Transmit};
use crate::filter::Filter;
use crate::packet::{Packet, protocol};
use crate::tunnel::Tunnel;
use crate::tunnel::paths::Route;
use crate::tunnel::session::{HANDSHAKE_ROOM, OVERHEAD, Sealed};

/// Packets that are taken from the stack at once: a full train.
const STACK_BUDGET: usize = 64;

/// A train that also goes through a relay, because the direct path isn't trusted any more.
#[derive(Debug, Default)]
pub(super) struct Duplicate {
    to: Option<(Destination, usize)>,
    bytes: Vec<u8>,
}

impl Node {
    /// Writes the next datagrams to `buffer` (64 KiB is good, 2 KiB the least): one destination, at most `max_segments`
    /// of one size, the last one maybe shorter. `None` when there is nothing more to send.
    pub fn poll_transmit(&mut self, now: Instant, buffer: &mut [u8], max_segments: usize) -> Option<Transmit> {
        self.now = now;
        let max_segments = max_segments.max(1);
        loop {
            let ready = self.take_duplicate(buffer).or_else(|| self.take_small(buffer));
            if let Some(transmit) = ready.or_else(|| self.take_probe(buffer)) {
                return Some(transmit);
            }
            if let Some(id) = self.schedule.first_due() {
                if let Some(transmit) = self.serve(now, id, buffer, max_segments) {
                    return Some(transmit);
                }
            } else if !self.outgoing.is_empty() {
                if let Some(transmit) = self.seal_outgoing(now, buffer, max_segments) {
                    return Some(transmit);
                }
            } else {
                self.outgoing.clear();
                self.stack.poll_packets(now, &mut self.outgoing, STACK_BUDGET);
                if self.outgoing.is_empty() {
                    return None;
                }
            }
        }
    }

    fn take_duplicate(&mut self, buffer: &mut [u8]) -> Option<Transmit> {
        let (destination, segment_size) = self.duplicate.to.take()?;
        let len = self.duplicate.bytes.len();
        buffer.get_mut(..len)?.copy_from_slice(&self.duplicate.bytes);
        Some(Transmit { destination, len, segment_size })
    }

    fn take_small(&mut self, buffer: &mut [u8]) -> Option<Transmit> {
        let (destination, message) = self.small.pop_front()?;
        single(destination, &message, buffer)
    }

    fn take_probe(&mut self, buffer: &mut [u8]) -> Option<Transmit> {
        let (server, request) = self.netcheck.poll_transmit()?;
        single(Destination::Udp(server), &request, buffer).filter(|_| self.direct)
    }

    /// One thing that the peer has to do: timers, disco, handshakes, then packets that have waited. Puts it to sleep if
    /// there is nothing.
    fn serve(&mut self, now: Instant, id: PeerId, buffer: &mut [u8], max_segments: usize) -> Option<Transmit> {
        self.refresh_region(now, id, false);
        let Some(tunnel) = self.peers.get_mut(id).and_then(|peer| peer.tunnel.as_mut()) else {
            self.schedule.sleep(id, None);
            return None;
        };
        tunnel.handle_timeout(now, &self.identity, &mut self.rng);
        let route = tunnel.route(now);
        if tunnel.paths.lacks_relay(now) && (tunnel.session.wants_path() || tunnel.paths.is_in_use()) {
            // Nothing can be sent, or nothing may arrive, before an address answers, which the tunnel looks for, or a relay is
            // connected.
            self.refresh_region(now, id, true);
        }
        if self.send_disco(now, id) {
            // They go out first, then it is this peer's turn again.
            return None;
        }
        let tunnel = self.peers.get_mut(id).and_then(|peer| peer.tunnel.as_mut())?;
        let sealed = if route.exists() { seal_due(now, tunnel, buffer, max_segments) } else { Train::default() };
        if sealed.len > 0 {
            if is_initiation(buffer) {
                tracing::debug!(peer = ?self.peers.get(id).map(|peer| peer.key), ?route, "begins a handshake");
            }
            return self.send(now, id, route, sealed, buffer);
        }
        let path = tunnel.paths.path_told(now, tunnel.told_path);
        let changed = std::mem::replace(&mut tunnel.told_path, path) != path;
        self.schedule.sleep(id, tunnel.poll_timeout(now));
        if changed && let Some(peer) = self.peers.get(id) {
            self.events.push_back(Event::PathChanged { peer: peer.key, path: path.into() });
        }
        None
    }

    /// Seals the next packets of the stack that are for one peer.
    fn seal_outgoing(&mut self, now: Instant, buffer: &mut [u8], max_segments: usize) -> Option<Transmit> {
        let (id, _) = self.outgoing.first()?;
        if self.peers.with_tunnel(id, &self.identity, self.direct, &mut self.rng).is_none() {
            self.outgoing.take_first();
            self.drops.orphaned += 1;
            return None;
        }
        self.refresh_region(now, id, false);
        let tunnel = self.peers.get_mut(id).and_then(|peer| peer.tunnel.as_mut())?;
        let route = tunnel.route(now);
        let ready = route.exists() && tunnel.session.has_keys(now) && !tunnel.session.has_waiting();
        let mut train = Train::default();
        while let Some((peer, packet)) = self.outgoing.first()
            && peer == id
        {
            if ready {
                match train.add(packet.len(), max_segments, buffer, |room| tunnel.session.seal(now, packet, room)) {
                    Added::Yes => {}
                    Added::Full => break,
                    Added::NoKeys => tunnel.session.wait(now, packet),
                }
            } else {
                tunnel.session.wait(now, packet);
            }
            note_flow(&mut self.filter, packet);
            self.outgoing.take_first();
        }
        self.schedule.wake(id);
        if train.len == 0 { None } else { self.send(now, id, route, train, buffer) }
    }

    /// Hands out a sealed train, to one or two destinations.
    fn send(&mut self, now: Instant, id: PeerId, route: Route, train: Train, buffer: &[u8]) -> Option<Transmit> {
        let peer = self.peers.get_mut(id)?;
        let key = peer.key;
        let tunnel = peer.tunnel.as_mut()?;
        let lacks_relay = tunnel.paths.lacks_relay(now);
        tunnel.bytes_sent += train.len as u64;
        tunnel.paths.handle_sent(now, &mut self.rng);
        let relayed = route.derp.map(|region| {
            self.relay.handle_wanted(now, region);
            Destination::Derp { region, peer: key }
        });
        if lacks_relay {
            // The relay was idle while packets went directly, and may be closed since.
            self.refresh_region(now, id, true);
        }
        self.note_activity(now);
        let direct = route.udp.map(Destination::Udp);
        if direct.is_some()
            && let Some(relayed) = relayed
        {
            self.duplicate.to = Some((relayed, train.segment_size));
            self.duplicate.bytes.clear();
            self.duplicate.bytes.extend_from_slice(buffer.get(..train.len).unwrap_or_default());
        }
        let destination = direct.or(relayed)?;
        Some(Transmit { destination, len: train.len, segment_size: train.segment_size })
    }
}

/// Datagrams of one size that stand back to back in a buffer; the last one may be shorter.
#[derive(Debug, Default, Clone, Copy)]
struct Train {
    len: usize,
    segment_size: usize,
    segments: usize,
    /// A shorter one was added, which ends it.
    ended: bool,
}

enum Added {
    Yes,
    Full,
    NoKeys,
}

impl Train {
    /// Adds a packet of `length` bytes by `seal`, if it fits behind what is there.
    fn add(
        &mut self,
        length: usize,
        max_segments: usize,
        buffer: &mut [u8],
        seal: impl FnOnce(&mut [u8]) -> Sealed,
    ) -> Added {
        let fits = self.segments == 0 || length + OVERHEAD <= self.segment_size;
        if self.ended || !fits || self.segments >= max_segments {
            return Added::Full;
        }
        match seal(buffer.get_mut(self.len..).unwrap_or_default()) {
            Sealed::Bytes(sealed) => {
                if sealed > 0 {
                    self.push(sealed);
                }
                Added::Yes
            }
            Sealed::NoKeys => Added::NoKeys,
            // A packet that no buffer has room for would stop everything: it is dropped.
            Sealed::NoRoom if self.segments == 0 => Added::Yes,
            Sealed::NoRoom => Added::Full,
        }
    }

    fn push(&mut self, sealed: usize) {
        if self.segments == 0 {
            self.segment_size = sealed;
        }
        self.ended |= sealed < self.segment_size;
        self.len += sealed;
        self.segments += 1;
    }
}

/// What a session has to send by itself: a handshake message, a keepalive, or packets that waited for keys.
fn seal_due(now: Instant, tunnel: &mut Tunnel, buffer: &mut [u8], max_segments: usize) -> Train {
    let mut train = Train::default();
    if let Some(length) = tunnel.session.poll_transmit(now, buffer) {
        train.push(length);
        return train;
    }
    while tunnel.session.has_waiting() && tunnel.session.has_keys(now) {
        let length = tunnel.session.next_waiting_len().unwrap_or(HANDSHAKE_ROOM);
        let before = train.len;
        let added = train.add(length, max_segments, buffer, |room| tunnel.session.seal_waiting(now, room));
        if !matches!(added, Added::Yes) || train.len == before {
            break;
        }
    }
    train
}

fn is_initiation(buffer: &[u8]) -> bool {
    buffer.first_chunk() == Some(&INITIATION.to_le_bytes())
}

fn single(destination: Destination, message: &[u8], buffer: &mut [u8]) -> Option<Transmit> {
    let len = message.len();
    buffer.get_mut(..len)?.copy_from_slice(message);
    Some(Transmit { destination, len, segment_size: len })
}

/// Only datagrams have flows that a filter remembers; the stack sends next to none.
fn note_flow(filter: &mut Filter, packet: &[u8]) {
    let number = match packet.first().map(|byte| byte >> 4) {
        Some(4) => packet.get(9),
        _ => packet.get(6),
    };
    if matches!(number, Some(&(protocol::UDP | protocol::SCTP | protocol::FRAGMENT_V6)))
        && let Ok(packet) = Packet::parse(packet)
    {
        filter.note_outbound(&packet);
    }
}
