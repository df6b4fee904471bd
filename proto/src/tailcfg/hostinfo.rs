//! What a node says of itself (`tailcfg.Hostinfo`, `tailcfg.NetInfo`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{RegionId, lenient, null_default};

/// A node's description of itself, sent with each request and shown to its peers in part.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Hostinfo {
    /// A version that begins with a Tailscale-like `x.y.z`.
    #[serde(rename = "IPNVersion", skip_serializing_if = "String::is_empty")]
    pub ipn_version: String,
    /// 64 hex digits; Go refuses to poll without one.
    #[serde(rename = "BackendLogID", skip_serializing_if = "String::is_empty")]
    pub backend_log_id: String,
    /// Operating system in Go's word (`linux`, `macOS`).
    #[serde(rename = "OS", skip_serializing_if = "String::is_empty")]
    pub os: String,
    /// Its version.
    #[serde(rename = "OSVersion", skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    /// The program that embeds the node.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub app: String,
    /// The host name that is asked for.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// Architecture as `uname -m` says.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub machine: String,
    /// Architecture in Go's word (`amd64`, `arm64`).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub go_arch: String,
    /// The tags asked for. The same in each request: a change forces a new login.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub request_tags: Vec<String>,
    /// Services that this node offers.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Service>,
    /// The state of its network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net_info: Option<NetInfo>,
    /// SSH host keys as lines of an authorized_keys file; not empty means that SSH is served.
    #[serde(rename = "sshHostKeys", deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub ssh_host_keys: Vec<String>,
    /// Runs without a TUN device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub userspace: Option<bool>,
    /// Takes no inbound connections.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub shields_up: bool,
    /// Sends no logs.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_logs_no_support: bool,
}

/// What a node found out about its network.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetInfo {
    /// Its NAT gives each destination another mapping.
    #[serde(rename = "MappingVariesByDestIP", skip_serializing_if = "Option::is_none")]
    pub mapping_varies_by_dest_ip: Option<bool>,
    /// IPv6 works to the internet.
    #[serde(rename = "WorkingIPv6", skip_serializing_if = "Option::is_none")]
    pub working_ipv6: Option<bool>,
    /// The system has IPv6.
    #[serde(rename = "OSHasIPv6", skip_serializing_if = "Option::is_none")]
    pub os_has_ipv6: Option<bool>,
    /// UDP works to the internet.
    #[serde(rename = "WorkingUDP", skip_serializing_if = "Option::is_none")]
    pub working_udp: Option<bool>,
    /// The home region; 0 is none.
    #[serde(rename = "PreferredDERP", deserialize_with = "lenient::region")]
    pub preferred_derp: RegionId,
    /// Seconds to a region, by `<region>-v4` or `<region>-v6`.
    #[serde(rename = "DERPLatency", deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub derp_latency: BTreeMap<String, f64>,
}

/// A service that a node offers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Service {
    /// `tcp`, `udp`, `peerapi4`, ….
    pub proto: String,
    /// Its port.
    pub port: u16,
    /// What it is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
}
