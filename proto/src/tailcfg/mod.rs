//! The control plane's JSON: what a node sends to control and what it gets back.
//!
//! The format is Go's `encoding/json` of the types in `tailscale/tailscale` `tailcfg/tailcfg.go`, whose capability
//! version history is the best description there is. Only fields that nixtail reads or sends are here; unknown ones are
//! ignored. `null` for a list or a map is an empty one, except where absent, `null` and empty mean different things:
//! those fields are `Option`s and say so.

mod derp_map;
mod filter_rule;
mod hostinfo;
mod lenient;
mod map;
mod node;
mod register;
mod ssh;
mod timestamp;

pub use derp_map::{DerpMap, DerpNode, DerpRegion, HomeParams, RegionId};
pub use filter_rule::{CapGrant, FilterRule, NetPortRange, PortRange};
pub use hostinfo::{Hostinfo, NetInfo, Service};
pub use map::{
    ClientVersion, DisplayMessage, DisplayMessageAction, DnsConfig, DnsRecord, EndpointType, MapRequest, MapResponse,
    PeerChange, PingRequest, PingResponse, Severity, TkaInfo,
};
pub use node::{Node, NodeId, StableNodeId, UserId, UserProfile};
pub use register::{RegisterAuth, RegisterRequest, RegisterResponse};
pub use ssh::{SshAction, SshPolicy, SshPrincipal, SshRecorderFailureAction, SshRule};
pub use timestamp::{Timestamp, TimestampError};

use serde::{Deserialize, Deserializer};

/// The capability version that nixtail claims, in `/key?v=`, the ts2021 prologue and each request.
///
/// 113 (Tailscale 1.80): everything below it that needs code on a client is here. From 120 on peers would offer themselves
/// as UDP relays, which nixtail doesn't go through ([`crate::disco::PeerRelay`]). The table is at the top of
/// `tailcfg/tailcfg.go`.
pub const CAPABILITY_VERSION: u16 = 113;

/// Reads `null` as the default, as Go does for slices, maps, strings and numbers.
fn null_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests;
