//! A control server, a DERP relay and a STUN server in one process on loopback, for tests and the demo.
//!
//! It speaks the protocol that Tailscale's own clients speak: a real `tailscaled` joins it. It isn't made to be
//! exposed: it trusts whoever has one of its auth keys, keeps nothing on disk, and serves loopback only unless forced.
//!
//! ```no_run
//! # async fn example() -> Result<(), nixtail_devnet::DevnetError> {
//! use nixtail_devnet::{AuthKeyOptions, Config, Devnet};
//!
//! let devnet = Devnet::start(Config::default()).await?;
//! let key = devnet.add_auth_key(AuthKeyOptions { ephemeral: true, ..AuthKeyOptions::default() })?;
//! println!("tailscale up --login-server {} --auth-key {}", devnet.url(), key.expose());
//! devnet.shutdown().await;
//! # Ok(())
//! # }
//! ```

mod api;
mod auth_key;
mod control;
mod error;
mod http1;
mod misbehaviour;
mod netmap;
mod policy;
mod random;
mod registry;
mod relay;
mod stun;
mod tailnet;
mod tls;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nixtail_proto::key::{MachinePrivate, NodePrivate, NodePublic};
use nixtail_proto::secret::Secret;
use nixtail_proto::tailcfg::{DerpMap, DerpNode, DerpRegion, Node, NodeId, RegionId};
use rand::Rng as _;
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

pub use api::{FederatedIdentity, GitHubJob, OauthClient};
pub use auth_key::AuthKeyOptions;
pub use error::DevnetError;
pub use misbehaviour::{Answer, Call, Misbehaviour, PingAnswer, RecordedCall};
pub use policy::{
    AUTOGROUP_NONROOT, BUILDER_TAG, COORDINATOR_TAG, Grant, Policy, PolicyError, Ports, Selector, SshRule,
};
pub use registry::{Crowd, LoginPolicy, TAILNET_DOMAIN};
pub use relay::RelayStats;

use control::Control;
use relay::Relay;
use tailnet::Tailnet;

/// The region of the devnet's relay, in the range that is a tailnet's own.
pub const RELAY_REGION: RegionId = 900;

/// How long [`Devnet::shutdown`] waits for its tasks. They end at their next wait, so this is for a stuck machine.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(5);

/// How a devnet shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The address that everything listens on.
    pub listen: IpAddr,
    /// Serve an address that isn't a loopback one all the same.
    pub force: bool,
    /// The port of the control server; 0 takes a free one. The others are always free ones.
    pub control_port: u16,
    /// More addresses at which STUN is answered: by two answers a node can tell what its NAT is like.
    pub more_stun: Vec<IpAddr>,
    /// Who may reach whom.
    pub policy: Policy,
    /// How long an ephemeral node stays without a map stream before it vanishes. A logout doesn't wait.
    pub ephemeral_grace: Duration,
}

impl Default for Config {
    /// On 127.0.0.1, with the policy of a run ([`Policy::nix_ci`]).
    fn default() -> Self {
        Self {
            listen: Ipv4Addr::LOCALHOST.into(),
            force: false,
            control_port: 0,
            more_stun: Vec::new(),
            policy: Policy::nix_ci(),
            ephemeral_grace: Duration::from_secs(30),
        }
    }
}

/// A node as a devnet knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    /// Control's number for it.
    pub id: NodeId,
    /// Its DNS name without the trailing dot, such as `builder-1.tail.devnet`.
    pub name: String,
    /// Its key.
    pub key: NodePublic,
    /// Its addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Its tags.
    pub tags: Vec<String>,
    /// Whether it has a map stream.
    pub online: bool,
    /// Whether an admin has let its machine in.
    pub authorized: bool,
    /// Whether its key has ended.
    pub expired: bool,
    /// Whether it vanishes when it goes.
    pub ephemeral: bool,
    /// Where it says it can be reached by UDP.
    pub endpoints: Vec<SocketAddr>,
    /// Its home region, once it told one.
    pub home_region: Option<RegionId>,
    /// Its SSH host keys, as lines of an `authorized_keys` file.
    pub ssh_host_keys: Vec<String>,
}

/// A running devnet. Dropped, its tasks end by themselves; [`Devnet::shutdown`] waits for them.
#[derive(Debug)]
pub struct Devnet {
    control_address: SocketAddr,
    tailnet: Arc<Tailnet>,
    control: Arc<Control>,
    relay: Arc<Relay>,
    stun_on: Arc<AtomicBool>,
    tasks: TaskTracker,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

impl Devnet {
    /// Starts all servers; they are reachable when it returns.
    ///
    /// # Errors
    /// When the address isn't a loopback one and that isn't forced, or can't be listened on, and when the system gives
    /// no randomness.
    pub async fn start(config: Config) -> Result<Self, DevnetError> {
        let exposed = config.more_stun.iter().chain([&config.listen]).find(|address| !address.is_loopback());
        if let Some(exposed) = exposed.filter(|_| !config.force) {
            return Err(DevnetError::NotLoopback(*exposed));
        }
        let mut rng = random::rng().map_err(DevnetError::Random)?;
        let (control_listener, control_address) = listen("control server", config.listen, config.control_port).await?;
        let (relay_listener, relay_address) = listen("relay", config.listen, 0).await?;
        let mut stun_sockets = Vec::new();
        for address in [config.listen].into_iter().chain(config.more_stun) {
            stun_sockets.push(listen_for_stun(address).await?);
        }
        let stun_addresses: Vec<SocketAddr> = stun_sockets.iter().map(|(_, address)| *address).collect();

        let relay_key = NodePrivate::generate(&mut rng);
        let names = vec![config.listen.to_string(), "localhost".to_owned()];
        let (tls, certificate_hash) = tls::self_signed(names, &relay_key.public())?;
        let tag_owners = config.policy.tag_owners.clone();
        let derp_map = derp_map(relay_address, &stun_addresses, &certificate_hash);
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let tailnet =
            Arc::new(Tailnet::new(control_url(control_address), config.policy, derp_map, config.ephemeral_grace));
        let key = MachinePrivate::generate(&mut rng);
        let control = Arc::new(Control::new(Arc::clone(&tailnet), key, tasks.clone(), stop.clone()));
        let relay = Arc::new(Relay::new(relay_key, tls));
        let stun_on = Arc::new(AtomicBool::new(true));

        tasks.spawn(Arc::clone(&control).serve(control_listener));
        tasks.spawn(Arc::clone(&relay).serve(relay_listener, tasks.clone(), stop.clone()));
        for (socket, _) in stun_sockets {
            let (stun_on, stop) = (Arc::clone(&stun_on), stop.clone());
            tasks.spawn(async move { stun::serve(&socket, &stun_on, stop).await });
        }
        tasks.spawn({
            let (tailnet, stop) = (Arc::clone(&tailnet), stop.clone());
            async move { tailnet.run_timeouts(stop).await }
        });
        let _stop_on_drop = stop.clone().drop_guard();
        let devnet = Self { control_address, tailnet, control, relay, stun_on, tasks, stop, _stop_on_drop };
        if let Some(owners) = tag_owners {
            devnet.set_tag_owners(owners);
        }
        Ok(devnet)
    }

    /// The control server's URL, for `--login-server`.
    #[must_use]
    pub fn url(&self) -> String {
        control_url(self.control_address)
    }

    pub(crate) fn api(&self) -> &api::Api {
        self.control.api()
    }

    /// Makes a pre-authentication key.
    ///
    /// # Errors
    /// When there are too many, or the system gives no randomness.
    pub fn add_auth_key(&self, options: AuthKeyOptions) -> Result<Secret, DevnetError> {
        let mut random = [0; 16];
        random::rng().map_err(DevnetError::Random)?.fill_bytes(&mut random);
        self.tailnet.add_auth_key(random, options).ok_or(DevnetError::TooManyKeys)
    }

    /// All nodes as they are now, in the order in which they came.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeStatus> {
        self.tailnet.nodes().into_iter().map(|(node, ephemeral)| status(node, ephemeral)).collect()
    }

    /// Waits until `wanted` holds for the nodes, and returns them.
    ///
    /// # Errors
    /// When it doesn't within `patience`; `what` is said then.
    pub async fn wait_for_nodes(
        &self,
        what: &str,
        patience: Duration,
        wanted: impl Fn(&[NodeStatus]) -> bool,
    ) -> Result<Vec<NodeStatus>, DevnetError> {
        let mut changed = self.tailnet.subscribe();
        let found = async {
            loop {
                let nodes = self.nodes();
                // The sender lives as long as `self`.
                if wanted(&nodes) || changed.changed().await.is_err() {
                    return nodes;
                }
            }
        };
        tokio::time::timeout(patience, found).await.map_err(|_| DevnetError::Timeout(patience, what.to_owned()))
    }

    /// Sets who may reach whom; every node is told at once. Where it says who owns which tag, that holds for the API, too.
    pub fn set_policy(&self, policy: Policy) {
        if let Some(owners) = policy.tag_owners.clone() {
            self.set_tag_owners(owners);
        }
        self.tailnet.set_policy(policy);
    }

    /// Cuts all connections to the control server. Nodes may come back at once.
    pub fn disconnect_all_streams(&self) {
        self.control.cut_connections();
    }

    /// Switches the relay off (every connection is cut, and new ones at once) or on again.
    pub fn switch_relay(&self, on: bool) {
        self.relay.switch(on);
    }

    /// What has gone through the relay so far.
    #[must_use]
    pub fn relay_stats(&self) -> RelayStats {
        self.relay.stats()
    }

    /// Switches the STUN servers off (they stay silent) or on again.
    pub fn switch_stun(&self, on: bool) {
        self.stun_on.store(on, Ordering::Relaxed);
    }

    /// Stops everything and waits until all of it has ended.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(SHUTDOWN_PATIENCE, self.tasks.wait()).await.is_err() {
            tracing::warn!(tasks = self.tasks.len(), "the devnet's tasks did not end in {SHUTDOWN_PATIENCE:?}");
        }
    }
}

fn control_url(address: SocketAddr) -> String {
    format!("http://{address}")
}

async fn listen(part: &'static str, ip: IpAddr, port: u16) -> Result<(TcpListener, SocketAddr), DevnetError> {
    let address = SocketAddr::new(ip, port);
    let wrong = |source| DevnetError::Listen { part, address, source };
    let listener = TcpListener::bind(address).await.map_err(wrong)?;
    let address = listener.local_addr().map_err(wrong)?;
    Ok((listener, address))
}

async fn listen_for_stun(ip: IpAddr) -> Result<(UdpSocket, SocketAddr), DevnetError> {
    let address = SocketAddr::new(ip, 0);
    let wrong = |source| DevnetError::Listen { part: "STUN server", address, source };
    let socket = UdpSocket::bind(address).await.map_err(wrong)?;
    let address = socket.local_addr().map_err(wrong)?;
    Ok((socket, address))
}

/// One region with one relay, known by the hash of its certificate, and with a node more for each address beyond the first
/// that answers STUN. STUN on loopback is what `STUNTestIP` is for.
fn derp_map(relay: SocketAddr, stun: &[SocketAddr], certificate_hash: &str) -> DerpMap {
    let node = |name: String, ip: IpAddr| {
        let (text, none) = (ip.to_string(), "none".to_owned());
        let (ipv4, ipv6) = if ip.is_ipv4() { (text.clone(), none) } else { (none, text.clone()) };
        let (host_name, stun_test_ip) = (text.clone(), text);
        DerpNode { name, region_id: RELAY_REGION, host_name, ipv4, ipv6, stun_test_ip, ..DerpNode::default() }
    };
    let port_at = |at: usize| stun.get(at).map_or(-1, |address| i32::from(address.port()));
    let mut nodes = vec![DerpNode {
        cert_name: format!("sha256-raw:{certificate_hash}"),
        stun_port: port_at(0),
        derp_port: relay.port().into(),
        ..node("900a".to_owned(), relay.ip())
    }];
    nodes.extend(stun.iter().enumerate().skip(1).map(|(at, address)| DerpNode {
        stun_only: true,
        stun_port: port_at(at),
        ..node(format!("900s{at}"), address.ip())
    }));
    let region = DerpRegion {
        region_id: RELAY_REGION,
        region_code: "devnet".to_owned(),
        region_name: "Devnet".to_owned(),
        nodes,
        ..DerpRegion::default()
    };
    DerpMap {
        regions: Some(BTreeMap::from([(RELAY_REGION, Some(region))])),
        omit_default_regions: true,
        ..DerpMap::default()
    }
}

fn status(node: Node, ephemeral: bool) -> NodeStatus {
    NodeStatus {
        id: node.id,
        name: node.dns_name().to_owned(),
        key: node.key,
        addresses: node.addresses.iter().map(ipnet::IpNet::addr).collect(),
        home_region: node.home_region(),
        tags: node.tags,
        online: node.online.unwrap_or_default(),
        authorized: node.machine_authorized,
        expired: node.expired,
        ephemeral,
        endpoints: node.endpoints,
        ssh_host_keys: node.hostinfo.ssh_host_keys,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn others_than_loopback_must_be_forced() {
        let config = Config { listen: Ipv4Addr::UNSPECIFIED.into(), ..Config::default() };
        assert!(matches!(Devnet::start(config).await, Err(DevnetError::NotLoopback(_))));
    }

    #[tokio::test]
    async fn nothing_is_left_after_shutdown() {
        let devnet = Devnet::start(Config::default()).await.unwrap();
        let (address, tasks) = (devnet.control_address, devnet.tasks.clone());
        let _idle = tokio::net::TcpStream::connect(address).await.unwrap();
        devnet.shutdown().await;
        assert!(tasks.is_empty());
        assert!(tokio::net::TcpStream::connect(address).await.is_err());
    }
}
