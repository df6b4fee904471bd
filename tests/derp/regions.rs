//! Two regions, and a node at home in each.

use std::time::Duration;

use nixtail::agent::{Agent, Config, LEAVE_DEADLINE};
use nixtail::auth::Credential;
use nixtail_devnet::{AuthKeyOptions, Config as DevnetConfig, Devnet, Policy, RELAY_REGION};
use nixtail_proto::tailcfg::RegionId;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::PATIENCE;
use crate::lab::peers;
use crate::lab::relay::Relay;

/// The region of Tailscale's own relay; the devnet's is the other.
const OTHER_REGION: RegionId = 901;
const AMOUNT: usize = 4 << 20;

async fn join(devnet: &Devnet, hostname: &str) -> Agent {
    let key = devnet.add_auth_key(AuthKeyOptions { ephemeral: true, ..AuthKeyOptions::default() }).unwrap();
    let config =
        Config { direct: false, ..Config::new(devnet.url(), Some(Credential::AuthKey(key)), hostname.to_owned()) };
    Agent::join(config).await.unwrap()
}

/// Sends bytes that are checked, there and back.
async fn converse(from: &Agent, to: &Agent, name: &str) {
    let mut listener = to.listen(9000).await.unwrap();
    let data: Vec<u8> = (0..AMOUNT).map(|at| (at % 251) as u8).collect();
    let mut stream = timeout(PATIENCE, from.dial(name, 9000)).await.unwrap().unwrap();
    let mut far = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    let echo = async {
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        far.write_all(&got).await.unwrap();
        far.shutdown().await.unwrap();
    };
    let talk = async {
        stream.write_all(&data).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut back = Vec::new();
        stream.read_to_end(&mut back).await.unwrap();
        assert!(back == data, "wrong bytes");
    };
    timeout(3 * PATIENCE, async { tokio::join!(echo, talk) }).await.expect("the bytes in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_at_home_in_different_regions_talk_by_one_connection_more() {
    let Some(derper) = peers::require("derper") else { return };
    let relay = Relay::start(&derper);
    let devnet = Devnet::start(DevnetConfig { policy: Policy::allow_all(), ..DevnetConfig::default() }).await.unwrap();
    let mut region = super::region(&relay);
    region.region_id = OTHER_REGION;
    region.nodes.iter_mut().for_each(|node| node.region_id = OTHER_REGION);
    let region = serde_json::to_value(region).unwrap();
    // Both know both regions, and each may be at home in one.
    devnet.edit_first_maps(move |_, map: &mut Value| {
        let is_left = map["Node"]["Name"].as_str().is_some_and(|name| name.starts_with("left"));
        let regions = &mut map["DERPMap"]["Regions"];
        regions[OTHER_REGION.to_string()] = region.clone();
        let foreign = if is_left { OTHER_REGION } else { RELAY_REGION };
        regions[foreign.to_string()]["NoMeasureNoHome"] = json!(true);
    });
    let (left, right) = tokio::join!(join(&devnet, "left"), join(&devnet, "right"));
    let homes = |nodes: &[nixtail_devnet::NodeStatus]| {
        let home = |name: &str| nodes.iter().find(|node| node.name.starts_with(name)).and_then(|node| node.home_region);
        (home("left"), home("right")) == (Some(RELAY_REGION), Some(OTHER_REGION))
    };
    devnet.wait_for_nodes("a home for each", Duration::from_secs(60), homes).await.unwrap();
    let mut netmap = left.netmap();
    let knows = |netmap: &Option<std::sync::Arc<nixtail_proto::netmap::Netmap>>| {
        netmap.iter().any(|netmap| netmap.peers.values().any(|peer| peer.home_region() == Some(OTHER_REGION)))
    };
    drop(timeout(PATIENCE, netmap.wait_for(knows)).await.expect("right's home is known to left").unwrap());
    let connected = async |agent: &Agent| agent.status().await.relays;
    assert_eq!((connected(&left).await, connected(&right).await), (vec![RELAY_REGION], vec![OTHER_REGION]));

    converse(&left, &right, "right").await;
    // Who began it has gone to the other's home; the other answers there (its reverse route), and needs no more than it has.
    assert_eq!(connected(&left).await, [RELAY_REGION, OTHER_REGION]);
    assert_eq!(connected(&right).await, [OTHER_REGION]);
    assert_eq!(devnet.relay_stats().packets, 0, "nothing went through the region where only one of them is");
    converse(&right, &left, "left").await;
    assert_eq!(connected(&right).await, [OTHER_REGION], "the route still leads there");
    left.leave(LEAVE_DEADLINE).await.unwrap();
    right.leave(LEAVE_DEADLINE).await.unwrap();
}
