//! One TCP stream between two nodes that hand their datagrams to each other.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nixtail_proto::key::{DiscoPrivate, NodePrivate};
use nixtail_proto::netmap::Netmap;
use nixtail_proto::node::{Destination, Event, Node, NodeConfig};
use nixtail_proto::stack::{ConnectionId, Read};
use nixtail_proto::tailcfg::{self, EndpointType, FilterRule, NetPortRange, PortRange};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::Size;
use super::measure::{Row, median, rounds};

const PORT: u16 = 5201;
/// Longer than a handshake or a round can take, short enough that a hang is an error.
const DEADLINE: Duration = Duration::from_secs(120);
/// What is written and read at once, and what one transmit may hold: as the dataplane has it.
const CHUNK: usize = 64 * 1024;
/// Segments of one transmit (UDP_MAX_SEGMENTS of Linux).
const MAX_SEGMENTS: usize = 64;

#[allow(clippy::cast_precision_loss, reason = "figures for people: 53 bits of bytes are enough")]
pub(crate) fn measure(size: Size) -> Result<Vec<Row>, Box<dyn Error>> {
    let mut pair = Pair::connected()?;
    let taken = rounds(|| pair.transfer(size.stream))?;
    let mib = size.stream as f64 / f64::from(1 << 20);
    let rates = taken.iter().map(|taken| mib / taken.elapsed.as_secs_f64());
    let costs = taken.iter().filter_map(|taken| taken.cpu).map(|cpu| cpu.as_secs_f64() / (mib / 1024.0));
    Ok(vec![
        Row { what: format!("one TCP stream of {mib} MiB, direct"), value: median(rates), unit: "MiB/s" },
        Row { what: "  its CPU time, both ends".to_owned(), value: median(costs), unit: "s/GiB" },
    ])
}

/// Two nodes with a direct path, and a stream between them.
struct Pair {
    nodes: [Node; 2],
    near: ConnectionId,
    far: ConnectionId,
    buffer: Vec<u8>,
    chunk: Vec<u8>,
}

fn address(number: u8) -> SocketAddr {
    ([192, 0, 2, number], 41641).into()
}

impl Pair {
    fn connected() -> Result<Self, Box<dyn Error>> {
        let mut rng = StdRng::seed_from_u64(1);
        let configs = [(); 2].map(|()| NodeConfig {
            node_key: NodePrivate::generate(&mut rng),
            disco_key: DiscoPrivate::generate(&mut rng),
            direct: true,
            derp: false,
        });
        let records = [record(&configs[0], 1)?, record(&configs[1], 2)?];
        let now = Instant::now();
        let mut nodes = configs.map(|config| Node::new(config, now, Box::new(StdRng::from_rng(&mut rng))));
        for (node, (ours, theirs)) in nodes.iter_mut().zip([(0, 1), (1, 0)]) {
            let endpoints: Vec<_> = records[ours].endpoints.iter().map(|at| (*at, EndpointType::Local)).collect();
            node.handle_local_endpoints(now, &endpoints);
            node.handle_netmap(now, &netmap(&records[ours], &records[theirs]));
        }
        nodes[1].listen(PORT, 1)?;
        let remote = SocketAddr::new(records[1].addresses[0].addr(), PORT);
        let near = nodes[0].connect(now, remote)?;
        let mut buffer = vec![0; CHUNK];
        let far = loop {
            if now.elapsed() > DEADLINE {
                return Err("the nodes didn't connect".into());
            }
            pump(&mut nodes, &mut buffer)?;
            if let Some(accepted) = nodes[1].accept(PORT) {
                break accepted.id;
            }
        };
        Ok(Self { nodes, near, far, buffer, chunk: vec![0x5a; CHUNK] })
    }

    fn transfer(&mut self, bytes: u64) -> Result<(), Box<dyn Error>> {
        let started = Instant::now();
        let (mut sent, mut received) = (0, 0);
        while received < bytes {
            let now = Instant::now();
            if now - started > DEADLINE {
                return Err(format!("only {received} bytes of {bytes} arrived").into());
            }
            while sent < bytes {
                let length = usize::try_from(bytes - sent).unwrap_or(CHUNK).min(CHUNK);
                let taken = self.nodes[0].write(now, self.near, &self.chunk[..length])?;
                sent += taken as u64;
                if taken < length {
                    break;
                }
            }
            pump(&mut self.nodes, &mut self.buffer)?;
            loop {
                match self.nodes[1].read(now, self.far, &mut self.buffer)? {
                    Read::Bytes(length) => received += length as u64,
                    Read::Empty => break,
                    Read::Eof => return Err("the stream ended early".into()),
                }
            }
        }
        Ok(())
    }
}

/// Lets both nodes say what they have to say to each other.
fn pump([one, other]: &mut [Node; 2], buffer: &mut [u8]) -> Result<(), Box<dyn Error>> {
    carry(one, other, 1, buffer)?;
    carry(other, one, 2, buffer)
}

fn carry(from: &mut Node, to: &mut Node, number: u8, buffer: &mut [u8]) -> Result<(), Box<dyn Error>> {
    let now = Instant::now();
    if from.poll_timeout().is_some_and(|at| at <= now) {
        from.handle_timeout(now);
    }
    while let Some(event) = from.poll_event() {
        if let Event::Closed { error, .. } = event {
            return Err(format!("the stream was closed: {error:?}").into());
        }
    }
    while let Some(transmit) = from.poll_transmit(now, buffer, MAX_SEGMENTS) {
        if matches!(transmit.destination, Destination::Udp(at) if at != address(number)) {
            to.handle_datagrams(now, address(number), &mut buffer[..transmit.len], transmit.segment_size);
        }
    }
    Ok(())
}

fn record(config: &NodeConfig, number: u8) -> Result<tailcfg::Node, Box<dyn Error>> {
    Ok(tailcfg::Node {
        id: i64::from(number),
        key: config.node_key.public(),
        disco_key: config.disco_key.public(),
        name: format!("host{number}.example.ts.net."),
        addresses: vec![format!("100.64.0.{number}/32").parse()?],
        endpoints: vec![address(number)],
        machine_authorized: true,
        ..tailcfg::Node::default()
    })
}

fn netmap(ours: &tailcfg::Node, theirs: &tailcfg::Node) -> Netmap {
    let all = PortRange { first: 0, last: u16::MAX };
    let to_all = NetPortRange { ip: "*".to_owned(), ports: all, ..NetPortRange::default() };
    let anyone = FilterRule { src_ips: vec!["*".to_owned()], dst_ports: vec![to_all], ..FilterRule::default() };
    Netmap {
        self_node: Arc::new(ours.clone()),
        peers: [(theirs.id, Arc::new(theirs.clone()))].into(),
        filter_rules: Some(Arc::new(vec![anyone])),
        ..Netmap::default()
    }
}
