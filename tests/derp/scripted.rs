//! What a real relay does seldom, or not when a test wants it: a relay whose every frame the test writes itself.

use std::sync::Arc;

use nixtail::net::derp::{DerpConfig, DerpConnection, DerpEvent, DerpEventKind, DerpFailure};
use nixtail_proto::derp::{
    CERTIFICATE_NAME_PREFIX, ClientInfo, Decoder, DerpError, Frame, PROTOCOL_VERSION, ServerInfo, write_recv_packet,
};
use nixtail_proto::key::{NodePrivate, NodePublic};
use nixtail_proto::tailcfg::{DerpNode, DerpRegion};
use rand::SeedableRng as _;
use rand::rngs::{StdRng, SysRng};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{PATIENCE, REGION};

struct Scripted {
    listener: TcpListener,
    tls: TlsAcceptor,
    key: NodePrivate,
}

impl Scripted {
    async fn start() -> Self {
        Self::start_with(|_| None).await
    }

    /// One that shows a certificate which tells this key, given its own.
    async fn start_with(told: impl FnOnce(NodePublic) -> Option<NodePublic>) -> Self {
        let relay_key = NodePrivate::generate(&mut rng());
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let told = told(relay_key.public());
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert([made.cert.der().clone()].into_iter().chain(told.map(tell_key)).collect(), key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { listener, tls: TlsAcceptor::from(Arc::new(tls)), key: relay_key }
    }

    fn region(&self) -> DerpRegion {
        let node = DerpNode {
            name: "scripted".to_owned(),
            region_id: REGION,
            host_name: "127.0.0.1".to_owned(),
            ipv4: "127.0.0.1".to_owned(),
            ipv6: "none".to_owned(),
            derp_port: self.listener.local_addr().unwrap().port().into(),
            insecure_for_tests: true,
            ..DerpNode::default()
        };
        DerpRegion { region_id: REGION, nodes: vec![node], ..DerpRegion::default() }
    }

    /// A client of it, which keeps so many events until they are taken.
    fn client(&self, events: usize) -> (DerpConnection, mpsc::Receiver<DerpEvent>) {
        let (sender, receiver) = mpsc::channel(events);
        let node_key = NodePrivate::generate(&mut rng());
        let config =
            DerpConfig { region: self.region(), node_key, proxies: Arc::default(), home: false, connection: 1 };
        (DerpConnection::spawn(config, sender), receiver)
    }

    /// The client's connection: its upgrade is answered, together with this relay's key, in one piece; and what it says
    /// of itself is read.
    async fn accept(&self) -> Session {
        let mut session = self.accept_request().await;
        session.write(&self.answer()).await;
        session.identify(&self.key).await;
        session
    }

    /// The client's connection, its upgrade read and not answered yet.
    async fn accept_request(&self) -> Session {
        let (tcp, _) = timeout(PATIENCE, self.listener.accept()).await.unwrap().unwrap();
        let mut stream = self.tls.accept(tcp).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        Session { stream, decoder: Decoder::new(), client: NodePublic::from_bytes([0; 32]) }
    }

    /// The answer to an upgrade, and this relay's key.
    fn answer(&self) -> Vec<u8> {
        let mut answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n".to_vec();
        Frame::ServerKey(self.key.public()).write(&mut answer).unwrap();
        answer
    }

    /// The frame that says that the client is taken.
    fn welcome(&self, session: &Session) -> Vec<u8> {
        let mut frame = Vec::new();
        ServerInfo::default().write(&self.key, &session.client, &mut rng(), &mut frame).unwrap();
        frame
    }
}

struct Session {
    stream: TlsStream<TcpStream>,
    decoder: Decoder,
    client: NodePublic,
}

impl Session {
    /// Reads who the client is.
    async fn identify(&mut self, relay: &NodePrivate) {
        let read = self.next(|frame| match frame {
            Frame::ClientInfo { key, sealed } => {
                let info = ClientInfo::open(sealed, relay, &key).unwrap();
                assert_eq!((info.version, info.can_ack_pings), (PROTOCOL_VERSION, true));
                Some(key)
            }
            other => panic!("{other:?}"),
        });
        self.client = read.await;
    }

    async fn write(&mut self, bytes: &[u8]) {
        timeout(PATIENCE, self.stream.write_all(bytes)).await.expect("the client reads").unwrap();
        self.stream.flush().await.unwrap();
    }

    /// The first of the client's frames that `wanted` makes something of.
    async fn next<T>(&mut self, mut wanted: impl FnMut(Frame<'_>) -> Option<T>) -> T {
        let frames = async {
            loop {
                while let Some(frame) = self.decoder.next_frame().unwrap() {
                    if let Some(found) = wanted(frame) {
                        return found;
                    }
                }
                assert!(self.stream.read_buf(self.decoder.unread()).await.unwrap() > 0, "the client hung up");
            }
        };
        timeout(PATIENCE, frames).await.expect("a frame of the client in time")
    }

    async fn pong(&mut self) -> [u8; 8] {
        self.next(|frame| if let Frame::Pong(data) = frame { Some(data) } else { None }).await
    }
}

fn rng() -> StdRng {
    StdRng::try_from_rng(&mut SysRng).expect("randomness")
}

/// A certificate that tells a relay's key.
fn tell_key(relay: NodePublic) -> CertificateDer<'static> {
    let mut params = rcgen::CertificateParams::default();
    let name = relay.to_string().replace(NodePublic::PREFIX, CERTIFICATE_NAME_PREFIX);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().clone()
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
    let (_connection, mut events) = relay.client(8);
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
    let (_connection, mut events) = relay.client(8);
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
    let (_connection, mut events) = relay.client(8);
    let mut session = relay.accept_request().await;
    session.write(&relay.answer()).await;
    let event = event(&mut events).await;
    let is_that = matches!(event, DerpEventKind::Disconnected(DerpFailure::Protocol(DerpError::AnotherKey)));
    assert!(is_that, "{event:?}");
}

#[tokio::test]
async fn a_ping_of_the_relay_is_answered() {
    let relay = Scripted::start().await;
    let (_connection, _events) = relay.client(8);
    let mut session = relay.accept().await;
    session.write(&[relay.welcome(&session), ping(*b"12345678")].concat()).await;
    assert_eq!(session.pong().await, *b"12345678");
}

#[tokio::test]
async fn a_relay_is_read_though_nobody_takes_its_packets() {
    let relay = Scripted::start().await;
    // Room for the news of the connection, and that is never taken.
    let (connection, _events) = relay.client(1);
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
    let (_connection, mut events) = relay.client(8);
    let session = relay.accept().await;
    // So does one that asks control about its clients and hasn't heard of us yet.
    drop(session);
    let event = event(&mut events).await;
    assert!(matches!(event, DerpEventKind::Disconnected(DerpFailure::Refused)), "{event:?}");
}
