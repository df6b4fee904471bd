//! What a builder is: read from its own Nix and its own machine, told to a coordinator as JSON.

use serde::{Deserialize, Serialize};

use super::store::StoreAccess;

/// The version of [`Facts`]. A field that is added leaves it; one that goes or changes its meaning raises it.
pub const FACTS_SCHEMA: u32 = 1;

/// What a coordinator must know to offer a builder to its Nix.
///
/// Whoever reads them takes fields that it doesn't know for nothing, and missing ones that came later as unknown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// [`FACTS_SCHEMA`].
    pub schema: u32,
    /// The version of `nixtail-control` spoken here.
    pub protocol: u32,
    /// The user to log in as.
    pub login: String,
    /// Nix' name of the system, such as `x86_64-linux`.
    pub system: String,
    /// Other systems that it builds for.
    pub extra_platforms: Vec<String>,
    /// Features that were found to be real.
    pub features: Vec<String>,
    /// Processors that builds may use: within their affinity and the CPU quota of their control groups.
    pub cores: u32,
    /// Bytes of memory that builds may use, within their control groups' limits.
    pub memory_bytes: u64,
    /// Free bytes where the store is.
    pub free_disk_bytes: u64,
    /// Nix' version, such as `2.8.0`.
    pub nix_version: String,
    /// The folder that the names of store paths begin with; must be the same at both ends.
    pub store_folder: String,
    /// What to give as `remote-store`, if anything.
    pub remote_store: Option<String>,
    /// Builds at once.
    pub max_jobs: u32,
    /// Whether builds are kept apart from the machine, as a trial build found it.
    pub sandbox: bool,
    /// Whether Nix trusts the login user, without which a coordinator's inputs are refused; `None` is unknown.
    #[serde(default)]
    pub trusted: Option<bool>,
    /// The speed of one processor, about 1.0 on a usual cloud machine: see [`machine::speed`](super::machine::speed).
    #[serde(default)]
    pub speed: Option<f64>,
    /// Bytes of memory that new work can have without swapping.
    #[serde(default)]
    pub memory_available_bytes: Option<u64>,
    /// Where the store is on this machine's disk, as a path of this machine.
    #[serde(default)]
    pub store_on_disk: Option<String>,
    /// The run that this builder was given with `--run`: only coordinators of the same run claim it.
    #[serde(default)]
    pub run: Option<String>,
    /// Who opens the store: the builder's own child, or the system's daemon.
    #[serde(default)]
    pub store_access: Option<StoreAccess>,
    /// Processors that each build is told to use; 0 is all of them.
    #[serde(default)]
    pub cores_per_build: Option<u32>,
    /// Seconds that a build may take, where a limit was given and takes effect.
    #[serde(default)]
    pub timeout_seconds: Option<u64>,
    /// Seconds that a build may be silent, where a limit was given and takes effect.
    #[serde(default)]
    pub max_silent_seconds: Option<u64>,
    /// Whether the settings that the builder gives its Nix (processors, limits) reach builds. Where not, those of the system's
    /// daemon hold.
    #[serde(default)]
    pub settings_reach_builds: Option<bool>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_of_an_older_or_newer_builder_are_read() {
        let first = r#"{"schema":1,"protocol":1,"login":"bob","system":"x86_64-linux","extra_platforms":[],"features":[],
            "cores":4,"memory_bytes":1,"free_disk_bytes":1,"nix_version":"2.8.0","store_folder":"/nix/store",
            "remote_store":null,"max_jobs":0,"sandbox":true,"of_a_later_version":{"a":[1]}}"#;
        let facts: Facts = serde_json::from_str(first).unwrap();
        assert_eq!((facts.trusted, facts.speed, facts.run, facts.store_access), (None, None, None, None));
    }
}
