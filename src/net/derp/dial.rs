//! From a region to a stream of DERP frames: TCP, TLS, the HTTP upgrade, and the greetings.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nixtail_proto::derp::{ClientInfo, Decoder, DerpError, Frame, ServerInfo, key_in_certificate};
use nixtail_proto::http_head::HeadReader;
use nixtail_proto::key::{NodePrivate, NodePublic};
use nixtail_proto::proxy::{Proxies, Scheme};
use nixtail_proto::relay::{Address, Target};
use nixtail_proto::tailcfg::{DerpNode, DerpRegion};
use rand::SeedableRng as _;
use rand::rngs::{StdRng, SysRng};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::trust::trust;
use super::{DerpConfig, DerpFailure};
use crate::net::connect::{ProxyFailure, Transport, connect, connect_through, start_tls};

/// How long the whole way in may take, over all relays of the region.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long DNS and TCP to one relay may take.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1500);
/// How long TLS, upgrade and greetings with one relay may take: a few round trips, and the relay may ask control about
/// us. Less than [`DIAL_TIMEOUT`], so that a relay that hangs isn't the last one tried.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// How much is read at once: some two dozen packets.
pub(super) const READ_LEN: usize = 32 << 10;

/// TLS with a relay, over TCP or through a proxy.
pub(super) type Stream = TlsStream<Box<dyn Transport>>;

/// A connection that the relay took, and what was read from it beyond the greetings.
pub(super) struct Dialled {
    pub(super) stream: Stream,
    pub(super) decoder: Decoder,
}

/// Dials the region's relays in their order, from the one that is to be first, until one takes us.
pub(super) async fn dial(config: &DerpConfig) -> Result<Dialled, DerpFailure> {
    let DerpConfig { region, node_key, proxies, first_node, .. } = config;
    let every = async {
        let mut failure = DerpFailure::NoRelay;
        let mut nodes: Vec<_> = region.nodes.iter().filter_map(|node| Some((node, Target::derp(node)?))).collect();
        let first = first_node.checked_rem(nodes.len()).unwrap_or(0);
        nodes.rotate_left(first);
        for (node, target) in nodes {
            match dial_node(region, node, target, node_key, proxies).await {
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
    proxies: &Proxies,
) -> Result<Dialled, DerpFailure> {
    let transport = open(node, target, proxies).await?;
    let greet = async {
        let mut stream = secure(node, transport).await?;
        let mut decoder = Decoder::new();
        let early = early_greeting(node_key, &stream)?;
        upgrade(region, node, target.port, &early, &mut stream, decoder.unread()).await?;
        greet(node_key, early.key, &mut stream, &mut decoder).await?;
        Ok(Dialled { stream, decoder })
    };
    timeout(GREETING_TIMEOUT, greet).await.unwrap_or(Err(DerpFailure::TooSlow { step: "TLS and its greeting" }))
}

/// A byte stream to a relay: straight, or through the proxy that leads there.
pub(super) async fn open(
    node: &DerpNode,
    target: Target,
    proxies: &Proxies,
) -> Result<Box<dyn Transport>, DerpFailure> {
    match proxies.find(Scheme::Https, &node.host_name, target.port).map_err(ProxyFailure::from)? {
        // It looks names up, so the map's addresses don't matter.
        Some(proxy) => {
            let step = || DerpFailure::TooSlow { step: "connecting through the proxy" };
            let connected = timeout(GREETING_TIMEOUT, connect_through(proxy, &node.host_name, target.port));
            Ok(connected.await.map_err(|_| step())??)
        }
        None => {
            let step = || DerpFailure::TooSlow { step: "answering over TCP" };
            Ok(Box::new(timeout(CONNECT_TIMEOUT, connect_node(node, target)).await.map_err(|_| step())??))
        }
    }
}

/// A TCP connection to the first of the relay's addresses that answers.
async fn connect_node(node: &DerpNode, target: Target) -> Result<TcpStream, DerpFailure> {
    let stream = connect(&addresses(node, target).await?).await;
    stream.map_err(|source| DerpFailure::Connect { host: shown(&node.host_name), source })
}

/// The relay's addresses, looked up where the map doesn't say them.
async fn addresses(node: &DerpNode, target: Target) -> Result<Vec<SocketAddr>, DerpFailure> {
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
    let mut addresses = of_family(target.ipv4, SocketAddr::is_ipv4);
    addresses.extend(of_family(target.ipv6, SocketAddr::is_ipv6));
    Ok(addresses)
}

pub(super) async fn secure(node: &DerpNode, transport: Box<dyn Transport>) -> Result<Stream, DerpFailure> {
    let failed = |source| DerpFailure::Tls { host: shown(&node.host_name), source };
    let trust = trust(node).ok_or_else(|| failed(io::Error::other("the DERP map's CertName is no name and no pin")))?;
    start_tls(transport, &node.host_name, trust).await.map_err(failed)
}

/// What is said together with the request, which saves a round trip, to a relay whose certificates tell its key. Go's
/// client does so as well; unlike it, we let the relay answer the request: so whatever is in between can say no in words.
#[derive(Default)]
pub(super) struct EarlyGreeting {
    key: Option<NodePublic>,
    client_info: Vec<u8>,
}

fn early_greeting(node_key: &NodePrivate, stream: &Stream) -> Result<EarlyGreeting, DerpFailure> {
    let (_, tls) = stream.get_ref();
    let behind_its_own = tls.peer_certificates().unwrap_or_default().iter().skip(1);
    let Some(key) = behind_its_own.into_iter().find_map(|certificate| key_in_certificate(certificate)) else {
        return Ok(EarlyGreeting::default());
    };
    Ok(EarlyGreeting { key: Some(key), client_info: client_info(node_key, &key)? })
}

/// Asks for DERP over HTTP. What comes behind the answer stays in `unread`.
pub(super) async fn upgrade(
    region: &DerpRegion,
    node: &DerpNode,
    port: u16,
    early: &EarlyGreeting,
    stream: &mut Stream,
    unread: &mut Vec<u8>,
) -> Result<(), DerpFailure> {
    let mut request = request(region, node, port).into_bytes();
    request.extend_from_slice(&early.client_info);
    stream.write_all(&request).await?;
    stream.flush().await?;
    let refused = |status| DerpFailure::Upgrade { host: shown(&node.host_name), status };
    let (mut reader, mut bytes) = (HeadReader::default(), Vec::new());
    loop {
        bytes.clear();
        read_more(stream, &mut bytes).await?;
        match reader.handle_bytes(&bytes).map_err(|_| refused(0))? {
            Some((head, rest)) if head.status == 101 => {
                unread.extend_from_slice(&rest);
                return Ok(());
            }
            Some((head, _)) => return Err(refused(head.status)),
            None => {}
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

/// The relay's key, who we are unless that was said early, and the relay's proof that it has that key.
async fn greet(
    node_key: &NodePrivate,
    told: Option<NodePublic>,
    stream: &mut Stream,
    decoder: &mut Decoder,
) -> Result<(), DerpFailure> {
    let server = loop {
        match decoder.next_frame()? {
            Some(Frame::ServerKey(key)) => break key,
            Some(_) => return Err(DerpError::Greeting.into()),
            None => read_more(stream, decoder.unread()).await?,
        }
    };
    match told {
        Some(key) if key == server => {}
        Some(_) => return Err(DerpError::AnotherKey.into()),
        None => {
            stream.write_all(&client_info(node_key, &server)?).await?;
            stream.flush().await?;
        }
    }
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

async fn read_more(stream: &mut Stream, unread: &mut Vec<u8>) -> Result<(), DerpFailure> {
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
