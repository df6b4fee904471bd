//! What must not get in, and what must not get through.

use std::net::SocketAddr;

use nixtail_proto::disco::{self, Message};
use nixtail_proto::node::{Destination, Event, PingKind};
use nixtail_proto::stack::ConnectionError;
use nixtail_proto::tailcfg::EndpointType;
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use crate::world::{REGION, SECOND, World};

#[test]
fn whom_the_filter_does_not_allow_gets_nothing_and_is_told() {
    let mut world = World::pair(21);
    world.denied.insert((0, 1));
    world.publish();
    world.hosts[1].node.listen(22, 8).unwrap();
    let remote = world.hosts[1].tailnet(22);
    let dialled = world.hosts[0].node.connect(world.now, remote).unwrap();
    world.pass_until(5 * SECOND, "refused", |world| world.closed(0, dialled).is_some());
    assert!(matches!(world.closed(0, dialled), Some(Some(ConnectionError::RefusedByPolicy(_)))));
    assert!(world.hosts[1].node.accept(22).is_none());
    assert!(!world.has(1, |event| matches!(event, Event::Accepted { .. })));
    assert!(world.ping(0, 1, PingKind::Icmp).is_none());
    // TSMP is the node's own business, and the other direction is open.
    assert!(world.ping(0, 1, PingKind::Tsmp).is_some());
    assert!(world.ping(1, 0, PingKind::Icmp).is_some());
    assert!(world.hosts[1].node.drops().filtered >= 2);
}

#[test]
fn an_inner_source_that_is_not_the_peers_own_is_dropped() {
    let mut world = World::new(22);
    for _ in 0..3 {
        world.add(true, true);
    }
    world.publish();
    // Host 0 believes that it has host 2's address, and is allowed wider addresses than its own.
    let own = world.hosts[0].record.clone();
    world.hosts[0].record.addresses = world.hosts[2].record.addresses.clone();
    world.hosts[2].record.addresses = own.addresses.clone();
    world.publish_to(0, |_| true);
    world.hosts[2].record.addresses = world.hosts[0].record.addresses.clone();
    world.hosts[0].record.addresses = own.addresses;
    world.hosts[0].record.allowed_ips = Some(vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()]);
    world.publish_to(1, |_| true);
    world.hosts[1].node.listen(22, 8).unwrap();
    let remote = world.hosts[1].tailnet(22);
    world.hosts[0].node.connect(world.now, remote).unwrap();
    world.pass(5 * SECOND);
    assert!(world.hosts[1].node.accept(22).is_none());
    assert!(world.hosts[1].node.drops().spoofed > 0);
    assert_eq!(world.hosts[1].node.drops().filtered, 0);
}

#[test]
fn strangers_get_no_answer() {
    let mut world = World::new(23);
    world.add(true, true);
    world.add(true, true);
    // Host 0 knows host 1, which knows nobody.
    world.publish_to(0, |_| true);
    world.publish_to(1, |_| false);
    world.tap = Some(Box::new(|host, _| {
        assert_eq!(host, 0, "the stranger was answered");
        true
    }));
    let remote = world.hosts[1].tailnet(22);
    world.hosts[0].node.connect(world.now, remote).unwrap();
    world.pass(20 * SECOND);
    assert!(world.hosts[1].node.drops().refused > 3);
    assert_eq!(world.hosts[1].node.peer_status(world.now).count(), 0);
}

#[test]
fn a_flood_of_handshakes_is_bounded_and_the_good_still_get_in() {
    let mut world = World::pair(24);
    // Real initiations: the peer's, captured before they arrive, each of them good for one handshake.
    let captured = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let tap = captured.clone();
    world.tap = Some(Box::new(move |_, bytes| {
        if bytes.len() == 148 && bytes[0] == 1 {
            tap.borrow_mut().push(bytes.to_vec());
            return false;
        }
        true
    }));
    let remote = world.hosts[1].tailnet(22);
    world.hosts[0].node.connect(world.now, remote).unwrap();
    world.pass(SECOND);
    world.tap = None;
    let initiation = captured.borrow()[0].clone();
    let answers = world.direct_bytes + world.relayed_bytes;
    let from: SocketAddr = ([198, 51, 100, 1], 9).into();
    for _ in 0..20_000 {
        world.inject(from, 1, initiation.clone());
    }
    world.pump();
    world.step(world.now);
    let drops = world.hosts[1].node.drops();
    println!("of 20000: {drops:?}");
    assert!(drops.handshakes > 19_000, "{drops:?}");
    let answers = world.direct_bytes + world.relayed_bytes - answers;
    assert!(answers < 4096 * 150, "{answers} bytes of answers");
    // The peer returns the cookie that it gets, or comes when the budget is back.
    world.hosts[1].node.listen(22, 8).unwrap();
    world.pass_until(5 * SECOND, "accepted", |world| world.hosts[1].node.accept(22).is_some());
}

#[test]
fn disco_from_strangers_or_in_others_names_is_dropped() {
    let mut world = World::new(25);
    for _ in 0..3 {
        world.add(true, true);
    }
    world.publish();
    // Host 0's messages come to host 1 through the relay as host 2's.
    let captured = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let tap = captured.clone();
    world.tap = Some(Box::new(move |_, bytes| {
        tap.borrow_mut().push(bytes.to_vec());
        false
    }));
    let key = world.hosts[1].key();
    world.pass(SECOND);
    world.hosts[0].node.ping(world.now, key, PingKind::Disco).unwrap();
    world.hosts[0].node.ping(world.now, key, PingKind::Tsmp).unwrap();
    world.pass(SECOND);
    let (kept, liar, now) = (captured.borrow().clone(), world.hosts[2].key(), world.now);
    assert!(kept.iter().any(|bytes| bytes.starts_with(b"TS")) && kept.iter().any(|bytes| bytes[0] == 1));
    let before = world.hosts[1].node.drops().refused;
    for bytes in kept.clone() {
        world.hosts[1].node.handle_derp_packets(now, REGION, [(liar, &bytes[..])]);
    }
    assert_eq!(world.hosts[1].node.drops().refused - before, kept.len() as u64);
    world.pump();
    assert_eq!(captured.borrow().len(), kept.len(), "host 1 answered");
}

#[test]
fn a_call_me_maybe_counts_through_a_relay_only() {
    let mut world = World::pair(26);
    world.pass(SECOND);
    // Properly sealed by the peer, each with another address.
    let call = |world: &World, address: SocketAddr| {
        let message = Message::CallMeMaybe { endpoints: vec![address] };
        let (from, to) = (world.hosts[0].disco_key(), world.hosts[1].disco_key().public());
        let mut packet = Vec::new();
        disco::seal(&message, from, &to, &mut StdRng::seed_from_u64(26), &mut packet).unwrap();
        packet
    };
    let by_udp: SocketAddr = ([203, 0, 113, 7], 1000).into();
    let by_relay: SocketAddr = ([203, 0, 113, 8], 1000).into();
    let mut packets = [call(&world, by_udp), call(&world, by_relay)];
    let (key, from, now) = (world.hosts[0].key(), world.hosts[0].address, world.now);
    let node = &mut world.hosts[1].node;
    let before = node.drops().refused;
    let length = packets[0].len();
    node.handle_datagrams(now, from, &mut packets[0], length);
    assert_eq!(node.drops().refused - before, 1);
    node.handle_derp_packets(now, REGION, [(key, &packets[1][..])]);
    assert_eq!(node.drops().refused - before, 1);

    let (mut buffer, mut sent_to) = (vec![0; 65536], Vec::new());
    while let Some(transmit) = node.poll_transmit(now, &mut buffer, 1) {
        sent_to.push(transmit.destination);
    }
    assert!(sent_to.contains(&Destination::Udp(by_relay)), "{sent_to:?}");
    assert!(!sent_to.contains(&Destination::Udp(by_udp)), "{sent_to:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_a_node_panic(
        mut data in proptest::collection::vec(any::<u8>(), 0..3000),
        kind in 0_u8..6,
        segment in 0_usize..1500,
        sizes in 0_usize..5,
    ) {
        let mut world = World::pair(26);
        world.ping(0, 1, PingKind::Tsmp);
        world.hosts[1].node.handle_local_endpoints(world.now, &[("192.0.2.2:1".parse().unwrap(), EndpointType::Local)]);
        // Lengths and beginnings that get past the first look.
        data.resize([148, 92, 64, 80, data.len()][sizes], 7);
        let begin: &[u8] = match kind {
            1..=4 => &[kind, 0, 0, 0],
            5 => b"TS\xf0\x9f\x92\xac",
            _ => &[],
        };
        if data.len() >= begin.len() {
            data[..begin.len()].copy_from_slice(begin);
        }
        let (from, key, now) = (world.hosts[0].address, world.hosts[0].key(), world.now);
        let node = &mut world.hosts[1].node;
        node.handle_datagrams(now, from, &mut data.clone(), segment);
        node.handle_derp_packets(now, REGION, [(key, &data[..])]);
        world.pump();
        prop_assert!(world.ping(0, 1, PingKind::Tsmp).is_some());
    }
}
