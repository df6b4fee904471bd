use tokio::io::DuplexStream;
use tokio::task::JoinHandle;

use super::*;

/// A node's end of a relay connection.
struct Node {
    stream: DuplexStream,
    decoder: Decoder,
    key: NodePrivate,
    ended: JoinHandle<Result<(), ConnectionError>>,
}

impl Node {
    async fn connect(relay: &Arc<Relay>) -> Self {
        let mut rng = crate::random::rng().unwrap();
        let key = NodePrivate::generate(&mut rng);
        let (mut stream, theirs) = tokio::io::duplex(1 << 20);
        let ended = tokio::spawn({
            let relay = Arc::clone(relay);
            async move { relay.upgraded(theirs, vec![], false).await }
        });
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let mut node = Self { stream, decoder: Decoder::new(), key, ended };
        let server = node.next(|frame| match frame {
            Frame::ServerKey(key) => key,
            other => panic!("{other:?}"),
        });
        let server = server.await;
        let head = String::from_utf8(head).unwrap();
        assert!(head.contains(&format!("Derp-Public-Key: {}\r\n", server.to_string().trim_start_matches("nodekey:"))));

        let mut info = Vec::new();
        ClientInfo::default().write(&node.key, &server, &mut rng, &mut info).unwrap();
        node.stream.write_all(&info).await.unwrap();
        let own = node.key.clone();
        let info = node.next(|frame| match frame {
            Frame::ServerInfo { sealed } => ServerInfo::open(sealed, &own, &server).unwrap(),
            other => panic!("{other:?}"),
        });
        assert_eq!(info.await, ServerInfo::default());
        node
    }

    async fn next<T>(&mut self, take: impl FnOnce(Frame<'_>) -> T) -> T {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return take(frame);
            }
            let read = read_more(&mut self.stream, &mut self.decoder);
            tokio::time::timeout(Duration::from_secs(5), read).await.unwrap().unwrap();
        }
    }

    async fn send(&mut self, frame: Frame<'_>) {
        let mut bytes = Vec::new();
        frame.write(&mut bytes).unwrap();
        self.stream.write_all(&bytes).await.unwrap();
    }
}

fn relay() -> Arc<Relay> {
    let key = NodePrivate::generate(&mut crate::random::rng().unwrap());
    let (tls, _) = crate::tls::self_signed(vec!["localhost".to_owned()], &key.public()).unwrap();
    Arc::new(Relay::new(key, tls))
}

#[tokio::test]
async fn packets_pings_and_departures() {
    let relay = relay();
    let (mut one, mut two) = (Node::connect(&relay).await, Node::connect(&relay).await);
    let (first, second) = (one.key.public(), two.key.public());

    one.send(Frame::SendPacket { to: second, packet: b"hello" }).await;
    two.next(|frame| assert_eq!(frame, Frame::RecvPacket { from: first, packet: b"hello" })).await;
    assert_eq!(relay.stats(), RelayStats { packets: 1, bytes: 5 });

    one.send(Frame::Ping(*b"12345678")).await;
    one.next(|frame| assert_eq!(frame, Frame::Pong(*b"12345678"))).await;

    let nobody = NodePublic::from_bytes([9; 32]);
    for _ in 0..10 {
        one.send(Frame::SendPacket { to: nobody, packet: b"x" }).await;
    }
    one.send(Frame::Ping(*b"abcdefgh")).await;
    let not_here = Frame::PeerGone { peer: nobody, reason: PeerGoneReason::NotHere };
    for _ in 0..NOT_HERE_BURST {
        one.next(|frame| assert_eq!(frame, not_here)).await;
    }
    one.next(|frame| assert_eq!(frame, Frame::Pong(*b"abcdefgh"))).await;

    drop(one);
    let gone = Frame::PeerGone { peer: first, reason: PeerGoneReason::Disconnected };
    two.next(|frame| assert_eq!(frame, gone)).await;
}

#[tokio::test]
async fn a_node_must_prove_its_key() {
    let relay = relay();
    let mut rng = crate::random::rng().unwrap();
    let (mut stream, theirs) = tokio::io::duplex(1 << 16);
    let key = NodePrivate::generate(&mut rng);
    let mut info = Vec::new();
    ClientInfo::default().write(&key, &relay.key.public(), &mut rng, &mut info).unwrap();
    // Another's key before the same box.
    info[5] ^= 1;
    stream.write_all(&info).await.unwrap();
    let ended = relay.upgraded(theirs, vec![], false).await;
    assert!(matches!(ended, Err(ConnectionError::Derp(DerpError::Sealed))), "{ended:?}");
}

#[tokio::test]
async fn a_node_that_does_not_read_is_cut_off() {
    let relay = relay();
    let (slow, mut fast) = (Node::connect(&relay).await, Node::connect(&relay).await);
    let packet = vec![0; 60_000];
    for _ in 0..40 {
        fast.send(Frame::SendPacket { to: slow.key.public(), packet: &packet }).await;
        tokio::task::yield_now().await;
    }
    let ended = slow.ended.await.unwrap();
    assert!(matches!(ended, Err(ConnectionError::Slow(_))), "{ended:?}");
}
