//! One node of the simulated network, and the site that it stands in.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nixtail_proto::key::{DiscoPrivate, NodePublic};
use nixtail_proto::node::{Event, Node, NodeConfig};
use nixtail_proto::tailcfg::{self, RegionId};

use crate::link::Link;
use crate::nat::Nat;
use crate::relay::Connection;

/// A place with one way to the internet. Its hosts reach each other without that.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) nat: Nat,
    /// `None`: no IPv6.
    pub(crate) nat_v6: Option<Nat>,
    /// From here to the internet.
    pub(crate) access: Link,
    /// How much farther the relay of each region is than anything else.
    pub(crate) far: BTreeMap<RegionId, Duration>,
    /// Whether UDP gets out and in.
    pub(crate) udp: bool,
    /// Whether nothing gets out or in.
    pub(crate) cut: bool,
    /// How many public addresses it has had before.
    pub(crate) moves: u8,
}

pub(crate) struct Host {
    pub(crate) node: Node,
    pub(crate) record: tailcfg::Node,
    pub(crate) site: usize,
    pub(crate) address: SocketAddr,
    pub(crate) address_v6: Option<SocketAddr>,
    pub(crate) events: Vec<Event>,
    /// When it wants to be called next, as it said when it last had nothing more to say.
    pub(crate) timer: Option<Instant>,
    pub(crate) timeouts: u64,
    /// Packets sent, by whatever path.
    pub(crate) sent: u64,
    /// Its process is stopped: it hears nothing and does nothing.
    pub(crate) frozen: bool,
    pub(crate) relays: BTreeMap<RegionId, Connection>,
    /// Dials under way, by number.
    pub(crate) dials: BTreeMap<RegionId, u64>,
    pub(crate) config: NodeConfig,
    /// What it wants control to know.
    pub(crate) endpoints: Vec<SocketAddr>,
    pub(crate) home: RegionId,
    pub(crate) control: Standing,
}

/// How a host and control stand with each other.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    /// How often control has published another record of this host.
    pub(crate) version: u64,
    /// The record as control last published it.
    pub(crate) published: Option<Arc<tailcfg::Node>>,
    /// The version of each host's record in the netmap that this host has.
    pub(crate) seen: Vec<u64>,
    /// Those records.
    pub(crate) known: Vec<Option<Arc<tailcfg::Node>>>,
    pub(crate) report_under_way: bool,
    pub(crate) netmap_under_way: bool,
    /// It couldn't reach control with what it has to say.
    pub(crate) unreported: bool,
    /// Control couldn't reach it with the newest netmap.
    pub(crate) outdated: bool,
}

impl Host {
    pub(crate) fn key(&self) -> NodePublic {
        self.record.key
    }

    /// What seals its disco messages.
    pub(crate) fn disco_key(&self) -> &DiscoPrivate {
        &self.config.disco_key
    }

    /// The address inside the tailnet with a port.
    pub(crate) fn tailnet(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.record.addresses[0].addr(), port)
    }

    pub(crate) fn has_address(&self, address: SocketAddr) -> bool {
        self.address == address || self.address_v6 == Some(address)
    }
}
