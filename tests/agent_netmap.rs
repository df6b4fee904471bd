//! An agent on a devnet whose control says all kinds of things: what becomes of its netmap, and what it answers.
#![allow(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use nixtail::agent::{Agent, Config, LEAVE_DEADLINE, Stage};
use nixtail::auth::Credential;
use nixtail_devnet::{AuthKeyOptions, Call, Config as DevnetConfig, Crowd, Devnet, Policy};
use nixtail_proto::netmap::Netmap;
use nixtail_proto::tailcfg::{NodeId, PingRequest, PingResponse};
use serde_json::json;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

async fn devnet() -> Devnet {
    Devnet::start(DevnetConfig { policy: Policy::allow_all(), ..DevnetConfig::default() }).await.unwrap()
}

/// Joins, and gives the number that control has for it.
async fn join(devnet: &Devnet, hostname: &str) -> (Agent, NodeId) {
    let options = AuthKeyOptions { reusable: true, ephemeral: true, ..AuthKeyOptions::default() };
    let config = Config::new(
        devnet.url(),
        Some(Credential::AuthKey(devnet.add_auth_key(options).unwrap())),
        hostname.to_owned(),
    );
    let agent = Agent::join(config).await.unwrap();
    let id = devnet.node(hostname).unwrap().id;
    (agent, id)
}

async fn until(agent: &Agent, what: &str, wanted: impl Fn(&Netmap) -> bool) -> Arc<Netmap> {
    let mut netmap = agent.netmap();
    let found = timeout(PATIENCE, netmap.wait_for(|netmap| netmap.as_deref().is_some_and(&wanted))).await;
    found.unwrap_or_else(|_| panic!("{what}")).unwrap().clone().unwrap()
}

async fn end(agent: Agent, devnet: Devnet) {
    agent.leave(LEAVE_DEADLINE).await.unwrap();
    devnet.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_is_answered_and_its_words_are_shown() {
    let devnet = devnet().await;
    let (agent, id) = join(&devnet, "node").await;
    let echo = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nping";
    let answer = String::from_utf8(devnet.c2n(id, echo, PATIENCE).await.unwrap()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nping"), "{answer}");
    let answer = devnet.c2n(id, b"GET /debug/prefs HTTP/1.1\r\nHost: x\r\n\r\n", PATIENCE).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 404 "), "{answer:?}");
    assert_eq!(devnet.ping(id, PingRequest::default(), PATIENCE).await.unwrap().method, "HEAD");
    let disco = PingRequest { types: "disco".to_owned(), ip: "100.64.0.1".to_owned(), ..PingRequest::default() };
    let refused: PingResponse = serde_json::from_slice(&devnet.ping(id, disco, PATIENCE).await.unwrap().body).unwrap();
    assert!(refused.kind == "disco" && !refused.err.is_empty(), "{refused:?}");

    let message = |title: &str, severity: &str| json!({"Title": title, "Text": "Look.", "Severity": severity});
    let said = json!({"DisplayMessages": {"a": message("Minor", "low"), "b": message("Grave", "high")}});
    devnet.send_message(id, said).unwrap();
    until(&agent, "display messages", |netmap| netmap.health.len() == 2).await;
    assert_eq!(agent.status().await.health, ["Grave: Look.", "Minor: Look."]);
    devnet.send_message(id, json!({"DisplayMessages": {"b": null}})).unwrap();
    until(&agent, "one taken away", |netmap| netmap.health == ["Minor: Look."]).await;
    devnet.send_message(id, json!({"DisplayMessages": {"*": null}})).unwrap();
    until(&agent, "all taken away", |netmap| netmap.health.is_empty()).await;
    end(agent, devnet).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_message_leaves_out_stays_and_null_is_not_empty() {
    let devnet = devnet().await;
    devnet.add_crowd(&Crowd { count: 2, tags: Vec::new(), home_region: 0 }).unwrap();
    let (agent, id) = join(&devnet, "node").await;
    let whole = until(&agent, "two peers", |netmap| netmap.peers.len() == 2).await;
    assert!(!whole.derp_map.is_empty() && whole.filter_rules.as_ref().is_some_and(|rules| !rules.is_empty()));
    // Each message ends with something to wait for.
    let mut number = 0;
    let mut after = async |mut message: serde_json::Value| {
        number += 1;
        let domain = format!("step-{number}");
        message["Domain"] = json!(domain);
        devnet.send_message(id, message).unwrap();
        until(&agent, &domain, |netmap| netmap.domain == domain).await
    };
    let nothing = json!({"Peers": [], "PeersChanged": null, "PacketFilter": null, "PacketFilters": null, "SSHPolicy": null,
        "DERPMap": null, "DNSConfig": null, "Node": null, "PeersChangedPatch": [null], "OnlineChange": {"999": true}});
    let same = after(nothing).await;
    let parts = |netmap: &Netmap| (netmap.peers.clone(), netmap.filter_rules.clone(), netmap.derp_map.clone());
    assert_eq!(parts(&same), parts(&whole));
    assert_eq!((&same.ssh_policy, &same.dns, &same.users), (&whole.ssh_policy, &whole.dns, &whole.users));
    let blocked = after(json!({"PacketFilters": {"*": null}, "PacketFilter": null})).await;
    assert_eq!(blocked.filter_rules.as_ref().map(|rules| rules.len()), Some(0), "nobody is let in");
    let again = after(json!({"PacketFilters": {"x": [{"SrcIPs": ["*"], "DstPorts": [{"IP": "*", "Ports": {"First": 1, "Last": 2}}]}]}})).await;
    assert_eq!(again.filter_rules.as_ref().map(|rules| rules.len()), Some(1));
    let one = *again.peers.keys().next().unwrap();
    let patched = after(
        json!({"PeersChangedPatch": [{"NodeID": one, "DERPRegion": 9}], "OnlineChange": {(one.to_string()): false}}),
    )
    .await;
    let peer = patched.peers.get(&one).unwrap();
    assert_eq!((peer.home_derp, peer.online), (9, Some(false)));
    let alone = after(json!({"PeersRemoved": [one], "PacketFilters": {"x": null}})).await;
    assert_eq!((alone.peers.len(), alone.filter_rules.as_ref().map(|rules| rules.len())), (1, Some(0)));
    end(agent, devnet).await;
}

/// Thing 5 that independent clients get wrong: each control server heeds another of the two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn updates_and_streams_both_say_all_of_us() {
    let devnet = devnet().await;
    let (agent, id) = join(&devnet, "node").await;
    let update = devnet.calls(Call::Update).pop().unwrap().body;
    let has_all = |body: &serde_json::Value| {
        let home = body["Hostinfo"]["NetInfo"]["PreferredDERP"].as_u64().is_some_and(|region| region != 0);
        let disco = body["DiscoKey"].as_str().is_some_and(|key| key.trim_matches(|c| c != '0').len() < 64);
        home && disco && body["Endpoints"].as_array().is_some_and(|endpoints| !endpoints.is_empty())
    };
    assert!(has_all(&update), "{update}");
    assert!(update["Stream"] == json!(false) || update["Stream"].is_null());
    let streams = devnet.calls(Call::Map).len();
    devnet.drop_stream(id).unwrap();
    let until = Instant::now() + PATIENCE;
    let stream = loop {
        let calls = devnet.calls(Call::Map);
        if calls.len() > streams {
            break calls.last().unwrap().body.clone();
        }
        assert!(Instant::now() < until, "the stream is opened anew");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(has_all(&stream), "{stream}");
    end(agent, devnet).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_peers_are_a_netmap_like_any_other() {
    const CROWD: usize = 10_000;
    let devnet = devnet().await;
    let ids = devnet.add_crowd(&Crowd { count: CROWD, tags: vec!["tag:crowd".to_owned()], home_region: 1 }).unwrap();
    let (agent, _) = join(&devnet, "node").await;
    let netmap = until(&agent, "all of them", |netmap| netmap.peers.len() == CROWD).await;
    let status = agent.status().await;
    let at = |stage| status.start.iter().find(|time| time.stage == stage).unwrap().ms;
    let [registered, first_map] = [Stage::Registered, Stage::FirstMap].map(at);
    eprintln!("figure: first netmap of {CROWD} peers, {:.0} ms after the registration", first_map - registered);
    assert_eq!(netmap.peers.tagged("tag:crowd").count(), CROWD);
    let some = netmap.peers.get(&ids[CROWD / 2]).unwrap();
    let address = some.addresses[0].addr();
    assert_eq!(netmap.peer_by_address(address), Some(some));
    let begun = Instant::now();
    devnet.change_made_up(some.id, |node| node.home_derp = 77).unwrap();
    until(&agent, "the change", |netmap| netmap.peers.get(&some.id).is_some_and(|peer| peer.home_derp == 77)).await;
    eprintln!("figure: a change of one of them, through the devnet, {:?}", begun.elapsed());
    devnet.remove_made_up(some.id).unwrap();
    let fewer = until(&agent, "one less", |netmap| netmap.peers.len() == CROWD - 1).await;
    assert!(fewer.peer_by_address(address).is_none());
    end(agent, devnet).await;
}
