use super::*;

/// Numbers go around the corner after 1000 bytes.
const START: u32 = u32::MAX - 999;
const ROUND_TRIP: Duration = Duration::from_millis(64);
const REORDERING: Duration = Duration::from_millis(8);

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn only(part: Range<usize>) -> Option<Vec<Range<usize>>> {
    Some(Vec::from_iter([part]))
}

fn at(offset: u32) -> u32 {
    START.wrapping_add(offset)
}

/// A thousand bytes sent every 10 ms, so often, from the time zero on.
fn sent(times: u32) -> Scoreboard {
    let mut board = Scoreboard::new(START);
    for time in 0..times {
        assert_eq!(board.send(ms(10) * time, at(time * 1000), 1000, ROUND_TRIP), None, "all of it is new");
    }
    board
}

fn select(board: &mut Scoreboard, now: u64, from: u32, to: u32) -> usize {
    board.select(ms(now), at(from)..at(to), ROUND_TRIP).bytes
}

#[test]
fn each_byte_is_told_to_have_arrived_once() {
    let mut board = sent(5);
    assert_eq!(board.acknowledge(ms(64), at(1000), ROUND_TRIP), News { bytes: 1000, round_trip: Some(ms(64)) });
    assert_eq!(select(&mut board, 84, 2000, 3000), 1000);
    assert_eq!(select(&mut board, 84, 2000, 3000), 0);
    assert_eq!(select(&mut board, 94, 1500, 4000), 1500);
    assert_eq!((board.length(), board.under_way()), (4000, 1500));
    assert_eq!(board.acknowledge(ms(104), at(5000), ROUND_TRIP), News { bytes: 1500, round_trip: Some(ms(64)) });
    assert_eq!((board.length(), board.under_way()), (0, 0));
}

#[test]
fn what_cannot_be_is_not_heeded() {
    let mut board = sent(3);
    board.acknowledge(ms(64), at(1000), ROUND_TRIP);
    assert_eq!(select(&mut board, 70, 2000, 3001), 0, "more than was sent");
    assert_eq!(select(&mut board, 70, 3000, 2000), 0, "nothing");
    assert_eq!(select(&mut board, 70, 0, 1000), 0, "what is acknowledged (RFC 2883)");
    assert_eq!(select(&mut board, 70, 500, 1500), 500, "and more");
    for byte in 0..400 {
        select(&mut board, 70, 1600 + 3 * byte, 1601 + 3 * byte);
    }
    assert!(board.stretches.len() <= MOST_STRETCHES);
}

#[test]
fn what_was_overtaken_is_lost_after_a_while_and_once_more_when_it_was_repeated() {
    let mut board = sent(4);
    assert_eq!(board.lost_at(REORDERING), None);
    select(&mut board, 74, 1000, 2000);
    assert_eq!(board.lost_at(REORDERING), Some(ms(64 + 8)), "the first, sent at the time zero");
    assert_eq!(board.find_lost(ms(71), REORDERING), 0);
    assert_eq!(board.find_lost(ms(74), REORDERING), 1000);
    assert_eq!((board.first_lost(), board.under_way()), (Some(0), 2000));
    // The engine goes back; of what it writes, only that goes out.
    assert_eq!(board.send(ms(74), at(0), 3000, ROUND_TRIP), only(0..1000));
    assert_eq!(board.send(ms(74), at(3000), 2000, ROUND_TRIP), only(1000..2000), "what is new follows");
    assert_eq!(board.first_lost(), None);
    // What was sent before the repetition says nothing of it.
    select(&mut board, 84, 2000, 3000);
    select(&mut board, 94, 3000, 4000);
    assert_eq!(board.lost_at(REORDERING), None);
    select(&mut board, 139, 4000, 5000);
    assert_eq!(board.lost_at(REORDERING), Some(ms(74 + 65 + 8)));
    assert_eq!(board.find_lost(ms(147), REORDERING), 1000);
}

#[test]
fn what_comes_sooner_than_it_can_was_sent_before_it_was_repeated() {
    let mut board = sent(2);
    board.give_up(1000);
    assert_eq!(board.send(ms(60), at(0), 1000, ROUND_TRIP), None);
    let news = board.acknowledge(ms(66), at(1000), ROUND_TRIP);
    assert_eq!(news, News { bytes: 1000, round_trip: None });
    assert_eq!(board.lost_at(REORDERING), None, "so the rest isn't late");
}

#[test]
fn what_is_given_up_is_what_nobody_knows_of() {
    let mut board = sent(3);
    select(&mut board, 84, 0, 500);
    board.give_up(700);
    assert_eq!((board.first_lost(), board.under_way()), (Some(500), 1800));
    board.give_up(10_000);
    assert_eq!(board.under_way(), 0);
    assert_eq!(board.position(600), 1100);
    assert_eq!(board.position(2500), 3000);
    assert_eq!(board.position(2600), 3100, "and then what is new");
}

#[test]
fn a_round_ends_when_its_last_byte_has_arrived_or_a_later_one() {
    let mut board = sent(3);
    let since = board.sent_at(at(2000)).unwrap();
    assert_eq!(since, ms(10));
    select(&mut board, 80, 1000, 1900);
    assert!(!board.has_arrived(since, at(2000)));
    let mut other = board.clone();
    select(&mut board, 80, 1900, 2000);
    assert!(board.has_arrived(since, at(2000)));
    select(&mut other, 84, 2000, 2100);
    assert!(other.has_arrived(since, at(2000)));
}

#[test]
fn what_is_sent_within_a_moment_is_one_stretch() {
    let mut board = sent(1);
    board.send(ms(2), at(1000), 1000, ROUND_TRIP);
    board.send(ms(3), at(2000), 1000, ROUND_TRIP);
    assert_eq!(board.stretches.len(), 2);
    assert_eq!((board.sent_at(at(2000)), board.sent_at(at(3000))), (Some(ms(0)), Some(ms(3))));
}
