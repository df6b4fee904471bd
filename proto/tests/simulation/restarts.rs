//! Peers come, go, and come again as others.

use nixtail_proto::node::{Event, PingKind};
use nixtail_proto::stack::{ConnectError, ConnectionError};

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

#[test]
fn a_netmap_that_comes_late_costs_little() {
    let mut world = World::new(15);
    world.add(true, true);
    world.add(true, true);
    world.publish_to(0, |_| true);
    world.publish_to(1, |_| false);
    world.hosts[1].node.listen(22, 8).unwrap();
    let remote = world.hosts[1].tailnet(22);
    world.hosts[0].node.connect(world.now, remote).unwrap();
    // The peer ignores us until it learns of us.
    world.pass(3 * SECOND);
    assert!(world.hosts[1].node.accept(22).is_none());
    world.publish_to(1, |_| true);
    let known = world.now;
    world.pass_until(5 * SECOND, "accepted", |world| world.hosts[1].node.accept(22).is_some());
    assert!(world.now - known < 3 * SECOND, "{:?}", world.now - known);
}

#[test]
fn home_is_told_at_once_where_there_is_no_choice() {
    let mut world = World::new(19);
    world.add(false, true);
    world.publish();
    assert!(world.has(0, |event| matches!(event, Event::NetInfo(info) if info.preferred_derp == REGION)));
}
