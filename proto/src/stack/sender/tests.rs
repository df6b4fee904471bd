use super::*;

const SEGMENT: u32 = 1000;
const START: u32 = u32::MAX - 20_000;

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn only(part: Range<usize>) -> Option<Vec<Range<usize>>> {
    Some(Vec::from_iter([part]))
}

fn acknowledgement(segments: u32) -> Segment {
    let acknowledgement = START.wrapping_add(segments * SEGMENT);
    Segment { sequence: 1, acknowledgement, flags: tcp::ACK, window: 60_000, length: 0 }
}

fn with_sack(from: u32, segments: u32) -> Options {
    let from = START.wrapping_add(from * SEGMENT);
    let selected = [Some((from, from.wrapping_add(segments * SEGMENT))), None, None, None];
    Options { selected, ..Options::default() }
}

/// The engine writes so many segments from there on.
fn write(sender: &mut Sender, now: u64, from: u32, segments: u32) -> Option<Vec<Range<usize>>> {
    let (sequence, length) = (START.wrapping_add(from * SEGMENT), segments * SEGMENT);
    let parts = sender.send(ms(now), Segment { sequence, length, ..acknowledgement(0) });
    sender.handle_sent(ms(now), true);
    parts
}

/// A sender that has sent so many segments at 100 ms, on a path of 40 ms that is known.
fn sender(segments: u32) -> (Sender, u32) {
    let mut sender = Sender::new(SEGMENT as usize);
    let syn = Options { window_scale: Some(4), sack_permitted: true, ..Options::default() };
    let handshake = Segment { flags: tcp::SYN | tcp::ACK, ..acknowledgement(0) };
    assert!(sender.read(ms(0), handshake, syn, Some(START), true));
    sender.edge = START.wrapping_add(60_000 << 4);
    write(&mut sender, 60, 0, 1);
    let first = START.wrapping_add(SEGMENT);
    assert!(sender.read(ms(100), acknowledgement(1), Options::default(), Some(first), true));
    assert_eq!(sender.window.round_trip(), Some(ms(40)));
    write(&mut sender, 100, 1, segments - 1);
    (sender, START.wrapping_add(segments * SEGMENT))
}

#[test]
fn what_is_overtaken_for_a_moment_is_not_repeated_and_what_is_lost_is() {
    let (mut sender, sent) = sender(10);
    for n in 1..=4 {
        assert!(!sender.read(ms(140), acknowledgement(1), with_sack(2, n), Some(sent), true), "no news");
    }
    assert_eq!(sender.repair_at(), Some(ms(145)), "an eighth of a round trip later");
    assert!(!sender.poll_repair(ms(144)));
    let mut late = sender.clone();
    assert!(late.read(ms(144), acknowledgement(6), Options::default(), Some(sent), true));
    assert!(!late.poll_repair(ms(150)), "it came");
    assert!(sender.poll_repair(ms(145)));
    assert_eq!(write(&mut sender, 145, 1, 9), only(0..1000), "and nothing else");
    assert!(!sender.poll_repair(ms(146)), "once");
    assert_eq!(sender.repair_at(), Some(ms(140 + 105)), "and again when that was in vain");
}

#[test]
fn all_holes_are_repeated_in_one_go() {
    let (mut sender, sent) = sender(12);
    sender.read(ms(140), acknowledgement(1), with_sack(2, 1), Some(sent), true);
    sender.read(ms(140), acknowledgement(1), with_sack(5, 1), Some(sent), true);
    sender.read(ms(140), acknowledgement(1), with_sack(9, 3), Some(sent), true);
    assert!(sender.poll_repair(ms(145)));
    assert_eq!(sender.lost, 6000);
    assert_eq!(write(&mut sender, 145, 1, 5), Some(vec![0..1000, 2000..4000]));
    assert!(!sender.poll_repair(ms(145)), "the engine comes to the rest by itself");
    assert_eq!(write(&mut sender, 145, 6, 6), only(0..3000));
    assert!(sender.read(ms(185), acknowledgement(12), Options::default(), Some(sent), true));
    assert_eq!(sender.repair_at(), None);
}

#[test]
fn what_is_lost_is_repeated_as_far_as_the_window_lets() {
    let (mut sender, sent) = sender(60);
    sender.window.handle_loss(5 * SEGMENT as usize, 5 * SEGMENT as usize);
    sender.read(ms(140), acknowledgement(1), with_sack(30, 30), Some(sent), true);
    let size = sender.window.size();
    assert!((4000..20_000).contains(&size), "{size}");
    let shown = u16::try_from(size >> 4).unwrap();
    assert!(sender.poll_repair(ms(145)));
    assert_eq!(sender.shown_window(ms(145)), Some(shown));
    assert_eq!(write(&mut sender, 145, 1, 3), None);
    assert_eq!(sender.shown_window(ms(145)), Some(shown), "of which three are under way");
    assert!(!sender.poll_repair(ms(146)), "the engine stands where it is to go on");
    assert_eq!(write(&mut sender, 146, 4, 1), None);
}

#[test]
fn what_came_twice_is_no_loss() {
    let (mut sender, sent) = sender(10);
    for _ in 0..9 {
        assert!(!sender.read(ms(140), acknowledgement(1), Options::default(), Some(sent), true));
    }
    assert!(!sender.poll_repair(ms(150)));
}

#[test]
fn a_peer_that_does_not_say_what_it_has_says_thrice_what_it_lacks() {
    let (mut sender, sent) = sender(10);
    sender.is_selective = false;
    for _ in 0..3 {
        assert!(!sender.poll_repair(ms(140)));
        sender.read(ms(140), acknowledgement(1), Options::default(), Some(sent), true);
    }
    assert!(sender.poll_repair(ms(140)));
    assert_eq!(write(&mut sender, 140, 1, 9), only(0..1000));
}

#[test]
fn the_last_of_a_burst_is_asked_for_after_two_round_trips_and_ever_less_often() {
    let (mut sender, sent) = sender(5);
    let mut at = ms(100);
    for (pause, parts) in [(105, only(0..1000)), (210, None), (420, None), (840, None)] {
        assert_eq!(sender.repair_at(), Some(at + ms(pause)));
        at += ms(pause);
        assert!(sender.poll_repair(at));
        assert!(sender.shown_window(at).unwrap() > 0);
        let now = u64::try_from(at.as_millis()).unwrap();
        assert_eq!(write(&mut sender, now, 1, 4), parts, "the first alone at first, then all");
    }
    assert_eq!(sender.repair_at(), None, "the rest is the engine's pauses");
    // The peer is back, and has nothing of what followed.
    assert!(sender.read(ms(9_000), acknowledgement(2), Options::default(), Some(sent), true));
    assert!(sender.repair_at().is_some());
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
    // A question whether it is open still isn't what was sent there.
    assert_eq!(sender.send(ms(142), Segment { sequence: sent, length: 1, ..acknowledgement(0) }), None);
    assert_eq!(sender.board.unwrap().length(), 0);
}

#[test]
fn what_the_peer_has_thrown_away_again_is_repeated() {
    let (mut sender, sent) = sender(5);
    sender.read(ms(140), acknowledgement(1), with_sack(1, 4), Some(sent), true);
    assert!(sender.poll_repair(ms(245)));
    assert!(sender.poll_repair(ms(455)));
    assert_eq!(write(&mut sender, 455, 1, 4), None, "though it said that it had it");
}

#[test]
fn an_acknowledgement_of_what_was_never_sent_is_no_beginning() {
    let mut sender = Sender::new(SEGMENT as usize);
    assert!(sender.read(ms(0), acknowledgement(77), Options::default(), Some(START), true));
    assert_eq!(sender.acknowledged(), None);
    assert!(sender.read(ms(0), acknowledgement(0), Options::default(), Some(START), true));
    assert_eq!(sender.acknowledged(), Some(START));
}

#[test]
fn what_begins_before_what_is_acknowledged_goes_out_from_there_on() {
    let (mut sender, sent) = sender(10);
    sender.read(ms(140), acknowledgement(3), Options::default(), Some(sent), true);
    sender.give_up();
    assert_eq!(write(&mut sender, 150, 1, 4), only(2000..4000));
    assert_eq!(write(&mut sender, 150, 0, 1), None, "a question");
    assert_eq!(sender.number(sent), sent);
    sender.edge = START;
    assert_eq!(sender.number(sent), START);
}
