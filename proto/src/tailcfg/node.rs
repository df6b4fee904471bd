//! A node as control describes it (`tailcfg.Node`).

use std::collections::BTreeMap;
use std::net::SocketAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Hostinfo, RegionId, Timestamp, lenient, null_default};
use crate::key::{DiscoPublic, MachinePublic, NodePublic};

/// Control's number for a node. May exceed 2^53.
pub type NodeId = i64;
/// Control's number for a user.
pub type UserId = i64;
/// Control's name for a node, stable over its life.
pub type StableNodeId = String;

/// A node of the tailnet: ourselves or a peer.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Node {
    /// Control's number for it.
    #[serde(rename = "ID")]
    pub id: NodeId,
    /// Control's name for it.
    #[serde(rename = "StableID")]
    pub stable_id: StableNodeId,
    /// Its DNS name, fully qualified, with a trailing dot.
    pub name: String,
    /// Its owner; tagged nodes have one too, which means nothing.
    pub user: UserId,
    /// Who it is.
    pub key: NodePublic,
    /// When its key ends; `0001-01-01T00:00:00Z` is never.
    pub key_expiry: Timestamp,
    /// The tailnet lock's signature of its key, base64.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub key_signature: String,
    /// Its machine key.
    pub machine: MachinePublic,
    /// Its key for path discovery.
    pub disco_key: DiscoPublic,
    /// Its own addresses, as /32 and /128.
    #[serde(deserialize_with = "null_default")]
    pub addresses: Vec<IpNet>,
    /// What may be sent to it and come from it. Absent or `null`: the same as `addresses` (capability version 112).
    #[serde(rename = "AllowedIPs", skip_serializing_if = "Option::is_none")]
    pub allowed_ips: Option<Vec<IpNet>>,
    /// Where it may be reached by UDP.
    #[serde(deserialize_with = "lenient::endpoints", skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<SocketAddr>,
    /// Its home region in the old spelling, `127.3.3.40:<region>`.
    #[serde(rename = "DERP", skip_serializing_if = "String::is_empty")]
    pub legacy_derp: String,
    /// Its home region; 0 is unknown. Use [`Node::home_region`].
    #[serde(rename = "HomeDERP", deserialize_with = "lenient::region", skip_serializing_if = "is_zero")]
    pub home_derp: RegionId,
    /// What it says of itself.
    #[serde(deserialize_with = "null_default")]
    pub hostinfo: Hostinfo,
    /// When it was made.
    pub created: Timestamp,
    /// The capability version that it runs.
    #[serde(skip_serializing_if = "is_zero_i64")]
    pub cap: i64,
    /// The tags that control gave it.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// When it was last seen by control; absent while online.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Timestamp>,
    /// Whether it is connected to control; `None` is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub online: Option<bool>,
    /// The admin let its machine in.
    pub machine_authorized: bool,
    /// Capabilities in the old form; folded into [`Node::cap_map`].
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// Capabilities with their arguments.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub cap_map: BTreeMap<String, Option<Vec<serde_json::Value>>>,
    /// Not signed under tailnet lock; may reach the PeerAPI and nothing else.
    #[serde(rename = "UnsignedPeerAPIOnly", skip_serializing_if = "std::ops::Not::not")]
    pub unsigned_peer_api_only: bool,
    /// Its key has ended.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub expired: bool,
    /// It may answer us and open nothing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_jailed: bool,
    /// Speaks neither disco nor DERP.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_wire_guard_only: bool,
}

impl Node {
    /// The region where it can be reached over DERP, from the new field or the old one.
    #[must_use]
    pub fn home_region(&self) -> Option<RegionId> {
        if self.home_derp != 0 {
            return Some(self.home_derp);
        }
        let region = self.legacy_derp.strip_prefix("127.3.3.40:")?.parse().ok()?;
        (region != 0).then_some(region)
    }

    /// What may be sent to it and come from it.
    #[must_use]
    pub fn allowed_ips(&self) -> &[IpNet] {
        self.allowed_ips.as_deref().unwrap_or(&self.addresses)
    }

    /// Its name without the trailing dot.
    #[must_use]
    pub fn dns_name(&self) -> &str {
        self.name.strip_suffix('.').unwrap_or(&self.name)
    }

    /// The first label of its name.
    #[must_use]
    pub fn short_name(&self) -> &str {
        self.name.split('.').next().unwrap_or_default()
    }
}

/// Who a user is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct UserProfile {
    /// Control's number.
    #[serde(rename = "ID")]
    pub id: UserId,
    /// Such as `alice@example.com`.
    pub login_name: String,
    /// For people.
    pub display_name: String,
}

fn is_zero(n: &RegionId) -> bool {
    *n == 0
}

fn is_zero_i64(n: &i64) -> bool {
    *n == 0
}
