use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nixtail_proto::noise::respond;
use nixtail_proto::tailcfg::CAPABILITY_VERSION;
use rand::rngs::StdRng;
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

const SWITCHING: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\r\n";
/// What a step may take here.
const SHORT: Duration = Duration::from_millis(300);
/// What nothing here may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a server behaves.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Manner {
    Good,
    /// As a captive portal.
    AnswersAll200,
    SilentFromTheStart,
    SilentAtTheKey,
    SilentAtTheUpgrade,
    SilentAtTheHandshake,
    /// One byte of a header now and then, for ever.
    TricklesHeaders,
    /// Headers without an end, as fast as they are taken.
    FloodsHeaders,
    /// Frames that are no answer.
    FloodsFrames,
}

/// The server's end of everything up to the handshake.
struct Double {
    address: SocketAddr,
    asked_for_key: Arc<AtomicUsize>,
}

impl Double {
    async fn start(manner: Manner, key: &MachinePrivate, is_tls: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked_for_key = Arc::new(AtomicUsize::new(0));
        let (key, count) = (key.clone(), Arc::clone(&asked_for_key));
        let acceptor = is_tls.then(acceptor);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (key, count, acceptor) = (key.clone(), Arc::clone(&count), acceptor.clone());
                tokio::spawn(async move {
                    match acceptor.filter(|_| manner != Manner::SilentFromTheStart) {
                        Some(acceptor) => {
                            // Who is not trusted hangs up; and who has chosen HTTP/2 can't upgrade to ts2021.
                            match acceptor.accept(stream).await {
                                Ok(stream) if stream.get_ref().1.alpn_protocol() != Some(b"h2") => {
                                    serve(stream, manner, &key, &count).await;
                                }
                                _ => {}
                            }
                        }
                        None => serve(stream, manner, &key, &count).await,
                    }
                });
            }
        });
        Self { address, asked_for_key }
    }

    /// A dialler to it by a URL that names the port.
    fn dialler(&self, scheme: &str) -> Dialler {
        let mut server = Server::parse(&format!("{scheme}://{}", self.address)).unwrap();
        (server.patience, server.key_patience) = (SHORT, SHORT);
        Dialler::new(Arc::new(server), Proxies::default())
    }
}

fn acceptor() -> TlsAcceptor {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    // As any web server: HTTP/2 for those who offer it.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

async fn serve(mut stream: impl Transport, manner: Manner, key: &MachinePrivate, asked_for_key: &AtomicUsize) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if !matches!(stream.read_buf(&mut head).await, Ok(1..)) {
            return;
        }
    }
    let head = String::from_utf8(head).unwrap();
    let is_key = head.starts_with("GET /key");
    // One and the same version everywhere: here, and in the initiation below.
    assert!(!is_key || head.starts_with(&format!("GET /key?v={CAPABILITY_VERSION} HTTP/1.1\r\n")), "{head}");
    let mut answer = Vec::new();
    match manner {
        Manner::AnswersAll200 => answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi".to_vec(),
        Manner::SilentFromTheStart => {}
        Manner::SilentAtTheKey if is_key => {}
        _ if is_key => {
            asked_for_key.fetch_add(1, Ordering::Relaxed);
            let json = serde_json::json!({ "legacyPublicKey": MachinePublic::default(), "publicKey": key.public() });
            let json = json.to_string();
            answer = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{json}", json.len())
                .into_bytes();
        }
        Manner::TricklesHeaders => {
            while stream.write_all(b"HTTP/1.1 101 x\r\nx: y\r\n".get(..1).unwrap()).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Manner::FloodsHeaders => {
            answer = b"HTTP/1.1 101 x\r\nx: ".to_vec();
            answer.resize(1 << 20, b'y');
        }
        Manner::SilentAtTheUpgrade => {}
        Manner::SilentAtTheHandshake => answer = SWITCHING.to_vec(),
        Manner::FloodsFrames => answer = [SWITCHING, &[4, 0x0f, 0xfd].repeat(10_000)].concat(),
        _ => {
            let initiation = head.lines().find_map(|line| line.strip_prefix("X-Tailscale-Handshake: ")).unwrap();
            let initiation = STANDARD.decode(initiation).unwrap();
            // As Go's server: first the 101, and then a look at the initiation, which may end it.
            answer = SWITCHING.to_vec();
            match respond(key, &initiation, &mut rand::make_rng::<StdRng>()) {
                Ok(accepted) => {
                    assert_eq!(accepted.version, CAPABILITY_VERSION);
                    answer.extend_from_slice(&accepted.response);
                }
                Err(_) => return drop(stream.write_all(&answer).await),
            }
        }
    }
    // Who has read enough hangs up.
    let _ = stream.write_all(&answer).await;
    let _ = stream.flush().await;
    let _ = stream.read_to_end(&mut Vec::new()).await;
}

fn new_key() -> MachinePrivate {
    MachinePrivate::generate(&mut rand::make_rng::<StdRng>())
}

async fn dial(dialler: &mut Dialler) -> Result<Connection, ControlError> {
    tokio::time::timeout(PATIENCE, dialler.dial(&new_key())).await.expect("it ends")
}

#[tokio::test]
async fn the_key_is_kept_and_asked_for_again_when_it_has_changed() {
    let double = Double::start(Manner::Good, &new_key(), false).await;
    let mut dialler = double.dialler("http");
    dial(&mut dialler).await.unwrap();
    dial(&mut dialler).await.unwrap();
    assert_eq!(double.asked_for_key.load(Ordering::Relaxed), 1);

    dialler.key = Some(new_key().public());
    dial(&mut dialler).await.unwrap();
    assert_eq!(double.asked_for_key.load(Ordering::Relaxed), 2);

    // The network says nothing about the key.
    let key = dialler.key;
    let mut elsewhere =
        Double { address: "127.0.0.1:1".parse().unwrap(), asked_for_key: Arc::default() }.dialler("http");
    elsewhere.key = key;
    assert!(matches!(dial(&mut elsewhere).await, Err(ControlError::Network { .. })));
    assert_eq!(elsewhere.key, key);
}

#[tokio::test]
async fn a_step_that_never_ends_is_named() {
    for (manner, step) in [
        (Manner::SilentAtTheKey, "asking for its key"),
        (Manner::SilentAtTheUpgrade, "the upgrade to ts2021"),
        (Manner::TricklesHeaders, "doesn't speak HTTP"),
        (Manner::SilentAtTheHandshake, "the handshake of ts2021"),
        (Manner::FloodsHeaders, "header is too long"),
        (Manner::FloodsFrames, "frame"),
        (Manner::AnswersAll200, "/key tells no machine key"),
    ] {
        let double = Double::start(manner, &new_key(), false).await;
        let error = dial(&mut double.dialler("http")).await.err().unwrap();
        assert!(error.to_string().contains(step), "{manner:?}: {error}");
    }
    let silent = Double::start(Manner::SilentFromTheStart, &new_key(), true).await;
    let mut dialler = silent.dialler("https");
    dialler.key = Some(new_key().public());
    let error = dial(&mut dialler).await.err().unwrap();
    assert!(matches!(error, ControlError::Timeout { what: "TLS", .. }), "{error}");
}

#[tokio::test]
async fn junk_on_one_port_does_not_end_a_login_through_the_other() {
    let key = new_key();
    for (on_443, on_80) in [
        (Manner::Good, Manner::AnswersAll200),
        (Manner::Good, Manner::SilentFromTheStart),
        (Manner::AnswersAll200, Manner::Good),
        (Manner::SilentFromTheStart, Manner::Good),
        (Manner::SilentAtTheHandshake, Manner::Good),
    ] {
        let (tls, plain) = (Double::start(on_443, &key, true).await, Double::start(on_80, &key, false).await);
        let mut server = Server::parse("https://127.0.0.1").unwrap();
        server.standard_ports = (tls.address.port(), plain.address.port());
        server.patience = PATIENCE;
        let mut dialler = Dialler::new(Arc::new(server), Proxies::default());
        dialler.key = Some(key.public());
        dial(&mut dialler).await.unwrap_or_else(|error| panic!("443 {on_443:?}, 80 {on_80:?}: {error}"));
        assert_eq!(dialler.last_plain.is_some(), on_80 == Manner::Good);
    }
}

#[tokio::test]
async fn a_port_that_was_named_is_the_only_one_tried() {
    let key = new_key();
    let (named, other) = (Double::start(Manner::AnswersAll200, &key, true).await, new_key());
    let standard = Double::start(Manner::Good, &other, false).await;
    let mut server = Server::parse(&format!("https://{}", named.address)).unwrap();
    server.standard_ports = (standard.address.port(), standard.address.port());
    let mut dialler = Dialler::new(Arc::new(server), Proxies::default());
    dialler.key = Some(other.public());
    let error = dial(&mut dialler).await.err().unwrap();
    assert!(error.to_string().contains("HTTP 200"), "{error}");
}

/// Everything that a good server sends, cut after each byte: an error each time, of the right kind, and never a hang.
#[tokio::test]
async fn a_server_that_closes_at_any_byte_is_an_error() {
    let (server, control) = (Server::parse("http://x").unwrap(), new_key());
    let whole = SWITCHING.len() + nixtail_proto::noise::RESPONSE_LEN;
    for cut in 0..=whole {
        let (near, mut far) = tokio::io::duplex(4096);
        let far_key = control.clone();
        let served = tokio::spawn(async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                far.read_buf(&mut head).await.unwrap();
            }
            let head = String::from_utf8(head).unwrap();
            let initiation = head.lines().find_map(|line| line.strip_prefix("X-Tailscale-Handshake: ")).unwrap();
            let initiation = STANDARD.decode(initiation).unwrap();
            let accepted = respond(&far_key, &initiation, &mut rand::make_rng::<StdRng>()).unwrap();
            let answer = [SWITCHING, &accepted.response].concat();
            far.write_all(&answer[..cut]).await.unwrap();
        });
        let (machine, public) = (new_key(), control.public());
        let upgraded = upgrade::upgrade(&server, near, &machine, &public);
        let upgraded = tokio::time::timeout(PATIENCE, upgraded).await.expect("it ends");
        served.await.unwrap();
        match upgraded {
            Ok(_) => assert_eq!(cut, whole),
            Err(ControlError::Handshake { .. }) => assert!(cut >= SWITCHING.len()),
            Err(ControlError::Protocol { .. }) => assert!(cut < SWITCHING.len()),
            Err(other) => panic!("{other}"),
        }
    }
}
