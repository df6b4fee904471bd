//! What an agent says of itself and its peers.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use nixtail_proto::key::NodePublic;
use nixtail_proto::tailcfg::{NetInfo, RegionId};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::stages::StageTime;

/// The state of an agent, as [`Agent::status`](crate::agent::Agent::status) and `nixtail status --json` give it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// Whether it is on the tailnet.
    pub state: State,
    /// The control server that it belongs to.
    pub login_server: String,
    /// This node.
    #[serde(rename = "self")]
    pub own: OwnNode,
    /// The other nodes of the netmap, by name.
    pub peers: Vec<Peer>,
    /// What the agent or control finds wrong, in words.
    pub health: Vec<String>,
    /// When each stage of its start was reached, in the order of time.
    #[serde(default)]
    pub start: Vec<StageTime>,
    /// The DERP regions whose relays are connected.
    #[serde(default)]
    pub relays: Vec<RegionId>,
    /// Seconds until this node's key ends, 0 when it has; `None`: it has no end.
    #[serde(default)]
    pub key_ends_in_s: Option<u64>,
    /// Seconds that control's clock is before ours, where it differs by more than what answers take.
    #[serde(default)]
    pub clock_offset_s: i64,
    /// What the network is like, by its last look; `None` before the first.
    #[serde(default)]
    pub network: Option<Network>,
}

/// What the network is like, as the agent sees it on its way to relays. `nixtail netcheck` looks anew, and at more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// Whether anything comes back over UDP.
    pub udp: Option<bool>,
    /// Whether anything comes back over IPv6.
    pub ipv6: Option<bool>,
    /// Whether the NAT gives each destination another address of ours; unknown where fewer than two servers answered.
    pub mapping_varies: Option<bool>,
    /// The best round trip of the last minutes to each region that answered over UDP, in milliseconds.
    #[serde(deserialize_with = "by_region")]
    pub latencies_ms: BTreeMap<RegionId, f64>,
}

/// JSON's keys are strings. Inside of a flattened struct (a builder's or coordinator's status) serde doesn't see that they are numbers.
fn by_region<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<RegionId, f64>, D::Error> {
    let by_name = BTreeMap::<String, f64>::deserialize(deserializer)?;
    let parsed = by_name.into_iter().map(|(region, time)| Ok((region.parse().map_err(D::Error::custom)?, time)));
    parsed.collect()
}

impl From<NetInfo> for Network {
    fn from(info: NetInfo) -> Self {
        let region = |key: &str| key.split('-').next()?.parse().ok();
        let times = info.derp_latency.iter();
        Self {
            udp: info.working_udp,
            ipv6: info.working_ipv6,
            mapping_varies: info.mapping_varies_by_dest_ip,
            latencies_ms: times.filter_map(|(key, seconds)| Some((region(key)?, seconds * 1e3))).collect(),
        }
    }
}

/// Where an agent is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// On the tailnet.
    Running,
    /// On the tailnet as far as peers go, but the connection to control is down and being dialled again.
    ControlLost,
    /// Off the tailnet for good: control has taken this node out and doesn't let it in again. It has no peers.
    Refused,
    /// On its way out.
    Leaving,
}

/// This node, as the netmap has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OwnNode {
    /// The first label of its DNS name.
    pub name: String,
    /// Its whole DNS name, without the last dot.
    pub dns_name: String,
    /// Its addresses inside the tailnet.
    pub addresses: Vec<IpAddr>,
    /// Its node key.
    pub node_key: NodePublic,
    /// Its tags.
    pub tags: Vec<String>,
    /// Where peers may reach it, as it tells control.
    pub endpoints: Vec<SocketAddr>,
    /// Its home DERP region.
    pub home_region: Option<RegionId>,
}

/// Another node of the tailnet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// The first label of its DNS name.
    pub name: String,
    /// Its whole DNS name, without the last dot.
    pub dns_name: String,
    /// Its addresses inside the tailnet.
    pub addresses: Vec<IpAddr>,
    /// Its node key.
    pub node_key: NodePublic,
    /// Its tags.
    pub tags: Vec<String>,
    /// Whether control sees it, where control says.
    pub online: Option<bool>,
    /// Over which path packets to it go; where none went lately, over which the last ones did.
    pub path: Path,
    /// Whether packets were sent to it in the last 45 s.
    #[serde(default)]
    pub active: bool,
    /// Round-trip time of that path in milliseconds, as last measured.
    pub rtt_ms: Option<f64>,
    /// Bytes sent to it through the tunnel.
    pub bytes_sent: u64,
    /// Bytes received from it through the tunnel.
    pub bytes_received: u64,
    /// Seconds since the last WireGuard handshake with it.
    pub last_handshake_s: Option<f64>,
}

/// The path to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Path {
    /// Nothing was sent to it, or no way to it is known.
    None,
    /// UDP to this address.
    Direct {
        /// The peer's endpoint.
        address: SocketAddr,
    },
    /// Through a relay.
    Derp {
        /// The relay's region.
        region: RegionId,
    },
}

impl std::fmt::Display for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("-"),
            Self::Direct { address } => write!(f, "{address}"),
            Self::Derp { region } => write!(f, "DERP region {region}"),
        }
    }
}

/// What a ping asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PingKind {
    /// The peer's node, outside the tunnel: which path there is, and how long it takes.
    #[default]
    Disco,
    /// The peer's node, through the tunnel, by Tailscale's own message: its filter doesn't matter.
    Tsmp,
    /// The peer's system, through the tunnel and its filter.
    Icmp,
}

/// The answer to a ping.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pong {
    /// The peer's name.
    pub name: String,
    /// The address that was pinged.
    pub address: IpAddr,
    /// The round trip in milliseconds.
    pub latency_ms: f64,
    /// The path that it took.
    pub path: Path,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a coordinator's and a builder's status hold it.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Around {
        #[serde(flatten)]
        network: Network,
    }

    #[test]
    fn what_is_known_of_regions_is_read_inside_of_another_status_too() {
        let latencies_ms = BTreeMap::from([(1, 9.5), (900, 0.2)]);
        let network = Network { udp: Some(true), ipv6: None, mapping_varies: None, latencies_ms };
        let around = Around { network };
        let json = serde_json::to_string(&around).unwrap();
        assert_eq!(serde_json::from_str::<Around>(&json).unwrap(), around);
        let bad = json.replace("900", "far");
        assert!(serde_json::from_str::<Around>(&bad).is_err());
    }
}
