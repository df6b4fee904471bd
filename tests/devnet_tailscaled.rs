//! Real tailscaled joins the devnet: what it speaks is Tailscale's protocol, not a dialect of our own.

mod lab;

use std::time::Duration;

use lab::nixtail::Nixtail;
use lab::tailscaled::{Paths, Tailscaled};
use nixtail_devnet::{AuthKeyOptions, BUILDER_TAG, COORDINATOR_TAG, Config, Devnet, NodeStatus, Policy, RELAY_REGION};
use tokio::runtime::Runtime;

/// A devnet beside the test's own thread: what the lab starts must be started, and blocks, on that one.
struct Beside {
    runtime: Runtime,
    devnet: Option<Devnet>,
}

impl Beside {
    fn start(policy: Policy) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let devnet = runtime.block_on(Devnet::start(Config { policy, ..Config::default() })).expect("a devnet");
        Self { runtime, devnet: Some(devnet) }
    }

    fn devnet(&self) -> &Devnet {
        self.devnet.as_ref().expect("it is taken on drop only")
    }

    fn key(&self, options: AuthKeyOptions) -> String {
        self.devnet().add_auth_key(options).expect("an auth key").expose().to_owned()
    }

    fn wait(&self, what: &str, wanted: impl Fn(&[NodeStatus]) -> bool) -> Vec<NodeStatus> {
        self.runtime.block_on(self.devnet().wait_for_nodes(what, lab::PATIENCE, wanted)).expect("nodes")
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if let Some(devnet) = self.devnet.take() {
            self.runtime.block_on(devnet.shutdown());
        }
    }
}

fn ephemeral() -> AuthKeyOptions {
    AuthKeyOptions { reusable: true, ephemeral: true, ..AuthKeyOptions::default() }
}

#[test]
fn two_tailscaleds_ping_each_other_directly() {
    let beside = Beside::start(Policy::allow_all());
    let (url, key) = (beside.devnet().url(), beside.key(ephemeral()));
    let Some(left) = Tailscaled::start(&url, &key, "left") else { return };
    let Some(right) = Tailscaled::start(&url, &key, "right") else { return };
    let nodes = beside.wait("both to have a home relay", |nodes| {
        nodes.len() == 2 && nodes.iter().all(|node| node.online && node.home_region == Some(RELAY_REGION))
    });
    assert_eq!(nodes[0].name, "left.tail.devnet");
    assert_eq!(left.ip(), nodes[0].addresses[0].to_string());

    let address = left.wait_for_peer("right");
    assert_eq!(address, right.ip());
    let pongs = left.ping_until_direct(&address);
    assert!(pongs.lines().last().is_some_and(|line| line.contains("pong") && !line.contains("DERP")), "{pongs}");
    for kind in ["--icmp", "--tsmp"] {
        let pong = left.ping_once(&address, kind);
        assert!(pong.contains("pong"), "{kind}: {pong}");
    }

    // Without the relay the direct path goes on.
    beside.devnet().switch_relay(false);
    let before = beside.devnet().relay_stats();
    left.ping_once(&address, "--tsmp");
    assert_eq!(beside.devnet().relay_stats(), before);
    beside.devnet().switch_relay(true);

    // A node that lost its stream comes back by itself, and one that logs out is gone at once.
    beside.devnet().disconnect_all_streams();
    beside.wait("both to go", |nodes| nodes.iter().all(|node| !node.online));
    beside.wait("both to come back", |nodes| nodes.len() == 2 && nodes.iter().all(|node| node.online));
    right.logout();
    beside.wait("the ephemeral node to vanish", |nodes| nodes.iter().all(|node| node.name == "left.tail.devnet"));
    lab::wait_for("left to forget it", lab::PATIENCE, || left.status()["Peer"].as_object().is_none().then_some(()));
}

#[test]
fn tailscaled_and_nixtail_ping_each_other_through_the_devnet() {
    let beside = Beside::start(Policy::allow_all());
    let (url, key) = (beside.devnet().url(), beside.key(ephemeral()));
    let Some(theirs) = Tailscaled::start(&url, &key, "theirs") else { return };
    let ours = Nixtail::up(&url, &key, "ours", &[]);
    let address = theirs.wait_for_peer("ours");
    assert_eq!(address, ours.ip());
    let pongs = theirs.ping_until_direct(&address);
    assert!(pongs.lines().last().is_some_and(|line| line.contains("pong") && !line.contains("DERP")), "{pongs}");
    for kind in ["--icmp", "--tsmp"] {
        let pong = theirs.ping_once(&address, kind);
        assert!(pong.contains("pong"), "{kind}: {pong}");
    }
    ours.wait_for_peer("theirs");
    ours.cli_ok(&["ping", "theirs"]);
}

#[test]
fn a_tailscaled_without_udp_is_reached_by_the_relay() {
    let beside = Beside::start(Policy::allow_all());
    let (url, key) = (beside.devnet().url(), beside.key(ephemeral()));
    let Some(left) = Tailscaled::start(&url, &key, "left") else { return };
    let Some(_right) = Tailscaled::start_with(&url, &key, "right", Paths::DerpOnly) else { return };
    let address = left.wait_for_peer("right");
    let pong = left.ping_once(&address, "");
    assert!(pong.contains("via DERP(devnet)"), "{pong}");
    left.ping_once(&address, "--icmp");
    assert!(beside.devnet().relay_stats().packets > 0);
}

#[test]
fn the_policy_decides_who_sees_whom() {
    let beside = Beside::start(Policy::nix_ci());
    let url = beside.devnet().url();
    let tagged = |tag: &str| AuthKeyOptions { tags: vec![tag.to_owned()], ephemeral: true, ..Default::default() };
    let (coordinator, builder) = (beside.key(tagged(COORDINATOR_TAG)), beside.key(tagged(BUILDER_TAG)));
    let Some(coordinator) = Tailscaled::start(&url, &coordinator, "ci") else { return };
    let Some(builder) = Tailscaled::start(&url, &builder, "ci") else { return };
    let Some(stranger) = Tailscaled::start(&url, &beside.key(ephemeral()), "stranger") else { return };
    let nodes = beside.wait("all three", |nodes| nodes.len() == 3 && nodes.iter().all(|node| node.online));
    let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["ci.tail.devnet", "ci-1.tail.devnet", "stranger.tail.devnet"]);

    let address = builder.ip();
    lab::wait_for("the builder to be seen", Duration::from_secs(20), || {
        coordinator.status()["Peer"].as_object().is_some_and(|peers| peers.len() == 1).then_some(())
    });
    coordinator.ping_once(&address, "--icmp");
    assert!(stranger.status()["Peer"].as_object().is_none());
    assert_eq!(builder.status()["Peer"].as_object().map(serde_json::Map::len), Some(1));

    // Everybody sees everybody as soon as the policy says so.
    beside.devnet().set_policy(Policy::allow_all());
    lab::wait_for("the stranger to see both", Duration::from_secs(20), || {
        stranger.status()["Peer"].as_object().is_some_and(|peers| peers.len() == 2).then_some(())
    });
    stranger.ping_once(&address, "--icmp");
}
