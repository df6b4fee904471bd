use std::time::{Duration, Instant};

use super::*;
use crate::key::NodePrivate;

/// Two sessions and the datagrams between them; time is counted from a start that nobody looks at.
struct Pair {
    start: Instant,
    elapsed: Duration,
    left: Side,
    right: Side,
    /// Messages that the test lets arrive; `false` loses them.
    deliver: bool,
}

struct Side {
    identity: Identity,
    session: Session,
    received: Vec<Vec<u8>>,
    initiations: Vec<Duration>,
}

impl Side {
    fn new(own: u8, peer: u8, index: u32) -> Self {
        let identity = Identity::new(&NodePrivate::from_bytes([own; 32]));
        let session = Session::new(&identity, &NodePrivate::from_bytes([peer; 32]).public(), index);
        Self { identity, session, received: Vec::new(), initiations: Vec::new() }
    }

    /// Gives the message to the session; returns its answer.
    fn take(&mut self, now: Instant, message: &[u8]) -> Option<Vec<u8>> {
        let mut out = vec![0; 2048];
        if message[0] == DATA_TYPE {
            if let Ok(Some(length)) = self.session.open(now, message, &mut out) {
                self.received.push(out[..length].to_vec());
            }
            return None;
        }
        let length = self.session.handle_handshake(now, None, message, &mut out).ok()?;
        (length > 0).then(|| out[..length].to_vec())
    }

    fn drain(&mut self, now: Instant, elapsed: Duration) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        let mut out = vec![0; 2048];
        self.session.handle_timeout(now, &self.identity);
        while let Some(length) = self.session.poll_transmit(now, &mut out) {
            if out[0] == 1 {
                self.initiations.push(elapsed);
            }
            messages.push(out[..length].to_vec());
        }
        while let Sealed::Bytes(length) = self.session.seal_waiting(now, &mut out) {
            if length == 0 {
                break;
            }
            messages.push(out[..length].to_vec());
        }
        messages
    }
}

impl Pair {
    #[expect(clippy::disallowed_methods, reason = "virtual time needs an origin")]
    fn new() -> Self {
        let (left, right) = (Side::new(1, 2, 0x1234), Side::new(2, 1, 0xfffffe));
        Self { start: Instant::now(), elapsed: Duration::ZERO, left, right, deliver: true }
    }

    fn now(&self) -> Instant {
        self.start + self.elapsed
    }

    fn send_left(&mut self, content: &[u8]) {
        let now = self.now();
        Self::send(&mut self.left, now, content);
        self.exchange();
    }

    fn send_right(&mut self, content: &[u8]) {
        let now = self.now();
        Self::send(&mut self.right, now, content);
        self.exchange();
    }

    fn send(side: &mut Side, now: Instant, content: &[u8]) {
        // As the node does it: behind what waits already.
        side.session.wait(now, content);
    }

    /// Lets messages flow until there are none, in no time.
    fn exchange(&mut self) {
        let now = self.now();
        for round in 0.. {
            assert!(round < 100, "the two never stop talking");
            let (mut to_right, mut to_left) = (self.left.drain(now, self.elapsed), self.right.drain(now, self.elapsed));
            if !self.deliver || (to_left.is_empty() && to_right.is_empty()) {
                return;
            }
            while !to_left.is_empty() || !to_right.is_empty() {
                let answers: Vec<_> = to_right.drain(..).filter_map(|message| self.right.take(now, &message)).collect();
                to_right.extend(to_left.drain(..).filter_map(|message| self.left.take(now, &message)));
                to_left = answers;
            }
        }
    }

    /// Lets time pass, stopping at every timeout.
    fn pass(&mut self, time: Duration) {
        let end = self.elapsed + time;
        for step in 0.. {
            assert!(step < 10_000, "a timer storm");
            self.exchange();
            let next = [&self.left, &self.right].into_iter().filter_map(|side| side.session.poll_timeout(true)).min();
            match next.map(|at| at.saturating_duration_since(self.start)) {
                Some(at) if at <= end => self.elapsed = self.elapsed.max(at),
                _ => break,
            }
        }
        self.elapsed = end;
    }
}

/// An IPv4 packet as far as boringtun looks at it.
fn packet(number: u8) -> Vec<u8> {
    let mut packet = vec![number; 60];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&60_u16.to_be_bytes());
    packet
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_first_packet_makes_a_session_and_arrives() {
    let mut pair = Pair::new();
    pair.send_left(&packet(1));
    assert_eq!(pair.right.received, [packet(1)]);
    pair.send_right(&packet(2));
    assert_eq!(pair.left.received, [packet(2)]);
    assert_eq!(pair.left.initiations.len() + pair.right.initiations.len(), 1);
}

#[test]
fn both_may_begin_at_once() {
    let mut pair = Pair::new();
    let now = pair.now();
    Pair::send(&mut pair.left, now, &packet(1));
    Pair::send(&mut pair.right, now, &packet(2));
    pair.exchange();
    pair.pass(SECOND);
    assert_eq!((pair.right.received.len(), pair.left.received.len()), (1, 1));
}

#[test]
fn initiations_follow_the_schedule_and_end_90_s_after_the_last_packet() {
    let mut pair = Pair::new();
    pair.deliver = false;
    pair.send_left(&packet(1));
    pair.pass(300 * SECOND);
    let millis: Vec<u128> = pair.left.initiations.iter().map(Duration::as_millis).collect();
    assert_eq!(millis[..8], [0, 250, 500, 1000, 2000, 4000, 9000, 14_000]);
    let last = *millis.last().unwrap();
    assert!((80_000..=90_000).contains(&last), "{last}");
    assert_eq!(pair.left.session.poll_timeout(true), None);
    assert!(!pair.left.session.has_waiting());
}

#[test]
fn a_nudge_tries_at_once_and_goes_back_to_short_intervals() {
    let mut pair = Pair::new();
    pair.deliver = false;
    pair.send_left(&packet(1));
    pair.pass(8 * SECOND);
    let before = pair.left.initiations.len();
    let now = pair.now();
    pair.left.session.nudge(now);
    pair.pass(SECOND);
    let millis: Vec<u128> = pair.left.initiations[before..].iter().map(Duration::as_millis).collect();
    assert_eq!(millis, [8000, 8250, 8500, 9000]);
}

#[test]
fn the_initiator_rekeys_after_120_s_and_no_packet_is_lost() {
    let mut pair = Pair::new();
    for second in 0..400_u32 {
        pair.send_left(&packet(second as u8));
        pair.send_right(&packet(second as u8));
        pair.pass(SECOND);
    }
    assert_eq!((pair.left.received.len(), pair.right.received.len()), (400, 400));
    let seconds: Vec<u64> = pair.left.initiations.iter().map(Duration::as_secs).collect();
    assert_eq!(seconds, [0, 120, 240, 360]);
    assert!(pair.right.initiations.is_empty(), "the responder doesn't rekey");
}

#[test]
fn keys_older_than_180_s_are_used_no_more() {
    let mut pair = Pair::new();
    pair.send_left(&packet(1));
    let mut old = vec![0; 256];
    let now = pair.now();
    let Sealed::Bytes(length) = pair.left.session.seal(now, &packet(9), &mut old) else { panic!() };
    pair.pass(179 * SECOND);
    assert!(pair.left.session.has_keys(pair.now()));
    pair.pass(SECOND);
    assert!(!pair.left.session.has_keys(pair.now()));
    let now = pair.now();
    let opened = pair.right.session.open(now, &old[..length], &mut [0; 256]);
    assert_eq!(opened, Err(SessionError::NoKeys));
    pair.send_left(&packet(2));
    assert_eq!(pair.right.received.len(), 2);
    assert_eq!(pair.left.initiations.len(), 2);
}

#[test]
fn who_only_receives_answers_with_a_keepalive_after_10_s() {
    let mut pair = Pair::new();
    pair.send_left(&packet(1));
    // The answer keeps the sender from asking for new keys.
    pair.pass(60 * SECOND);
    assert_eq!(pair.left.initiations.len(), 1);
}

#[test]
fn silence_for_15_s_after_data_asks_for_new_keys() {
    let mut pair = Pair::new();
    pair.send_left(&packet(1));
    pair.pass(11 * SECOND);
    // The right side restarts with the same key and knows nothing.
    pair.right = Side::new(2, 1, 77);
    pair.send_left(&packet(2));
    pair.pass(16 * SECOND);
    let seconds: Vec<u64> = pair.left.initiations.iter().map(Duration::as_secs).collect();
    assert_eq!(seconds, [0, 26]);
    pair.send_left(&packet(3));
    assert_eq!(pair.right.received, [packet(3)]);
}

#[test]
fn everything_is_wiped_after_540_s_and_works_again_afterwards() {
    let mut pair = Pair::new();
    pair.send_left(&packet(1));
    pair.pass(600 * SECOND);
    assert_eq!(pair.left.session.established(), None);
    assert_eq!((pair.left.session.poll_timeout(true), pair.right.session.poll_timeout(true)), (None, None));
    pair.send_right(&packet(2));
    assert_eq!(pair.left.received, [packet(2)]);
}

/// Lets the left side send an initiation after so many milliseconds.
fn initiation(pair: &mut Pair, millis: u64) -> Vec<u8> {
    pair.elapsed = Duration::from_millis(millis);
    pair.left.drain(pair.now(), pair.elapsed).remove(0)
}

/// Go's responder deletes the keys of an initiation when it takes the next one.
#[test]
fn only_the_answer_to_the_latest_initiation_makes_keys() {
    for late_first in [true, false] {
        let mut pair = Pair::new();
        let now = pair.now();
        Pair::send(&mut pair.left, now, &packet(1));
        let [first, second] = [0, 250].map(|millis| initiation(&mut pair, millis));
        let now = pair.now();
        let [late, answer] = [first, second].map(|message| pair.right.take(now, &message).unwrap());
        if late_first {
            assert!(pair.left.take(now, &late).is_none());
            assert!(!pair.left.session.has_keys(now) && pair.left.session.attempt.is_some());
        }
        assert!(pair.left.take(now, &answer).is_some());
        assert!(pair.left.session.attempt.is_none());
        assert!(pair.left.take(now, &late).is_none());
        let sealed = pair.left.drain(now, pair.elapsed).remove(0);
        assert_eq!(index_at(&sealed, 4), index_at(&answer, 4), "sealed for the keys that the peer still has");
        assert!(pair.right.take(now, &sealed).is_none());
        assert_eq!(pair.right.received, [packet(1)]);
    }
}

#[test]
fn a_lost_answer_to_the_latest_initiation_is_asked_for_again() {
    let mut pair = Pair::new();
    let now = pair.now();
    Pair::send(&mut pair.left, now, &packet(1));
    let [first, second] = [0, 250].map(|millis| initiation(&mut pair, millis));
    let now = pair.now();
    let answer = pair.right.take(now, &first).unwrap();
    assert!(pair.right.take(now, &second).is_some(), "and is lost");
    assert!(pair.left.take(now, &answer).is_none());
    pair.pass(10 * SECOND);
    assert_eq!(pair.right.received, [packet(1)]);
    assert!(pair.left.session.attempt.is_none() && pair.left.session.unanswered.is_none());
}

/// There and back takes longer than the first retries wait.
#[test]
fn a_long_path_costs_one_round_trip_more_and_no_storm() {
    for one_way in [300, 800, 1500].map(Duration::from_millis) {
        a_long_path(one_way);
    }
}

fn a_long_path(one_way: Duration) {
    let mut pair = Pair::new();
    let now = pair.now();
    Pair::send(&mut pair.left, now, &packet(1));
    let mut under_way: Vec<(Duration, bool, Vec<u8>)> = Vec::new();
    for _ in 0..10_000 {
        let (now, elapsed) = (pair.now(), pair.elapsed);
        let due = under_way.extract_if(.., |(at, ..)| *at <= elapsed).collect::<Vec<_>>();
        for (_, to_right, message) in due {
            let side = if to_right { &mut pair.right } else { &mut pair.left };
            under_way.extend(side.take(now, &message).map(|answer| (elapsed + one_way, !to_right, answer)));
        }
        for message in pair.left.drain(now, elapsed) {
            under_way.push((elapsed + one_way, true, message));
        }
        // What is heard of the peer meanwhile brings no initiation that overtakes the answer.
        pair.left.session.handle_path(now);
        pair.elapsed += Duration::from_millis(1);
        if !pair.right.received.is_empty() {
            break;
        }
    }
    assert_eq!(pair.right.received, [packet(1)]);
    assert!(pair.elapsed <= 5 * one_way + Duration::from_millis(300), "{one_way:?}: {:?}", pair.elapsed);
    // One each 250 ms, as something hurries them, until the first late answer.
    let most = 2 + (2 * one_way).as_millis() / 250;
    assert!(pair.left.initiations.len() as u128 <= most, "{one_way:?}: {:?}", pair.left.initiations);
}

#[test]
fn a_relay_that_says_the_peer_is_not_there_brings_the_next_try_near_for_some_seconds() {
    let mut pair = Pair::new();
    pair.deliver = false;
    pair.send_left(&packet(1));
    for _ in 0..100 {
        let now = pair.now();
        pair.left.session.handle_absent(now);
        pair.pass(Duration::from_millis(100));
    }
    let tries = &pair.left.initiations;
    let longest = tries.windows(2).filter(|pair| pair[1] <= 5 * SECOND).map(|pair| pair[1] - pair[0]).max();
    assert_eq!(longest, Some(Duration::from_millis(250)));
    assert!(tries.len() < 30, "{tries:?}");
}

#[test]
fn good_keys_are_renewed_without_haste() {
    let mut pair = Pair::new();
    pair.send_left(&packet(1));
    pair.pass(120 * SECOND);
    pair.deliver = false;
    pair.send_left(&packet(2));
    pair.pass(9 * SECOND);
    let millis: Vec<u128> = pair.left.initiations[1..].iter().map(Duration::as_millis).collect();
    assert_eq!(millis, [120_000, 121_000, 123_000, 128_000]);
}

#[test]
fn the_oldest_waiting_packet_is_dropped() {
    let mut pair = Pair::new();
    let now = pair.now();
    for number in 0..=MAX_WAITING {
        pair.left.session.wait(now, &packet(number as u8));
    }
    pair.exchange();
    assert_eq!(pair.right.received.len(), MAX_WAITING);
    assert_eq!(pair.right.received[0], packet(1));
}

#[test]
fn replays_and_forgeries_are_told_apart() {
    let mut pair = Pair::new();
    pair.send_left(&packet(1));
    let (now, mut out) = (pair.now(), vec![0; 256]);
    let mut sealed = vec![0; 256];
    let Sealed::Bytes(length) = pair.left.session.seal(now, &packet(2), &mut sealed) else { panic!() };
    let right = &mut pair.right.session;
    let mut forged = sealed[..length].to_vec();
    forged[20] ^= 1;
    assert_eq!(right.open(now, &forged, &mut out), Err(SessionError::Forged));
    assert_eq!(right.open(now, &sealed[..length], &mut out), Ok(Some(60)));
    assert_eq!(right.open(now, &sealed[..length], &mut out), Err(SessionError::Replayed));
    assert_eq!(right.open(now, &sealed[..10], &mut out), Err(SessionError::Malformed));
    assert_eq!(right.open(now, &sealed[..length], &mut [0; 8]), Err(SessionError::Malformed));
    assert_eq!(pair.left.session.seal(now, &packet(3), &mut [0; 80]), Sealed::NoRoom);
}

#[test]
fn a_peer_that_only_makes_old_initiations_is_asked_for_keys() {
    let mut pair = Pair::new();
    let now = pair.now();
    Pair::send(&mut pair.left, now, &packet(1));
    // One that is overtaken: to the right side, as if it had been made by a clock that was set back.
    let old = pair.left.drain(now, pair.elapsed).remove(0);
    pair.pass(SECOND);
    assert_eq!(pair.right.received.len(), 1);

    // Networks repeat packets: while the peer is heard, that means nothing.
    let now = pair.now();
    assert_eq!(pair.right.take(now, &old), None);
    pair.exchange();
    assert_eq!(pair.right.initiations, []);

    pair.pass(30 * SECOND);
    let now = pair.now();
    let mut out = [0; HANDSHAKE_ROOM];
    assert_eq!(pair.right.session.handle_handshake(now, None, &old, &mut out), Err(SessionError::Replayed));
    pair.exchange();
    assert_eq!(pair.right.initiations.len(), 1, "it asks, and is answered");
    assert!(pair.right.session.established() == Some(now) && pair.left.session.established() == Some(now));
    // Who repeats it once more meets a peer that was just heard.
    assert_eq!(pair.right.take(now, &old), None);
    pair.exchange();
    assert_eq!(pair.right.initiations.len(), 1);
}

#[test]
fn a_handshake_flood_meets_cookies_and_whoever_returns_one_is_served() {
    use super::super::handshake::{Admission, COOKIE_ROOM, Gate, Source};
    let mut pair = Pair::new();
    let now = pair.now();
    let source = Source::Udp([192, 0, 2, 1].into());
    let mut gate = Gate::new(&pair.right.identity);
    let (mut out, mut reply) = ([0; 256], [0; COOKIE_ROOM]);
    let mut admitted = 0;
    let challenge = loop {
        pair.left.session.begin_handshake(now, 0);
        pair.left.session.attempt.as_mut().unwrap().next = now;
        let length = pair.left.session.poll_transmit(now, &mut out).unwrap();
        match gate.admit(now, &pair.right.identity, source, &out[..length], &mut reply).unwrap() {
            Admission::From(_) => admitted += 1,
            Admission::Challenge(length) => break length,
        }
        assert!(admitted < 10_000, "no bound");
    };
    assert_eq!(pair.left.session.handle_handshake(now, None, &reply[..challenge], &mut [0; 256]), Ok(0));
    pair.left.session.attempt.as_mut().unwrap().next = now;
    let length = pair.left.session.poll_transmit(now, &mut out).unwrap();
    let admission = gate.admit(now, &pair.right.identity, source, &out[..length], &mut reply);
    assert!(matches!(admission, Ok(Admission::From(key)) if key == NodePrivate::from_bytes([1; 32]).public()));
    out[120] ^= 1;
    let admission = gate.admit(now, &pair.right.identity, source, &out[..length], &mut reply);
    assert_eq!(admission, Err(SessionError::WrongMac));
}
