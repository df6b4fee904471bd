//! From a host and a port to a byte stream: straight over TCP, or through an HTTP proxy.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use nixtail_proto::http_head::HeadReader;
use nixtail_proto::proxy::{Proxy, ProxyError};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::sleep;
use tokio_rustls::TlsConnector;

use super::tls::{Trust, client_config};

/// How long one address is tried alone, before the next one is tried beside it.
const NEXT_ADDRESS_DELAY: Duration = Duration::from_millis(200);
/// How long what we sent may stay unacknowledged by the other side's system, or its program read nothing while we have more. Then a
/// new connection is worth more: those who made it dial again.
const UNANSWERED: Duration = Duration::from_secs(10);
/// Bytes of a proxy's answer that are read at once.
const READ: usize = 4096;

/// What a connection runs over.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// Why a proxy didn't connect us. Each says what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyFailure {
    /// The environment names a proxy that can't be used.
    #[error(transparent)]
    Variable(#[from] ProxyError),
    /// The proxy isn't there, or TLS with it fails.
    #[error("the proxy {proxy} can't be reached: {source}; check that variable and the network")]
    Unreachable {
        /// The proxy, and the variable that named it.
        proxy: String,
        /// Why.
        source: io::Error,
    },
    /// The proxy said no.
    #[error("the proxy {proxy} doesn't connect to {target}: HTTP {status}; {}", next(*.status))]
    Refused {
        /// The proxy, and the variable that named it.
        proxy: String,
        /// What it was asked for.
        target: String,
        /// Its answer.
        status: u16,
    },
    /// The proxy isn't one.
    #[error("the proxy {proxy} doesn't answer like an HTTP proxy: {why}; check that variable")]
    Protocol {
        /// The proxy, and the variable that named it.
        proxy: String,
        /// What it did.
        why: String,
    },
}

/// What to do about a proxy's refusal.
fn next(status: u16) -> &'static str {
    match status {
        407 => "it wants a user name and a password: put them into the variable, as http://USER:PASSWORD@HOST:PORT",
        500.. => "it can't reach that itself: see its log",
        _ => "have that host and port allowed there, or name the host in NO_PROXY if there is another way to it",
    }
}

/// Connects to the first of these addresses that answers. IPv4 and IPv6 take turns, and one that is silent holds the next
/// up for [`NEXT_ADDRESS_DELAY`] only.
///
/// # Errors
/// That of the first address, if none answers.
pub(crate) async fn connect(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut waiting = take_turns(addresses).into_iter();
    let mut tries = FuturesUnordered::new();
    let mut failure = None;
    loop {
        match waiting.next() {
            Some(address) => tries.push(TcpStream::connect(address)),
            None if tries.is_empty() => return Err(failure.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into())),
            None => {}
        }
        tokio::select! {
            Some(tried) = tries.next() => match tried {
                Ok(stream) => {
                    // What is written is written whole; waiting for more would only delay it.
                    stream.set_nodelay(true)?;
                    end_when_unanswered(&stream);
                    return Ok(stream);
                }
                Err(error) => {
                    failure.get_or_insert(error);
                }
            },
            () = sleep(NEXT_ADDRESS_DELAY), if waiting.len() > 0 => {}
        }
    }
}

/// Lets the system end a connection whose other side acknowledges nothing for [`UNANSWERED`]. By itself it goes on for a quarter of
/// an hour, at intervals that double: a network that was gone for 20 s would be used again only after up to 20 s more.
fn end_when_unanswered(stream: &TcpStream) {
    #[cfg(target_os = "linux")]
    {
        // Where a sandbox doesn't know it, the connection works all the same.
        let limit = u32::try_from(UNANSWERED.as_millis()).unwrap_or(u32::MAX);
        let _ = rustix::net::sockopt::set_tcp_user_timeout(stream, limit);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (stream, UNANSWERED);
}

/// Looks a host up (a name, or an address without brackets) and connects to it.
///
/// # Errors
/// What the resolver or the system says.
pub(crate) async fn connect_host(host: &str, port: u16) -> io::Result<TcpStream> {
    let addresses: Vec<_> = tokio::net::lookup_host((host, port)).await?.collect();
    connect(&addresses).await
}

/// Connects to a host (a name, or an address without brackets) through a proxy, which looks the name up.
///
/// # Errors
/// When the proxy isn't there, or won't.
pub(crate) async fn connect_through(proxy: &Proxy, host: &str, port: u16) -> Result<Box<dyn Transport>, ProxyFailure> {
    let unreachable = |source| ProxyFailure::Unreachable { proxy: proxy.to_string(), source };
    let protocol = |why: String| ProxyFailure::Protocol { proxy: proxy.to_string(), why };
    let request =
        proxy.connect_request(host, port).ok_or_else(|| protocol("it can't be asked for such a host".to_owned()))?;
    let tcp = connect_host(proxy.host(), proxy.port()).await.map_err(unreachable)?;
    let mut stream: Box<dyn Transport> = if proxy.is_tls() {
        let tls = start_tls(tcp, proxy.host(), Trust::System).await;
        Box::new(tls.map_err(unreachable)?)
    } else {
        Box::new(tcp)
    };
    stream.write_all(request.expose().as_bytes()).await.map_err(unreachable)?;
    stream.flush().await.map_err(unreachable)?;

    let (mut reader, mut bytes) = (HeadReader::default(), Vec::with_capacity(READ));
    loop {
        bytes.clear();
        if stream.read_buf(&mut bytes).await.map_err(unreachable)? == 0 {
            return Err(protocol("it hung up".to_owned()));
        }
        let Some((head, rest)) = reader.handle_bytes(&bytes).map_err(|error| protocol(error.to_string()))? else {
            continue;
        };
        if !(200..300).contains(&head.status) {
            let target = format!("{host} port {port}");
            return Err(ProxyFailure::Refused { proxy: proxy.to_string(), target, status: head.status });
        }
        // In all that we tunnel the client speaks first.
        if !rest.is_empty() {
            return Err(protocol("it sent more than its answer".to_owned()));
        }
        return Ok(stream);
    }
}

/// TLS with `host` (a name, or an address without brackets) over a stream.
///
/// # Errors
/// When the other end isn't trusted so, or speaks no TLS.
pub(crate) async fn start_tls<S>(stream: S, host: &str, trust: Trust) -> io::Result<tokio_rustls::client::TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    // Loading the system's roots reads files.
    let config = tokio::task::spawn_blocking(move || client_config(trust)).await.map_err(io::Error::other)?;
    TlsConnector::from(Arc::clone(&config.map_err(io::Error::other)?)).connect(name, stream).await
}

fn take_turns(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let (ipv4, ipv6): (Vec<_>, Vec<_>) = addresses.iter().copied().partition(SocketAddr::is_ipv4);
    let longest = ipv4.len().max(ipv6.len());
    (0..longest).flat_map(|at| [ipv4.get(at), ipv6.get(at)]).flatten().copied().collect()
}

#[cfg(test)]
mod tests {
    use nixtail_proto::proxy::{Proxies, Scheme};
    use tokio::net::TcpListener;

    use super::*;

    /// What a proxy that gives this answer makes of a connection.
    async fn through(answer: &'static [u8]) -> Result<Box<dyn Transport>, ProxyFailure> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let value = format!("http://me:hush@{}", listener.local_addr().unwrap());
        let proxies = Proxies::read(|name| (name == "HTTPS_PROXY").then(|| value.clone()));
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                assert!(stream.read_buf(&mut head).await.unwrap() > 0);
            }
            assert!(head.starts_with(b"CONNECT control.invalid:443 HTTP/1.1\r\n"));
            stream.write_all(answer).await.unwrap();
            // Until the client is done.
            let _ = stream.read(&mut [0]).await;
        });
        let proxy = proxies.find(Scheme::Https, "control.invalid", 443).unwrap().unwrap();
        let connected = connect_through(proxy, "control.invalid", 443).await;
        drop(served);
        connected
    }

    #[tokio::test]
    async fn a_proxys_answer_decides() {
        assert!(through(b"HTTP/1.1 200 Connection established\r\n\r\n").await.is_ok());
        let said = async |answer| through(answer).await.err().unwrap().to_string();
        let refused = said(b"HTTP/1.1 407 x\r\nContent-Length: 4\r\n\r\nhtml").await;
        assert!(refused.contains("user name") && refused.contains("(from HTTPS_PROXY)"), "{refused}");
        assert!(!refused.contains("hush"), "{refused}");
        assert!(said(b"HTTP/1.1 403 Filtered\r\n\r\n").await.contains("NO_PROXY"));
        assert!(said(b"HTTP/1.1 502 x\r\n\r\n").await.contains("see its log"));
        for strange in [&b"SSH-2.0-x\r\n"[..], b"HTTP/1.1 200 OK\r\n\r\nsurplus", b"\0\0\0\0"] {
            assert!(said(strange).await.contains("doesn't answer like an HTTP proxy"));
        }
    }

    #[tokio::test]
    async fn an_address_that_answers_is_found_behind_others() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        let refused: SocketAddr = "[::1]:1".parse().unwrap();
        let stream = connect(&["127.0.0.1:1".parse().unwrap(), refused, good]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        assert!(connect(&[refused]).await.is_err());
        assert_eq!(connect(&[]).await.unwrap_err().kind(), io::ErrorKind::AddrNotAvailable);
    }

    #[test]
    fn the_families_take_turns() {
        let parse = |text: &str| text.parse::<SocketAddr>().unwrap();
        let given = ["[::1]:1", "[::2]:1", "1.1.1.1:1", "[::3]:1", "2.2.2.2:1"].map(parse);
        let wanted = ["1.1.1.1:1", "[::1]:1", "2.2.2.2:1", "[::2]:1", "[::3]:1"].map(parse);
        assert_eq!(take_turns(&given), wanted);
    }
}
