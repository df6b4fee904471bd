//! What a real relay does seldom, or not when a test wants it: a relay whose every frame the test writes itself.

use std::sync::Arc;

use nixtail::net::derp::{DerpConfig, DerpConnection, DerpEvent, DerpEventKind, DerpFailure};
use nixtail_proto::derp::{DerpError, Frame, write_recv_packet};
use nixtail_proto::key::{NodePrivate, NodePublic};
use nixtail_proto::tailcfg::DerpRegion;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::scripted_relay::{Scripted, rng};
use super::{PATIENCE, REGION};

/// A client of a relay, which keeps so many events until they are taken.
fn client(relay: &Scripted, events: usize) -> (DerpConnection, mpsc::Receiver<DerpEvent>) {
    let region = DerpRegion { region_id: REGION, nodes: vec![relay.node(REGION)], ..DerpRegion::default() };
    let (sender, receiver) = mpsc::channel(events);
    let node_key = NodePrivate::generate(&mut rng());
    let config = DerpConfig { region, node_key, proxies: Arc::default(), home: false, first_node: 0, connection: 1 };
    (DerpConnection::spawn(config, sender), receiver)
}

fn ping(data: [u8; 8]) -> Vec<u8> {
    let mut frame = Vec::new();
    Frame::Ping(data).write(&mut frame).unwrap();
    frame
}

async fn event(events: &mut mpsc::Receiver<DerpEvent>) -> DerpEventKind {
    timeout(PATIENCE, events.recv()).await.expect("an event in time").expect("an open channel").kind
}

#[tokio::test]
async fn what_comes_with_an_answer_is_kept() {
    let relay = Scripted::start().await;
    let (_connection, mut events) = client(&relay, 8);
    // Here its key comes in one piece with the 101 …
    let mut session = relay.accept().await;
    let mut answer = relay.welcome(&session);
    let peer = NodePublic::from_bytes([7; 32]);
    // … and a packet with the welcome.
    write_recv_packet(&peer, b"early", &mut answer).unwrap();
    session.write(&answer).await;
    assert!(matches!(event(&mut events).await, DerpEventKind::Connected));
    match event(&mut events).await {
        DerpEventKind::Packets(batch) => assert_eq!(batch.iter().next(), Some((peer, &b"early"[..]))),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_relay_whose_certificate_tells_its_key_hears_at_once_who_we_are() {
    let relay = Scripted::start_with(Some).await;
    let (_connection, mut events) = client(&relay, 8);
    let mut session = relay.accept_request().await;
    // Before any answer.
    session.identify(&relay.key).await;
    session.write(&[relay.answer(), relay.welcome(&session)].concat()).await;
    assert!(matches!(event(&mut events).await, DerpEventKind::Connected));
    session.write(&ping(*b"and once")).await;
    // Nothing was said twice: a pong is the next frame.
    let pong = session.next(|frame| if let Frame::Pong(data) = frame { Some(data) } else { panic!("{frame:?}") });
    assert_eq!(pong.await, *b"and once");
}

#[tokio::test]
async fn a_relay_whose_certificate_tells_another_key_is_left() {
    let relay = Scripted::start_with(|_| Some(NodePublic::from_bytes([9; 32]))).await;
    let (_connection, mut events) = client(&relay, 8);
    let mut session = relay.accept_request().await;
    session.write(&relay.answer()).await;
    let event = event(&mut events).await;
    let is_that = matches!(event, DerpEventKind::Disconnected(DerpFailure::Protocol(DerpError::AnotherKey)));
    assert!(is_that, "{event:?}");
}

#[tokio::test]
async fn a_ping_of_the_relay_is_answered() {
    let relay = Scripted::start().await;
    let (_connection, _events) = client(&relay, 8);
    let mut session = relay.accept().await;
    session.write(&[relay.welcome(&session), ping(*b"12345678")].concat()).await;
    assert_eq!(session.pong().await, *b"12345678");
}

#[tokio::test]
async fn a_relay_is_read_though_nobody_takes_its_packets() {
    let relay = Scripted::start().await;
    // Room for the news of the connection, and that is never taken.
    let (connection, _events) = client(&relay, 1);
    let mut session = relay.accept().await;
    let mut packets = relay.welcome(&session);
    let peer = NodePublic::from_bytes([7; 32]);
    for _ in 0..64 {
        write_recv_packet(&peer, &[0; 1400], &mut packets).unwrap();
    }
    session.write(&[packets, ping(*b"still ok")].concat()).await;
    assert_eq!(session.pong().await, *b"still ok");
    // What came with that ping is counted before a later one is read.
    session.write(&ping(*b"and now?")).await;
    assert_eq!(session.pong().await, *b"and now?");
    assert_eq!(connection.stats().received, 0);
    assert_eq!(connection.stats().dropped_inbound, 64);
}

#[tokio::test]
async fn a_relay_that_closes_after_our_introduction_has_refused_us() {
    let relay = Scripted::start().await;
    let (_connection, mut events) = client(&relay, 8);
    let session = relay.accept().await;
    // So does one that asks control about its clients and hasn't heard of us yet.
    drop(session);
    let event = event(&mut events).await;
    assert!(matches!(event, DerpEventKind::Disconnected(DerpFailure::Refused)), "{event:?}");
}

#[tokio::test]
async fn one_that_is_asked_for_a_sign_of_life_and_gives_none_is_lost() {
    let relay = Scripted::start().await;
    let (connection, mut events) = client(&relay, 8);
    let mut session = relay.accept().await;
    session.write(&relay.welcome(&session)).await;
    assert!(matches!(event(&mut events).await, DerpEventKind::Connected));
    connection.check();
    let asked = session.next(|frame| if let Frame::Ping(data) = frame { Some(data) } else { None }).await;
    let mut pong = Vec::new();
    Frame::Pong(asked).write(&mut pong).unwrap();
    session.write(&pong).await;
    // It has answered, and is asked again; now it doesn't.
    connection.check();
    let event = event(&mut events).await;
    assert!(matches!(event, DerpEventKind::Disconnected(DerpFailure::Unanswered)), "{event:?}");
}

#[tokio::test]
async fn a_region_s_relays_are_tried_from_the_one_that_is_to_be_first() {
    let (first, second) = (Scripted::start().await, Scripted::start().await);
    let region =
        DerpRegion { region_id: REGION, nodes: vec![first.node(REGION), second.node(REGION)], ..DerpRegion::default() };
    let (sender, mut events) = mpsc::channel(8);
    let node_key = NodePrivate::generate(&mut rng());
    // Three, of two: the second.
    let config = DerpConfig { region, node_key, proxies: Arc::default(), home: true, first_node: 3, connection: 1 };
    let _connection = DerpConnection::spawn(config, sender);
    let mut session = second.accept().await;
    session.write(&second.welcome(&session)).await;
    assert!(matches!(event(&mut events).await, DerpEventKind::Connected));
}
