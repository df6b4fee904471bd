//! Bytes arrive, by whatever path, whatever the network does.

use std::time::Duration;

use nixtail_proto::node::{Path, PingKind};

use crate::link::Link;
use crate::world::{REGION, SECOND, World};

const MIB: u64 = 1 << 20;
const MILLISECOND: Duration = Duration::from_millis(1);

#[test]
fn sixty_four_mib_survive_loss_delay_and_reordering() {
    let mut world = World::pair(1);
    world.udp = Link { delay: 20 * MILLISECOND, lost_ppm: 10_000, late_ppm: 20_000, ..Link::default() };
    world.hosts[1].node.listen(22, 8).unwrap();
    let mut stream = world.connect(0, 1, 22, 10 * SECOND);
    let begun = world.now;
    world.transfer(&mut stream, 64 * MIB, 3600 * SECOND);
    let took = (world.now - begun).as_secs_f64();
    println!("64 MiB in {took:.1} virtual seconds: {:.2} Mbit/s", 64.0 * 8.388_608 / took);
    assert_eq!(world.path(0, 1), Path::Direct(world.hosts[1].address));
    for host in &world.hosts {
        let drops = host.node.drops();
        println!("{drops:?}");
        // What the network loses is lost; the tunnel itself throws away nothing but copies that came both ways.
        assert!(drops.refused < 100 && drops.orphaned == 0 && drops.overflow == 0, "{drops:?}");
    }
}

#[test]
fn a_clean_path_is_fast_and_direct() {
    let mut world = World::pair(2);
    world.udp.delay = 10 * MILLISECOND;
    world.hosts[1].node.listen(22, 8).unwrap();
    let mut stream = world.connect(0, 1, 22, SECOND);
    world.transfer(&mut stream, 16 * MIB, 20 * SECOND);
    assert!(world.relayed_bytes < 100_000, "{} bytes through the relay", world.relayed_bytes);
}

#[test]
fn the_relay_alone_is_enough() {
    for (first, second) in [(false, false), (true, false), (false, true)] {
        let mut world = World::new(3);
        world.add(first, true);
        world.add(second, true);
        world.publish();
        world.hosts[1].node.listen(22, 8).unwrap();
        let mut stream = world.connect(0, 1, 22, SECOND);
        world.transfer(&mut stream, 4 * MIB, 30 * SECOND);
        assert_eq!(world.path(0, 1), Path::Derp(REGION));
        assert_eq!(world.path(1, 0), Path::Derp(REGION));
    }
}

#[test]
fn udp_alone_is_enough() {
    let mut world = World::new(4);
    world.add(true, false);
    world.add(true, false);
    world.publish();
    world.hosts[1].node.listen(22, 8).unwrap();
    let mut stream = world.connect(0, 1, 22, SECOND);
    world.transfer(&mut stream, 4 * MIB, 30 * SECOND);
    assert_eq!(world.relayed_bytes, 0);
}

#[test]
fn it_begins_at_the_relay_and_moves_to_udp_without_losing_a_byte() {
    let mut world = World::pair(5);
    // No datagram passes, only the relay works.
    world.udp.lost_ppm = 1_000_000;
    world.hosts[1].node.listen(22, 8).unwrap();
    let mut stream = world.connect(0, 1, 22, SECOND);
    world.transfer(&mut stream, 2 * MIB, 20 * SECOND);
    assert_eq!(world.path(0, 1), Path::Derp(REGION));
    world.udp.lost_ppm = 0;
    let begun = world.now;
    while world.path(0, 1) == Path::Derp(REGION) {
        world.transfer(&mut stream, 64 * 1024, 20 * SECOND);
        world.pass(100 * MILLISECOND);
        assert!(world.now - begun < 15 * SECOND, "no upgrade");
    }
    world.transfer(&mut stream, 2 * MIB, 20 * SECOND);
    // And back, when UDP dies under it.
    world.udp.lost_ppm = 1_000_000;
    world.transfer(&mut stream, 2 * MIB, 30 * SECOND);
    world.pass(10 * SECOND);
    world.transfer(&mut stream, MIB, 30 * SECOND);
    assert_eq!(world.path(0, 1), Path::Derp(REGION));
}

/// Each is at home at another relay, and both have closed the connection to the other's while packets went directly.
#[test]
fn a_relay_that_was_idle_is_dialled_when_udp_dies() {
    let mut world = World::new(20);
    world.relays.insert(2, true);
    world.control.derp_map = std::sync::Arc::new([1, 2].map(|region| (region, World::region(region))).into());
    for host in [world.add(true, true), world.add(true, true)] {
        let far = |region| if usize::from(region) == host + 1 { 0 } else { 200 } * MILLISECOND;
        world.sites[host].far = [1, 2].map(|region| (region, far(region))).into();
        world.hosts[host].record.home_derp = if host == 0 { 1 } else { 2 };
        world.tell_address(host);
    }
    world.publish();
    world.hosts[1].node.listen(22, 8).unwrap();
    let mut stream = world.connect(0, 1, 22, 2 * SECOND);
    for _ in 0..90 {
        world.transfer(&mut stream, 1000, SECOND);
        world.pass(SECOND);
    }
    assert_eq!([0, 1].map(|host| world.hosts[host].relays.len()), [1, 1], "the other's relay is closed");
    world.udp.lost_ppm = 1_000_000;
    // Also where nothing is sent at the moment.
    world.pass(10 * SECOND);
    assert_eq!([0, 1].map(|host| world.hosts[host].relays.len()), [2, 2], "the other's relay is dialled");
    world.transfer(&mut stream, 1000, 5 * SECOND);
    assert!(matches!(world.path(0, 1), Path::Derp(_)), "{:?}", world.path(0, 1));
}

#[test]
fn lost_handshakes_cost_less_than_a_second() {
    for lost in 1..=2 {
        let mut world = World::pair(6);
        world.pass(SECOND);
        let mut left = lost;
        world.tap = Some(Box::new(move |_, bytes| {
            // The initiator's first messages, by whichever path, and each of their copies.
            if bytes.first() == Some(&1) && bytes.len() == 148 && left > 0 {
                left -= 1;
                return false;
            }
            true
        }));
        world.hosts[1].node.listen(22, 8).unwrap();
        let mut stream = world.connect(0, 1, 22, SECOND);
        world.transfer(&mut stream, 1, SECOND);
        assert!(world.elapsed() < 2 * SECOND, "{lost} lost: {:?}", world.elapsed());
    }
}

#[test]
fn keys_are_renewed_and_no_byte_is_lost() {
    let mut world = World::pair(7);
    world.udp.delay = 10 * MILLISECOND;
    world.hosts[1].node.listen(22, 8).unwrap();
    let mut stream = world.connect(0, 1, 22, SECOND);
    let key = world.hosts[1].key();
    let established = |world: &World| {
        let status = world.hosts[0].node.peer_status(world.now).find(|status| status.key == key);
        status.and_then(|status| status.last_handshake)
    };
    let mut handshakes = std::collections::BTreeSet::new();
    for _ in 0..400 {
        let before = world.now;
        world.transfer(&mut stream, 20_000, 2 * SECOND);
        assert!(world.now - before < SECOND, "a stall of {:?} at {:?}", world.now - before, world.elapsed());
        world.pass(SECOND);
        handshakes.extend(established(&world));
    }
    assert!((4..=5).contains(&handshakes.len()), "{} handshakes in 400 s", handshakes.len());
}

#[test]
fn an_idle_network_is_silent() {
    let mut world = World::pair(8);
    world.hosts[1].node.listen(22, 8).unwrap();
    // Talked to once by ICMP, then never again.
    assert!(world.ping(0, 1, PingKind::Icmp).is_some());
    world.pass(900 * SECOND);
    let before: Vec<u64> = world.hosts.iter().map(|host| host.timeouts).collect();
    println!("timeouts in the first 900 s: {before:?}");
    assert!(before.iter().all(|count| *count < 200), "{before:?}");
    let (direct, relayed) = (world.direct_bytes, world.relayed_bytes);
    world.pass(600 * SECOND);
    assert_eq!((world.direct_bytes, world.relayed_bytes), (direct, relayed), "somebody speaks");
    for (host, before) in world.hosts.iter().zip(before) {
        assert!(host.timeouts - before <= 2, "{} timeouts in ten idle minutes", host.timeouts - before);
    }
}

#[test]
fn ten_thousand_idle_peers_cost_nothing() {
    let run = |absent| {
        let mut world = World::pair(10);
        world.absent = absent;
        world.publish();
        world.hosts[1].node.listen(22, 8).unwrap();
        let mut stream = world.connect(0, 1, 22, SECOND);
        world.transfer(&mut stream, 4 * MIB, 20 * SECOND);
        world.pass(60 * SECOND);
        assert_eq!(world.hosts[0].node.peer_status(world.now).count(), 1);
        (world.hosts[0].timeouts, world.direct_bytes, world.relayed_bytes)
    };
    assert_eq!(run(10_000), run(0));
}

/// What an idle node costs is how often it wakes up.
#[test]
fn a_node_among_256_peers_wakes_up_for_its_open_streams_alone() {
    const OPEN: u32 = 10;
    let mut world = World::new(12);
    for _ in 0..=OPEN {
        world.add(true, true);
    }
    world.absent = 256 - OPEN;
    world.publish();
    let mut streams = Vec::new();
    for peer in 1..world.hosts.len() {
        world.hosts[peer].node.listen(22, 8).unwrap();
        let mut stream = world.connect(0, peer, 22, SECOND);
        world.transfer(&mut stream, MIB, 20 * SECOND);
        streams.push(stream);
    }
    let wakes = |world: &mut World, minutes: u32| {
        let before = world.hosts[0].timeouts;
        world.pass(60 * minutes * SECOND);
        world.hosts[0].timeouts - before
    };
    // A stream that nobody uses has TCP's keep-alives from both ends, and a path that is kept open by pings.
    for minute in 0..10 {
        let woken = wakes(&mut world, 1);
        assert!(woken <= 35 * u64::from(OPEN), "{woken} wake-ups in minute {minute} for {OPEN} streams");
    }
    for stream in streams {
        world.hosts[0].node.abort(world.now, stream.near);
        world.hosts[0].node.release(world.now, stream.near);
    }
    // Paths are kept for a while.
    world.pass(120 * SECOND);
    let woken = wakes(&mut world, 10);
    assert!(woken <= 10, "{woken} wake-ups in ten minutes without a stream");
}

#[test]
fn every_kind_of_ping_is_answered() {
    let mut world = World::pair(9);
    world.udp.delay = 10 * MILLISECOND;
    let (latency, path) = world.ping(0, 1, PingKind::Disco).unwrap();
    assert!(latency <= 25 * MILLISECOND, "{latency:?}");
    assert_ne!(path, Path::None);
    assert!(world.ping(0, 1, PingKind::Tsmp).is_some());
    let (latency, path) = world.ping(0, 1, PingKind::Icmp).unwrap();
    assert_eq!((latency, path), (20 * MILLISECOND, Path::Direct(world.hosts[1].address)));
    let (latency, path) = world.ping(0, 1, PingKind::Disco).unwrap();
    assert_eq!((latency, path), (20 * MILLISECOND, Path::Direct(world.hosts[1].address)));
}
