//! Packet filter rules, as control sends them (`tailcfg.FilterRule`).

use serde::{Deserialize, Serialize};

use super::null_default;

/// Who may send what to whom. What it means is in `filter`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct FilterRule {
    /// Sources: an IP, a CIDR, a range `a-b`, `*`, or `cap:` and a node capability.
    #[serde(rename = "SrcIPs", deserialize_with = "null_default")]
    pub src_ips: Vec<String>,
    /// Prefix lengths for `SrcIPs`; a relic that nothing sends any more.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub src_bits: Vec<i64>,
    /// What they may reach.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub dst_ports: Vec<NetPortRange>,
    /// IP protocols; empty means TCP, UDP and ICMP of both families.
    #[serde(rename = "IPProto", deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub ip_proto: Vec<i64>,
    /// Application capabilities; they let no packet through.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub cap_grant: Vec<CapGrant>,
}

/// Destination addresses with their ports.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetPortRange {
    /// An IP, a CIDR, a range `a-b` or `*`.
    #[serde(rename = "IP")]
    pub ip: String,
    /// A relic like [`FilterRule::src_bits`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits: Option<i64>,
    /// The ports.
    pub ports: PortRange,
}

/// Ports from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PortRange {
    /// The first port.
    pub first: u16,
    /// The last port.
    pub last: u16,
}

/// Capabilities granted to the sources on some destinations.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CapGrant {
    /// On which of our addresses, as CIDRs.
    #[serde(deserialize_with = "null_default")]
    pub dsts: Vec<String>,
    /// The capabilities, with arguments in JSON.
    #[serde(deserialize_with = "null_default")]
    pub cap_map: std::collections::BTreeMap<String, Option<Vec<serde_json::Value>>>,
}
