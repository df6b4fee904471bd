//! The map stream: what a node asks and the messages it gets (`tailcfg.MapRequest`, `tailcfg.MapResponse`).

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{
    DerpMap, FilterRule, Hostinfo, Node, NodeId, RegionId, SshPolicy, Timestamp, UserProfile, lenient, null_default,
};
use crate::key::{DiscoPublic, NodePublic};

/// Opens the map stream (`stream`), or updates what control knows of us (`omit_peers` without `stream`).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct MapRequest {
    /// [`super::CAPABILITY_VERSION`].
    pub version: u16,
    /// `zstd`, or empty for bare JSON.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub compress: String,
    /// Wants keep-alive messages.
    pub keep_alive: bool,
    /// Who asks.
    pub node_key: NodePublic,
    /// Its key for path discovery.
    pub disco_key: DiscoPublic,
    /// Keep the answer open and send changes.
    pub stream: bool,
    /// What the node says of itself.
    #[serde(deserialize_with = "null_default")]
    pub hostinfo: Hostinfo,
    /// Where it may be reached by UDP.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<SocketAddr>,
    /// How each endpoint was found, in the same order.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub endpoint_types: Vec<EndpointType>,
    /// Leave peers out of the answer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub omit_peers: bool,
}

/// How an endpoint was found (`tailcfg.EndpointType`), a number in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(from = "u8", into = "u8")]
pub enum EndpointType {
    /// Not said.
    #[default]
    Unknown,
    /// An address of a local interface.
    Local,
    /// What a STUN server saw.
    Stun,
    /// A port mapping.
    PortMapped,
    /// What STUN saw, with the local port.
    Stun4LocalPort,
    /// Told by the user.
    Explicit,
}

impl From<u8> for EndpointType {
    fn from(n: u8) -> Self {
        match n {
            1 => Self::Local,
            2 => Self::Stun,
            3 => Self::PortMapped,
            4 => Self::Stun4LocalPort,
            5 => Self::Explicit,
            _ => Self::Unknown,
        }
    }
}

impl From<EndpointType> for u8 {
    fn from(kind: EndpointType) -> Self {
        match kind {
            EndpointType::Unknown => 0,
            EndpointType::Local => 1,
            EndpointType::Stun => 2,
            EndpointType::PortMapped => 3,
            EndpointType::Stun4LocalPort => 4,
            EndpointType::Explicit => 5,
        }
    }
}

/// One message of the map stream: the whole netmap at first, changes after that. An `Option` that is `None` (absent
/// or `null`) leaves what was known as it is. How it changes a netmap is in `netmap`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct MapResponse {
    /// Nothing but a sign of life (side messages may ride on it).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub keep_alive: bool,
    /// Something that control wants answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ping_request: Option<PingRequest>,
    /// A URL for the user to open.
    #[serde(rename = "PopBrowserURL", skip_serializing_if = "String::is_empty")]
    pub pop_browser_url: String,
    /// Ourselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Node>,
    /// The relays.
    #[serde(rename = "DERPMap", skip_serializing_if = "Option::is_none")]
    pub derp_map: Option<DerpMap>,
    /// All peers; empty says nothing.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<Node>,
    /// Peers that are new or changed.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub peers_changed: Vec<Node>,
    /// Peers that are gone.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub peers_removed: Vec<NodeId>,
    /// Single fields of peers that changed.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub peers_changed_patch: Vec<Option<PeerChange>>,
    /// Peers seen now (`true`), or not since we know not when (`false`).
    #[serde(deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub peer_seen_change: BTreeMap<NodeId, bool>,
    /// Peers that came online or went.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub online_change: BTreeMap<NodeId, bool>,
    /// Names and resolvers.
    #[serde(rename = "DNSConfig", skip_serializing_if = "Option::is_none")]
    pub dns_config: Option<DnsConfig>,
    /// The tailnet's name; empty says nothing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// The filter rules named `base`: `Some([])` blocks everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packet_filter: Option<Vec<FilterRule>>,
    /// Filter rules by name (capability version 81): `null` deletes a name, and the name `*` with `null` all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packet_filters: Option<BTreeMap<String, Option<Vec<FilterRule>>>>,
    /// Users, to be added to those known.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub user_profiles: Vec<UserProfile>,
    /// What control thinks is wrong with us; `Some([])` is nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Vec<String>>,
    /// The same in a richer form, by name (capability version 117): `null` takes a name away, and the name `*` with `null`
    /// all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub display_messages: Option<BTreeMap<String, Option<DisplayMessage>>>,
    /// Who may log in here.
    #[serde(rename = "SSHPolicy", skip_serializing_if = "Option::is_none")]
    pub ssh_policy: Option<SshPolicy>,
    /// Control's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_time: Option<Timestamp>,
    /// The state of tailnet lock.
    #[serde(rename = "TKAInfo", skip_serializing_if = "Option::is_none")]
    pub tka_info: Option<TkaInfo>,
    /// What control knows of newer clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_version: Option<ClientVersion>,
}

/// Single fields of a peer that changed (`tailcfg.PeerChange`).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PeerChange {
    /// Which peer. An unknown one is ignored.
    #[serde(rename = "NodeID")]
    pub node_id: NodeId,
    /// Its home region, if not 0.
    #[serde(rename = "DERPRegion", deserialize_with = "lenient::region")]
    pub derp_region: RegionId,
    /// Its capability version, if not 0.
    pub cap: i64,
    /// Its capabilities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cap_map: Option<BTreeMap<String, Option<Vec<serde_json::Value>>>>,
    /// Its endpoints.
    #[serde(deserialize_with = "lenient::endpoints_if_told", skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<Vec<SocketAddr>>,
    /// Its node key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<NodePublic>,
    /// Tailnet lock's signature of its key, base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_signature: Option<String>,
    /// Its disco key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disco_key: Option<DiscoPublic>,
    /// Whether it is online.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub online: Option<bool>,
    /// When it was last seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Timestamp>,
    /// When its key ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_expiry: Option<Timestamp>,
}

/// Something that control wants answered.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PingRequest {
    /// Where the answer goes.
    #[serde(rename = "URL")]
    pub url: String,
    /// Answer inside the ts2021 connection.
    #[serde(rename = "URLIsNoise")]
    pub url_is_noise: bool,
    /// `c2n`, or kinds of ping with commas between; empty wants a HEAD request.
    pub types: String,
    /// Whom to ping.
    #[serde(rename = "IP", deserialize_with = "null_default")]
    pub ip: String,
    /// For `c2n`: a raw HTTP/1.1 request, base64.
    #[serde(deserialize_with = "null_default")]
    pub payload: String,
}

/// The answer to a [`PingRequest`] that wanted a ping.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PingResponse {
    /// Which kind of ping.
    #[serde(rename = "Type")]
    pub kind: String,
    /// Who was pinged.
    #[serde(rename = "IP")]
    pub ip: String,
    /// Why it failed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub err: String,
    /// How long it took, in seconds.
    pub latency_seconds: f64,
    /// By which address, if direct.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub endpoint: String,
    /// By which region, if relayed.
    #[serde(rename = "DERPRegionID")]
    pub derp_region_id: RegionId,
}

/// Names and resolvers; nixtail reads names only.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DnsConfig {
    /// Search domains.
    #[serde(deserialize_with = "null_default")]
    pub domains: Vec<String>,
    /// MagicDNS is on.
    pub proxied: bool,
    /// Names beside those of nodes.
    #[serde(deserialize_with = "null_default")]
    pub extra_records: Vec<DnsRecord>,
}

/// A name beside those of nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DnsRecord {
    /// The name.
    pub name: String,
    /// `A`, `AAAA`, or empty for either.
    #[serde(rename = "Type")]
    pub kind: String,
    /// The address.
    pub value: String,
}

/// Something that control wants a person to know (`tailcfg.DisplayMessage`). Untrusted text.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DisplayMessage {
    /// A line without a full stop.
    pub title: String,
    /// A few sentences.
    pub text: String,
    /// How grave it is.
    #[serde(deserialize_with = "null_default")]
    pub severity: Severity,
    /// It keeps nodes from reaching each other.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub impacts_connectivity: bool,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub primary_action: Option<DisplayMessageAction>,
}

/// How grave a [`DisplayMessage`] is, the gravest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Needs somebody now.
    High,
    /// Matters.
    Medium,
    /// Can wait.
    Low,
    /// A word that isn't known.
    #[default]
    #[serde(other)]
    Unknown,
}

/// What to do about a [`DisplayMessage`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DisplayMessageAction {
    /// Where it is done.
    #[serde(rename = "URL")]
    pub url: String,
    /// What is done there.
    pub label: String,
}

/// The state of tailnet lock.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TkaInfo {
    /// The newest update's hash.
    pub head: String,
    /// It was switched off.
    pub disabled: bool,
}

/// What control knows of newer clients.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ClientVersion {
    /// We run the newest.
    pub running_latest: bool,
}
