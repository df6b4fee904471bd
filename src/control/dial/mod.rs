//! Dialling control: TCP, perhaps TLS, an HTTP upgrade that carries the handshake, and then ts2021
//! (`control/controlhttp/client.go`).

use std::future::Future;
use std::io;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::future::{Either, select};
use futures::pin_mut;
use nixtail_proto::key::{MachinePrivate, MachinePublic};
use nixtail_proto::noise::{HandshakeProgress, Initiator, Records};
use nixtail_proto::tailcfg::CAPABILITY_VERSION;
use rand::rngs::StdRng;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::ControlError;
use super::server::Server;
use super::stream::NoiseStream;
use crate::net::tls::{self, Trust};

/// How long all of it may take.
const DIAL_TIMEOUT: Duration = Duration::from_secs(15);
/// Bytes of the upgrade's response header at most.
const MAX_HEADER: usize = 8 << 10;
/// Headers of it at most.
const MAX_HEADERS: usize = 64;
const PROTOCOL: &str = "tailscale-control-protocol";
const READ: usize = 4096;

/// What a connection runs over.
pub(super) trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// Connects to control whose key is `key`.
///
/// With `https://` and no port, TLS on 443 and plain on 80 are raced: ts2021 needs no TLS, and each is blocked
/// somewhere. A port that the user named is the only one tried.
pub(super) async fn dial(
    server: &Server,
    machine: &MachinePrivate,
    key: &MachinePublic,
) -> Result<NoiseStream<Box<dyn Transport>>, ControlError> {
    let attempt = |port, is_tls| attempt(server, machine, key, port, is_tls);
    let dialled = async {
        match (server.is_https, server.explicit_port) {
            (false, port) => attempt(port.unwrap_or(80), false).await,
            (true, Some(port)) => attempt(port, true).await,
            (true, None) => first_good(attempt(443, true), attempt(80, false)).await,
        }
    };
    tokio::time::timeout(DIAL_TIMEOUT, dialled).await.unwrap_or_else(|_| {
        Err(ControlError::Timeout { server: server.authority(), what: "connecting", after: DIAL_TIMEOUT })
    })
}

/// The first that works; if none does, the error of `one`.
async fn first_good<T, E>(
    one: impl Future<Output = Result<T, E>>,
    other: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    pin_mut!(one, other);
    match select(one, other).await {
        Either::Left((Ok(done), _)) | Either::Right((Ok(done), _)) => Ok(done),
        Either::Left((Err(error), other)) => other.await.map_err(|_| error),
        Either::Right((Err(_), one)) => one.await,
    }
}

async fn attempt(
    server: &Server,
    machine: &MachinePrivate,
    key: &MachinePublic,
    port: u16,
    is_tls: bool,
) -> Result<NoiseStream<Box<dyn Transport>>, ControlError> {
    let network = |what| move |source| ControlError::Network { server: server.authority(), what, source };
    let tcp = TcpStream::connect((server.bare_host(), port)).await.map_err(network("connecting"))?;
    tcp.set_nodelay(true).map_err(network("connecting"))?;
    let mut transport: Box<dyn Transport> = if is_tls {
        // Middleboxes that break TLS open are tolerated here: the handshake inside proves that it is control.
        let config = tls::client_config(Trust::Anybody).map_err(|error| network("TLS")(io::Error::other(error)))?;
        let name = ServerName::try_from(server.bare_host().to_owned())
            .map_err(|error| network("TLS")(io::Error::other(error)))?;
        Box::new(TlsConnector::from(config).connect(name, tcp).await.map_err(network("TLS"))?)
    } else {
        Box::new(tcp)
    };
    let (initiator, initiation) = Initiator::new(CAPABILITY_VERSION, machine, key, &mut rand::make_rng::<StdRng>())?;
    let request = format!(
        "POST /ts2021 HTTP/1.1\r\nHost: {}\r\nUpgrade: {PROTOCOL}\r\nConnection: upgrade\r\n\
         X-Tailscale-Handshake: {}\r\nContent-Length: 0\r\n\r\n",
        server.authority(),
        STANDARD.encode(initiation)
    );
    transport.write_all(request.as_bytes()).await.map_err(network("asking for an upgrade"))?;
    transport.flush().await.map_err(network("asking for an upgrade"))?;
    let rest = read_upgrade(server, &mut transport).await?;
    let records = shake_hands(server, &mut transport, initiator, rest).await?;
    NoiseStream::new(transport, records).map_err(ControlError::from)
}

/// Reads the answer to the upgrade. What comes back are the bytes behind it: they belong to the stream.
async fn read_upgrade(server: &Server, transport: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, ControlError> {
    let protocol = |why: String| ControlError::protocol(&server.authority(), why);
    let mut head = Vec::with_capacity(READ);
    loop {
        let got = transport.read_buf(&mut head).await;
        let got = got.map_err(|source| ControlError::Network {
            server: server.authority(),
            what: "waiting for the upgrade",
            source,
        })?;
        if got == 0 {
            return Err(protocol("it closed the connection instead of upgrading it".to_owned()));
        }
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        match response.parse(&head) {
            Ok(httparse::Status::Complete(len)) => {
                let code = response.code.unwrap_or_default();
                let upgrade = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("upgrade"));
                let is_right = upgrade.is_some_and(|header| header.value.eq_ignore_ascii_case(PROTOCOL.as_bytes()));
                if code != 101 || !is_right {
                    return Err(protocol(format!("it answered the upgrade with HTTP {code}")));
                }
                return Ok(head.split_off(len));
            }
            Ok(httparse::Status::Partial) if head.len() <= MAX_HEADER => {}
            Ok(httparse::Status::Partial) => return Err(protocol("its header is too long".to_owned())),
            Err(error) => return Err(protocol(error.to_string())),
        }
    }
}

async fn shake_hands(
    server: &Server,
    transport: &mut (impl AsyncRead + Unpin),
    mut initiator: Initiator,
    mut bytes: Vec<u8>,
) -> Result<Records, ControlError> {
    loop {
        match initiator.handle_bytes(&bytes)? {
            HandshakeProgress::Done(records) => return Ok(records),
            HandshakeProgress::Waiting(waiting) => initiator = waiting,
        }
        bytes.clear();
        bytes.reserve(READ);
        let got = transport.read_buf(&mut bytes).await;
        let got =
            got.map_err(|source| ControlError::Network { server: server.authority(), what: "the handshake", source })?;
        if got == 0 {
            // How a server that can't open our initiation ends it: it has another key now, or wants a newer client.
            let why = "it broke the handshake off: its key has changed, or this version is too old for it";
            return Err(ControlError::protocol(&server.authority(), why));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn upgrade(answer: &[u8]) -> Result<Vec<u8>, ControlError> {
        let server = Server::parse("http://x").unwrap();
        let mut answer = answer;
        read_upgrade(&server, &mut answer).await
    }

    #[tokio::test]
    async fn bytes_behind_the_upgrade_are_kept() {
        let good = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\r\n\x02\0\x30rest";
        assert_eq!(upgrade(good).await.unwrap(), b"\x02\0\x30rest");
    }

    #[tokio::test]
    async fn other_answers_are_refused() {
        let long = [b"HTTP/1.1 101 x\r\nx: ".to_vec(), vec![b'y'; MAX_HEADER + READ]].concat();
        for answer in [
            &b""[..],
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\n\r\n",
            b"HTTP/1.1 101 x\r\n",
            b"\x16\x03\x01",
            &long,
        ] {
            assert!(matches!(upgrade(answer).await, Err(ControlError::Protocol { .. })));
        }
    }

    #[tokio::test]
    async fn the_first_good_attempt_wins() {
        let good = |n: u8| async move { Ok::<_, u8>(n) };
        let bad = |n: u8| async move { Err::<u8, _>(n) };
        assert_eq!(first_good(bad(1), good(2)).await, Ok(2));
        assert_eq!(first_good(good(1), bad(2)).await, Ok(1));
        assert_eq!(first_good(bad(1), bad(2)).await, Err(1));
    }
}
