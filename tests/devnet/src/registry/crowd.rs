//! Nodes with nothing behind them, for netmaps of any size.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use nixtail_proto::key::{DiscoPublic, MachinePublic, NodePublic};
use nixtail_proto::tailcfg::{Hostinfo, Node, NodeId, RegionId, Service, Timestamp};
use sha2::{Digest as _, Sha256};

use super::naming::{TAILNET_DOMAIN, addresses, owner};
use super::{MAX_ID, Registry};

/// Nodes to be made up: as large in a netmap as real ones, and never there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Crowd {
    /// How many.
    pub count: usize,
    /// The tags of each.
    pub tags: Vec<String>,
    /// Where they say they are at home; 0 is nowhere.
    pub home_region: RegionId,
}

impl Registry {
    /// Makes nodes up, and returns their numbers. `None` when there isn't room for that many.
    pub(crate) fn add_crowd(&mut self, time: Timestamp, crowd: &Crowd) -> Option<Vec<NodeId>> {
        let count = NodeId::try_from(crowd.count).ok()?;
        let last = self.last_id.checked_add(count).filter(|last| *last <= MAX_ID)?;
        let ids: Vec<NodeId> = (self.last_id + 1..=last).collect();
        self.crowd.extend(ids.iter().map(|id| (*id, Arc::new(made_up(*id, time, crowd)))));
        self.last_id = last;
        Some(ids)
    }

    /// Changes a node that was made up; `None` when there is no such one.
    pub(crate) fn change_made_up(&mut self, id: NodeId, change: impl FnOnce(&mut Node)) -> Option<()> {
        let node = Arc::make_mut(self.crowd.get_mut(&id)?);
        change(node);
        // Netmaps are kept by it.
        node.id = id;
        Some(())
    }

    /// Removes a node that was made up; `None` when there is no such one.
    pub(crate) fn remove_made_up(&mut self, id: NodeId) -> Option<()> {
        self.crowd.remove(&id).map(|_| ())
    }
}

fn made_up(id: NodeId, time: Timestamp, crowd: &Crowd) -> Node {
    let key = |kind: &str| -> [u8; 32] { Sha256::digest(format!("{kind} {id}")).into() };
    let [.., high, low] = id.to_be_bytes();
    // From the blocks for documentation (RFC 5737) and benchmarks (RFC 2544): nobody is there.
    let endpoints = [Ipv4Addr::new(203, 0, 113, low), Ipv4Addr::new(198, 18, high, low)];
    let service = |proto: &str| Service { proto: proto.to_owned(), port: 40_000, ..Default::default() };
    Node {
        id,
        stable_id: format!("n{id}CROWD"),
        name: format!("crowd-{id}.{TAILNET_DOMAIN}."),
        user: owner(&crowd.tags),
        key: NodePublic::from_bytes(key("node")),
        machine: MachinePublic::from_bytes(key("machine")),
        disco_key: DiscoPublic::from_bytes(key("disco")),
        addresses: addresses(id),
        allowed_ips: Some(addresses(id)),
        endpoints: endpoints.map(|ip| SocketAddr::new(IpAddr::V4(ip), 41_641)).to_vec(),
        home_derp: crowd.home_region,
        legacy_derp: if crowd.home_region == 0 { String::new() } else { format!("127.3.3.40:{}", crowd.home_region) },
        hostinfo: Hostinfo {
            os: "linux".to_owned(),
            os_version: "6.12.0".to_owned(),
            hostname: format!("crowd-{id}"),
            machine: "x86_64".to_owned(),
            go_arch: "amd64".to_owned(),
            services: vec![service("peerapi4"), service("peerapi6")],
            ..Default::default()
        },
        created: time,
        cap: 113,
        tags: crowd.tags.clone(),
        online: Some(true),
        machine_authorized: true,
        ..Default::default()
    }
}
