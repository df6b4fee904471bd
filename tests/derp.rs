//! DERP connections against Tailscale's own relay, and against one that does as told.

#![allow(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

mod lab;
#[path = "derp/regions.rs"]
mod regions;
#[path = "derp/scripted.rs"]
mod scripted;
#[path = "derp/scripted_relay.rs"]
mod scripted_relay;

use std::sync::Arc;
use std::time::Duration;

use lab::peers;
use lab::relay::{REGION, Relay};
use nixtail::net::derp::{DerpConfig, DerpConnection, DerpEvent, DerpEventKind, DerpFailure};
use nixtail_proto::derp::PeerGoneReason;
use nixtail_proto::disco;
use nixtail_proto::key::{NodePrivate, NodePublic};
use nixtail_proto::tailcfg::{DerpNode, DerpRegion};
use rand::SeedableRng as _;
use rand::rngs::{StdRng, SysRng};
use tokio::sync::mpsc;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

fn region(relay: &Relay) -> DerpRegion {
    let node = DerpNode {
        name: "lab1".to_owned(),
        region_id: REGION,
        host_name: "127.0.0.1".to_owned(),
        cert_name: relay.cert_name.clone(),
        ipv4: "127.0.0.1".to_owned(),
        ipv6: "none".to_owned(),
        derp_port: relay.derp_port().into(),
        ..DerpNode::default()
    };
    DerpRegion { region_id: REGION, nodes: vec![node], ..DerpRegion::default() }
}

struct Client {
    key: NodePublic,
    connection: DerpConnection,
    events: mpsc::Receiver<DerpEvent>,
}

impl Client {
    fn spawn(region: &DerpRegion) -> Self {
        let node_key = NodePrivate::generate(&mut StdRng::try_from_rng(&mut SysRng).expect("randomness"));
        let (sender, events) = mpsc::channel(64);
        let key = node_key.public();
        let config = DerpConfig {
            region: region.clone(),
            node_key,
            proxies: Arc::default(),
            home: true,
            first_node: 0,
            connection: 5,
        };
        Self { key, connection: DerpConnection::spawn(config, sender), events }
    }

    async fn connected(region: &DerpRegion) -> Self {
        let mut client = Self::spawn(region);
        let event = client.next().await;
        assert!(matches!(event, DerpEventKind::Connected), "{event:?}");
        client
    }

    async fn next(&mut self) -> DerpEventKind {
        let event = timeout(PATIENCE, self.events.recv()).await.expect("an event in time").expect("an open channel");
        assert_eq!((event.region, event.connection), (REGION, 5));
        event.kind
    }

    /// The next packets, until there are so many.
    async fn packets(&mut self, wanted: usize) -> Vec<(NodePublic, Vec<u8>)> {
        let mut found = Vec::new();
        while found.len() < wanted {
            match self.next().await {
                DerpEventKind::Packets(batch) => {
                    found.extend(batch.iter().map(|(from, packet)| (from, packet.to_vec())));
                }
                other => panic!("{other:?}"),
            }
        }
        found
    }
}

#[tokio::test]
async fn packets_go_both_ways_and_the_end_is_told() {
    let Some(derper) = peers::require("derper") else { return };
    let relay = Relay::start(&derper);
    let region = region(&relay);
    let (mut left, mut right) = (Client::connected(&region).await, Client::connected(&region).await);

    for n in 0..20u8 {
        left.connection.send(&right.key, &[n; 1200]);
    }
    right.connection.send(&left.key, b"hello");
    right.connection.send(&left.key, &vec![7; 64 << 10]);
    let to_right = right.packets(20).await;
    assert!(to_right.iter().zip(0..).all(|((from, packet), n)| *from == left.key && *packet == [n; 1200]));
    let to_left = left.packets(2).await;
    assert_eq!(to_left, [(right.key, b"hello".to_vec()), (right.key, vec![7; 64 << 10])]);
    assert_eq!((left.connection.stats().sent, left.connection.stats().received), (20, 2));

    // A peer that isn't there, and one that leaves.
    let stranger = NodePublic::from_bytes([9; 32]);
    // Relays say so only where a disco packet was sent.
    left.connection.send(&stranger, &[&disco::MAGIC[..], &[0; 80]].concat());
    let event = left.next().await;
    assert!(
        matches!(event, DerpEventKind::PeerGone { peer, reason: PeerGoneReason::NotHere } if peer == stranger),
        "{event:?}"
    );
    let right_key = right.key;
    right.connection.close().await;
    assert!(right.events.recv().await.is_none(), "nothing after close");
    let event = left.next().await;
    assert!(
        matches!(event, DerpEventKind::PeerGone { peer, reason: PeerGoneReason::Disconnected } if peer == right_key),
        "{event:?}"
    );

    // The relay goes away.
    drop(relay);
    let event = loop {
        match left.next().await {
            DerpEventKind::Restarting { .. } | DerpEventKind::Health(_) => {}
            other => break other,
        }
    };
    assert!(matches!(event, DerpEventKind::Disconnected(_)), "{event:?}");
    assert!(left.events.recv().await.is_none(), "the last event");
}

#[tokio::test]
async fn what_is_queued_before_the_connection_is_sent_with_it() {
    let Some(derper) = peers::require("derper") else { return };
    let relay = Relay::start(&derper);
    let region = region(&relay);
    let mut right = Client::connected(&region).await;
    let left = Client::spawn(&region);
    left.connection.send(&right.key, b"early");
    assert_eq!(right.packets(1).await, [(left.key, b"early".to_vec())]);
}

#[tokio::test]
async fn a_dead_first_relay_is_passed_over() {
    let Some(derper) = peers::require("derper") else { return };
    let relay = Relay::start(&derper);
    let mut region = region(&relay);
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let closed = lab::free_tcp_port();
    for (name, port) in [("closed", closed), ("silent", silent.local_addr().expect("an address").port())] {
        let dead = DerpNode { name: name.to_owned(), derp_port: port.into(), ..region.nodes[0].clone() };
        region.nodes.insert(0, dead);
    }
    Client::connected(&region).await;
}

#[tokio::test]
async fn another_certificate_is_refused_and_insecure_takes_any() {
    let Some(derper) = peers::require("derper") else { return };
    let relay = Relay::start(&derper);
    let mut region = region(&relay);
    // The system's roots don't know it, whatever name is wanted; nor does another pin.
    for cert_name in [String::new(), "localhost".to_owned(), format!("sha256-raw:{}", "ab".repeat(32))] {
        region.nodes[0].cert_name.clone_from(&cert_name);
        let event = Client::spawn(&region).next().await;
        assert!(matches!(event, DerpEventKind::Disconnected(DerpFailure::Tls { .. })), "{cert_name}: {event:?}");
    }
    region.nodes[0].cert_name.clear();
    region.nodes[0].insecure_for_tests = true;
    Client::connected(&region).await;
}

#[tokio::test]
async fn failures_say_what_failed() {
    let nowhere = DerpRegion { region_id: REGION, ..DerpRegion::default() };
    let event = Client::spawn(&nowhere).next().await;
    assert!(matches!(event, DerpEventKind::Disconnected(DerpFailure::NoRelay)), "{event:?}");

    let node = DerpNode {
        host_name: "127.0.0.1".to_owned(),
        ipv4: "127.0.0.1".to_owned(),
        ipv6: "none".to_owned(),
        derp_port: lab::free_tcp_port().into(),
        insecure_for_tests: true,
        ..DerpNode::default()
    };
    let closed = DerpRegion { region_id: REGION, nodes: vec![node], ..DerpRegion::default() };
    let event = Client::spawn(&closed).next().await;
    assert!(matches!(event, DerpEventKind::Disconnected(DerpFailure::Connect { .. })), "{event:?}");
}

#[tokio::test]
async fn closing_does_not_wait_for_a_dial() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let node = DerpNode {
        host_name: "127.0.0.1".to_owned(),
        ipv4: "127.0.0.1".to_owned(),
        ipv6: "none".to_owned(),
        derp_port: silent.local_addr().expect("an address").port().into(),
        insecure_for_tests: true,
        ..DerpNode::default()
    };
    let region = DerpRegion { region_id: REGION, nodes: vec![node], ..DerpRegion::default() };
    let mut client = Client::spawn(&region);
    tokio::time::sleep(Duration::from_millis(100)).await;
    timeout(Duration::from_secs(2), client.connection.close()).await.expect("a quick end");
    assert!(client.events.recv().await.is_none());
}
