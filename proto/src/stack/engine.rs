//! One TCP connection as smoltcp runs it: an interface, a socket, and a device that reads from and writes to packet batches.
//!
//! Nothing else in this crate names a smoltcp type; another TCP engine would replace this file.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::time::Instant;

use smoltcp::iface::{Config as InterfaceConfig, Interface, PollResult, SocketHandle, SocketSet, SocketStorage};
use smoltcp::phy::{self, Checksum, DeviceCapabilities, Medium, PacketMeta};
use smoltcp::socket::tcp::{CongestionControl, RecvError, Socket, SocketBuffer, State};
use smoltcp::time::{Duration as EngineDuration, Instant as EngineInstant};
use smoltcp::wire::{HardwareAddress, IpCidr, IpListenEndpoint};

use super::sender::Sender;
use super::{ACKNOWLEDGE_WITHIN, KEEP_ALIVE, REPEAT_WITHIN};
use crate::packet::parse::{IPV4_HEADER, IPV6_HEADER};
use crate::packet::tcp::{self, is_before};
use crate::packet::{Packet, PacketBatch};

/// Turns the caller's instants into the engine's, counted from the first one that was seen.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Clock {
    epoch: Option<Instant>,
}

impl Clock {
    pub(super) fn engine_time(&mut self, now: Instant) -> EngineInstant {
        let epoch = *self.epoch.get_or_insert(now);
        let micros = now.saturating_duration_since(epoch).as_micros();
        EngineInstant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    /// The caller's instant for an engine's one, not before `now`.
    fn caller_time(&self, now: Instant, at: EngineInstant) -> Instant {
        let micros = u64::try_from(at.total_micros()).unwrap_or(0);
        let offset = std::time::Duration::from_micros(micros);
        let at = self.epoch.and_then(|epoch| epoch.checked_add(offset));
        at.map_or(now, |at| at.max(now))
    }
}

/// What a new connection starts from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Opening {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    pub(super) mtu: usize,
    pub(super) receive_buffer: usize,
    pub(super) send_buffer: usize,
    /// Seeds the initial sequence number.
    pub(super) seed: u64,
}

/// How far a connection is, as far as its surroundings must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Waits for a SYN, or is back there since the peer reset a half-open connection.
    Listening,
    /// The handshake is under way.
    Opening,
    /// Bytes may flow at least one way.
    Open,
    /// Both ways are closed; only the peer's last FIN may have to be acknowledged again.
    TimeWait,
    /// Over.
    Closed,
}

/// What reading gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    Bytes(usize),
    Nothing,
    End,
}

/// How many segments smoltcp may write in one step. At the least MTU, sealed, they fill a UDP datagram of 64 KiB, which is as much
/// as the kernel segments.
const BURST: usize = 49;
/// What may be left to be sent when smoltcp can no longer be told how much may be under way.
const LAST_SEGMENTS: usize = 10;
/// More than the longest pause that smoltcp makes before it repeats something.
const LONGER_THAN_ANY_PAUSE: EngineDuration = EngineDuration::from_secs(61);

pub(super) struct Engine {
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    mtu: usize,
    sent: Sent,
    latest: Option<Latest>,
    /// Nothing more will be written.
    closes: bool,
    /// When what the peer hasn't acknowledged is repeated, if smoltcp doesn't do it before.
    repeat_at: Option<EngineInstant>,
    /// How far this connection's time is before everybody else's: smoltcp has no other way to end a pause.
    ahead: EngineDuration,
}

/// The peer's latest segment, since it has acknowledged anything.
#[derive(Debug)]
struct Latest {
    /// Its headers.
    bare: tcp::Bare,
    /// The end of what it sent.
    end: u32,
    /// The acknowledgement number and window field that smoltcp was shown last.
    shown: (u32, u16),
}

/// What went out of a connection.
#[derive(Debug, Clone)]
struct Sent {
    sender: Sender,
    /// The last segment: in TIME-WAIT, the one to be repeated.
    last: Option<tcp::Segment>,
    /// The end of all that was ever sent (RFC 9293's SND.NXT).
    end: Option<u32>,
    /// How many segments the peer must acknowledge.
    substantial: u64,
}

impl Sent {
    fn new(segment: usize) -> Self {
        Self { sender: Sender::new(segment), last: None, end: None, substantial: 0 }
    }

    /// smoltcp has written a segment. Answers which parts of it are to go out; `None` if all of it is.
    ///
    /// smoltcp numbers those without data from where it has gone back to, to repeat data. The peer, which
    /// has that data perhaps, takes nothing from before its window: when both ends repeat at once, neither would ever hear the other's
    /// acknowledgement. So they get the number that they are to have.
    fn note(&mut self, now: std::time::Duration, packet: &mut [u8]) -> Option<Vec<Range<usize>>> {
        let segment = Packet::parse(packet).ok().and_then(|packet| tcp::Segment::parse(&packet));
        let mut segment = segment?;
        let parts = self.sender.send(now, segment);
        let mut length = segment.sequence_length();
        if parts.as_ref().is_some_and(Vec::is_empty) {
            let told = |segment: tcp::Segment| (segment.acknowledgement, segment.window);
            if self.last.map(told) == Some(told(segment)) {
                return parts;
            }
            // What it acknowledges must go out nevertheless.
            length = 0;
        }
        self.substantial += u64::from(length > 0);
        let ends = segment.sequence.wrapping_add(length);
        match self.end {
            Some(end) if is_before(ends, end) => {
                if length == 0 {
                    segment.sequence = self.sender.number(end);
                    tcp::renumber(packet, segment.sequence);
                }
            }
            _ => self.end = Some(ends),
        }
        self.last = Some(segment);
        parts.map(|parts| if parts.is_empty() { std::iter::once(0..0).collect() } else { parts })
    }
}

/// What the sender counts from.
fn time_of(now: EngineInstant) -> std::time::Duration {
    std::time::Duration::from_micros(u64::try_from(now.total_micros()).unwrap_or(0))
}

fn engine_duration(duration: std::time::Duration) -> EngineDuration {
    EngineDuration::from_micros(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}

impl Engine {
    /// A connection that waits for the SYN of `remote`. `None` if the addresses are unusable.
    pub(super) fn listening(opening: Opening, now: EngineInstant) -> Option<Self> {
        let mut engine = Self::new(opening, now);
        let local = IpListenEndpoint { addr: Some(opening.local.ip().into()), port: opening.local.port() };
        engine.socket_mut().listen(local).ok()?;
        Some(engine)
    }

    /// A connection that we open. `None` if the addresses are unusable.
    pub(super) fn dialling(opening: Opening, now: EngineInstant) -> Option<Self> {
        let mut engine = Self::new(opening, now);
        let socket = engine.sockets.get_mut::<Socket<'_>>(engine.socket);
        socket.connect(engine.interface.context(), opening.remote, opening.local).ok()?;
        Some(engine)
    }

    fn new(opening: Opening, now: EngineInstant) -> Self {
        let mut config = InterfaceConfig::new(HardwareAddress::Ip);
        config.random_seed = opening.seed;
        let address = opening.local.ip();
        let (prefix, headers) = if address.is_ipv4() { (32, IPV4_HEADER + 20) } else { (128, IPV6_HEADER + 20) };
        let mut sent = Sent::new(opening.mtu - headers);
        let mut none = PacketBatch::<()>::new();
        let mut wire = Wire {
            incoming: None,
            outgoing: &mut none,
            peer: (),
            mtu: opening.mtu,
            now: time_of(now),
            sent: &mut sent,
        };
        let mut interface = Interface::new(config, &mut wire, now);
        interface.update_ip_addrs(|addresses| {
            // The list holds two; this is the first.
            let _ = addresses.push(IpCidr::new(address.into(), prefix));
        });
        // Zeroed memory of this size comes from the system untouched: a ring costs what it has ever held at once.
        let receive = SocketBuffer::new(vec![0; opening.receive_buffer]);
        let send = SocketBuffer::new(vec![0; opening.send_buffer]);
        let mut socket = Socket::new(receive, send);
        // How much may be under way is said by the window that it is shown.
        socket.set_congestion_control(CongestionControl::None);
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(Some(engine_duration(ACKNOWLEDGE_WITHIN)));
        socket.set_keep_alive(Some(engine_duration(KEEP_ALIVE)));
        let mut sockets = SocketSet::new(vec![SocketStorage::EMPTY]);
        let socket = sockets.add(socket);
        Self {
            interface,
            sockets,
            socket,
            mtu: opening.mtu,
            sent,
            latest: None,
            closes: false,
            repeat_at: None,
            ahead: EngineDuration::ZERO,
        }
    }

    fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.socket)
    }

    fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.socket)
    }

    pub(super) fn phase(&self) -> Phase {
        match self.socket().state() {
            State::Listen => Phase::Listening,
            State::SynSent | State::SynReceived => Phase::Opening,
            State::Established
            | State::CloseWait
            | State::FinWait1
            | State::FinWait2
            | State::Closing
            | State::LastAck => Phase::Open,
            State::TimeWait => Phase::TimeWait,
            State::Closed => Phase::Closed,
        }
    }

    /// Takes one packet of this connection, whose TCP header is `segment`; an answer that can't wait goes to `replies`.
    pub(super) fn receive<P: Copy>(
        &mut self,
        now: EngineInstant,
        segment: tcp::Segment,
        packet: &Packet<'_>,
        bytes: &[u8],
        peer: P,
        replies: &mut PacketBatch<P>,
    ) {
        let queued = self.socket().send_queue();
        let is_news =
            self.sent.sender.read(time_of(now), segment, tcp::Options::parse(packet), self.sent.end, self.unsent() > 0);
        self.note_latest(segment, bytes, is_news);
        if !is_news {
            return;
        }
        if segment.window == 0 && self.is_steered() && self.sent.sender.is_under_way() {
            // What closes the window as it acknowledges would stop the timer by which smoltcp goes back to the rest.
            let mut bare = tcp::bare(bytes, &segment);
            self.ingest(now, bare.with(segment.acknowledgement, 1), peer, replies);
        }
        let full = self.sent.sender.segment();
        // A train of segments is acknowledged at once, as every second full one is; smoltcp sees but one.
        let is_train = segment.length as usize > full;
        let patience = if is_train { EngineDuration::ZERO } else { engine_duration(ACKNOWLEDGE_WITHIN) };
        self.socket_mut().set_ack_delay(Some(patience));
        let answers = replies.len();
        self.ingest(now, bytes, peer, replies);
        if is_train && replies.len() > answers {
            // There is a hole before it: the sender counts one duplicate for each segment.
            replies.repeat_last((segment.length as usize - 1) / full);
        }
        if !self.owes() {
            self.repeat_at = None;
        } else if self.socket().send_queue() < queued {
            self.repeat_at = Some(now + engine_duration(REPEAT_WITHIN));
        }
    }

    fn note_latest(&mut self, segment: tcp::Segment, bytes: &[u8], is_news: bool) {
        if self.sent.sender.acknowledged().is_none() {
            return;
        }
        let end = segment.sequence.wrapping_add(segment.sequence_length());
        let shown = (segment.acknowledgement, segment.window);
        self.latest = Some(match self.latest.take() {
            // smoltcp heeds nothing that comes with what it has.
            Some(latest) if is_before(end, latest.end) => latest,
            Some(Latest { shown, .. }) if !is_news => Latest { bare: tcp::bare(bytes, &segment), end, shown },
            _ => Latest { bare: tcp::bare(bytes, &segment), end, shown },
        });
    }

    /// Bytes that were never sent.
    fn unsent(&self) -> usize {
        let under_way = self.sent.end.zip(self.sent.sender.acknowledged());
        // Sequence numbers wrap.
        let under_way = under_way.map_or(0, |(sent, acknowledged)| sent.wrapping_sub(acknowledged) as usize);
        self.socket().send_queue().saturating_sub(under_way)
    }

    /// Whether there is something to send, or to be acknowledged, on a connection that is established.
    fn is_steered(&self) -> bool {
        self.phase() == Phase::Open
            && (self.sent.end != self.sent.sender.acknowledged() || self.socket().send_queue() > 0)
    }

    /// Shows smoltcp how much may be under way, and what is to be repeated.
    fn steer<P: Copy>(&mut self, now: EngineInstant, peer: P, out: &mut PacketBatch<P>) {
        let Some(acknowledged) = self.sent.sender.acknowledged() else { return };
        if !self.is_steered() {
            return;
        }
        let goes_back = self.sent.sender.poll_repair(time_of(now));
        let Some(window) = self.sent.sender.shown_window(time_of(now)) else { return };
        let Some(mut latest) = self.latest.take() else { return };
        let shown = (acknowledged, window);
        if std::mem::replace(&mut latest.shown, shown) != shown {
            self.ingest(now, latest.bare.with(acknowledged, window), peer, out);
        }
        self.latest = Some(latest);
        if goes_back {
            self.ahead += LONGER_THAN_ANY_PAUSE;
        }
    }

    fn ingest<P: Copy>(&mut self, now: EngineInstant, packet: &[u8], peer: P, replies: &mut PacketBatch<P>) {
        let (sent, mtu) = (&mut self.sent, self.mtu);
        let mut wire = Wire { incoming: Some(packet), outgoing: replies, peer, mtu, now: time_of(now), sent };
        let _ = self.interface.poll_ingress_single(now + self.ahead, &mut wire, &mut self.sockets);
    }

    /// Writes at most `budget` packets to `out`. Says whether the budget ended it.
    pub(super) fn transmit<P: Copy>(
        &mut self,
        now: EngineInstant,
        peer: P,
        out: &mut PacketBatch<P>,
        budget: usize,
    ) -> bool {
        let late = self.repeat_at.is_some_and(|at| at <= now);
        if late {
            self.repeat_at = None;
            self.ahead += LONGER_THAN_ANY_PAUSE;
            self.sent.sender.give_up();
        }
        let substantial = self.sent.substantial;
        self.close();
        self.steer(now, peer, out);
        let (sent, mtu) = (&mut self.sent, self.mtu);
        let mut wire = Wire { incoming: None, outgoing: out, peer, mtu, now: time_of(now), sent };
        let (mut more, until) = (true, wire.outgoing.len() + budget);
        while wire.outgoing.len() < until {
            let result = self.interface.poll_egress(now + self.ahead, &mut wire, &mut self.sockets);
            if result == PollResult::None {
                more = false;
                break;
            }
        }
        let waits = self.unsent() > 0;
        self.sent.sender.handle_sent(time_of(now), waits);
        // A keepalive looks like data, too.
        if (late || self.sent.substantial > substantial) && self.owes() {
            self.repeat_at = Some(now + engine_duration(REPEAT_WITHIN));
        }
        more
    }

    /// When this connection wants [`Engine::transmit`] again.
    pub(super) fn poll_at(&mut self, clock: &mut Clock, now: Instant) -> Option<Instant> {
        let engine_now = clock.engine_time(now) + self.ahead;
        let at = self.interface.poll_at(engine_now, &self.sockets)? - self.ahead;
        let repair_at = self.is_steered().then(|| self.sent.sender.repair_at()).flatten();
        let paced_until = self.sent.sender.paced_until(self.unsent() > 0);
        let steered = [repair_at, paced_until].into_iter().flatten();
        let steered = steered.map(|at| EngineInstant::from_micros(i64::try_from(at.as_micros()).unwrap_or(i64::MAX)));
        let at = self.repeat_at.into_iter().chain(steered).fold(at, EngineInstant::min);
        Some(clock.caller_time(now, at))
    }

    /// Repeats at its next turn what the peer has to acknowledge, or else asks it for a sign of life.
    pub(super) fn hasten(&mut self, now: EngineInstant) {
        self.repeat_at = Some(now);
    }

    /// Whether the peer has something to acknowledge.
    pub(super) fn owes(&self) -> bool {
        let closes = matches!(self.socket().state(), State::FinWait1 | State::Closing | State::LastAck);
        closes || self.phase() == Phase::Opening || self.socket().send_queue() > 0
    }

    /// Takes as much of `bytes` as has room. `None` if this side is closed.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Option<usize> {
        self.socket_mut().send_slice(bytes).ok()
    }

    pub(super) fn read(&mut self, bytes: &mut [u8]) -> Received {
        match self.socket_mut().recv_slice(bytes) {
            Ok(0) | Err(RecvError::InvalidState) => Received::Nothing,
            Ok(length) => Received::Bytes(length),
            Err(RecvError::Finished) => Received::End,
        }
    }

    /// Whether [`Engine::read`] would give bytes or the end.
    pub(super) fn is_readable(&self) -> bool {
        let socket = self.socket();
        socket.can_recv() || (self.phase() != Phase::Opening && !socket.may_recv())
    }

    /// Room for bytes to send.
    pub(super) fn send_room(&self) -> usize {
        let socket = self.socket();
        if socket.may_send() { socket.send_capacity() - socket.send_queue() } else { 0 }
    }

    /// Sends FIN after what is still queued.
    pub(super) fn shutdown(&mut self) {
        self.closes = true;
        self.close();
    }

    /// Tells smoltcp to close. When the peer has closed before, it hears no window and no duplicates from then on: then only what
    /// can be sent at once may be left.
    fn close(&mut self) {
        let is_little = self.socket().send_queue() <= LAST_SEGMENTS * self.sent.sender.segment();
        if self.closes && (self.socket().state() != State::CloseWait || is_little) {
            self.closes = false;
            self.socket_mut().close();
        }
    }

    /// Closes at once; the next [`Engine::transmit`] writes a RST.
    pub(super) fn abort(&mut self) {
        self.socket_mut().abort();
    }

    /// All bytes that were received and not read yet.
    pub(super) fn drain(&mut self) -> Vec<u8> {
        let length = self.socket().recv_queue();
        let mut bytes = vec![0; length];
        let read = self.socket_mut().recv_slice(&mut bytes).unwrap_or(0);
        bytes.truncate(read);
        bytes
    }

    pub(super) fn last_sent(&self) -> Option<tcp::Segment> {
        self.sent.last
    }
}

/// The device: one packet in at the most, packets out into a batch.
struct Wire<'a, P> {
    incoming: Option<&'a [u8]>,
    outgoing: &'a mut PacketBatch<P>,
    peer: P,
    mtu: usize,
    now: std::time::Duration,
    sent: &'a mut Sent,
}

struct Incoming<'a>(&'a [u8]);

struct Outgoing<'a, P> {
    batch: &'a mut PacketBatch<P>,
    peer: P,
    /// Bytes of data in each segment that this one is to be cut into; 0 for a packet that is one.
    segment: usize,
    now: std::time::Duration,
    sent: &'a mut Sent,
}

impl<P: Copy> phy::Device for Wire<'_, P> {
    type RxToken<'b>
        = Incoming<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Outgoing<'b, P>
    where
        Self: 'b;

    fn receive(&mut self, now: EngineInstant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let incoming = self.incoming.take()?;
        let outgoing = self.transmit(now)?;
        Some((Incoming(incoming), outgoing))
    }

    fn transmit(&mut self, _: EngineInstant) -> Option<Self::TxToken<'_>> {
        Some(Outgoing { batch: &mut *self.outgoing, peer: self.peer, segment: 0, now: self.now, sent: &mut *self.sent })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        // WireGuard has authenticated every byte that arrives. What goes out gets TCP's checksum when it is cut.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::None;
        // smoltcp 0.14 would drop what is longer than the MTU over IPv6, offload or not.
        let headers = IPV4_HEADER + 20;
        capabilities.segmentation.tcpv4 = NonZeroUsize::new(headers + BURST * self.mtu.saturating_sub(headers));
        capabilities
    }
}

impl phy::RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

impl<P: Copy> phy::TxToken for Outgoing<'_, P> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut parts = None;
        let result = self.batch.push_super(self.peer, length, self.segment, |packet| {
            let result = write(packet);
            parts = self.sent.note(self.now, packet);
            if self.segment == 0 && parts.is_none() {
                tcp::fill_checksum(packet);
            }
            result
        });
        if let Some(parts) = parts {
            self.batch.keep_of_last(&parts);
        }
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment = meta.segmentation_offload_size.map_or(0, |size| size.get().into());
    }
}

/// Whether a connection can have this address at either end (the engine panics on others).
pub(super) fn is_usable(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !address.is_unspecified() && !address.is_multicast() && !broadcast
}
