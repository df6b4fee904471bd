//! What this node tells control of itself.

use std::net::SocketAddr;

use nixtail_proto::key::{DiscoPublic, NodePublic};
use nixtail_proto::names::valid_hostname;
use nixtail_proto::tailcfg::{CAPABILITY_VERSION, EndpointType, Hostinfo, MapRequest, NetInfo};
use rand::Rng;
use rand::rngs::StdRng;

use super::ControlConfig;

/// Begins with the version of Tailscale whose behaviour is claimed (capability version 113), as control parses it.
const IPN_VERSION: &str = concat!("1.80.0-nixtail-", env!("CARGO_PKG_VERSION"));

/// What changed of us. `None` leaves what control knows as it is.
#[derive(Debug, Clone, Default)]
pub struct Update {
    /// Where we may be reached by UDP, and how we know.
    pub endpoints: Option<Vec<(SocketAddr, EndpointType)>>,
    /// What was found out about our network, with the home region.
    pub net_info: Option<NetInfo>,
    /// SSH host keys, as lines of an authorized_keys file.
    pub ssh_host_keys: Option<Vec<String>>,
}

/// All that control is to know of us.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Description {
    pub(super) hostinfo: Hostinfo,
    pub(super) endpoints: Vec<(SocketAddr, EndpointType)>,
}

impl Description {
    pub(super) fn new(config: &ControlConfig) -> Self {
        let uname = rustix::system::uname();
        let mut log_id = [0; 32];
        rand::make_rng::<StdRng>().fill_bytes(&mut log_id);
        let hostinfo = Hostinfo {
            ipn_version: IPN_VERSION.to_owned(),
            // It must be there, and leads nowhere: nixtail sends no logs.
            backend_log_id: log_id.iter().map(|byte| format!("{byte:02x}")).collect(),
            os: go_os().to_owned(),
            os_version: uname.release().to_string_lossy().into_owned(),
            app: "nixtail".to_owned(),
            hostname: valid_hostname(&config.hostname),
            machine: uname.machine().to_string_lossy().into_owned(),
            go_arch: go_arch().to_owned(),
            request_tags: config.tags.clone(),
            ssh_host_keys: config.ssh_host_keys.clone(),
            userspace: Some(true),
            no_logs_no_support: true,
            ..Hostinfo::default()
        };
        Self { hostinfo, endpoints: Vec::new() }
    }

    pub(super) fn update(&mut self, update: Update) {
        if let Some(endpoints) = update.endpoints {
            self.endpoints = endpoints;
        }
        if let Some(net_info) = update.net_info {
            self.hostinfo.net_info = Some(net_info);
        }
        if let Some(keys) = update.ssh_host_keys {
            self.hostinfo.ssh_host_keys = keys;
        }
    }

    /// A map request with all of it: headscale heeds what the stream says, Tailscale's control only what updates say.
    pub(super) fn map_request(&self, node_key: NodePublic, disco_key: DiscoPublic, is_stream: bool) -> MapRequest {
        let (endpoints, endpoint_types) = self.endpoints.iter().copied().unzip();
        MapRequest {
            version: CAPABILITY_VERSION,
            compress: if is_stream { "zstd".to_owned() } else { String::new() },
            keep_alive: is_stream,
            node_key,
            disco_key,
            stream: is_stream,
            hostinfo: self.hostinfo.clone(),
            endpoints,
            endpoint_types,
            omit_peers: !is_stream,
        }
    }
}

fn go_os() -> &'static str {
    match std::env::consts::OS {
        "macos" => "macOS",
        other => other,
    }
}

fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tailscale's control heeds what updates say and nothing else, headscale heeds the stream, too: what either leaves out
    /// is lost on one of them.
    #[test]
    fn stream_and_update_both_say_all_of_it() {
        let mut description = Description { hostinfo: Hostinfo::default(), endpoints: Vec::new() };
        let endpoint = "192.0.2.7:4711".parse().unwrap();
        description.update(Update {
            endpoints: Some(vec![(endpoint, EndpointType::Stun)]),
            net_info: Some(NetInfo { preferred_derp: 7, ..NetInfo::default() }),
            ssh_host_keys: Some(vec!["ssh-ed25519 AAAA".to_owned()]),
        });
        let (node_key, disco_key) = (NodePublic::from_bytes([1; 32]), DiscoPublic::from_bytes([2; 32]));
        for is_stream in [true, false] {
            let request = description.map_request(node_key, disco_key, is_stream);
            assert_eq!((request.version, request.node_key), (CAPABILITY_VERSION, node_key));
            assert_eq!((request.endpoints, request.endpoint_types), (vec![endpoint], vec![EndpointType::Stun]));
            assert_eq!(request.disco_key, disco_key);
            assert_eq!(request.hostinfo, description.hostinfo);
            // An update that wants peers would end the stream.
            assert_eq!((request.stream, request.keep_alive, request.omit_peers), (is_stream, is_stream, !is_stream));
        }
    }
}
