//! Two agents of this process on a devnet: what streams promise.
#![allow(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

use std::time::{Duration, Instant};

use nixtail::agent::{Agent, Config, DialError, LEAVE_DEADLINE, PingKind, Stage};
use nixtail::auth::Credential;
use nixtail_devnet::{AuthKeyOptions, Config as DevnetConfig, Devnet, Policy};
use nixtail_proto::secret::Secret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);
/// What goes each way; enough to fill every queue many times.
const AMOUNT: usize = 64 << 20;

struct Net {
    devnet: Devnet,
    key: Secret,
}

impl Net {
    async fn start(policy: Policy) -> Self {
        let devnet = Devnet::start(DevnetConfig { policy, ..DevnetConfig::default() }).await.unwrap();
        let options = AuthKeyOptions { reusable: true, ephemeral: true, ..AuthKeyOptions::default() };
        let key = devnet.add_auth_key(options).unwrap();
        Self { devnet, key }
    }

    async fn join(&self, hostname: &str, direct: bool, derp: bool) -> Agent {
        let config = Config {
            direct,
            derp,
            ..Config::new(self.devnet.url(), Some(Credential::AuthKey(self.key.clone())), hostname.to_owned())
        };
        Agent::join(config).await.unwrap()
    }
}

/// Waits until an agent's netmap has a peer of that name.
async fn sees(agent: &Agent, name: &str) {
    let mut netmap = agent.netmap();
    let has = |netmap: &Option<std::sync::Arc<nixtail_proto::netmap::Netmap>>| {
        netmap.as_ref().is_some_and(|netmap| netmap.peers.values().any(|peer| peer.short_name() == name))
    };
    timeout(PATIENCE, netmap.wait_for(has)).await.expect("the peer in time").unwrap();
}

/// What each byte of a stream should be: differs at every chunk boundary that there may be.
fn byte(at: usize) -> u8 {
    (at % 251) as u8
}

async fn transfer(direct: bool, derp: bool, amount: usize) -> f64 {
    let net = Net::start(Policy::allow_all()).await;
    let (left, right) = tokio::join!(net.join("left", direct, derp), net.join("right", direct, derp));
    sees(&left, "right").await;
    let mut listener = right.listen(9000).await.unwrap();
    let left_key = left.node_key();
    let receiving = tokio::spawn(async move {
        let mut stream = listener.accept().await.unwrap();
        assert_eq!(stream.peer(), left_key);
        let (mut at, mut buffer) = (0, vec![0; 64 << 10]);
        loop {
            let length = stream.read(&mut buffer).await.unwrap();
            if length == 0 {
                break;
            }
            assert!(buffer[..length].iter().enumerate().all(|(n, b)| *b == byte(at + n)), "wrong bytes after {at}");
            at += length;
        }
        stream.write_all(b"got it all").await.unwrap();
        stream.shutdown().await.unwrap();
        at
    });
    let begun = Instant::now();
    let mut stream = left.dial("right", 9000).await.unwrap();
    eprintln!("figure: first connection {:?}", begun.elapsed());
    let begun = Instant::now();
    let data: Vec<u8> = (0..amount).map(byte).collect();
    timeout(PATIENCE, stream.write_all(&data)).await.expect("written in time").unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("answered in time").unwrap();
    assert_eq!(answer, "got it all");
    assert_eq!(receiving.await.unwrap(), amount);
    let rate = amount as f64 * 8.0 / 1e6 / begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    left.leave(LEAVE_DEADLINE).await.unwrap();
    right.leave(LEAVE_DEADLINE).await.unwrap();
    eprintln!("figure: both left after {:?}", begun.elapsed());
    assert!(net.devnet.nodes().is_empty(), "both have logged out");
    net.devnet.shutdown().await;
    rate
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_arrive_whole_and_in_order_by_udp_alone() {
    eprintln!("figure: direct {:.0} Mbit/s", transfer(true, false, AMOUNT).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_arrive_whole_and_in_order_by_relay_alone() {
    eprintln!("figure: relayed {:.0} Mbit/s", transfer(false, true, AMOUNT / 4).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dial_says_why_it_failed() {
    let net = Net::start(Policy::allow_all()).await;
    let (left, right) = tokio::join!(net.join("left", true, true), net.join("right", true, true));
    sees(&left, "right").await;
    let begun = Instant::now();
    let refused = left.dial("right", 1).await.unwrap_err();
    assert!(matches!(refused, DialError::Refused { .. }), "{refused}");
    assert!(begun.elapsed() < Duration::from_secs(3), "a refusal is told at once");
    assert!(matches!(left.dial("nobody", 1).await.unwrap_err(), DialError::Name(_)));
    for kind in [PingKind::Disco, PingKind::Tsmp, PingKind::Icmp] {
        left.ping("right", kind, PATIENCE).await.unwrap();
    }

    // A peer that leaves ends its streams in words, and isn't found afterwards.
    let mut listener = right.listen(9000).await.unwrap();
    let mut stream = left.dial("right", 9000).await.unwrap();
    let _far = listener.accept().await.unwrap();
    right.leave(LEAVE_DEADLINE).await.unwrap();
    let ended = timeout(PATIENCE, stream.read(&mut [0; 1])).await.expect("an end in time").unwrap_err();
    assert!(!ended.to_string().is_empty(), "{ended:?}");
    assert!(matches!(right.dial("left", 1).await.unwrap_err(), DialError::NotRunning | DialError::Name(_)));
    left.leave(LEAVE_DEADLINE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_forbids_lets_nothing_through() {
    let net = Net::start(Policy::nix_ci()).await;
    // Without tags: nobody that the policy of a run knows.
    let (left, right) = tokio::join!(net.join("left", true, true), net.join("right", true, true));
    let mut listener = right.listen(22).await.unwrap();
    let address = right.status().await.own.addresses[0].to_string();
    let dialled = timeout(Duration::from_secs(4), left.dial(&address, 22)).await;
    assert!(!matches!(dialled, Ok(Ok(_))), "a stream came about");
    assert!(timeout(Duration::from_millis(100), listener.accept()).await.is_err());
    left.leave(LEAVE_DEADLINE).await.unwrap();
    right.leave(LEAVE_DEADLINE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tunnel_carries_on_while_control_is_dialled_again() {
    let net = Net::start(Policy::allow_all()).await;
    let (left, right) = tokio::join!(net.join("left", true, true), net.join("right", true, true));
    sees(&left, "right").await;
    let stages: Vec<Stage> = left.status().await.start.iter().map(|time| time.stage).collect();
    for stage in [Stage::ServerKey, Stage::Connected, Stage::Registered, Stage::FirstMap, Stage::HomeRelay, Stage::Told]
    {
        assert!(stages.contains(&stage), "{stage} is missing in {stages:?}");
    }
    assert_eq!(stages.last(), Some(&Stage::Ready), "{stages:?}");

    let mut listener = right.listen(9000).await.unwrap();
    let receiving = tokio::spawn(async move {
        let mut stream = listener.accept().await.unwrap();
        let (mut at, mut buffer) = (0, vec![0; 64 << 10]);
        loop {
            let length = stream.read(&mut buffer).await.unwrap();
            if length == 0 {
                return at;
            }
            assert!(buffer[..length].iter().enumerate().all(|(n, b)| *b == byte(at + n)), "wrong bytes after {at}");
            at += length;
        }
    });
    let mut stream = left.dial("right", 9000).await.unwrap();
    let data: Vec<u8> = (0..AMOUNT / 4).map(byte).collect();
    for part in data.chunks(data.len() / 4) {
        timeout(PATIENCE, stream.write_all(part)).await.expect("written in time").unwrap();
        net.devnet.disconnect_all_streams();
        // What a peer is called doesn't wait for control, either.
        drop(left.ping("right", PingKind::Tsmp, PATIENCE).await.unwrap());
    }
    stream.shutdown().await.unwrap();
    assert_eq!(timeout(PATIENCE, receiving).await.expect("received in time").unwrap(), data.len());
    // And both hear from control again.
    let third = net.join("third", true, true).await;
    tokio::join!(sees(&left, "third"), sees(&right, "third"));
    for agent in [third, left, right] {
        agent.leave(LEAVE_DEADLINE).await.unwrap();
    }
    net.devnet.shutdown().await;
}
