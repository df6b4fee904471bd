//! From a region to a stream of DERP frames: TCP, TLS, the HTTP upgrade, and the greetings.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::time::Duration;

use futures::future::{Either, select};
use nixtail_proto::derp::{ClientInfo, Decoder, DerpError, Frame, ServerInfo};
use nixtail_proto::key::{NodePrivate, NodePublic};
use nixtail_proto::relay::{Address, Target};
use nixtail_proto::tailcfg::{DerpNode, DerpRegion};
use rand::SeedableRng as _;
use rand::rngs::{StdRng, SysRng};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::DerpFailure;
use super::trust::trust;
use crate::net::tls::client_config;

/// How long the whole way in may take, over all relays of the region.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long DNS and TCP to one relay may take.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1500);
/// How long TLS, upgrade and greetings with one relay may take: a few round trips, and the relay may ask control about
/// us. Less than [`DIAL_TIMEOUT`], so that a relay that hangs isn't the last one tried.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// By how much IPv6 is tried later where there is IPv4.
const SECOND_FAMILY_DELAY: Duration = Duration::from_millis(200);
/// The longest HTTP answer that is read.
const MAX_HTTP_LEN: usize = 8 << 10;
/// How many headers an HTTP answer may have.
const MAX_HTTP_HEADERS: usize = 64;
/// How much is read at once: some two dozen packets.
pub(super) const READ_LEN: usize = 32 << 10;

/// A connection that the relay took, and what was read from it beyond the greetings.
pub(super) struct Dialled {
    pub(super) stream: TlsStream<TcpStream>,
    pub(super) decoder: Decoder,
}

/// Dials the region's relays in their order until one takes us.
pub(super) async fn dial(region: &DerpRegion, node_key: &NodePrivate) -> Result<Dialled, DerpFailure> {
    let every = async {
        let mut failure = DerpFailure::NoRelay;
        for (node, target) in region.nodes.iter().filter_map(|node| Some((node, Target::derp(node)?))) {
            match dial_node(region, node, target, node_key).await {
                Ok(dialled) => return Ok(dialled),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    };
    timeout(DIAL_TIMEOUT, every).await.unwrap_or(Err(DerpFailure::TooSlow { step: "all that leads to a connection" }))
}

async fn dial_node(
    region: &DerpRegion,
    node: &DerpNode,
    target: Target,
    node_key: &NodePrivate,
) -> Result<Dialled, DerpFailure> {
    let tcp = timeout(CONNECT_TIMEOUT, connect(node, target));
    let tcp = tcp.await.unwrap_or(Err(DerpFailure::TooSlow { step: "answering over TCP" }))?;
    let greet = async {
        let mut stream = start_tls(node, tcp).await?;
        let mut decoder = Decoder::new();
        upgrade(region, node, target.port, &mut stream, decoder.unread()).await?;
        greet(node_key, &mut stream, &mut decoder).await?;
        Ok(Dialled { stream, decoder })
    };
    timeout(GREETING_TIMEOUT, greet).await.unwrap_or(Err(DerpFailure::TooSlow { step: "TLS and its greeting" }))
}

/// A TCP connection over the family that answers first, IPv4 having a lead.
async fn connect(node: &DerpNode, target: Target) -> Result<TcpStream, DerpFailure> {
    let (ipv4, ipv6) = addresses(node, target).await?;
    let second_delay = if ipv4.is_empty() { Duration::ZERO } else { SECOND_FAMILY_DELAY };
    let first = pin!(connect_any(&ipv4));
    let second = pin!(async {
        sleep(second_delay).await;
        connect_any(&ipv6).await
    });
    let stream = match select(first, second).await {
        Either::Left((Ok(stream), _)) | Either::Right((Ok(stream), _)) => Ok(stream),
        // Of two failures the lead's is told, if there was one.
        Either::Left((Err(error), second)) => second.await.map_err(|other| if ipv4.is_empty() { other } else { error }),
        Either::Right((Err(_), first)) => first.await,
    };
    let stream = stream.map_err(|source| DerpFailure::Connect { host: shown(&node.host_name), source })?;
    // Frames are written whole; waiting for more would only delay them.
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn connect_any(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// The relay's addresses of each family, looked up where the map doesn't say them.
async fn addresses(node: &DerpNode, target: Target) -> Result<(Vec<SocketAddr>, Vec<SocketAddr>), DerpFailure> {
    let mut found = Vec::new();
    if target.ipv4 == Address::Lookup || target.ipv6 == Address::Lookup {
        match tokio::net::lookup_host((node.host_name.as_str(), target.port)).await {
            Ok(addresses) => found.extend(addresses),
            Err(source) if !matches!((target.ipv4, target.ipv6), (Address::Known(_), _) | (_, Address::Known(_))) => {
                return Err(DerpFailure::Lookup { host: shown(&node.host_name), source });
            }
            Err(_) => {}
        }
    }
    let of_family = |family: Address, matches: fn(&SocketAddr) -> bool| match family {
        Address::Known(ip) => vec![SocketAddr::new(ip, target.port)],
        Address::Lookup => found.iter().copied().filter(matches).collect(),
        Address::Off => Vec::new(),
    };
    Ok((of_family(target.ipv4, SocketAddr::is_ipv4), of_family(target.ipv6, SocketAddr::is_ipv6)))
}

async fn start_tls(node: &DerpNode, tcp: TcpStream) -> Result<TlsStream<TcpStream>, DerpFailure> {
    let failed = |source| DerpFailure::Tls { host: shown(&node.host_name), source };
    let trust = trust(node).ok_or_else(|| failed(io::Error::other("the DERP map's CertName is no name and no pin")))?;
    // Loading the system's roots reads files.
    let config = tokio::task::spawn_blocking(move || client_config(trust)).await.map_err(io::Error::other)?;
    let config = config.map_err(|error| failed(io::Error::other(error)))?;
    let name = ServerName::try_from(node.host_name.clone()).map_err(|error| failed(io::Error::other(error)))?;
    TlsConnector::from(config).connect(name, tcp).await.map_err(failed)
}

/// Asks for DERP over HTTP. What comes behind the answer stays in `unread`.
async fn upgrade(
    region: &DerpRegion,
    node: &DerpNode,
    port: u16,
    stream: &mut TlsStream<TcpStream>,
    unread: &mut Vec<u8>,
) -> Result<(), DerpFailure> {
    stream.write_all(request(region, node, port).as_bytes()).await?;
    stream.flush().await?;
    let refused = |status| DerpFailure::Upgrade { host: shown(&node.host_name), status };
    loop {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HTTP_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        match response.parse(unread).map_err(|_| refused(0))? {
            httparse::Status::Complete(length) if response.code == Some(101) => {
                unread.drain(..length);
                return Ok(());
            }
            httparse::Status::Complete(_) => return Err(refused(response.code.unwrap_or(0))),
            httparse::Status::Partial if unread.len() > MAX_HTTP_LEN => return Err(refused(0)),
            httparse::Status::Partial => read_more(stream, unread).await?,
        }
    }
}

fn request(region: &DerpRegion, node: &DerpNode, port: u16) -> String {
    // The name went through `ServerName`: it is a DNS name or an address.
    let mut host = match node.host_name.parse() {
        Ok(IpAddr::V6(ip)) => format!("[{ip}]"),
        _ => node.host_name.clone(),
    };
    if port != 443 {
        host = format!("{host}:{port}");
    }
    let mut request = format!("GET /derp HTTP/1.1\r\nHost: {host}\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n");
    // For the relay's statistics: which one we would rather be on.
    if let Some(first) = region.nodes.first().map(|first| first.name.as_str())
        && first != node.name
        && !first.is_empty()
        && first.bytes().all(|byte| byte.is_ascii_graphic())
    {
        request.push_str(&format!("Ideal-Node: {first}\r\n"));
    }
    request.push_str("\r\n");
    request
}

/// The relay's key, who we are, and the relay's proof that it has that key.
async fn greet(
    node_key: &NodePrivate,
    stream: &mut TlsStream<TcpStream>,
    decoder: &mut Decoder,
) -> Result<(), DerpFailure> {
    let server = loop {
        match decoder.next_frame()? {
            Some(Frame::ServerKey(key)) => break key,
            Some(_) => return Err(DerpError::Greeting.into()),
            None => read_more(stream, decoder.unread()).await?,
        }
    };
    let info = client_info(node_key, &server)?;
    stream.write_all(&info).await?;
    stream.flush().await?;
    loop {
        match decoder.next_frame()? {
            Some(Frame::ServerInfo { sealed }) => {
                ServerInfo::open(sealed, node_key, &server)?;
                return Ok(());
            }
            // Nothing else belongs here; what later versions send is theirs to know.
            Some(_) => {}
            None => read_more(stream, decoder.unread()).await.map_err(|_| DerpFailure::Refused)?,
        }
    }
}

fn client_info(node_key: &NodePrivate, server: &NodePublic) -> Result<Vec<u8>, DerpFailure> {
    let mut rng = StdRng::try_from_rng(&mut SysRng).map_err(io::Error::other)?;
    let mut frame = Vec::new();
    ClientInfo::default().write(node_key, server, &mut rng, &mut frame)?;
    Ok(frame)
}

async fn read_more(stream: &mut TlsStream<TcpStream>, unread: &mut Vec<u8>) -> Result<(), DerpFailure> {
    unread.reserve(READ_LEN);
    match stream.read_buf(unread).await? {
        0 => Err(DerpFailure::Closed),
        _ => Ok(()),
    }
}

/// A host name of the DERP map as it may be shown.
fn shown(host: &str) -> String {
    host.chars().filter(|c| !c.is_control()).take(100).collect()
}
