mod link;
mod recovery;

use std::net::SocketAddr;
use std::time::Duration;

use link::{ADDRESSES, ADDRESSES_V6, Link, Pair, ip};
use proptest::prelude::*;

use super::*;
use crate::packet::{Packet, Transport, tcp};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_connection_carries_bytes_both_ways_and_closes_each_way_alone() {
    let mut pair = Pair::new(Link::ideal());
    let (client, server) = pair.connected(22);
    assert_eq!(server.peer, 0);
    assert_eq!(server.local, SocketAddr::new(ip(ADDRESSES[1]), 22));
    assert_eq!(server.remote.ip(), ip(ADDRESSES[0]));

    let now = pair.now;
    assert_eq!(pair.stacks[0].write(now, client, b"question"), Ok(8));
    pair.stacks[0].shutdown(now, client).unwrap();
    pair.pass(SECOND);
    assert_eq!(pair.read_all(1, server.id), (b"question".to_vec(), Ok(Read::Eof)));
    assert_eq!(pair.stacks[0].write(now, client, b"more"), Err(ConnectionError::Shutdown));

    // The other way is still open, also after a long time.
    pair.pass(100 * SECOND);
    assert_eq!(pair.stacks[1].write(pair.now, server.id, b"answer"), Ok(6));
    pair.pass(SECOND);
    assert_eq!(pair.read_all(0, client), (b"answer".to_vec(), Ok(Read::Empty)));
    pair.stacks[1].shutdown(pair.now, server.id).unwrap();
    pair.pass(SECOND);
    assert_eq!(pair.read_all(0, client), (Vec::new(), Ok(Read::Eof)));
    assert_eq!(pair.closed(0, client), Some(None));
    assert_eq!(pair.closed(1, server.id), Some(None));
    pair.stacks[0].release(pair.now, client);
    pair.stacks[1].release(pair.now, server.id);
    assert_eq!(pair.stacks.each_ref().map(Stack::connection_count), [0, 0]);
    pair.pass(20 * SECOND);
    assert_eq!(pair.stacks.each_ref().map(Stack::poll_timeout), [None, None]);
}

#[test]
fn it_works_over_ipv6() {
    let mut pair = Pair::new(Link::ideal());
    pair.stacks[1].listen(22, 1).unwrap();
    let remote = SocketAddr::new(ip(ADDRESSES_V6[1]), 22);
    let id = pair.stacks[0].connect(pair.now, remote, None, 1).unwrap();
    pair.pass(SECOND);
    let accepted = pair.stacks[1].accept(22).unwrap();
    assert_eq!(accepted.local, remote);
    let bytes = vec![7; 100_000];
    assert_eq!(pair.stacks[0].write(pair.now, id, &bytes), Ok(100_000));
    pair.pass(SECOND);
    assert_eq!(pair.read_all(1, accepted.id).0, bytes);
}

#[test]
fn received_bytes_outlive_the_connection_and_come_before_its_end() {
    let mut pair = Pair::new(Link::ideal());
    let (client, server) = pair.connected(22);
    pair.stacks[0].write(pair.now, client, b"last words").unwrap();
    pair.stacks[0].shutdown(pair.now, client).unwrap();
    pair.stacks[1].shutdown(pair.now, server.id).unwrap();
    // Far beyond TIME-WAIT.
    pair.pass(60 * SECOND);
    assert_eq!(pair.closed(1, server.id), Some(None));
    assert_eq!(pair.read_all(1, server.id), (b"last words".to_vec(), Ok(Read::Eof)));

    let (client, server) = pair.connected(23);
    pair.stacks[0].write(pair.now, client, b"before the reset").unwrap();
    pair.pass(SECOND);
    pair.stacks[0].abort(pair.now, client, ConnectionError::Aborted);
    pair.pass(SECOND);
    assert_eq!(pair.read_all(1, server.id), (b"before the reset".to_vec(), Err(ConnectionError::Reset)));
    assert_eq!(pair.read_all(0, client).1, Err(ConnectionError::Aborted));
    assert_eq!(pair.closed(1, server.id), Some(Some(ConnectionError::Reset)));
}

#[test]
fn a_closed_port_refuses_at_once() {
    let mut pair = Pair::new(Link::ideal());
    let id = pair.dial(9);
    pair.pass(Duration::from_millis(10));
    assert_eq!(pair.closed(0, id), Some(Some(ConnectionError::Refused)));
    assert_eq!(pair.read_all(0, id).1, Err(ConnectionError::Refused));
}

#[test]
fn a_policy_refusal_fails_only_the_attempt_that_it_names() {
    let mut pair = Pair::new(Link::ideal());
    let (established, _) = pair.connected(80);
    pair.cut = true;
    let id = pair.dial(22);
    let mut syn = None;
    for port in [22, 80] {
        let of = if port == 22 { id } else { established };
        let flow = pair.stacks[0].connections[&of].flow;
        let segment = tcp::Segment { sequence: 1, acknowledgement: 0, flags: tcp::SYN, window: 1, length: 0 };
        let bytes = segment.build(flow.local, flow.remote).unwrap();
        let packet = Packet::parse(&bytes).unwrap();
        let rejection = tsmp::rejection(&packet, tsmp::RejectReason::Acl).unwrap();
        pair.stacks[0].handle_packet(pair.now, 1, &rejection);
        syn = Some(rejection);
    }
    pair.settle();
    assert_eq!(pair.closed(0, id), Some(Some(ConnectionError::RefusedByPolicy(tsmp::RejectReason::Acl))));
    assert_eq!(pair.closed(0, established), None);
    // From another peer it means nothing.
    let another = pair.dial(22);
    pair.stacks[0].handle_packet(pair.now, 5, &syn.unwrap());
    assert_eq!(pair.closed(0, another), None);
}

#[test]
fn a_packet_of_no_connection_is_reset_and_a_reset_is_not_answered() {
    let mut pair = Pair::new(Link::ideal());
    let local = SocketAddr::new(ip(ADDRESSES[1]), 22);
    let remote = SocketAddr::new(ip(ADDRESSES[0]), 50_000);
    let mut answer_to = |flags: u8| {
        let segment = tcp::Segment { sequence: 1000, acknowledgement: 5000, flags, window: 100, length: 0 };
        let bytes = segment.build(remote, local).unwrap();
        pair.stacks[1].handle_packet(pair.now, 0, &bytes);
        let mut out = PacketBatch::new();
        pair.stacks[1].poll_packets(pair.now, &mut out, 10);
        let answers: Vec<tcp::Segment> =
            out.iter().map(|(_, bytes)| tcp::Segment::parse(&Packet::parse(bytes).unwrap()).unwrap()).collect();
        answers
    };
    let to_ack = answer_to(tcp::ACK);
    assert_eq!((to_ack[0].flags, to_ack[0].sequence), (tcp::RST, 5000));
    let to_syn = answer_to(tcp::SYN);
    assert_eq!((to_syn[0].flags, to_syn[0].acknowledgement), (tcp::RST | tcp::ACK, 1001));
    assert!(answer_to(tcp::RST).is_empty());
    assert!(answer_to(tcp::RST | tcp::ACK).is_empty());
}

#[test]
fn a_quarter_of_the_backlog_bounds_what_nobody_has_accepted_of_a_peer() {
    let mut pair = Pair::new(Link::ideal());
    pair.stacks[1].listen(22, 12).unwrap();
    let ids: Vec<ConnectionId> = (0..5).map(|_| pair.dial(22)).collect();
    pair.pass(Duration::from_millis(500));
    let connected = |pair: &Pair| {
        let is = |id: &&ConnectionId| pair.events[0].contains(&StackEvent::Connected { id: **id });
        ids.iter().filter(is).count()
    };
    assert_eq!(connected(&pair), 3);
    assert_eq!(pair.stacks[1].connection_count(), 3);
    // Room is made: the SYNs come again, and nothing was refused.
    for _ in 0..3 {
        pair.stacks[1].accept(22).unwrap();
    }
    assert_eq!(pair.stacks[1].accept(22), None);
    pair.pass(5 * SECOND);
    assert_eq!(connected(&pair), 5);
}

/// Five hundred SYNs of `peer` to port 22 of the second stack.
fn flood(pair: &mut Pair, from: &str, peer: usize) {
    let local = SocketAddr::new(ip(ADDRESSES[1]), 22);
    for port in 1..=500 {
        let syn = tcp::Segment { sequence: 1, acknowledgement: 0, flags: tcp::SYN, window: 1000, length: 0 };
        let bytes = syn.build(SocketAddr::new(ip(from), port), local).unwrap();
        pair.stacks[1].handle_packet(pair.now, peer, &bytes);
    }
}

#[test]
fn a_peer_that_floods_a_listener_shuts_nobody_out() {
    let mut pair = Pair::new(Link::ideal());
    pair.stacks[1].listen(22, 64).unwrap();
    flood(&mut pair, "100.64.0.9", 5);
    assert_eq!(pair.stacks[1].connection_count(), 16);
    // Nobody takes the answers to the flood.
    while pair.stacks[1].poll_packets(pair.now, &mut PacketBatch::new(), 1000) {}
    let honest = pair.dial(22);
    pair.pass(Duration::from_millis(500));
    assert!(pair.events[0].contains(&StackEvent::Connected { id: honest }));
    assert_eq!(pair.stacks[1].accept(22).unwrap().peer, 0);
    // Four peers fill it, and then it is full for all.
    for (from, peer) in [("100.64.0.10", 6), ("100.64.0.11", 7), ("100.64.0.12", 8), ("100.64.0.13", 9)] {
        flood(&mut pair, from, peer);
    }
    assert_eq!(pair.stacks[1].connection_count(), 64 + 1);
    // What ends without having been accepted makes room.
    pair.stacks[1].abort_peer(pair.now, 5, ConnectionError::PeerRemoved);
    assert_eq!(pair.stacks[1].connection_count(), 48 + 1);
    assert_eq!(pair.stacks[1].listeners[&22].unaccepted.values().sum::<usize>(), 48);
}

#[test]
fn half_open_connections_are_bounded_per_peer_and_end_by_themselves() {
    let mut pair = Pair::new(Link::ideal());
    pair.stacks[1].listen(22, 1000).unwrap();
    flood(&mut pair, "100.64.0.9", 0);
    assert_eq!(pair.stacks[1].connection_count(), MAX_HALF_OPEN_PER_PEER);
    // Another peer still gets through.
    flood(&mut pair, "100.64.0.8", 3);
    assert_eq!(pair.stacks[1].connection_count(), 2 * MAX_HALF_OPEN_PER_PEER);
    let mut time = pair.now;
    for _ in 0..25 {
        time += SECOND;
        pair.stacks[1].handle_timeout(time);
        let mut out = PacketBatch::new();
        while pair.stacks[1].poll_packets(time, &mut out, 1000) {}
    }
    assert_eq!(pair.stacks[1].connection_count(), 0);
    assert!(pair.stacks[1].half_open.is_empty());
    assert!(pair.stacks[1].listeners[&22].unaccepted.is_empty());
    assert!(pair.stacks[1].timers.is_empty());
}

#[test]
fn two_hundred_connections_at_once() {
    let mut pair = Pair::new(Link { loss: 1000, ..Link::with_round_trip(10) });
    pair.stacks[1].listen(22, MAX_CONNECTIONS).unwrap();
    // Within the bound of half-open ones, as a coordinator would dial them.
    let mut dialled: Vec<ConnectionId> = Vec::new();
    let mut accepted = Vec::new();
    pair.until(60 * SECOND, |pair| {
        while dialled.len() < 200 && dialled.len() < accepted.len() + 100 {
            let id = pair.dial(22);
            dialled.push(id);
        }
        accepted.extend(std::iter::from_fn(|| pair.stacks[1].accept(22)));
        accepted.len() == 200
    });
    pair.pass(5 * SECOND);
    for (number, id) in dialled.iter().enumerate() {
        let text = format!("hello {number}");
        pair.stacks[0].write(pair.now, *id, text.as_bytes()).unwrap();
        pair.stacks[0].release(pair.now, *id);
    }
    pair.pass(30 * SECOND);
    let mut texts = Vec::new();
    for one in &accepted {
        let (bytes, end) = pair.read_all(1, one.id);
        assert_eq!(end, Ok(Read::Eof));
        texts.push(String::from_utf8(bytes).unwrap());
        pair.stacks[1].release(pair.now, one.id);
    }
    texts.sort();
    texts.dedup();
    assert_eq!(texts.len(), 200);
    pair.pass(120 * SECOND);
    assert_eq!(pair.stacks.each_ref().map(Stack::connection_count), [0, 0]);
    for stack in &pair.stacks {
        assert!(stack.by_flow.is_empty() && stack.timers.is_empty() && stack.dirty.is_empty());
    }
}

#[test]
fn sixty_four_mebibytes_arrive_whole_through_loss() {
    let mut pair = Pair::new(Link { loss: 1000, late: 100, ..Link::with_round_trip(20) });
    let took = pair.transfer(64 << 20, 600 * SECOND);
    eprintln!("64 MiB, 20 ms, 1 % lost, 0.1 % late: {}", rate(64 << 20, took));
}

#[test]
fn goodput_does_not_fall_below_what_it_was() {
    let gigabit = (1_000_000_000, 1_500_000);
    // Round trip in ms; of 100,000 lost and late; rate and queue; MiB to send; at least Mbit/s.
    let links = [
        (20, 0, 0, gigabit, 128, 700.0),
        (20, 0, 0, (1_000_000_000, 256 << 10), 64, 350.0),
        (20, 10, 0, gigabit, 64, 500.0),
        (20, 100, 0, gigabit, 32, 350.0),
        (20, 1000, 0, gigabit, 32, 300.0),
        (66, 3, 100, gigabit, 64, 200.0),
        (40, 0, 0, (100_000_000, 256 << 10), 32, 70.0),
        (40, 0, 0, (100_000_000, 4 << 20), 32, 70.0),
        (0, 0, 0, gigabit, 64, 900.0),
    ];
    let mut slow = Vec::new();
    for (round_trip, loss, late, rate, mebibytes, at_least) in links {
        // What arrives within 50 µs is taken, and acknowledged, at once.
        let train = Duration::from_micros(50);
        let link = Link { loss, late, rate: Some(rate), train, ..Link::with_round_trip(round_trip) };
        let took = Pair::new(link).transfer(mebibytes << 20, 600 * SECOND);
        let mbit = (mebibytes << 20) as f64 * 8e-6 / took.as_secs_f64();
        let told = format!(
            "{round_trip} ms, {} Mbit/s, {} KiB queue, {loss} lost and {late} late of 100,000: {mbit:.1} Mbit/s",
            rate.0 / 1_000_000,
            rate.1 >> 10
        );
        eprintln!("{told}");
        if mbit < at_least {
            slow.push(format!("{told}, less than {at_least}"));
        }
    }
    assert!(slow.is_empty(), "{slow:#?}");
}

#[test]
fn late_timers_hold_no_fast_path_down() {
    let gigabit = Some((1_000_000_000, 1_500_000));
    // Microseconds by which timers are late, and within which the receiver takes what arrives; at least Mbit/s.
    for (late, train, at_least) in [(0, 2000, 500.0), (1000, 2000, 400.0), (2000, 500, 500.0), (4000, 2000, 300.0)] {
        let (timers_late, train) = (Some(Duration::from_micros(late)), Duration::from_micros(train));
        let link = Link { rate: gigabit, train, timers_late, ..Link::with_round_trip(20) };
        let took = Pair::new(link).transfer(64 << 20, 600 * SECOND);
        let mbit = (64 << 20) as f64 * 8e-6 / took.as_secs_f64();
        assert!(mbit >= at_least, "{mbit:.1} Mbit/s with timers {late} µs late and trains of {train:?}");
    }
}

fn rate(bytes: usize, took: Duration) -> String {
    let mbit = bytes as f64 * 8e-6 / took.as_secs_f64();
    format!("{mbit:.1} Mbit/s")
}

#[test]
fn a_peer_that_dies_is_noticed_within_45_seconds_idle_or_busy() {
    for busy in [false, true] {
        let mut pair = Pair::new(Link::ideal());
        let (client, server) = pair.connected(22);
        pair.pass(33 * SECOND);
        pair.cut = true;
        if busy {
            pair.stacks[0].write(pair.now, client, &[1; 50_000]).unwrap();
        }
        let cut = pair.now;
        pair.until(46 * SECOND, |pair| pair.closed(0, client).is_some() && pair.closed(1, server.id).is_some());
        assert!(pair.now - cut >= 30 * SECOND);
        assert_eq!(pair.closed(0, client), Some(Some(ConnectionError::TimedOut)));
        assert_eq!(pair.read_all(1, server.id).1, Err(ConnectionError::TimedOut));
    }
}

#[test]
fn a_freeze_of_30_seconds_survives_whenever_it_begins() {
    for begins in [0, 3, 9, 10, 11, 15] {
        for busy in [false, true] {
            let mut pair = Pair::new(Link::ideal());
            let (client, server) = pair.connected(22);
            pair.pass(begins * SECOND + Duration::from_millis(999));
            if busy {
                pair.stacks[0].write(pair.now, client, &[1; 50_000]).unwrap();
            }
            pair.frozen_until[1] = Some(pair.now + 30 * SECOND);
            pair.pass(32 * SECOND);
            pair.stacks[0].write(pair.now, client, b"still there").unwrap();
            pair.pass(SECOND);
            let (bytes, end) = pair.read_all(1, server.id);
            assert_eq!(end, Ok(Read::Empty));
            assert!(bytes.ends_with(b"still there"));
            pair.pass(100 * SECOND);
            assert_eq!((pair.closed(0, client), pair.closed(1, server.id)), (None, None));
        }
    }
}

#[test]
fn our_own_freeze_is_not_held_against_the_peer() {
    let mut pair = Pair::new(Link::ideal());
    let (client, server) = pair.connected(22);
    let until = pair.now + 300 * SECOND;
    pair.frozen_until = [Some(until), Some(until)];
    pair.pass(310 * SECOND);
    pair.stacks[0].write(pair.now, client, b"awake").unwrap();
    pair.pass(SECOND);
    assert_eq!(pair.read_all(1, server.id).0, b"awake");
}

/// What arrived is acknowledged though both ends have gone back to repeat it: else each refuses the other's acknowledgements as old
/// ones, for ever.
#[test]
fn both_ends_may_repeat_at_once() {
    let mut pair = Pair::new(Link::with_round_trip(100));
    let (client, server) = pair.connected(22);
    for (end, id) in [(0, client), (1, server.id)] {
        assert_eq!(pair.stacks[end].write(pair.now, id, &[7; 5000]), Ok(5000));
    }
    pair.settle();
    // What is under way arrives, and no acknowledgement does.
    pair.cut = true;
    pair.pass(Duration::from_millis(500));
    pair.cut = false;
    for (end, id) in [(0, client), (1, server.id)] {
        assert_eq!(pair.stacks[end].write(pair.now, id, b"more"), Ok(4));
    }
    pair.pass(5 * SECOND);
    for (end, id) in [(0, client), (1, server.id)] {
        assert_eq!(pair.read_all(end, id).0.len(), 5004);
    }
}

/// TCP's pauses double: 30 s of outage would be followed by up to 30 s in which nobody tries.
#[test]
fn what_an_outage_has_held_up_goes_on_soon_after_it() {
    let mut pair = Pair::new(Link::with_round_trip(100));
    let (client, server) = pair.connected(22);
    pair.cut = true;
    pair.stacks[0].write(pair.now, client, b"held up").unwrap();
    pair.pass(33 * SECOND);
    pair.cut = false;
    pair.pass(REPEAT_WITHIN + SECOND);
    assert_eq!(pair.read_all(1, server.id).0, b"held up");

    // So it is with a window that opens unheard.
    while pair.stacks[0].write(pair.now, client, &[3; 65536]).unwrap() > 0 {
        pair.pass(SECOND);
    }
    pair.pass(300 * SECOND);
    pair.cut = true;
    let (first, _) = pair.read_all(1, server.id);
    pair.pass(30 * SECOND);
    pair.cut = false;
    pair.pass(REPEAT_WITHIN + 3 * SECOND);
    let (second, _) = pair.read_all(1, server.id);
    assert!(second.len() >= first.len() / 2, "{} bytes, then {}", first.len(), second.len());

    // And with the end.
    pair.pass(10 * SECOND);
    let _ = pair.read_all(1, server.id);
    pair.cut = true;
    pair.stacks[0].shutdown(pair.now, client).unwrap();
    pair.pass(20 * SECOND);
    pair.cut = false;
    pair.pass(REPEAT_WITHIN + SECOND);
    assert_eq!(pair.read_all(1, server.id).1, Ok(Read::Eof));
}

/// Nothing is repeated early that was sent after a long silence.
#[test]
fn a_pause_of_the_owner_is_no_pause_of_the_peer() {
    let mut pair = Pair::new(Link::with_round_trip(100));
    let (client, server) = pair.connected(22);
    pair.pass(300 * SECOND);
    let before = pair.packets;
    pair.stacks[0].write(pair.now, client, b"after a pause").unwrap();
    pair.pass(SECOND / 2);
    assert_eq!(pair.read_all(1, server.id).0, b"after a pause");
    assert_eq!(pair.packets - before, 2, "the data and its acknowledgement");
}

/// A path that was gone for any time carries bytes again within a round trip or two of the peer's being heard.
#[test]
fn what_is_unacknowledged_is_repeated_when_the_peer_is_back() {
    for cut in [4, 9, 17, 20, 29] {
        let mut pair = Pair::new(Link::with_round_trip(100));
        let (client, server) = pair.connected(22);
        pair.cut = true;
        for (end, id) in [(0, client), (1, server.id)] {
            assert_eq!(pair.stacks[end].write(pair.now, id, &[7; 50_000]), Ok(50_000));
        }
        pair.pass(cut * SECOND);
        pair.cut = false;
        let back = pair.now;
        for end in 0..2 {
            pair.stacks[end].handle_peer_back(pair.now, 1 - end);
        }
        // Heard twice in a moment: nothing more follows.
        pair.settle();
        let packets = pair.packets;
        pair.stacks[0].handle_peer_back(pair.now, 1);
        pair.settle();
        assert_eq!(pair.packets, packets);
        let mut read = [0, 0];
        pair.until(2 * SECOND, |pair| {
            for (end, id) in [(0, client), (1, server.id)] {
                read[end] += pair.read_all(end, id).0.len();
            }
            read == [50_000, 50_000]
        });
        eprintln!("figure: {cut} s cut, all there {:?} after the peer is back", pair.now - back);
        // Time goes on as before for whoever asks.
        pair.pass(300 * SECOND);
        assert_eq!((pair.closed(0, client), pair.closed(1, server.id)), (None, None));
        assert_eq!(pair.stacks[0].write(pair.now, client, b"more"), Ok(4));
        pair.pass(SECOND);
        assert_eq!(pair.read_all(1, server.id).0, b"more");
        // A side that waits for nothing has nothing to repeat.
        let packets = pair.packets;
        pair.stacks[0].handle_peer_back(pair.now + 5 * SECOND, 1);
        pair.settle();
        assert_eq!(pair.packets, packets);
    }
}

#[test]
fn a_peer_that_was_restarted_is_found_out_at_once() {
    let mut pair = Pair::new(Link::with_round_trip(100));
    let (client, _) = pair.connected(22);
    pair.pass(33 * SECOND);
    let other = Pair::new(Link::ideal());
    let [_, successor] = other.stacks;
    pair.stacks[1] = successor;
    pair.stacks[0].probe_peer(pair.now, 1);
    pair.until(SECOND, |pair| pair.closed(0, client).is_some());
    assert_eq!(pair.closed(0, client), Some(Some(ConnectionError::Reset)));

    // One that wasn't restarted answers, and the connection goes on.
    let (client, server) = pair.connected(22);
    pair.stacks[0].probe_peer(pair.now, 1);
    pair.pass(33 * SECOND);
    assert_eq!(pair.stacks[0].write(pair.now, client, b"still there"), Ok(11));
    pair.pass(SECOND);
    assert_eq!(pair.read_all(1, server.id).0, b"still there");
}

#[test]
fn a_peer_that_does_not_read_slows_the_sender_and_loses_nothing() {
    let mut pair = Pair::new(Link::ideal());
    let (client, server) = pair.connected(22);
    let block = vec![3; 16 << 20];
    let mut sent = 0;
    for _ in 0..200 {
        sent += pair.stacks[0].write(pair.now, client, &block[sent..]).unwrap();
        pair.pass(SECOND);
    }
    // Both buffers are full, the peer alive: nothing may time out.
    assert!(sent > 2 * DEFAULT_BUFFER - 1024, "{sent}");
    pair.events[0].clear();
    let (first, _) = pair.read_all(1, server.id);
    pair.pass(10 * SECOND);
    assert!(pair.events[0].contains(&StackEvent::Writable { id: client }));
    let (second, _) = pair.read_all(1, server.id);
    assert_eq!(first.len() + second.len(), sent);
}

#[test]
fn a_connection_without_work_hardly_wakes_anybody() {
    let mut pair = Pair::new(Link::ideal());
    let (client, server) = pair.connected(22);
    let idle_for_100_seconds = |pair: &mut Pair| {
        let before = (pair.steps, pair.packets);
        pair.pass(100 * SECOND);
        (pair.steps - before.0, pair.packets - before.1)
    };
    // Keep-alives of both ends and their answers: 40 packets in 100 seconds, and as many timeouts at the most. A full window is
    // asked for each five seconds instead: 40 and the other end's 20.
    for state in ["open", "half closed", "full"] {
        match state {
            "half closed" => pair.stacks[1].shutdown(pair.now, server.id).unwrap(),
            "full" => {
                while pair.stacks[0].write(pair.now, client, &[0; 65536]).unwrap() > 0 {
                    pair.pass(SECOND);
                }
            }
            _ => {}
        }
        pair.pass(10 * SECOND);
        let (steps, packets) = idle_for_100_seconds(&mut pair);
        assert!(steps <= 150 && packets <= 80, "{state}: {steps} steps, {packets} packets");
    }
}

#[test]
fn abort_peer_ends_its_connections_and_no_others() {
    let mut pair = Pair::new(Link::ideal());
    let (client, server) = pair.connected(22);
    let remote = SocketAddr::new(ip("100.64.0.77"), 22);
    let other = pair.stacks[0].connect(pair.now, remote, None, 1);
    let other = other.unwrap();
    pair.stacks[0].connections.get_mut(&other).unwrap().flow.peer = 9;
    pair.stacks[0].abort_peer(pair.now, 1, ConnectionError::PeerKeyChanged);
    assert_eq!(pair.read_all(0, client).1, Err(ConnectionError::PeerKeyChanged));
    assert_eq!(pair.read_all(0, other).1, Ok(Read::Empty));
    pair.stacks[0].abort_peer(pair.now, 9, ConnectionError::PeerRemoved);
    pair.stacks[0].release(pair.now, other);
    let mut out = PacketBatch::new();
    pair.stacks[0].poll_packets(pair.now, &mut out, 100);
    for (_, packet) in out.iter().filter(|(peer, _)| *peer == 1) {
        pair.stacks[1].handle_packet(pair.now, 0, packet);
    }
    assert_eq!(pair.read_all(1, server.id).1, Err(ConnectionError::Reset));
}

#[test]
fn a_lost_address_ends_its_connections() {
    let mut pair = Pair::new(Link::ideal());
    let (client, _) = pair.connected(22);
    pair.stacks[0].set_addresses(pair.now, vec![ip(ADDRESSES_V6[0])]);
    assert_eq!(pair.read_all(0, client).1, Err(ConnectionError::AddressLost));
    let remote = SocketAddr::new(ip(ADDRESSES[1]), 22);
    let refused = pair.stacks[0].connect(pair.now, remote, None, 1);
    assert_eq!(refused, Err(ConnectError::NoAddress));
}

#[test]
fn another_peer_cannot_speak_for_a_connection() {
    let mut pair = Pair::new(Link::ideal());
    let (client, server) = pair.connected(22);
    let flow = pair.stacks[1].connections[&server.id].flow;
    for sequence in (0..u32::MAX).step_by(60_000) {
        let segment = tcp::Segment { sequence, acknowledgement: 0, flags: tcp::RST, window: 0, length: 0 };
        let bytes = segment.build(flow.remote, flow.local).unwrap();
        pair.stacks[1].handle_packet(pair.now, 4, &bytes);
    }
    pair.stacks[0].write(pair.now, client, b"mine").unwrap();
    pair.pass(SECOND);
    assert_eq!(pair.read_all(1, server.id).0, b"mine");
}

#[test]
fn pings_are_answered_and_their_answers_recognised() {
    let mut pair = Pair::new(Link::ideal());
    let echo = Echo { identifier: 77, sequence: 3 };
    for address in [ip(ADDRESSES[1]), ip(ADDRESSES_V6[1])] {
        pair.events[0].clear();
        assert!(pair.stacks[0].send_echo(1, address, echo, b"some data"));
        assert!(pair.stacks[0].send_tsmp_ping(1, address, *b"12345678"));
        pair.pass(SECOND);
        let expected = [
            StackEvent::EchoReply { peer: 1, from: address, echo },
            StackEvent::TsmpPong { peer: 1, data: *b"12345678", peer_api_port: 0 },
        ];
        assert_eq!(pair.events[0], expected);
    }
}

#[test]
fn a_lost_last_acknowledgement_is_repeated_after_the_connection_is_gone() {
    let mut pair = Pair::new(Link::ideal());
    let (client, server) = pair.connected(22);
    pair.stacks[0].release(pair.now, client);
    pair.pass(SECOND);
    assert_eq!(pair.read_all(1, server.id).1, Ok(Read::Eof));
    // The server's FIN arrives, the answer to it doesn't.
    pair.stacks[1].shutdown(pair.now, server.id).unwrap();
    pair.settle();
    pair.cut = true;
    pair.pass(Duration::from_millis(500));
    assert_eq!(pair.stacks[0].connection_count(), 0);
    assert_eq!(pair.closed(1, server.id), None);
    pair.cut = false;
    pair.pass(5 * SECOND);
    assert_eq!(pair.closed(1, server.id), Some(None));
}

#[test]
fn every_ip_packet_is_small_enough_for_the_tunnel() {
    let mut pair = Pair::new(Link::ideal());
    let (client, _) = pair.connected(22);
    pair.stacks[0].write(pair.now, client, &[0; 100_000]).unwrap();
    let mut out = PacketBatch::new();
    let mut largest = 0;
    pair.stacks[0].poll_packets(pair.now, &mut out, 100);
    while let Some((_, packet)) = out.first() {
        let parsed = Packet::parse(packet).unwrap();
        assert!(matches!(parsed.transport, Transport::Tcp { .. }));
        largest = largest.max(packet.len());
        out.take_first();
    }
    assert_eq!(largest, DEFAULT_MTU);
}

/// What a hostile peer may do to a header in the middle of a connection.
#[derive(Debug, Clone)]
struct Forged {
    flags: u8,
    sequence: i32,
    acknowledgement: i32,
    window: u16,
    payload: usize,
    pause: u64,
    write: usize,
}

fn forged() -> impl Strategy<Value = Forged> {
    let near = prop_oneof![-3..3i32, -70_000..70_000i32, any::<i32>()];
    let near2 = prop_oneof![-3..3i32, -70_000..70_000i32, any::<i32>()];
    let flags = prop_oneof![
        Just(tcp::ACK),
        Just(tcp::ACK | 0x80),
        Just(tcp::ACK | tcp::FIN),
        Just(tcp::ACK | tcp::SYN),
        any::<u8>(),
        any::<u8>().prop_map(|flags| flags | tcp::ACK)
    ];
    (flags, near, near2, any::<u16>(), 0..1300usize, 0..3000u64, 0..5000usize).prop_map(
        |(flags, sequence, acknowledgement, window, payload, pause, write)| Forged {
            flags,
            sequence,
            acknowledgement,
            window,
            payload,
            pause,
            write,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_packet_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), version in 0..3u8) {
        let mut pair = Pair::new(Link::ideal());
        pair.stacks[1].listen(22, 16).unwrap();
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = [0x45, 0x60, *first][usize::from(version)];
        }
        if version == 0 && bytes.len() >= 40 {
            let length = u16::try_from(bytes.len()).unwrap();
            bytes[2..4].copy_from_slice(&length.to_be_bytes());
            bytes[6..8].fill(0);
            bytes[16..20].copy_from_slice(&[100, 64, 0, 2]);
            bytes[9] = [1, 6, 99, 6][usize::from(bytes[9] & 3)];
            bytes[22..24].copy_from_slice(&[0, 22]);
        }
        pair.stacks[1].handle_packet(pair.now, 0, &bytes);
        pair.settle();
    }

    #[test]
    fn no_segment_within_a_connection_panics(
        established in any::<bool>(),
        steps in proptest::collection::vec(forged(), 1..20),
    ) {
        let mut pair = Pair::new(Link::ideal());
        let (client, server) = if established {
            let (client, server) = pair.connected(22);
            (client, Some(server.id))
        } else {
            pair.cut = true;
            (pair.dial(22), None)
        };
        pair.settle();
        let flow = pair.stacks[0].connections[&client].flow;
        for step in steps {
            // Bit 7 says whom the forged segment strikes; its numbers lie near what the other end would send.
            let strike = if established && step.flags & 0x80 != 0 { 1 } else { 0 };
            let id = if strike == 0 { Some(client) } else { server };
            let last = id.and_then(|id| pair.stacks[strike].connections.get_mut(&id)?.engine()?.last_sent());
            let last = last.unwrap_or(tcp::Segment { sequence: 0, acknowledgement: 0, flags: 0, window: 0, length: 0 });
            let (from, to) = if strike == 0 { (flow.remote, flow.local) } else { (flow.local, flow.remote) };
            let segment = tcp::Segment {
                sequence: last.acknowledgement.wrapping_add_signed(step.sequence),
                acknowledgement: last.sequence.wrapping_add(last.sequence_length()).wrapping_add_signed(step.acknowledgement),
                flags: step.flags & 0x3f,
                window: step.window,
                length: 0,
            };
            let header = segment.build(from, to).unwrap();
            let mut body = header[20..].to_vec();
            body.resize(20 + step.payload, 0x55);
            let bytes = crate::packet::build::ip(from.ip(), to.ip(), 6, &body).unwrap();
            pair.stacks[strike].handle_packet(pair.now, 1 - strike, &bytes);
            for (end, id) in [(0, Some(client)), (1, server)] {
                let Some(id) = id else { continue };
                let _ = pair.stacks[end].write(pair.now, id, &vec![1; step.write]);
                if step.write % 7 == 0 {
                    let _ = pair.stacks[end].shutdown(pair.now, id);
                }
                if step.write % 3 == end {
                    let _ = pair.read_all(end, id);
                }
            }
            pair.pass(Duration::from_millis(step.pause));
        }
    }
}
