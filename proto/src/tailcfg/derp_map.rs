//! Where the DERP relays are (`tailcfg/derpmap.go`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::null_default;

/// The number of a DERP region; 0 is none, 900–999 are a tailnet's own.
pub type RegionId = u16;

/// All relays of a tailnet.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DerpMap {
    /// The regions by id. `None` (absent or `null`) keeps what an earlier map said; a `null` region counts as none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regions: Option<BTreeMap<RegionId, Option<DerpRegion>>>,
    /// Set when control's default regions are left out.
    #[serde(rename = "omitDefaultRegions")]
    pub omit_default_regions: bool,
    /// Preferences for choosing the home region.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub home_params: Option<HomeParams>,
}

/// How control weighs regions in the choice of the home region.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HomeParams {
    /// A factor on the measured latency, by region; 1 where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region_score: Option<BTreeMap<RegionId, f64>>,
}

/// One region: relays that see each other's clients.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DerpRegion {
    /// Its number, the same as its key in the map.
    #[serde(rename = "RegionID")]
    pub region_id: RegionId,
    /// A short name such as `fra`.
    pub region_code: String,
    /// A name for people.
    pub region_name: String,
    /// Not to be home, nor measured for it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_measure_no_home: bool,
    /// The older word for [`Self::no_measure_no_home`].
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub avoid: bool,
    /// The relays, in the order to try.
    #[serde(deserialize_with = "null_default")]
    pub nodes: Vec<DerpNode>,
}

/// One relay.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DerpNode {
    /// Its unique name, such as `1a`.
    pub name: String,
    /// The region that it is in.
    #[serde(rename = "RegionID")]
    pub region_id: RegionId,
    /// Its DNS name, which is also the TLS server name.
    pub host_name: String,
    /// The name that its certificate must have if not [`Self::host_name`], or `sha256-raw:` and the hex digest of the
    /// leaf certificate.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cert_name: String,
    /// Its IPv4 address; empty asks DNS, `none` switches the family off.
    #[serde(rename = "IPv4", skip_serializing_if = "String::is_empty")]
    pub ipv4: String,
    /// Its IPv6 address, as [`Self::ipv4`].
    #[serde(rename = "IPv6", skip_serializing_if = "String::is_empty")]
    pub ipv6: String,
    /// Its STUN port: 0 is 3478, −1 none.
    #[serde(rename = "STUNPort", skip_serializing_if = "is_zero")]
    pub stun_port: i32,
    /// Serves STUN and no DERP.
    #[serde(rename = "STUNOnly", skip_serializing_if = "std::ops::Not::not")]
    pub stun_only: bool,
    /// Its DERP port: 0 is 443.
    #[serde(rename = "DERPPort", skip_serializing_if = "is_zero")]
    pub derp_port: i32,
    /// Skip the check of its certificate; tests and headscale's embedded relay.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub insecure_for_tests: bool,
    /// Where its STUN answers instead, in tests.
    #[serde(rename = "STUNTestIP", skip_serializing_if = "String::is_empty")]
    pub stun_test_ip: String,
    /// Whether port 80 answers a captive-portal check.
    #[serde(rename = "CanPort80", skip_serializing_if = "std::ops::Not::not")]
    pub can_port80: bool,
}

fn is_zero(n: &i32) -> bool {
    *n == 0
}
