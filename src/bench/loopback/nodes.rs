//! The whole node in memory: two of them hand each other their datagrams, without sockets, kernel and runtime.

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

use super::budget::{Budget, Meter};
use super::{CHUNK, Ends, LoopbackError};

/// The port that the stream goes to.
pub(super) const PORT: u16 = 5201;
/// Longer than a handshake can take, short enough that a hang is an error.
const DEADLINE: Duration = Duration::from_secs(30);
/// Segments of one transmit (UDP_MAX_SEGMENTS of Linux).
const MAX_SEGMENTS: usize = 64;

pub(super) fn measure(budget: &Budget) -> Result<Ends, LoopbackError> {
    let failed = |why: String| LoopbackError::Stage("the node", why);
    let mut pair = Pair::connected().map_err(failed)?;
    let (mut ends, mut rounds, mut last) = (Ends::default(), budget.rounds(), Instant::now());
    while rounds() {
        if pair.round(&mut ends).map_err(failed)? > 0 {
            last = Instant::now();
        } else if last.elapsed() > DEADLINE {
            return Err(failed("the stream stands still".to_owned()));
        }
    }
    Ok(ends)
}

/// Two nodes with a direct path, and a stream from the first to the second.
struct Pair {
    nodes: [Node; 2],
    near: ConnectionId,
    far: ConnectionId,
    buffer: Vec<u8>,
    chunk: Vec<u8>,
}

impl Pair {
    /// Nodes that know each other, and a stream that stands.
    fn connected() -> Result<Self, String> {
        let mut rng = StdRng::seed_from_u64(1);
        let configs = [(); 2].map(|()| NodeConfig {
            node_key: NodePrivate::generate(&mut rng),
            disco_key: DiscoPrivate::generate(&mut rng),
            direct: true,
            derp: false,
        });
        let addresses = [1, 2].map(|number| SocketAddr::from(([192, 0, 2, number], 41641)));
        let records: Vec<tailcfg::Node> =
            (0..2).map(|index| record(&configs[index], index, addresses[index])).collect();
        let now = Instant::now();
        let mut nodes = configs.map(|config| Node::new(config, now, Box::new(StdRng::from_rng(&mut rng))));
        for (node, (ours, theirs)) in nodes.iter_mut().zip([(0, 1), (1, 0)]) {
            node.handle_local_endpoints(now, &[(addresses[ours], EndpointType::Local)]);
            node.handle_netmap(now, &netmap(&records[ours], &records[theirs]));
        }
        nodes[1].listen(PORT, 1).map_err(|error| error.to_string())?;
        let near = nodes[0].connect(now, remote()).map_err(|error| error.to_string())?;
        let mut pair = Self { nodes, near, far: near, buffer: vec![0; CHUNK], chunk: vec![0x5a; CHUNK] };
        while now.elapsed() < DEADLINE {
            pair.carry(0, &mut Ends::default())?;
            pair.carry(1, &mut Ends::default())?;
            if let Some(accepted) = pair.nodes[1].accept(PORT) {
                pair.far = accepted.id;
                return Ok(pair);
            }
        }
        Err("the nodes didn't connect".to_owned())
    }

    /// Writes what the stream takes, lets both nodes say to each other what they have to, and reads what came: so many bytes. Adds to
    /// `ends` what either spent.
    fn round(&mut self, ends: &mut Ends) -> Result<u64, String> {
        let now = Instant::now();
        let mut meter = Meter::start();
        while self.nodes[0].write(now, self.near, &self.chunk).map_err(|error| error.to_string())? == self.chunk.len() {
        }
        meter.lap(&mut ends.sending);
        self.carry(0, ends)?;
        let mut meter = Meter::start();
        let mut received = 0;
        loop {
            match self.nodes[1].read(now, self.far, &mut self.buffer).map_err(|error| error.to_string())? {
                Read::Bytes(length) => received += length as u64,
                Read::Empty => break,
                Read::Eof => return Err("the stream ended early".to_owned()),
            }
        }
        meter.lap(&mut ends.receiving);
        self.carry(1, ends)?;
        ends.bytes += received;
        Ok(received)
    }

    /// Hands all that one node has to send to the other.
    fn carry(&mut self, from: usize, ends: &mut Ends) -> Result<(), String> {
        let now = Instant::now();
        let [first, second] = &mut self.nodes;
        let (sender, receiver) = if from == 0 { (first, second) } else { (second, first) };
        let source = SocketAddr::from(([192, 0, 2, if from == 0 { 1 } else { 2 }], 41641));
        let (here, there) =
            if from == 0 { (&mut ends.sending, &mut ends.receiving) } else { (&mut ends.receiving, &mut ends.sending) };
        let mut meter = Meter::start();
        if sender.poll_timeout().is_some_and(|at| at <= now) {
            sender.handle_timeout(now);
        }
        while let Some(event) = sender.poll_event() {
            if let Event::Closed { error, .. } = event {
                return Err(format!("the stream was closed: {error:?}"));
            }
        }
        while let Some(transmit) = sender.poll_transmit(now, &mut self.buffer, MAX_SEGMENTS) {
            meter.lap(here);
            let datagrams = self.buffer.get_mut(..transmit.len).unwrap_or_default();
            if matches!(transmit.destination, Destination::Udp(to) if to != source) {
                receiver.handle_datagrams(now, source, datagrams, transmit.segment_size);
            }
            meter.lap(there);
        }
        meter.lap(here);
        Ok(())
    }
}

/// Where the stream goes to.
pub(super) fn remote() -> SocketAddr {
    ([100, 64, 0, 2], PORT).into()
}

/// What a node is told of one of the two.
pub(super) fn record(config: &NodeConfig, index: usize, endpoint: SocketAddr) -> tailcfg::Node {
    let number = if index == 0 { 1 } else { 2 };
    tailcfg::Node {
        id: i64::from(number),
        key: config.node_key.public(),
        disco_key: config.disco_key.public(),
        name: format!("host{number}.example.ts.net."),
        addresses: format!("100.64.0.{number}/32").parse().into_iter().collect(),
        endpoints: vec![endpoint],
        machine_authorized: true,
        ..tailcfg::Node::default()
    }
}

/// The netmap of one of the two: the other may reach it on all ports.
pub(super) fn netmap(ours: &tailcfg::Node, theirs: &tailcfg::Node) -> Netmap {
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
