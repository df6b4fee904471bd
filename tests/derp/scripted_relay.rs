//! A relay that does as a test tells it, frame by frame.

use std::sync::Arc;

use nixtail_proto::derp::{CERTIFICATE_NAME_PREFIX, ClientInfo, Decoder, Frame, PROTOCOL_VERSION, ServerInfo};
use nixtail_proto::key::{NodePrivate, NodePublic};
use nixtail_proto::tailcfg::{DerpNode, RegionId};
use rand::SeedableRng as _;
use rand::rngs::{StdRng, SysRng};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::PATIENCE;

/// A relay whose every frame the test writes itself.
pub(crate) struct Scripted {
    listener: TcpListener,
    tls: TlsAcceptor,
    pub(crate) key: NodePrivate,
}

impl Scripted {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| None).await
    }

    /// One that shows a certificate which tells this key, given its own.
    pub(crate) async fn start_with(told: impl FnOnce(NodePublic) -> Option<NodePublic>) -> Self {
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

    /// The relay as a DERP map has it.
    pub(crate) fn node(&self, region_id: RegionId) -> DerpNode {
        DerpNode {
            name: "scripted".to_owned(),
            region_id,
            host_name: "127.0.0.1".to_owned(),
            ipv4: "127.0.0.1".to_owned(),
            ipv6: "none".to_owned(),
            derp_port: self.listener.local_addr().unwrap().port().into(),
            stun_port: -1,
            insecure_for_tests: true,
            ..DerpNode::default()
        }
    }

    /// The client's connection: its upgrade is answered, together with this relay's key, in one piece; and what it says
    /// of itself is read.
    pub(crate) async fn accept(&self) -> Session {
        let mut session = self.accept_request().await;
        session.write(&self.answer()).await;
        session.identify(&self.key).await;
        session
    }

    /// The client's connection, its upgrade read and not answered yet.
    pub(crate) async fn accept_request(&self) -> Session {
        let (tcp, _) = timeout(PATIENCE, self.listener.accept()).await.unwrap().unwrap();
        let mut stream = self.tls.accept(tcp).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        Session { stream, decoder: Decoder::new(), client: NodePublic::from_bytes([0; 32]) }
    }

    /// The answer to an upgrade, and this relay's key.
    pub(crate) fn answer(&self) -> Vec<u8> {
        let mut answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n".to_vec();
        Frame::ServerKey(self.key.public()).write(&mut answer).unwrap();
        answer
    }

    /// The frame that says that the client is taken.
    pub(crate) fn welcome(&self, session: &Session) -> Vec<u8> {
        let mut frame = Vec::new();
        ServerInfo::default().write(&self.key, &session.client, &mut rng(), &mut frame).unwrap();
        frame
    }
}

/// A client's connection.
pub(crate) struct Session {
    pub(crate) stream: TlsStream<TcpStream>,
    decoder: Decoder,
    pub(crate) client: NodePublic,
}

impl Session {
    /// Reads who the client is.
    pub(crate) async fn identify(&mut self, relay: &NodePrivate) {
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

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        timeout(PATIENCE, self.stream.write_all(bytes)).await.expect("the client reads").unwrap();
        self.stream.flush().await.unwrap();
    }

    /// The first of the client's frames that `wanted` makes something of.
    pub(crate) async fn next<T>(&mut self, mut wanted: impl FnMut(Frame<'_>) -> Option<T>) -> T {
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

    pub(crate) async fn pong(&mut self) -> [u8; 8] {
        self.next(|frame| if let Frame::Pong(data) = frame { Some(data) } else { None }).await
    }
}

/// Randomness.
pub(crate) fn rng() -> StdRng {
    StdRng::try_from_rng(&mut SysRng).expect("randomness")
}

/// A certificate that tells a relay's key.
pub(crate) fn tell_key(relay: NodePublic) -> CertificateDer<'static> {
    let mut params = rcgen::CertificateParams::default();
    let name = relay.to_string().replace(NodePublic::PREFIX, CERTIFICATE_NAME_PREFIX);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().clone()
}
