//! A packet that arrived: to its connection, to a listener, or to one of the small answers.

use std::hash::Hash;
use std::time::Instant;

use super::connection::{Flow, Stage};
use super::engine::{self, Engine, Phase};
use super::{
    ConnectionError, MAX_CONNECTIONS, MAX_HALF_OPEN_PER_PEER, MAX_PING_EVENTS, MAX_REPLIES, Stack, StackEvent,
};
use crate::packet::{Packet, PacketBatch, Transport, icmp, protocol, tcp, tsmp};

impl<P: Copy + Eq + Hash> Stack<P> {
    /// Takes packets that have passed the filter, each with the peer through whose session it came.
    pub fn handle_packets(&mut self, now: Instant, packets: &mut PacketBatch<P>) {
        packets.join_segments();
        for (peer, packet) in packets.iter() {
            self.handle_packet(now, peer, packet);
        }
    }

    /// Takes one packet. What isn't for us, or not well-formed, is dropped without a word.
    pub fn handle_packet(&mut self, now: Instant, peer: P, bytes: &[u8]) {
        let Ok(packet) = Packet::parse(bytes) else {
            return;
        };
        if packet.fragment || !self.config.addresses.contains(&packet.destination) || !engine::is_usable(packet.source)
        {
            return;
        }
        match packet.transport {
            Transport::Tcp { source, destination, .. } => {
                let flow = Flow {
                    peer,
                    local: (packet.destination, destination).into(),
                    remote: (packet.source, source).into(),
                };
                self.handle_segment(now, flow, &packet, bytes);
            }
            Transport::Icmp { .. } => self.handle_icmp(peer, &packet),
            Transport::Tsmp => self.handle_tsmp(now, peer, &packet),
            _ => {}
        }
    }

    fn handle_segment(&mut self, now: Instant, flow: Flow<P>, packet: &Packet<'_>, bytes: &[u8]) {
        let Some(segment) = tcp::Segment::parse(packet) else {
            return;
        };
        if let Some(id) = self.by_flow.get(&flow).copied() {
            self.receive(now, id, segment, packet, bytes);
            return;
        }
        if let Some(last) = self.time_waits.get(&flow) {
            if !segment.is_first() {
                if segment.flags & tcp::RST == 0 && segment.sequence_length() > 0 {
                    self.reply(flow.peer, last.build(flow.local, flow.remote));
                }
                return;
            }
            self.time_waits.remove(&flow);
        }
        let opens = segment.is_first() && segment.flags & (tcp::RST | tcp::FIN) == 0;
        if opens && flow.remote.port() != 0 && self.listeners.contains_key(&flow.local.port()) {
            self.open(now, flow, segment, packet, bytes);
        } else {
            self.reply(flow.peer, tcp::reset_for(packet));
        }
    }

    /// A SYN to a port that is listened to. Where there is no room it is dropped: its sender will repeat it.
    fn open(&mut self, now: Instant, flow: Flow<P>, segment: tcp::Segment, packet: &Packet<'_>, bytes: &[u8]) {
        let opening = self.opening(&flow);
        let of_peer = self.half_open.get(&flow.peer).copied().unwrap_or(0);
        let Some(listener) = self.listeners.get_mut(&flow.local.port()) else {
            return;
        };
        if !listener.has_room_for(flow.peer)
            || of_peer >= MAX_HALF_OPEN_PER_PEER
            || self.connections.len() >= MAX_CONNECTIONS
        {
            return;
        }
        let Some(engine) = Engine::listening(opening, self.clock.engine_time(now)) else {
            return;
        };
        *listener.unaccepted.entry(flow.peer).or_default() += 1;
        *self.half_open.entry(flow.peer).or_default() += 1;
        let id = self.insert(now, flow, Stage::HalfOpen, engine);
        self.receive(now, id, segment, packet, bytes);
    }

    fn receive(
        &mut self,
        now: Instant,
        id: super::ConnectionId,
        segment: tcp::Segment,
        packet: &Packet<'_>,
        bytes: &[u8],
    ) {
        let engine_now = self.clock.engine_time(now);
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        connection.last_heard = now;
        let peer = connection.flow.peer;
        let released = matches!(connection.stage, Stage::Released { .. });
        let Some(engine) = connection.engine() else {
            return;
        };
        // Answers within the handling (duplicate acknowledgements) must keep their order, and are few per packet; when
        // nobody polls them, later ones replace them anyway.
        if self.replies.len() < MAX_REPLIES {
            engine.receive(engine_now, segment, packet, bytes, peer, &mut self.replies);
        } else {
            engine.receive(engine_now, segment, packet, bytes, peer, &mut PacketBatch::new());
        }
        if released {
            drop(engine.drain());
        }
        let phase = engine.phase();
        self.mark(id);
        if segment.flags & tcp::RST != 0 && phase == Phase::Closed {
            self.peer_reset(now, id);
        } else {
            self.settle(now, id);
        }
    }

    fn handle_icmp(&mut self, peer: P, packet: &Packet<'_>) {
        match icmp::kind(packet) {
            Some(icmp::Kind::EchoRequest) => {
                self.reply(peer, icmp::reply(packet));
            }
            Some(icmp::Kind::EchoReply) => {
                if let Some(echo) = icmp::as_reply(packet) {
                    self.ping_event(StackEvent::EchoReply { peer, from: packet.source, echo });
                }
            }
            _ => {}
        }
    }

    fn handle_tsmp(&mut self, now: Instant, peer: P, packet: &Packet<'_>) {
        match tsmp::parse(packet) {
            Some(tsmp::Message::Ping(_)) => {
                // There is no PeerAPI here.
                self.reply(peer, tsmp::pong(packet, 0));
            }
            Some(tsmp::Message::Pong { data, peer_api_port }) => {
                self.ping_event(StackEvent::TsmpPong { peer, data, peer_api_port });
            }
            Some(tsmp::Message::Rejected(rejected)) if !rejected.maybe_broken => {
                let flow = Flow { peer, local: rejected.source, remote: rejected.destination };
                let id = self.by_flow.get(&flow).copied();
                if let Some(id) = id.filter(|_| rejected.protocol == protocol::TCP) {
                    let error = ConnectionError::RefusedByPolicy(rejected.reason);
                    self.refuse(now, id, error);
                }
            }
            _ => {}
        }
    }

    fn ping_event(&mut self, event: StackEvent<P>) {
        if self.ping_events < MAX_PING_EVENTS {
            self.ping_events += 1;
            self.events.push_back(event);
        }
    }
}
