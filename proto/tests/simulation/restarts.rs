//! Peers come, go, and come again as others.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use nixtail_proto::disco;
use nixtail_proto::node::{Event, Path, PingKind};
use nixtail_proto::stack::{ConnectError, ConnectionError, Read};

use crate::world::{REGION, SECOND, World};

#[test]
fn a_new_key_ends_old_streams_and_new_ones_work() {
    let mut world = World::pair(11);
    world.hosts[1].node.listen(22, 8).unwrap();
    let mut stream = world.connect(0, 1, 22, SECOND);
    world.transfer(&mut stream, 100_000, 10 * SECOND);
    world.restart(1, true);
    world.hosts[1].node.listen(22, 8).unwrap();
    world.pass(5 * SECOND);
    assert_eq!(world.closed(0, stream.near), None, "nobody has said so yet");
    world.publish();
    let published = world.now;
    world.pass_until(15 * SECOND, "the old stream failed", |world| world.closed(0, stream.near).is_some());
    assert_eq!(world.closed(0, stream.near), Some(Some(ConnectionError::PeerKeyChanged)));
    assert_eq!(world.now, published);
    let mut stream = world.connect(0, 1, 22, SECOND);
    world.transfer(&mut stream, 100_000, 10 * SECOND);
}

#[test]
fn a_restart_with_the_same_key_is_noticed_by_its_disco_key() {
    let mut world = World::pair(12);
    assert!(world.ping(0, 1, PingKind::Tsmp).is_some());
    world.pass(2 * SECOND);
    world.restart(1, false);
    world.publish();
    world.pass(SECOND);
    assert!(world.ping(0, 1, PingKind::Tsmp).is_some_and(|(latency, _)| latency < SECOND));
    assert!(world.ping(1, 0, PingKind::Tsmp).is_some_and(|(latency, _)| latency < SECOND));
}

#[test]
fn a_peer_that_leaves_the_netmap_takes_its_streams_along() {
    let mut world = World::pair(13);
    world.hosts[1].node.listen(22, 8).unwrap();
    let stream = world.connect(0, 1, 22, SECOND);
    world.publish_to(0, |_| false);
    assert_eq!(world.closed(0, stream.near), Some(Some(ConnectionError::PeerRemoved)));
    let remote = world.hosts[1].tailnet(22);
    assert_eq!(world.hosts[0].node.connect(world.now, remote), Err(ConnectError::NoPeer));
    let sent = world.hosts[0].node.drops().orphaned;
    world.pass(5 * SECOND);
    assert!(world.hosts[0].node.drops().orphaned >= sent);
    assert_eq!(world.hosts[0].node.peer_status(world.now).count(), 0);
}

#[test]
fn a_dial_to_a_dead_peer_fails_in_time() {
    let mut world = World::pair(14);
    world.udp.lost_ppm = 1_000_000;
    world.derp.lost_ppm = 1_000_000;
    let remote = world.hosts[1].tailnet(22);
    let dialled = world.hosts[0].node.connect(world.now, remote).unwrap();
    world.pass_until(60 * SECOND, "the dial failed", |world| world.closed(0, dialled).is_some());
    assert_eq!(world.closed(0, dialled), Some(Some(ConnectionError::ConnectTimedOut)));
    assert!(world.ping(0, 1, PingKind::Disco).is_none());
}

/// How long after the dialled peer's netmap has the dialler its first byte arrives, when that netmap is so late.
fn first_byte((direct, derp): (bool, bool), late: Duration) -> Duration {
    let mut world = World::new(15);
    world.add(direct, derp);
    world.add(direct, derp);
    world.publish_to(0, |_| true);
    world.publish_to(1, |_| false);
    world.hosts[1].node.listen(22, 8).unwrap();
    let remote = world.hosts[1].tailnet(22);
    let near = world.hosts[0].node.connect(world.now, remote).unwrap();
    // The peer ignores us until it learns of us.
    world.pass(late);
    assert!(world.hosts[1].node.accept(22).is_none());
    world.publish_to(1, |_| true);
    let known = world.now;
    let mut far = None;
    world.pass_until(20 * SECOND, "the first byte", |world| {
        let _ = world.hosts[0].node.write(world.now, near, b"x");
        far = far.or_else(|| world.hosts[1].node.accept(22));
        far.as_ref().is_some_and(|far| {
            matches!(world.hosts[1].node.read(world.now, far.id, &mut [0; 8]), Ok(Read::Bytes(length)) if length > 0)
        })
    });
    world.now - known
}

#[test]
fn a_netmap_that_comes_late_costs_little() {
    for (way, name) in [((true, false), "UDP"), ((false, true), "DERP"), ((true, true), "both")] {
        for late in [100, 600, 1000, 3000] {
            let waited = first_byte(way, Duration::from_millis(late));
            println!("{name}: {late} ms late, first byte after {waited:?}");
            // Who was asked meanwhile asks back at once; it doesn't wait for the next try.
            assert!(waited <= Duration::from_millis(100), "{name}: {late} ms late, {waited:?}");
        }
    }
}

/// Control tells of a node when it registers, and of its home and addresses later.
#[test]
fn a_peer_of_whom_nothing_else_is_known_is_reached_through_our_own_home() {
    let mut world = World::pair(16);
    let (endpoints, home) = (std::mem::take(&mut world.hosts[1].record.endpoints), world.hosts[1].record.home_derp);
    world.hosts[1].record.home_derp = 0;
    world.pass(SECOND);
    world.publish();
    world.hosts[1].node.listen(22, 8).unwrap();
    let (begun, remote) = (world.now, world.hosts[1].tailnet(22));
    world.hosts[0].node.connect(world.now, remote).unwrap();
    world.pass_until(20 * SECOND, "accepted", |world| world.hosts[1].node.accept(22).is_some());
    assert!(world.now - begun < Duration::from_millis(100), "{:?}", world.now - begun);
    (world.hosts[1].record.endpoints, world.hosts[1].record.home_derp) = (endpoints, home);
    world.publish();
    world.pass_until(SECOND, "direct", |world| matches!(world.path(0, 1), Path::Direct(_)));
}

#[test]
fn a_peer_whose_address_comes_late_is_reached_at_once() {
    let mut world = World::new(17);
    world.add(true, false);
    world.add(true, false);
    let endpoints = std::mem::take(&mut world.hosts[1].record.endpoints);
    world.publish();
    world.hosts[1].node.listen(22, 8).unwrap();
    let remote = world.hosts[1].tailnet(22);
    world.hosts[0].node.connect(world.now, remote).unwrap();
    world.pass(Duration::from_millis(4200));
    world.hosts[1].record.endpoints = endpoints;
    world.publish();
    let known = world.now;
    world.pass_until(SECOND, "accepted", |world| world.hosts[1].node.accept(22).is_some());
    assert!(world.now - known < Duration::from_millis(50), "{:?}", world.now - known);
}

/// After how many milliseconds a host that dials one which doesn't know it sends something of a kind, for so long.
fn attempts(direct: bool, seconds: u32, is_attempt: fn(&[u8]) -> bool) -> Vec<u128> {
    let mut world = World::new(18);
    world.add(direct, !direct);
    world.add(direct, !direct);
    world.publish_to(0, |_| true);
    world.publish_to(1, |_| false);
    world.pass(SECOND);
    let sent = Rc::new(Cell::new(0));
    let counted = Rc::clone(&sent);
    world.tap = Some(Box::new(move |host, bytes| {
        counted.set(counted.get() + usize::from(host == 0 && is_attempt(bytes)));
        true
    }));
    let (began, remote) = (world.now, world.hosts[1].tailnet(22));
    world.hosts[0].node.connect(world.now, remote).unwrap();
    let (mut times, end) = (Vec::new(), began + seconds * SECOND);
    world.pump();
    while world.now < end {
        times.resize(sent.get(), (world.now - began).as_millis());
        world.step(end);
    }
    times
}

#[test]
fn handshakes_and_pings_are_repeated_at_one_pace_and_end() {
    let pace = [0, 250, 500, 1000, 2000, 4000, 9000, 14_000, 19_000];
    assert_eq!(attempts(false, 20, |bytes| bytes.starts_with(&[1, 0, 0, 0])), pace);
    assert_eq!(attempts(true, 20, disco::is_disco), pace);
    // The dial gives up after 45 s, and what waits for keys is wanted for 90 s more.
    let last = *attempts(true, 900, disco::is_disco).last().unwrap();
    assert!((80_000..140_000).contains(&last), "{last} ms");
}

#[test]
fn home_is_told_at_once_where_there_is_no_choice() {
    let mut world = World::new(19);
    world.add(false, true);
    world.publish();
    assert!(world.has(0, |event| matches!(event, Event::NetInfo(info) if info.preferred_derp == REGION)));
}
