//! The SSH policy (`tailcfg.SSHPolicy`), whose field names begin in lower case.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Timestamp, null_default};

/// Who may log in here as whom. What it means is in `ssh_policy`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SshPolicy {
    /// The rules, in order; the first that matches decides. A `null` rule is skipped.
    #[serde(deserialize_with = "null_default")]
    pub rules: Vec<Option<SshRule>>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SshRule {
    /// When it stops to count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule_expires: Option<Timestamp>,
    /// Whom it is about; any one suffices.
    #[serde(deserialize_with = "null_default")]
    pub principals: Vec<Option<SshPrincipal>>,
    /// The user asked for to the local user: `*` is any, `=` the same name, empty none.
    #[serde(deserialize_with = "null_default")]
    pub ssh_users: BTreeMap<String, String>,
    /// What happens. A rule without one is skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<SshAction>,
    /// Environment variables that the client may set.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub accept_env: Vec<String>,
}

/// Whom a rule is about. All fields are alternatives.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SshPrincipal {
    /// A node by its stable id.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// A node by its address.
    #[serde(rename = "nodeIP", skip_serializing_if = "String::is_empty")]
    pub node_ip: String,
    /// The owner of an untagged node.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user_login: String,
    /// Anybody.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub any: bool,
}

/// What happens to a connection.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SshAction {
    /// Shown to the client.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Ends it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub reject: bool,
    /// Lets it in.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub accept: bool,
    /// Nanoseconds that a session may last; 0 is without end.
    #[serde(skip_serializing_if = "is_zero")]
    pub session_duration: i64,
    /// Asks somebody else first: a URL.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hold_and_delegate: String,
    /// Must be recorded by one of these.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub recorders: Vec<String>,
    /// What to do when recording fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_recording_failure: Option<SshRecorderFailureAction>,
}

/// What happens when a session can't be recorded.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SshRecorderFailureAction {
    /// Refuse it with these words.
    pub reject_session_with_message: String,
    /// End it with these words.
    pub terminate_session_with_message: String,
}

fn is_zero(n: &i64) -> bool {
    *n == 0
}
