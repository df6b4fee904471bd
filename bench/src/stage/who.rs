//! Whose nodes are measured, where ours stand beside those of Tailscale's library.

use serde::Serialize;

/// Whose node it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Who {
    Nixtail,
    Tsnet,
}

impl Who {
    /// For people, and in names of nodes and logs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nixtail => "nixtail",
            Self::Tsnet => "tsnet",
        }
    }
}
