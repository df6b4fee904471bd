//! The model under virtual time.

use std::time::{Duration, Instant};

use super::{Conditions, Counts, Line};

const PACKET: usize = 1_500;

fn packet(number: u32) -> Vec<u8> {
    let mut packet = vec![0; PACKET];
    packet[..4].copy_from_slice(&number.to_be_bytes());
    packet
}

fn number(packet: &[u8]) -> u32 {
    u32::from_be_bytes(packet[..4].try_into().unwrap())
}

/// All arrivals of what is on the line, with their times since `start`.
fn arrivals(line: &mut Line, start: Instant) -> Vec<(u32, Duration)> {
    let mut all = Vec::new();
    while let Some(at) = line.poll_timeout() {
        assert_eq!(line.poll_packet(at.checked_sub(Duration::from_nanos(1)).unwrap()), None, "nothing comes early");
        let packet = line.poll_packet(at).expect("it arrives when it was said to");
        all.push((number(&packet), at - start));
    }
    all
}

#[test]
fn a_delay_holds_every_packet_up_alike() {
    let start = Instant::now();
    let mut line = Line::new(Conditions { delay: Duration::from_millis(40), ..Conditions::CLEAN }, 1);
    for n in 0..3 {
        line.handle_packet(start + Duration::from_millis(n.into()), packet(n));
    }
    let wanted = [(0, 40), (1, 41), (2, 42)].map(|(n, ms)| (n, Duration::from_millis(ms)));
    assert_eq!(arrivals(&mut line, start), wanted);
}

#[test]
fn a_rate_spaces_packets_and_the_queue_bounds_what_waits() {
    let start = Instant::now();
    // 12 Mbit/s: one packet of 1,500 bytes each millisecond. Ten fit into the queue, and one more is being saved up for.
    let conditions = Conditions { rate: Some(12_000_000), queue: 10 * PACKET, ..Conditions::CLEAN };
    let mut line = Line::new(conditions, 1);
    for n in 0..20 {
        line.handle_packet(start, packet(n));
    }
    let wanted: Vec<_> = (0..11).map(|n| (n, Duration::from_millis(n.into()))).collect();
    assert_eq!(arrivals(&mut line, start), wanted);
    assert_eq!(line.counts(), Counts { passed: 11, overflowed: 9, ..Counts::default() });
    // It has been sent; there is room again.
    line.handle_packet(start + Duration::from_millis(10), packet(99));
    assert_eq!(line.counts().passed, 12);
}

#[test]
fn an_emulator_that_wakes_up_late_loses_no_sending_time() {
    let start = Instant::now();
    let conditions = Conditions { rate: Some(1_000_000_000), queue: 1_500_000, ..Conditions::CLEAN };
    let mut line = Line::new(conditions, 1);
    // Looked at every 0.9 ms, it is given what a sender at full rate has meanwhile sent: 75 packets of 12 µs.
    let mut last = start;
    for round in 0..1_000 {
        last = start + Duration::from_micros(900) * (round + 1);
        for n in 0..75 {
            line.handle_packet(last, packet(n));
        }
        while line.poll_packet(last).is_some() {}
    }
    assert_eq!(line.counts(), Counts { passed: 75_000, ..Counts::default() });
    let end = line.poll_timeout().map_or(last, |at| at.max(last));
    assert!(end - start < Duration::from_millis(910), "75,000 packets take 900 ms at 1 Gbit/s: {:?}", end - start);
}

#[test]
fn a_saved_up_burst_is_no_more_than_the_credit() {
    let start = Instant::now();
    let conditions = Conditions { rate: Some(1_000_000_000), queue: 1_500_000, ..Conditions::CLEAN };
    let mut line = Line::new(conditions, 1);
    line.handle_packet(start, packet(0));
    // A long silence, then 1,000 packets: 84 of 12 µs go at once, and no more.
    let later = start + Duration::from_secs(10);
    while line.poll_packet(later).is_some() {}
    for n in 0..1_000 {
        line.handle_packet(later, packet(n));
    }
    let mut at_once = 0;
    while line.poll_packet(later).is_some() {
        at_once += 1;
    }
    assert_eq!(at_once, 83, "1 ms of 12 µs each");
}

#[test]
fn late_packets_are_overtaken_and_lost_ones_counted() {
    let start = Instant::now();
    let conditions = Conditions { late: 0.01, late_by: Duration::from_millis(2), loss: 0.01, ..Conditions::CLEAN };
    let mut line = Line::new(conditions, 7);
    for n in 0..10_000 {
        line.handle_packet(start + Duration::from_micros(10) * n, packet(n));
    }
    let came = arrivals(&mut line, start);
    let counts = line.counts();
    assert_eq!((counts.passed + counts.lost, counts.overflowed), (10_000, 0));
    assert_eq!(came.len() as u64, counts.passed);
    let overtaken = came.windows(2).filter(|pair| pair[0].0 > pair[1].0).count() as u64;
    for share in [counts.lost, counts.late, overtaken] {
        assert!((50..200).contains(&share), "about 1 % of 10,000: {counts:?}, {overtaken} overtaken");
    }
    let again = {
        let mut line = Line::new(conditions, 7);
        for n in 0..10_000 {
            line.handle_packet(start + Duration::from_micros(10) * n, packet(n));
        }
        arrivals(&mut line, start)
    };
    assert_eq!(came, again, "the same seed has the same fate");
}

#[test]
fn it_says_when_somebody_must_wake_up_earlier() {
    let start = Instant::now();
    let mut line = Line::new(Conditions { delay: Duration::from_millis(5), ..Conditions::CLEAN }, 1);
    assert!(line.handle_packet(start, packet(0)), "the first one");
    assert!(!line.handle_packet(start, packet(1)), "one behind it");
    assert!(Conditions::CLEAN.is_transparent() && !Conditions::GIGABIT.is_transparent());
}
