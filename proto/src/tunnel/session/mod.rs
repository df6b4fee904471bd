//! The WireGuard session with one peer: boringtun makes handshakes and seals, everything that depends on time is ours.
//!
//! boringtun reads the system's clock inside and has timers of its own. What they say is never heeded: which keys are
//! too old, when to ask for new ones, how often to ask and when to stop is decided here under `now` (constants of the
//! WireGuard paper §6, and a denser retry schedule). Its `update_timers` is called at two moments only, just before an
//! initiation is written or read, because it stamps the order of sessions: called at other times it would end a
//! handshake in flight, or drop good keys 90 s after a retransmission that was never answered.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::{Packet, Tunn, TunnResult};

use super::handshake::Identity;
use super::retry_after;
use crate::key::NodePublic;

mod keys;
#[cfg(test)]
mod tests;

use keys::KeyRing;

/// Bytes that a sealed packet is longer than its content.
pub const OVERHEAD: usize = 32;
/// Bytes that any handshake message has room in.
pub const HANDSHAKE_ROOM: usize = 148;
/// An initiator renews keys of this age when it sends.
pub const REKEY_AFTER: Duration = Duration::from_secs(120);
/// Keys of this age are used no more, either way.
pub const REJECT_AFTER: Duration = Duration::from_secs(180);
/// An initiator renews keys of this age even when it only receives: before they end under it.
const REKEY_ON_RECEIVE_AFTER: Duration = Duration::from_secs(165);
/// Packets with this number and above are refused (WireGuard's Reject-After-Messages).
const LAST_COUNTER: u64 = u64::MAX - (1 << 13);
/// Without new keys for this long, all are wiped.
const EXPIRE_AFTER: Duration = Duration::from_secs(540);
/// Who has received data and sent nothing since answers with an empty packet after this long.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(10);
/// Who has sent data and heard nothing since asks for new keys after this long.
const NO_ANSWER_AFTER: Duration = Duration::from_secs(15);
/// Handshakes end when nothing was to be sent for this long.
const GIVE_UP_AFTER: Duration = Duration::from_secs(90);
/// Initiations are never closer than this: Go's WireGuard drops those within 20 ms of each other.
const MIN_BETWEEN_INITIATIONS: Duration = Duration::from_millis(50);
/// Who renews keys that are good for another minute begins with this retry: 1 s after the first initiation.
const UNHURRIED: usize = 3;
/// For so long after a handshake was begun, or something changed, a relay's word that the peer isn't there brings the next
/// try near: it may be on its way there. Later it is just not there.
const ABSENT_FOR: Duration = Duration::from_secs(5);
/// The next initiation waits no longer than this for the answer to the last one because an earlier answer came late. Less than a
/// round trip would never let one arrive in time, and the relay's buffers are long.
const LONGEST_PATIENCE: Duration = Duration::from_secs(5);
/// How many unanswered initiations are remembered: those of the last 5 s at the least, however often something hurries them.
const MAX_SUPERSEDED: usize = 20;
/// An initiation that isn't newer than one that we took means nothing within this time of hearing the peer: networks repeat packets.
/// After it, the peer may be one whose clock was set back.
const STALE_AFTER: Duration = Duration::from_secs(5);
/// How many packets wait for a session; the oldest are dropped. As many as wireguard-go stages.
pub const MAX_WAITING: usize = 128;

/// Why a packet of a peer was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// No WireGuard message at all.
    #[error("not a WireGuard message")]
    Malformed,
    /// The first MAC isn't ours: meant for another key, or noise.
    #[error("a handshake message for another key")]
    WrongMac,
    /// More handshakes than this node makes in a second.
    #[error("too many handshakes: the sender must prove its address")]
    Overloaded,
    /// The keys that it names are unknown or too old.
    #[error("sealed with keys that are unknown or too old")]
    NoKeys,
    /// It can't be opened.
    #[error("not sealed by this peer")]
    Forged,
    /// It was seen before, or is older than the newest by too much.
    #[error("a repeated message")]
    Replayed,
    /// An answer to nothing that we asked.
    #[error("an unexpected handshake message")]
    Unexpected,
    /// An answer to an initiation that isn't our latest.
    #[error("an answer to an earlier handshake than the latest")]
    Superseded,
    /// Properly sealed, but no IP packet.
    #[error("the peer sealed something that is no IP packet")]
    NotIp,
}

impl From<WireGuardError> for SessionError {
    fn from(error: WireGuardError) -> Self {
        match error {
            WireGuardError::InvalidMac => Self::WrongMac,
            WireGuardError::UnderLoad => Self::Overloaded,
            WireGuardError::NoCurrentSession | WireGuardError::WrongIndex => Self::NoKeys,
            WireGuardError::InvalidAeadTag | WireGuardError::WrongKey => Self::Forged,
            WireGuardError::WrongTai64nTimestamp
            | WireGuardError::InvalidCounter
            | WireGuardError::DuplicateCounter => Self::Replayed,
            WireGuardError::UnexpectedPacket => Self::Unexpected,
            _ => Self::Malformed,
        }
    }
}

/// What became of a packet that was to be sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sealed {
    /// So many bytes stand in the buffer.
    Bytes(usize),
    /// There are no keys to seal with; [`Session::wait`] keeps it and asks for some.
    NoKeys,
    /// The buffer is too small: nothing happened.
    NoRoom,
}

/// The handshake that we are trying for.
#[derive(Debug, Clone, Copy)]
struct Attempt {
    /// When it began or was nudged.
    begun: Instant,
    /// How many initiations were sent since.
    sent: usize,
    /// When the next one is due.
    next: Instant,
    /// Until then an answer is on its way, as far as is known: no event brings the next one before it.
    not_before: Instant,
    /// How long an answer may take, as far as is known; the next one doesn't go out earlier.
    patience: Duration,
}

impl Attempt {
    /// The next initiation goes out at `at` at the earliest.
    fn hold(&mut self, at: Instant) {
        self.not_before = self.not_before.max(at);
        self.next = self.next.max(at);
    }
}

/// An initiation of ours.
#[derive(Debug, Clone, Copy)]
struct Initiation {
    /// Its receiver index.
    local: u32,
    sent: Instant,
}

/// One peer's WireGuard state. Lives as long as the peer's key is in the netmap: it remembers the timestamp of the
/// peer's last handshake, and ours must never go back.
pub struct Session {
    tunn: Tunn,
    keys: KeyRing,
    /// Packets that wait for keys, oldest first.
    waiting: VecDeque<Vec<u8>>,
    /// boringtun has put a packet into its own queue, because its clock ran differently from ours.
    tunn_keeps_packets: bool,
    attempt: Option<Attempt>,
    /// Our latest initiation, until it is answered.
    unanswered: Option<Initiation>,
    /// Those before it that weren't answered either, the oldest first.
    superseded: VecDeque<Initiation>,
    last_initiation: Option<Instant>,
    /// When the peer last proved that it is there.
    last_heard: Option<Instant>,
    /// When something was last to be sent to this peer.
    last_wanted: Option<Instant>,
    keepalive_at: Option<Instant>,
    no_answer_at: Option<Instant>,
}

impl Session {
    /// A session without keys. `index` is unique among the sessions of the node and below 2^24.
    pub fn new(identity: &Identity, peer: &NodePublic, index: u32) -> Self {
        let peer = boringtun::x25519::PublicKey::from(*peer.as_bytes());
        let tunn = Tunn::new(identity.private(), peer, None, None, index, Some(identity.limiter()));
        Self {
            tunn,
            keys: KeyRing::default(),
            waiting: VecDeque::new(),
            tunn_keeps_packets: false,
            attempt: None,
            unanswered: None,
            superseded: VecDeque::new(),
            last_initiation: None,
            last_heard: None,
            last_wanted: None,
            keepalive_at: None,
            no_answer_at: None,
        }
    }

    /// Opens a data packet into `out`, which must be at least as long as `packet`. `None` is a keepalive.
    ///
    /// # Errors
    /// When the packet isn't this peer's, is a repetition, or its keys are unknown or too old.
    pub fn open(&mut self, now: Instant, packet: &[u8], out: &mut [u8]) -> Result<Option<usize>, SessionError> {
        let Ok(Packet::PacketData(data)) = Tunn::parse_incoming_packet(packet) else {
            return Err(SessionError::Malformed);
        };
        if out.len() < packet.len() {
            return Err(SessionError::Malformed);
        }
        let index = data.receiver_idx;
        // boringtun counts on without a check; at the end of the numbers it would begin anew.
        if packet
            .get(8..)
            .and_then(<[u8]>::first_chunk)
            .is_none_or(|counter| u64::from_le_bytes(*counter) >= LAST_COUNTER)
        {
            return Err(SessionError::Replayed);
        }
        if !self.keys.may_open(now, index) {
            return Err(SessionError::NoKeys);
        }
        let opened = match self.tunn.decapsulate(None, packet, out) {
            TunnResult::WriteToTunnelV4(content, _) | TunnResult::WriteToTunnelV6(content, _) => Some(content.len()),
            TunnResult::Done => None,
            // It was authenticated: only what is inside makes no sense.
            TunnResult::Err(WireGuardError::InvalidPacket) => return Err(SessionError::NotIp),
            TunnResult::Err(error) => return Err(error.into()),
            TunnResult::WriteToNetwork(_) => return Err(SessionError::Unexpected),
        };
        if self.keys.opened(index) {
            // The peer has our answer to its handshake: one of our own is needless.
            self.end_attempt();
        }
        self.no_answer_at = None;
        self.last_heard = Some(now);
        if opened.is_some() {
            self.keepalive_at.get_or_insert(now + KEEPALIVE_AFTER);
        }
        if self.keys.initiated_and_older_than(now, REKEY_ON_RECEIVE_AFTER) {
            self.last_wanted = Some(now);
            self.begin_handshake(now, UNHURRIED);
        }
        Ok(opened)
    }

    /// Takes a handshake message (initiation, response or cookie reply); writes what must be sent back to `out`, which
    /// has [`HANDSHAKE_ROOM`], and returns its length, 0 for nothing. Admission of initiations is the caller's
    /// ([`super::handshake`]).
    ///
    /// # Errors
    /// When the message isn't this peer's, is a repetition, or answers nothing.
    pub fn handle_handshake(
        &mut self,
        now: Instant,
        from: Option<IpAddr>,
        message: &[u8],
        out: &mut [u8],
    ) -> Result<usize, SessionError> {
        match Tunn::parse_incoming_packet(message)? {
            Packet::HandshakeInit(_) => self.handle_initiation(now, from, message, out),
            Packet::HandshakeResponse(response) => {
                let index = response.receiver_idx;
                self.handle_response(now, from, index, message, out)
            }
            Packet::PacketCookieReply(_) => match self.tunn.decapsulate(from, message, out) {
                TunnResult::Err(error) => Err(error.into()),
                // The next initiation carries the cookie.
                _ => Ok(0),
            },
            Packet::PacketData(_) => Err(SessionError::Unexpected),
        }
    }

    fn handle_initiation(
        &mut self,
        now: Instant,
        from: Option<IpAddr>,
        message: &[u8],
        out: &mut [u8],
    ) -> Result<usize, SessionError> {
        self.stamp();
        match self.tunn.decapsulate(from, message, out) {
            TunnResult::WriteToNetwork(answer) => {
                if let (Some(local), Some(remote)) = (index_at(answer, 4), index_at(answer, 8)) {
                    self.keys.responded(now, local, remote);
                }
                self.keepalive_at = None;
                self.last_heard = Some(now);
                // The peer's first packet will make these keys ours; leave it the time to come.
                if let Some(attempt) = &mut self.attempt {
                    attempt.hold(now + retry_after(0));
                }
                Ok(answer.len())
            }
            TunnResult::Err(error) => {
                if matches!(error, WireGuardError::WrongTai64nTimestamp) {
                    self.handle_stale_initiation(now);
                }
                Err(error.into())
            }
            _ => Err(SessionError::Unexpected),
        }
    }

    /// An initiation that the peer made, and that isn't newer than one that we took. Somebody repeats it; or the peer was restarted
    /// with its clock set back, and every initiation of its own will be refused until that time has come again. What it takes from us
    /// doesn't hang on its clock: so we ask. Whoever repeats old initiations gets nothing by it but a question to the real peer.
    fn handle_stale_initiation(&mut self, now: Instant) {
        if self.last_heard.is_none_or(|last| now.saturating_duration_since(last) >= STALE_AFTER) {
            self.renew(now);
        }
    }

    /// Only the answer to our latest initiation makes keys. A responder has one set of new keys, those of the last initiation
    /// that it took: Go's has deleted the earlier ones, and what is sealed with them arrives nowhere, for as long as it takes
    /// until the silence is noticed.
    fn handle_response(
        &mut self,
        now: Instant,
        from: Option<IpAddr>,
        local: u32,
        message: &[u8],
        out: &mut [u8],
    ) -> Result<usize, SessionError> {
        if self.unanswered.is_none_or(|latest| latest.local != local) {
            return Err(self.handle_late_response(now, local));
        }
        match self.tunn.decapsulate(from, message, out) {
            // A keepalive, which tells the peer that the keys are good.
            TunnResult::WriteToNetwork(keepalive) => {
                if let Some(remote) = index_at(message, 4) {
                    self.keys.initiated(now, local, remote);
                }
                self.no_answer_at = None;
                self.last_heard = Some(now);
                self.unanswered = None;
                self.end_attempt();
                Ok(keepalive.len())
            }
            TunnResult::Err(error) => Err(error.into()),
            _ => Err(SessionError::Unexpected),
        }
    }

    /// The way there and back takes longer than we waited: from now on initiations are given that time, and half as much
    /// again. (It isn't known whether the answer is the peer's. But nobody else has seen the number that it names who couldn't hold
    /// it back as well.)
    fn handle_late_response(&mut self, now: Instant, local: u32) -> SessionError {
        let Some(place) = self.superseded.iter().position(|earlier| earlier.local == local) else {
            return SessionError::Unexpected;
        };
        let Some(earlier) = self.superseded.drain(..=place).next_back() else { return SessionError::Unexpected };
        if let Some((latest, attempt)) = self.unanswered.zip(self.attempt.as_mut()) {
            let took = now.saturating_duration_since(earlier.sent);
            attempt.patience = (took + took / 2).min(LONGEST_PATIENCE);
            attempt.hold(latest.sent + attempt.patience);
        }
        SessionError::Superseded
    }

    fn end_attempt(&mut self) {
        self.attempt = None;
        self.superseded.clear();
    }

    /// Whether [`Session::seal`] would find keys.
    pub fn has_keys(&self, now: Instant) -> bool {
        self.keys.current(now).is_some()
    }

    /// When the keys that are in use were made.
    pub fn established(&self) -> Option<Instant> {
        self.keys.newest()
    }

    /// Seals `packet` straight into `out`; an empty one is a keepalive.
    pub fn seal(&mut self, now: Instant, packet: &[u8], out: &mut [u8]) -> Sealed {
        if out.len() < packet.len().saturating_add(OVERHEAD).max(HANDSHAKE_ROOM) {
            return Sealed::NoRoom;
        }
        if self.keys.current(now).is_none() {
            return Sealed::NoKeys;
        }
        let (length, used) = match self.tunn.encapsulate(packet, out) {
            TunnResult::WriteToNetwork(message) => {
                (message.len(), index_at(message, 4).filter(|_| message.first() == Some(&DATA_TYPE)))
            }
            _ => (0, None),
        };
        let Some(used) = used else {
            // boringtun's clock has run ahead of ours (the machine slept): it has no keys, and keeps the packet.
            self.keys.clear();
            self.tunn_keeps_packets = true;
            self.want(now);
            return Sealed::Bytes(0);
        };
        if !self.keys.may_seal(now, used) {
            // By our clock those have ended that boringtun takes.
            self.begin_handshake(now, 0);
            return Sealed::NoKeys;
        }
        self.sealed(now, packet.is_empty());
        Sealed::Bytes(length)
    }

    fn sealed(&mut self, now: Instant, keepalive: bool) {
        self.keepalive_at = None;
        if !keepalive {
            self.last_wanted = Some(now);
            self.no_answer_at.get_or_insert(now + NO_ANSWER_AFTER);
            if self.keys.initiated_and_older_than(now, REKEY_AFTER) {
                self.begin_handshake(now, UNHURRIED);
            }
        }
    }

    /// Keeps a packet until there are keys (or a path), and sees to it that there will be.
    pub fn wait(&mut self, now: Instant, packet: &[u8]) {
        if self.waiting.len() >= MAX_WAITING {
            self.waiting.pop_front();
        }
        self.waiting.push_back(packet.to_vec());
        self.want(now);
    }

    /// Whether packets wait.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty() || self.tunn_keeps_packets
    }

    /// Seals the oldest waiting packet into `out`. [`Sealed::Bytes`] of 0 when none is left.
    pub fn seal_waiting(&mut self, now: Instant, out: &mut [u8]) -> Sealed {
        if self.tunn_keeps_packets && self.keys.current(now).is_some() {
            if out.len() < HANDSHAKE_ROOM + MAX_PACKET {
                return Sealed::NoRoom;
            }
            if let TunnResult::WriteToNetwork(message) = self.tunn.decapsulate(None, &[], out)
                && message.first() == Some(&DATA_TYPE)
            {
                let length = message.len();
                self.sealed(now, false);
                return Sealed::Bytes(length);
            }
            self.tunn_keeps_packets = false;
        }
        let Some(packet) = self.waiting.pop_front() else {
            return Sealed::Bytes(0);
        };
        let sealed = self.seal(now, &packet, out);
        if !matches!(sealed, Sealed::Bytes(_)) {
            self.waiting.push_front(packet);
        }
        sealed
    }

    /// Whether something is to be sent as soon as there is a path.
    pub fn wants_path(&self) -> bool {
        self.attempt.is_some() || self.has_waiting()
    }

    /// The length of the oldest waiting packet.
    pub fn next_waiting_len(&self) -> Option<usize> {
        self.waiting.front().map(Vec::len)
    }

    /// Something about the peer changed (its netmap entry, a relay connection) that may be why an initiation was lost: if a
    /// handshake is under way, tries again at once instead of at its next turn.
    pub fn nudge(&mut self, now: Instant) {
        self.try_again(now, MIN_BETWEEN_INITIATIONS);
    }

    /// The peer answered on another path than the one that our initiation may have taken, which may still be under way there:
    /// tries again soon instead of at its next turn.
    pub fn handle_path(&mut self, now: Instant) {
        self.try_again(now, retry_after(0));
    }

    /// A relay says that the peer isn't there, so that what was sent there is lost: for some seconds tries again soon instead
    /// of at its next turn.
    pub fn handle_absent(&mut self, now: Instant) {
        let Some(begun) = self.attempt.map(|attempt| attempt.begun) else { return };
        if now.saturating_duration_since(begun) < ABSENT_FOR {
            self.try_again(now, retry_after(0));
            self.attempt.iter_mut().for_each(|attempt| attempt.begun = begun);
        }
    }

    /// If a handshake is under way, its next initiation goes out so long after the last one, and the pace is that of the beginning.
    fn try_again(&mut self, now: Instant, after: Duration) {
        if let Some(attempt) = &mut self.attempt {
            let earliest = self.last_initiation.map_or(now, |last| now.max(last + after)).max(attempt.not_before);
            *attempt = Attempt { begun: now, sent: 0, next: attempt.next.min(earliest), ..*attempt };
        }
    }

    /// Asks for new keys although the present ones may be good: the peer may have lost its side of them.
    pub fn renew(&mut self, now: Instant) {
        self.want(now);
        self.begin_handshake(now, 0);
    }

    fn want(&mut self, now: Instant) {
        self.last_wanted = Some(now);
        if self.keys.current(now).is_none() {
            self.begin_handshake(now, 0);
        }
    }

    /// `pace` is how many of the retries' intervals to skip.
    fn begin_handshake(&mut self, now: Instant, pace: usize) {
        if self.attempt.is_none() {
            let earliest = self.last_initiation.map_or(now, |last| now.max(last + MIN_BETWEEN_INITIATIONS));
            let patience = Duration::ZERO;
            self.attempt = Some(Attempt { begun: now, sent: pace, next: earliest, not_before: now, patience });
        }
    }

    /// Writes an initiation or a keepalive to `out` (at least [`HANDSHAKE_ROOM`]) if one is due.
    pub fn poll_transmit(&mut self, now: Instant, out: &mut [u8]) -> Option<usize> {
        if self.attempt.is_some_and(|attempt| attempt.next <= now) && out.len() >= HANDSHAKE_ROOM {
            return self.write_initiation(now, out);
        }
        if self.keepalive_at.is_some_and(|at| at <= now) {
            self.keepalive_at = None;
            if let Sealed::Bytes(length) = self.seal(now, &[], out) {
                return Some(length).filter(|length| *length > 0);
            }
        }
        None
    }

    fn write_initiation(&mut self, now: Instant, out: &mut [u8]) -> Option<usize> {
        self.stamp();
        let TunnResult::WriteToNetwork(message) = self.tunn.format_handshake_initiation(out, true) else {
            return None;
        };
        let length = message.len();
        self.superseded.extend(self.unanswered);
        if self.superseded.len() > MAX_SUPERSEDED {
            self.superseded.pop_front();
        }
        self.unanswered = index_at(message, 4).map(|local| Initiation { local, sent: now });
        self.last_initiation = Some(now);
        self.keepalive_at = None;
        if let Some(attempt) = &mut self.attempt {
            attempt.next = now + retry_after(attempt.sent).max(attempt.patience);
            attempt.not_before = now + attempt.patience;
            attempt.sent = attempt.sent.saturating_add(1);
        }
        Some(length)
    }

    /// Lets boringtun note the time and drop what has ended by its own clock. What it would send is discarded.
    fn stamp(&mut self) {
        let mut discarded = [0; HANDSHAKE_ROOM];
        if matches!(self.tunn.update_timers(&mut discarded), TunnResult::Err(WireGuardError::ConnectionExpired)) {
            self.keys.clear();
        }
    }

    /// When something is due. Without a path, nothing that would have to be sent is.
    pub fn poll_timeout(&self, has_path: bool) -> Option<Instant> {
        let give_up = self.attempt.and(self.last_wanted).map(|last| last + GIVE_UP_AFTER);
        let expire = self.keys.newest().map(|newest| newest + EXPIRE_AFTER);
        let initiation = self.attempt.filter(|_| has_path).map(|attempt| attempt.next);
        let keepalive = self.keepalive_at.filter(|_| has_path);
        [give_up, expire, initiation, keepalive, self.no_answer_at].into_iter().flatten().min()
    }

    /// Lets what is due happen; what is to be sent for it comes from [`Session::poll_transmit`].
    pub fn handle_timeout(&mut self, now: Instant, identity: &Identity) {
        if self.no_answer_at.is_some_and(|at| at <= now) {
            self.no_answer_at = None;
            self.begin_handshake(now, 0);
        }
        if self.attempt.is_some() && self.last_wanted.is_none_or(|last| now >= last + GIVE_UP_AFTER) {
            self.end_attempt();
            self.unanswered = None;
            self.waiting.clear();
        }
        if self.keys.newest().is_some_and(|newest| now >= newest + EXPIRE_AFTER) {
            self.keys.clear();
            self.keepalive_at = None;
            // The one call of boringtun that drops all keys and keeps the peer's last timestamp.
            self.tunn.set_static_private(identity.private(), identity.public(), Some(identity.limiter()));
        }
    }
}

/// First byte of a data message.
const DATA_TYPE: u8 = 4;
/// No IP packet of ours is longer.
const MAX_PACKET: usize = 1500;

fn index_at(message: &[u8], offset: usize) -> Option<u32> {
    message.get(offset..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}
