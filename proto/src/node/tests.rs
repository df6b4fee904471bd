use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::key::{DiscoPublic, NodePrivate};
use crate::netmap::Netmap;
use crate::tailcfg::{self, DerpNode, DerpRegion, NodeId};

fn start() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
    Instant::now()
}

fn new_node(now: Instant) -> Node {
    let mut rng = StdRng::seed_from_u64(1);
    let config = NodeConfig {
        node_key: NodePrivate::generate(&mut rng),
        disco_key: DiscoPrivate::generate(&mut rng),
        direct: true,
        derp: true,
    };
    Node::new(config, now, Box::new(rng))
}

fn key(n: u8) -> NodePublic {
    NodePublic::from_bytes([n; 32])
}

fn region(id: RegionId) -> (RegionId, DerpRegion) {
    let relay = DerpNode { region_id: id, host_name: format!("relay{id}.example"), ..DerpNode::default() };
    (id, DerpRegion { region_id: id, nodes: vec![relay], ..DerpRegion::default() })
}

/// Thing 12 that independent clients get wrong: a node that waits for its own home relay before it talks.
#[test]
fn a_peer_is_dialled_at_its_own_home_before_we_have_one() {
    let now = start();
    let mut node = new_node(now);
    let own = tailcfg::Node { addresses: vec!["100.64.0.1/32".parse().unwrap()], ..tailcfg::Node::default() };
    let peer = tailcfg::Node {
        id: 2,
        key: NodePrivate::generate(&mut StdRng::seed_from_u64(2)).public(),
        addresses: vec!["100.64.0.2/32".parse().unwrap()],
        home_derp: 2,
        ..tailcfg::Node::default()
    };
    let peer_key = peer.key;
    let netmap = Netmap {
        self_node: Arc::new(own),
        peers: [(2, Arc::new(peer))].into(),
        derp_map: Arc::new([region(1), region(2)].into()),
        ..Netmap::default()
    };
    node.handle_netmap(now, &netmap);
    let first = events(&mut node);
    assert!(!first.iter().any(|event| matches!(event, Event::HomeRegion(_))), "nobody was asked yet: {first:?}");
    node.connect(now, "100.64.0.2:22".parse().unwrap()).unwrap();
    let mut buffer = vec![0; 64 << 10];
    while node.poll_transmit(now, &mut buffer, 1).is_some() {}
    assert!(events(&mut node).contains(&Event::DialDerp { region: 2 }));
    node.handle_derp_connected(now, 2);
    let sent = std::iter::from_fn(|| node.poll_transmit(now, &mut buffer, 1));
    let to_peer = Destination::Derp { region: 2, peer: peer_key };
    assert!(sent.into_iter().any(|transmit| transmit.destination == to_peer), "a handshake goes at once");
}

#[test]
fn pings_to_an_address_are_as_long_as_full_packets() {
    let now = start();
    let mut node = new_node(now);
    let own = tailcfg::Node { addresses: vec!["100.64.0.1/32".parse().unwrap()], ..tailcfg::Node::default() };
    let address: SocketAddr = "192.0.2.2:41641".parse().unwrap();
    let mut rng = StdRng::seed_from_u64(2);
    let peer = tailcfg::Node {
        id: 2,
        key: NodePrivate::generate(&mut rng).public(),
        disco_key: DiscoPrivate::generate(&mut rng).public(),
        addresses: vec!["100.64.0.2/32".parse().unwrap()],
        endpoints: vec![address],
        ..tailcfg::Node::default()
    };
    let peers = [(2, Arc::new(peer))].into();
    node.handle_netmap(now, &Netmap { self_node: Arc::new(own), peers, ..Netmap::default() });
    node.connect(now, "100.64.0.2:22".parse().unwrap()).unwrap();
    let mut buffer = vec![0; 64 << 10];
    let sent = std::iter::from_fn(|| {
        let transmit = node.poll_transmit(now, &mut buffer, 1)?;
        Some((transmit.destination, transmit.len, crate::disco::sender(&buffer[..transmit.len]).is_some()))
    });
    let pings: Vec<_> = sent.filter(|(_, _, is_disco)| *is_disco).collect();
    // WireGuard's data header and tag are 16 bytes each.
    assert_eq!(pings, [(Destination::Udp(address), 1280 + 32, true)]);
}

/// A node that is connected to the relay of region 1, its home, and the events so far taken.
fn at_home(now: Instant) -> Node {
    let mut node = new_node(now);
    node.handle_netmap(now, &Netmap { derp_map: Arc::new([region(1)].into()), ..Netmap::default() });
    while node.poll_event().is_some() {}
    node.handle_derp_connected(now, 1);
    node.handle_local_endpoints(now, &[local("192.0.2.1:7"), local("192.0.2.2:7")]);
    while node.poll_event().is_some() {}
    node
}

fn local(endpoint: &str) -> (SocketAddr, EndpointType) {
    (endpoint.parse().unwrap(), EndpointType::Local)
}

fn events(node: &mut Node) -> Vec<Event> {
    std::iter::from_fn(|| node.poll_event()).collect()
}

#[test]
fn an_address_that_is_gone_has_relays_asked_for_a_sign_of_life() {
    let now = start();
    let mut node = at_home(now);
    node.handle_local_endpoints(now, &[local("192.0.2.1:7"), local("192.0.2.2:7"), local("192.0.2.3:7")]);
    let more = events(&mut node);
    assert!(!more.contains(&Event::CheckDerp { region: 1 }), "one more takes nothing away: {more:?}");
    assert!(matches!(&more[..], [Event::Endpoints(told)] if told.len() == 3), "{more:?}");
    node.handle_local_endpoints(now, &[local("192.0.2.1:7")]);
    let fewer = events(&mut node);
    assert!(fewer.contains(&Event::CheckDerp { region: 1 }), "{fewer:?}");
    assert!(fewer.iter().any(|event| matches!(event, Event::Endpoints(told) if told.len() == 1)), "{fewer:?}");
}

#[test]
fn routes_that_never_rest_are_heeded_every_five_seconds() {
    let now = start();
    let mut node = at_home(now);
    let mut heeded = 0;
    for tenth in 0..=100 {
        node.handle_routes_changed(now + Duration::from_millis(100) * tenth);
        heeded += events(&mut node).iter().filter(|event| **event == Event::CheckDerp { region: 1 }).count();
    }
    assert_eq!(heeded, 3);
}

/// The route is gone, and comes back three seconds later.
#[test]
fn the_last_change_of_routes_is_heeded_later_rather_than_never() {
    let now = start();
    let mut node = at_home(now);
    let checked = |node: &mut Node| events(node).contains(&Event::CheckDerp { region: 1 });
    node.handle_routes_changed(now);
    assert!(checked(&mut node));
    node.handle_routes_changed(now + Duration::from_secs(3));
    assert!(!checked(&mut node));
    let due = now + ROUTES_INTERVAL;
    assert!(node.poll_timeout().is_some_and(|at| at <= due));
    node.handle_timeout(due);
    assert!(checked(&mut node));
    node.handle_timeout(due + ROUTES_INTERVAL);
    assert!(!checked(&mut node), "once");
}

#[test]
fn a_chosen_port_is_told_behind_a_nat_that_maps_each_destination_differently() {
    let now = start();
    let mut node = at_home(now);
    node.set_fixed_port(41_641);
    node.handle_netmap(now, &Netmap { derp_map: Arc::new([region(1), region(2)].into()), ..Netmap::default() });
    let server = |region: u8| (RegionId::from(region), SocketAddr::from(([203, 0, 113, region], 3478)));
    node.handle_stun_servers(now, vec![server(1), server(2)]);
    let mut buffer = vec![0; 2048];
    let mut mapped_port = 1000;
    while let Some(transmit) = node.poll_transmit(now, &mut buffer, 1) {
        let Destination::Udp(server) = transmit.destination else { continue };
        let txid = crate::stun::parse_request(&buffer[..transmit.len]).unwrap();
        mapped_port += 1;
        let mut answer = crate::stun::response(txid, ([198, 51, 100, 7], mapped_port).into());
        let length = answer.len();
        node.handle_datagrams(now, server, &mut answer, length);
    }
    node.handle_timeout(now + Duration::from_secs(2));
    let told = events(&mut node).into_iter().rev().find_map(|event| match event {
        Event::Endpoints(told) => Some(told),
        _ => None,
    });
    let guess = ("198.51.100.7:41641".parse().unwrap(), EndpointType::Stun4LocalPort);
    assert!(told.as_ref().is_some_and(|told| told.contains(&guess)), "{told:?}");
}

/// Peers by number, each with a key, a disco key and addresses that others may claim, too.
fn some_peers() -> impl Strategy<Value = Vec<(NodeId, u8, u8, Vec<u8>)>> {
    prop::collection::vec((1_i64..7, 1_u8..9, 0_u8..4, prop::collection::vec(1_u8..5, 0..4)), 0..7)
}

proptest! {
    /// After any way to a netmap, whose an address or disco key is follows from the peers that are there: of those that claim it,
    /// the one that came first has it, alone.
    #[test]
    fn what_several_peers_claim_is_the_first_one_s_alone(netmaps in prop::collection::vec(some_peers(), 1..8)) {
        let now = start();
        let mut node = new_node(now);
        for peers in netmaps {
            let peers = peers.into_iter().map(|(id, k, disco, addresses)| {
                let addresses = addresses.into_iter().map(|n| format!("100.64.0.{n}/32").parse().unwrap()).collect();
                let disco_key = if disco == 0 { DiscoPublic::default() } else { DiscoPublic::from_bytes([disco; 32]) };
                (id, Arc::new(tailcfg::Node { id, key: key(k), disco_key, addresses, ..tailcfg::Node::default() }))
            });
            let netmap = Netmap { peers: peers.collect(), ..Netmap::default() };
            node.handle_netmap(now, &netmap);

            let known: Vec<_> = (1..9).filter_map(|k| node.peers.by_key(&key(k)).map(|id| (id, key(k)))).collect();
            for k in 1..9 {
                prop_assert_eq!(known.iter().any(|(_, known)| *known == key(k)), netmap.peer_by_key(&key(k)).is_some());
            }
            for (id, key) in &known {
                prop_assert_eq!(&node.peers.get(*id).unwrap().node, netmap.peer_by_key(key).unwrap());
            }
            let first = |claims: &dyn Fn(&tailcfg::Node) -> bool| {
                known.iter().map(|(id, _)| *id).filter(|id| claims(&node.peers.get(*id).unwrap().node)).min()
            };
            for n in 1..5 {
                let address: IpAddr = format!("100.64.0.{n}").parse().unwrap();
                let owner = first(&|node| node.addresses.iter().any(|net| net.addr() == address));
                prop_assert_eq!(node.peers.by_address(address), owner);
                for (id, _) in &known {
                    let has = node.peers.get(*id).unwrap().addresses.contains(&address);
                    prop_assert_eq!(has, owner == Some(*id));
                }
                let disco = DiscoPublic::from_bytes([n; 32]);
                prop_assert_eq!(node.peers.by_disco(&disco), first(&|node| node.disco_key == disco));
            }
        }
    }
}
