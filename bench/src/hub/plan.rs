//! Who is in the hub's tailnet.

use std::error::Error;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use nixtail_proto::key::{DiscoPrivate, DiscoPublic, NodePrivate, NodePublic};
use nixtail_proto::netmap::Netmap;
use nixtail_proto::node::{Node, NodeConfig};
use nixtail_proto::tailcfg::{self, EndpointType, FilterRule, NetPortRange, PortRange};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::PORT;
use super::host::Host;

/// Streams that wait to be accepted.
const BACKLOG: usize = 1024;

/// How large a hub's tailnet is, and how much goes on in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Peers in the hub's netmap; at most 60,000.
    pub peers: u16,
    /// The first so many of them are there; the others exist in the netmap only.
    pub present: u16,
    /// Streams, each to the next peer that is there.
    pub streams: usize,
}

/// The hub and the peers that are there. The same each time, but for what boringtun and hash tables take from the system.
pub(super) fn nodes(plan: Plan, now: Instant) -> Result<(Host, Vec<Host>), Box<dyn Error>> {
    let mut rng = StdRng::seed_from_u64(1);
    let present = plan.present.min(plan.peers);
    let configs: Vec<NodeConfig> = (0..=present).map(|_| config(&mut rng)).collect();
    let record = |number: u16| record(number, configs.get(usize::from(number)), &mut rng);
    let records: Vec<Arc<tailcfg::Node>> = (0..=plan.peers).map(record).collect::<Result<_, _>>()?;
    let (own, peers) = records.split_first().ok_or("nobody")?;
    let mut hosts = configs.into_iter().zip(&records).map(|(config, record)| {
        let others = if record.id == own.id { peers } else { std::slice::from_ref(own) };
        host(config, record, others, now, &mut rng)
    });
    let hub = hosts.next().ok_or("nobody")??;
    Ok((hub, hosts.collect::<Result<_, _>>()?))
}

fn config(rng: &mut StdRng) -> NodeConfig {
    let (node_key, disco_key) = (NodePrivate::generate(rng), DiscoPrivate::generate(rng));
    NodeConfig { node_key, disco_key, direct: true, derp: false }
}

/// What control says of a node, which is only made up without a `config`.
fn record(number: u16, config: Option<&NodeConfig>, rng: &mut StdRng) -> Result<Arc<tailcfg::Node>, Box<dyn Error>> {
    let made_up = || (NodePublic::from_bytes(rng.random()), DiscoPublic::from_bytes(rng.random()));
    let (key, disco_key) = config.map_or_else(made_up, |config| (config.node_key.public(), config.disco_key.public()));
    let [high, low] = number.to_be_bytes();
    Ok(Arc::new(tailcfg::Node {
        id: i64::from(number) + 1,
        key,
        disco_key,
        name: format!("host{number}.example.ts.net."),
        addresses: vec![format!("100.64.{high}.{low}/32").parse()?],
        endpoints: vec![(Ipv4Addr::new(198, 18, high, low), 41641).into()],
        machine_authorized: true,
        ..tailcfg::Node::default()
    }))
}

fn host(
    config: NodeConfig,
    own: &Arc<tailcfg::Node>,
    others: &[Arc<tailcfg::Node>],
    now: Instant,
    rng: &mut StdRng,
) -> Result<Host, Box<dyn Error>> {
    let (address, tailnet_address) = own.endpoints.first().zip(own.addresses.first()).ok_or("no address")?;
    let mut node = Node::new(config, now, Box::new(StdRng::from_rng(rng)));
    node.handle_local_endpoints(now, &[(*address, EndpointType::Local)]);
    // One rule that names each of them, as control's does for a tag.
    let all = PortRange { first: 0, last: u16::MAX };
    let to_all = NetPortRange { ip: "*".to_owned(), ports: all, ..NetPortRange::default() };
    let from = others.iter().flat_map(|node| node.addresses.iter().map(ToString::to_string)).collect();
    let rule = FilterRule { src_ips: from, dst_ports: vec![to_all], ..FilterRule::default() };
    let netmap = Netmap {
        self_node: Arc::clone(own),
        peers: others.iter().map(|node| (node.id, Arc::clone(node))).collect(),
        filter_rules: Some(Arc::new(vec![rule])),
        ..Netmap::default()
    };
    node.handle_netmap(now, &netmap);
    node.listen(PORT, BACKLOG)?;
    Ok(Host::new(node, *address, tailnet_address.addr()))
}
