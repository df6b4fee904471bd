//! Real tailscaled joins the devnet: what it speaks is Tailscale's protocol, not a dialect of our own.

mod lab;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use lab::nixtail::Nixtail;
use lab::tailscaled::{Paths, Tailscaled};
use nixtail::agent::{Agent, DialError, JOIN_DEADLINE, LEAVE_DEADLINE};
use nixtail::auth::Credential;
use nixtail_devnet::{AuthKeyOptions, BUILDER_TAG, COORDINATOR_TAG, Config, Devnet, NodeStatus, Policy, RELAY_REGION};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
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

    // Without the relay the direct path goes on, as long as it is trusted: what came before may have taken longer.
    left.ping_until_direct(&address);
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

/// Echoes what comes, on a free port of this machine: where a tailscaled in userspace passes connections on to.
fn echo() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("its address").port();
    // It ends with the test's process.
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
    port
}

/// Echoes what comes to a port of our own node.
async fn echo_inside(agent: &Agent, port: u16) {
    let mut listener = agent.listen(port).await.expect("a port inside");
    tokio::spawn(async move {
        while let Ok(mut stream) = listener.accept().await {
            tokio::spawn(async move {
                let mut word = [0; 4];
                if stream.read_exact(&mut word).await.is_ok() {
                    let _ = stream.write_all(&word).await;
                    let _ = stream.shutdown().await;
                }
            });
        }
    });
}

async fn join(url: &str, key: String, hostname: &str) -> Agent {
    let config = nixtail::agent::Config {
        login_server: url.to_owned(),
        credential: Some(Credential::AuthKey(nixtail_proto::secret::Secret::new(key))),
        identity: None,
        person: None,
        hostname: hostname.to_owned(),
        tags: vec![],
        ephemeral: true,
        ssh_host_keys: vec![],
        port: 0,
        direct: true,
        derp: true,
        proxies: nixtail_proto::proxy::Proxies::default(),
        join_deadline: JOIN_DEADLINE,
    };
    Agent::join(config).await.expect("to join")
}

/// Whether `from` gets an echo from a port of `address`; tries as long as one is expected.
fn tailscaled_reaches(from: &Tailscaled, address: &str, port: u16, expected: bool) -> bool {
    let attempt = |patience: Duration| {
        let mut command = from.command(&["nc", address, &port.to_string()]);
        let mut nc =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("tailscale nc");
        let (mut stdin, mut stdout) = (nc.stdin.take().expect("piped"), nc.stdout.take().expect("piped"));
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut word = [0; 4];
            let _ = sender.send(stdout.read_exact(&mut word).is_ok_and(|()| word == *b"word"));
        });
        let _ = stdin.write_all(b"word");
        let reached = receiver.recv_timeout(patience).unwrap_or_default();
        nc.kill().expect("to end it");
        nc.wait().expect("its end");
        reached
    };
    if expected {
        lab::wait_for("an echo", lab::PATIENCE, || attempt(Duration::from_secs(10)).then_some(()));
        return true;
    }
    attempt(Duration::from_secs(4))
}

/// As [`tailscaled_reaches`], from our own node: what it got, or why it got nothing.
async fn nixtail_reaches(from: &Agent, address: &str, port: u16) -> Result<[u8; 4], DialError> {
    let mut stream = from.dial(address, port).await?;
    let mut word = [0; 4];
    stream.write_all(b"word").await.expect("to write");
    stream.read_exact(&mut word).await.expect("an echo");
    Ok(word)
}

#[test]
fn a_policy_file_lets_the_same_through_at_tailscaled_and_at_nixtail() {
    let (open, shut) = (echo(), echo());
    let policy = Policy::parse(&format!(
        r#"{{
            "tagOwners": {{ "{COORDINATOR_TAG}": [], "{BUILDER_TAG}": [] }},
            // One port, one way.
            "grants": [{{ "src": ["{COORDINATOR_TAG}"], "dst": ["{BUILDER_TAG}"], "ip": ["tcp:{open}"] }}],
        }}"#
    ))
    .expect("a policy");
    let beside = Beside::start(policy);
    let url = beside.devnet().url();
    let key = |tag: &str| {
        let tags = vec![tag.to_owned()];
        beside.key(AuthKeyOptions { tags, reusable: true, ephemeral: true, ..AuthKeyOptions::default() })
    };
    let (coordinators, builders) = (key(COORDINATOR_TAG), key(BUILDER_TAG));
    let Some(their_coordinator) = Tailscaled::start(&url, &coordinators, "their-coordinator") else { return };
    let Some(their_builder) = Tailscaled::start(&url, &builders, "their-builder") else { return };
    let (our_coordinator, our_builder) = beside.runtime.block_on(async {
        let both = tokio::join!(join(&url, coordinators, "our-coordinator"), join(&url, builders, "our-builder"));
        for port in [open, shut] {
            echo_inside(&both.0, port).await;
            echo_inside(&both.1, port).await;
        }
        both
    });
    beside.wait("all to have a home relay", |nodes| {
        nodes.len() == 4 && nodes.iter().all(|node| node.online && node.home_region == Some(RELAY_REGION))
    });
    let ours = beside.runtime.block_on(our_builder.status()).own.addresses[0].to_string();
    let our_coordinator_at = beside.runtime.block_on(our_coordinator.status()).own.addresses[0].to_string();
    let theirs = their_builder.ip();

    for builder in [&ours, &theirs] {
        assert!(tailscaled_reaches(&their_coordinator, builder, open, true), "{builder} port {open}");
        assert!(!tailscaled_reaches(&their_coordinator, builder, shut, false), "{builder} port {shut}");
        let reached = beside.runtime.block_on(async {
            (
                nixtail_reaches(&our_coordinator, builder, open).await,
                nixtail_reaches(&our_coordinator, builder, shut).await,
            )
        });
        assert_eq!(reached.0.expect("the open port"), *b"word", "{builder}");
        assert!(matches!(reached.1, Err(DialError::Policy { .. })), "{builder}: {:?}", reached.1);
    }
    // Nothing is open the other way, whoever asks.
    assert!(!tailscaled_reaches(&their_builder, &our_coordinator_at, open, false));
    let back = beside.runtime.block_on(nixtail_reaches(&our_builder, &their_coordinator.ip(), open));
    assert!(matches!(back, Err(DialError::Policy { .. })), "{back:?}");
    beside.runtime.block_on(async {
        our_coordinator.leave(LEAVE_DEADLINE).await.expect("to leave");
        our_builder.leave(LEAVE_DEADLINE).await.expect("to leave");
    });
    beside.wait("both of ours to be gone at once", |nodes| nodes.len() == 2);
}
