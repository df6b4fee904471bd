use super::*;

const SEGMENT: u32 = 1000;
const START: u32 = u32::MAX - 20_000;

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn acknowledgement(segments: u32) -> Segment {
    let acknowledgement = START.wrapping_add(segments * SEGMENT);
    Segment { sequence: 1, acknowledgement, flags: tcp::ACK, window: 60_000, length: 0 }
}

fn with_sack(from: u32, segments: u32) -> Options {
    let from = START.wrapping_add(from * SEGMENT);
    Options { sacked_from: Some(from), sacked: (segments * SEGMENT) as usize, ..Options::default() }
}

/// A sender that has sent so many segments at 100 ms, on a path of 40 ms that is known.
fn sender(segments: u32) -> (Sender, u32) {
    let mut sender = Sender::new(SEGMENT as usize);
    let syn = Options { window_scale: Some(4), sack_permitted: true, ..Options::default() };
    let handshake = Segment { flags: tcp::SYN | tcp::ACK, ..acknowledgement(0) };
    assert!(sender.read(ms(0), handshake, syn, Some(START), true));
    let first = START.wrapping_add(SEGMENT);
    sender.handle_sent(ms(60), first, first, true);
    assert!(sender.read(ms(100), acknowledgement(1), Options::default(), Some(first), true));
    assert_eq!(sender.window.round_trip(), Some(ms(40)));
    let sent = START.wrapping_add(segments * SEGMENT);
    sender.handle_sent(ms(100), sent, sent, true);
    (sender, sent)
}

#[test]
fn what_is_overtaken_for_a_moment_is_not_repeated_and_what_is_lost_is() {
    let (mut sender, sent) = sender(10);
    for n in 1..=4 {
        assert!(!sender.read(ms(140), acknowledgement(1), with_sack(2, n), Some(sent), true), "no news");
    }
    assert_eq!(sender.repair_at(sent), Some(ms(145)), "an eighth of a round trip later");
    assert_eq!(sender.poll_repair(ms(144), sent), None);
    let mut late = sender.clone();
    assert!(late.read(ms(144), acknowledgement(6), Options::default(), Some(sent), true));
    assert_eq!(late.poll_repair(ms(150), sent), None, "it came");
    assert_eq!(sender.poll_repair(ms(145), sent), Some(Repair::First));
    assert_eq!(sender.poll_repair(ms(146), sent), None, "once");
    assert_eq!(sender.repair_at(sent), Some(ms(145 + 105)), "and again when that was in vain");
}

#[test]
fn a_hole_is_repeated_whole_and_the_next_one_at_once() {
    let (mut sender, sent) = sender(12);
    for n in 6..=8 {
        sender.read(ms(140), acknowledgement(1), with_sack(4, n), Some(sent), true);
    }
    assert_eq!(sender.poll_repair(ms(145), sent), Some(Repair::Hole));
    assert!(sender.shown_window(ms(145)).unwrap() <= (3 * 1000) >> 4, "no more than the hole");
    assert!(sender.read(ms(185), acknowledgement(7), with_sack(8, 4), Some(sent), true));
    assert_eq!(sender.poll_repair(ms(185), sent), Some(Repair::First));
    assert!(sender.read(ms(225), acknowledgement(12), Options::default(), Some(sent), true));
    assert!(sender.recovery.is_none() && sender.missing.is_none());
    assert_eq!(sender.repair_at(sent), None);
}

#[test]
fn what_came_twice_is_no_loss() {
    let (mut sender, sent) = sender(10);
    for _ in 0..9 {
        assert!(!sender.read(ms(140), acknowledgement(1), Options::default(), Some(sent), true));
    }
    assert!(sender.missing.is_none());
}

#[test]
fn the_last_of_a_burst_is_asked_for_after_two_round_trips_and_ever_less_often() {
    let (mut sender, sent) = sender(5);
    let mut at = ms(100);
    for pause in [105, 210, 420, 840] {
        assert_eq!(sender.repair_at(sent), Some(at + ms(pause)));
        at += ms(pause);
        assert_eq!(sender.poll_repair(at, sent), Some(Repair::First));
    }
    assert_eq!(sender.repair_at(sent), None, "the rest is the engine's pauses");
    // The peer is back, and has nothing of what followed.
    assert!(sender.read(ms(9_000), acknowledgement(2), Options::default(), Some(sent), true));
    assert_eq!(sender.poll_repair(ms(9_000), sent), Some(Repair::Hole));
}

#[test]
fn no_window_of_the_peer_is_exceeded_and_none_is_closed_that_is_open() {
    let (mut sender, sent) = sender(5);
    assert_eq!(sender.shown_window(ms(100)), Some(11_000 >> 4), "ten segments, and the one that arrived");
    let narrow = Segment { window: 3, ..acknowledgement(5) };
    assert!(sender.read(ms(140), narrow, Options::default(), Some(sent), true));
    assert_eq!(sender.shown_window(ms(140)), Some(3));
    let closed = Segment { window: 0, ..narrow };
    assert!(sender.read(ms(141), closed, Options::default(), Some(sent), true));
    assert_eq!(sender.shown_window(ms(141)), Some(0));
}
