//! Registration of a node key (`tailcfg.RegisterRequest`, `tailcfg.RegisterResponse`).

use serde::{Deserialize, Serialize};

use super::{Hostinfo, Timestamp, UserProfile, null_default};
use crate::key::NodePublic;
use crate::secret::Secret;

/// Asks control to let a node key in, to go on with it, or (with an expiry in the past) to log it out.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RegisterRequest {
    /// [`super::CAPABILITY_VERSION`].
    pub version: u16,
    /// The key that is to be let in.
    pub node_key: NodePublic,
    /// The key that it replaces; zero is none.
    pub old_node_key: NodePublic,
    /// What entitles us to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<RegisterAuth>,
    /// When the key shall end; in the past means logout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiry: Option<Timestamp>,
    /// The URL of an earlier answer whose login is awaited.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub followup: String,
    /// What the node says of itself. Never absent: testcontrol dereferences it.
    pub hostinfo: Hostinfo,
    /// The node shall vanish when it goes offline.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ephemeral: bool,
    /// The tailnet, where a user has several.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tailnet: String,
}

/// What entitles a node to be let in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RegisterAuth {
    /// A pre-authentication key.
    pub auth_key: Secret,
}

/// Control's answer. What each combination means is decided by `control`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RegisterResponse {
    /// Whose the node is.
    #[serde(deserialize_with = "null_default")]
    pub user: UserProfile,
    /// Tailnet lock's signature of the old key, base64: a new one must be signed with it.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub node_key_signature: String,
    /// The key has ended: make another.
    pub node_key_expired: bool,
    /// The admin let the machine in. `false` is no error: it may come.
    pub machine_authorized: bool,
    /// Where a person must log in.
    #[serde(rename = "AuthURL")]
    pub auth_url: String,
    /// Why the key is refused.
    pub error: String,
}
