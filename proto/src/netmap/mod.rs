//! A netmap: what control lets us know of the tailnet. How messages change it is in [`NetmapState`].

mod changes;
mod health;
mod normalise;
mod peers;
mod shared_map;
mod state;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

pub use changes::{Changes, PeerChanges};
pub use peers::Peers;
pub use shared_map::SharedMap;
pub use state::{NetmapError, NetmapState};

use crate::key::NodePublic;
use crate::tailcfg::{
    DerpRegion, DnsConfig, FilterRule, Node, NodeId, RegionId, SshPolicy, TkaInfo, UserId, UserProfile,
};

/// A node in normal form: `allowed_ips` is there, `home_derp` has the home region, `cap_map` has all capabilities.
/// Shared between netmaps while it doesn't change.
pub type Peer = Arc<Node>;

/// The relays by region; the key is each region's number.
pub type DerpRegions = BTreeMap<RegionId, DerpRegion>;

/// What control lets us know of the tailnet at one moment. Never changes: a message makes a new one.
#[derive(Debug, Clone, Default)]
pub struct Netmap {
    /// Ourselves, in normal form.
    pub self_node: Peer,
    /// The peers that may be used. Those that may not are in [`Self::refused`].
    pub peers: Peers,
    /// The peers that must not be used, and why.
    pub refused: SharedMap<NodeId, (Peer, Refusal)>,
    /// The relays.
    pub derp_map: Arc<DerpRegions>,
    /// Factors on the measured latency of regions in the choice of the home region; 1 where absent.
    pub region_scores: BTreeMap<RegionId, f64>,
    /// Who may send what to us, in order. `None`: control has never said, which is the same as nobody.
    pub filter_rules: Option<Arc<Vec<FilterRule>>>,
    /// Who may log in here. `None` is nobody.
    pub ssh_policy: Option<Arc<SshPolicy>>,
    /// Users, by number.
    pub users: SharedMap<UserId, Arc<UserProfile>>,
    /// The tailnet's name.
    pub domain: String,
    /// Names beside those of nodes, and search domains.
    pub dns: Arc<DnsConfig>,
    /// The state of tailnet lock. `Some` and not disabled: no peer may be used, as nixtail can't check signatures.
    pub tailnet_lock: Option<TkaInfo>,
    /// What control thinks is wrong with us, the gravest first. Untrusted text, bounded.
    pub health: Vec<String>,
    /// Seconds to add to our clock to have control's; 0 where they agree within a minute.
    pub clock_offset: i64,
}

impl Netmap {
    /// The usable peer with this node key.
    #[must_use]
    pub fn peer_by_key(&self, key: &NodePublic) -> Option<&Peer> {
        self.peers.by_key(key)
    }

    /// The usable peer whose own address this is.
    #[must_use]
    pub fn peer_by_address(&self, address: IpAddr) -> Option<&Peer> {
        self.peers.by_address(address)
    }

    /// Our own addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.self_node.addresses.iter().map(IpNet::addr)
    }

    /// What follows the first label of our own name: the tailnet's DNS suffix, without dots at its ends. Empty if our
    /// name has one label.
    #[must_use]
    pub fn tailnet_suffix(&self) -> &str {
        self.self_node.dns_name().split_once('.').map_or("", |(_, suffix)| suffix)
    }

    /// Whether tailnet lock is on, which nixtail can't honour.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        state::is_on(self.tailnet_lock.as_ref())
    }
}

impl PartialEq for Netmap {
    /// What both share isn't looked at.
    fn eq(&self, other: &Self) -> bool {
        let Self {
            self_node,
            peers,
            refused,
            derp_map,
            region_scores,
            filter_rules,
            ssh_policy,
            users,
            domain,
            dns,
            tailnet_lock,
            health,
            clock_offset,
        } = self;
        same(self_node, &other.self_node)
            && *clock_offset == other.clock_offset
            && *peers == other.peers
            && *refused == other.refused
            && same(derp_map, &other.derp_map)
            && *region_scores == other.region_scores
            && same_option(filter_rules.as_ref(), other.filter_rules.as_ref())
            && same_option(ssh_policy.as_ref(), other.ssh_policy.as_ref())
            && *users == other.users
            && *domain == other.domain
            && same(dns, &other.dns)
            && *tailnet_lock == other.tailnet_lock
            && *health == other.health
    }
}

/// Whether both are equal, without a look at what they share.
pub(crate) fn same<T: PartialEq>(one: &Arc<T>, other: &Arc<T>) -> bool {
    Arc::ptr_eq(one, other) || one == other
}

/// As [`same`], and nothing is the same as nothing.
pub(crate) fn same_option<T: PartialEq>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => same(one, other),
        (one, other) => one.is_none() && other.is_none(),
    }
}

/// Why a peer must not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// Tailnet lock is on: its key would have to be checked against signatures, which nixtail doesn't do.
    TailnetLock,
    /// Its key has ended.
    Expired,
    /// It speaks plain WireGuard: no relays, no path discovery.
    WireGuardOnly,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TailnetLock => {
                "tailnet lock is on and nixtail can't check signatures, so it uses no peer; \
                 switch tailnet lock off for this tailnet, or use tailscaled here"
            }
            Self::Expired => "its key has ended; log it in again",
            Self::WireGuardOnly => "it speaks plain WireGuard only, which nixtail doesn't",
        })
    }
}

#[cfg(test)]
mod tests;
