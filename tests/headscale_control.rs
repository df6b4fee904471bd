//! The connection to control, against a real headscale: joining, the netmap, updates, logout, refusals, a restart.
#![allow(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

mod lab;

use std::time::Duration;

use lab::headscale::{ALLOW_ALL, Headscale, KeyTerms};
use lab::nixtail::Nixtail;
use lab::wait_for;
use nixtail::agent::{Agent, Config, LEAVE_DEADLINE, State};
use nixtail::auth::Credential;
use nixtail::control::{Control, ControlConfig, ControlError, Update};
use nixtail_proto::key::{DiscoPrivate, MachinePrivate, NodePrivate};
use nixtail_proto::proxy::Proxies;
use nixtail_proto::tailcfg::{EndpointType, NetInfo};
use rand::rngs::StdRng;

/// How long something may take on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

fn config(headscale: &Headscale, name: &str, key: &str) -> ControlConfig {
    let mut rng = rand::make_rng::<StdRng>();
    ControlConfig {
        url: headscale.url().to_owned(),
        auth: Some(Credential::parse("key", key).unwrap()),
        hostname: name.to_owned(),
        tags: Vec::new(),
        ephemeral: true,
        machine_key: MachinePrivate::generate(&mut rng),
        node_key: NodePrivate::generate(&mut rng).public(),
        disco_key: DiscoPrivate::generate(&mut rng).public(),
        ssh_host_keys: vec![
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ+4dYfX5LEmU0pwyGG4Q4ErrIaFTKtUiZFTtqRT2hPb".to_owned(),
        ],
        proxies: Proxies::default(),
        stages: nixtail::agent::Stages::default(),
        identity: None,
        person: None,
        deadline: PATIENCE,
    }
}

fn ephemeral_key(headscale: &Headscale) -> String {
    headscale.preauth_key(KeyTerms { ephemeral: true, reusable: true, tags: &[] })
}

async fn first_netmap(control: &Control) -> std::sync::Arc<nixtail_proto::netmap::Netmap> {
    let mut netmap = control.netmap();
    let netmap = tokio::time::timeout(PATIENCE, netmap.wait_for(Option::is_some)).await;
    netmap.expect("a netmap in time").expect("control goes on").clone().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_is_seen_changes_and_leaves() {
    let Some(headscale) = Headscale::start(ALLOW_ALL) else { return };
    let key = ephemeral_key(&headscale);
    let one = Control::login(config(&headscale, "One", &key)).await.unwrap();
    let netmap = first_netmap(&one).await;
    assert_eq!(netmap.self_node.dns_name(), "one.lab.test");
    assert_eq!(netmap.addresses().count(), 2);
    assert!(netmap.derp_map.len() == 1 && netmap.filter_rules.is_some());
    wait_for("the status to say so", PATIENCE, || one.status().borrow().connected_since);

    // A second node comes, and the first hears of it by a delta; what it tells of itself arrives there.
    let config_of_two = config(&headscale, "two", &key);
    let (key_of_two, disco_of_two) = (config_of_two.node_key, config_of_two.disco_key);
    let two = Control::login(config_of_two).await.unwrap();
    first_netmap(&two).await;
    let endpoint = "192.0.2.7:4711".parse().unwrap();
    two.update(Update {
        endpoints: Some(vec![(endpoint, EndpointType::Stun)]),
        net_info: Some(NetInfo { preferred_derp: 900, ..NetInfo::default() }),
        ssh_host_keys: None,
    });
    let mut netmap = one.netmap();
    let seen = netmap.wait_for(|netmap| {
        let peer = netmap.as_ref().and_then(|netmap| netmap.peer_by_key(&key_of_two));
        peer.is_some_and(|peer| peer.endpoints == [endpoint] && peer.home_derp == 900)
    });
    let netmap = tokio::time::timeout(PATIENCE, seen).await.expect("the update arrives").unwrap().clone().unwrap();
    let peer = netmap.peer_by_key(&key_of_two).unwrap();
    assert_eq!((peer.disco_key, peer.online), (disco_of_two, Some(true)));
    assert_eq!(peer.hostinfo.ssh_host_keys.len(), 1, "headscale passes host keys on");
    let resolved = nixtail_proto::names::resolve(&netmap, "two").unwrap();
    assert_eq!(resolved.1, Some(key_of_two));

    // A third stays: headscale tells of a peer's end by a whole list of peers, and an empty one says nothing.
    let three = Control::login(config(&headscale, "three", &key)).await.unwrap();
    first_netmap(&three).await;
    two.logout(Duration::from_secs(10)).await.unwrap();
    assert!(headscale.node("two").is_none(), "an ephemeral node is gone at once");
    let mut netmap = one.netmap();
    let gone = netmap.wait_for(|netmap| netmap.as_ref().is_some_and(|n| n.peer_by_key(&key_of_two).is_none()));
    drop(tokio::time::timeout(PATIENCE, gone).await.expect("the peer's end arrives").unwrap());
    three.logout(Duration::from_secs(10)).await.unwrap();
    one.logout(Duration::from_secs(10)).await.unwrap();
    assert!(headscale.nodes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_is_a_refusal_and_not_tried_again() {
    let Some(headscale) = Headscale::start(ALLOW_ALL) else { return };
    let begun = std::time::Instant::now();
    let error = Control::login(config(&headscale, "x", "not-a-key-of-anybody")).await.err().unwrap();
    assert!(error.is_refusal(), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("not-a-key"), "{error}");
    assert!(begun.elapsed() < PATIENCE / 2, "it was tried again");

    // A single-use key that another node has used.
    let key = headscale.preauth_key(KeyTerms { ephemeral: true, reusable: false, tags: &[] });
    let first = Control::login(config(&headscale, "first", &key)).await.unwrap();
    let error = Control::login(config(&headscale, "second", &key)).await.err().unwrap();
    let words = error.to_string();
    assert!(error.is_refusal() && words.contains("already used") && words.contains("make another one"), "{error}");
    first.logout(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_the_networks_fault() {
    let Some(headscale) = Headscale::start(ALLOW_ALL) else { return };
    let mut config = config(&headscale, "x", "k");
    config.url = format!("http://127.0.0.1:{}", lab::free_tcp_port());
    config.deadline = Duration::from_secs(2);
    let error = Control::login(config.clone()).await.err().unwrap();
    assert!(matches!(error, ControlError::Network { .. }), "{error:?}");
    config.url = "127.0.0.1".to_owned();
    assert!(Control::login(config).await.err().unwrap().is_configuration());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_control_forgot_registers_again() {
    let Some(headscale) = Headscale::start(ALLOW_ALL) else { return };
    let key = ephemeral_key(&headscale);
    let control = Control::login(config(&headscale, "lost", &key)).await.unwrap();
    first_netmap(&control).await;
    let id = headscale.node("lost").unwrap().id.to_string();
    headscale.cli(&["nodes", "delete", "--identifier", &id, "--force"]);
    // headscale lets the stream of a deleted node live: the next update is what finds out.
    control.update(Update {
        endpoints: Some(vec![("192.0.2.1:1".parse().unwrap(), EndpointType::Local)]),
        ..Update::default()
    });
    wait_for("the node to be back", PATIENCE, || {
        headscale.node("lost").filter(|node| node.id.to_string() != id && node.online)
    });
    control.logout(Duration::from_secs(10)).await.unwrap();
    assert!(headscale.nodes().is_empty());
}

/// A TCP proxy before headscale that can cut what goes through it.
struct Cut {
    port: u16,
    connections: tokio::sync::watch::Sender<How>,
    task: tokio::task::JoinHandle<()>,
}

/// How connections of before are broken.
#[derive(Clone, Copy)]
enum How {
    Closed,
    /// Open, and nothing goes through any more.
    Silent,
}

impl Cut {
    async fn before(url: &str) -> Self {
        let target = url.strip_prefix("http://").unwrap().to_owned();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (connections, cut) = tokio::sync::watch::channel(How::Closed);
        let task = tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (target, mut cut) = (target.clone(), cut.clone());
                cut.borrow_and_update();
                tokio::spawn(async move {
                    let mut far = tokio::net::TcpStream::connect(target).await.unwrap();
                    tokio::select! {
                        _ = cut.changed() => {}
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                    }
                    if matches!(*cut.borrow(), How::Silent) {
                        std::future::pending::<()>().await;
                    }
                });
            }
        });
        Self { port, connections, task }
    }

    fn cut(&self, how: How) {
        self.connections.send_replace(how);
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_stream_comes_back_and_the_netmap_stays() {
    let Some(headscale) = Headscale::start(ALLOW_ALL) else { return };
    let key = ephemeral_key(&headscale);
    let cut = Cut::before(headscale.url()).await;
    let mut config_of_one = config(&headscale, "one", &key);
    config_of_one.url = cut.url();
    let one = Control::login(config_of_one).await.unwrap();
    first_netmap(&one).await;
    let mut status = one.status();
    wait_for("the stream", PATIENCE, || status.borrow().connected_since);

    cut.cut(How::Closed);
    let broken = tokio::time::timeout(PATIENCE, status.wait_for(|status| status.connected_since.is_none())).await;
    assert!(broken.unwrap().unwrap().last_error.is_some());
    assert!(one.netmap().borrow().is_some(), "the netmap stays");
    let back = tokio::time::timeout(PATIENCE, status.wait_for(|status| status.connected_since.is_some())).await;
    assert!(back.unwrap().unwrap().refused.is_none());

    // News come through the new stream, and the logout works over it.
    let config_of_two = config(&headscale, "two", &key);
    let key_of_two = config_of_two.node_key;
    let two = Control::login(config_of_two).await.unwrap();
    let mut netmap = one.netmap();
    let seen = netmap.wait_for(|netmap| netmap.as_ref().is_some_and(|n| n.peer_by_key(&key_of_two).is_some()));
    drop(tokio::time::timeout(PATIENCE, seen).await.expect("the new peer arrives").unwrap());

    // Cut just before the logout: it dials anew by itself.
    cut.cut(How::Closed);
    one.logout(Duration::from_secs(20)).await.unwrap();
    assert!(headscale.node("one").is_none());
    cut.task.abort();
    two.logout(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_connection_leaves_time_to_log_out_on_a_new_one() {
    let Some(headscale) = Headscale::start(ALLOW_ALL) else { return };
    let cut = Cut::before(headscale.url()).await;
    let mut config = config(&headscale, "one", &ephemeral_key(&headscale));
    config.url = cut.url();
    let one = Control::login(config).await.unwrap();
    first_netmap(&one).await;
    cut.cut(How::Silent);
    one.logout(Duration::from_secs(12)).await.unwrap();
    assert!(headscale.node("one").is_none());
    cut.task.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_may_not_come_back_has_no_peers_and_says_so() {
    let Some(headscale) = Headscale::start(ALLOW_ALL) else { return };
    let cut = Cut::before(headscale.url()).await;
    let key_for_one = || headscale.preauth_key(KeyTerms { ephemeral: true, reusable: false, tags: &[] });
    let mut process = Nixtail::up(&cut.url(), &key_for_one(), "process", &[]);
    let agent = Agent::join(Config {
        join_deadline: PATIENCE,
        ..Config::new(cut.url(), Some(Credential::parse("key", &key_for_one()).unwrap()), "library".to_owned())
    })
    .await
    .unwrap();
    let mut netmap = agent.netmap();
    let seen = netmap.wait_for(|netmap| netmap.as_ref().is_some_and(|netmap| netmap.peers.len() == 1));
    drop(tokio::time::timeout(PATIENCE, seen).await.expect("the other one is seen").unwrap());

    for name in ["process", "library"] {
        let id = headscale.node(name).unwrap().id.to_string();
        headscale.cli(&["nodes", "delete", "--identifier", &id, "--force"]);
    }
    // headscale lets the streams of deleted nodes live: the next ones are what finds out.
    cut.cut(How::Closed);
    let reason = tokio::time::timeout(PATIENCE, agent.refused()).await.expect("the refusal is noticed");
    assert!(reason.contains("auth key"), "{reason}");
    let alone = netmap.wait_for(|netmap| netmap.as_ref().is_some_and(|netmap| netmap.peers.is_empty()));
    let netmap = tokio::time::timeout(PATIENCE, alone).await.expect("the peers go").unwrap().clone().unwrap();
    assert!(netmap.filter_rules.is_none() && netmap.ssh_policy.is_none());
    let status = agent.status().await;
    assert_eq!((status.state, status.own.name.as_str()), (State::Refused, "library"));
    assert!(status.peers.is_empty() && status.health.contains(&reason), "{status:?}");
    // Whether there is anything to log out of is control's to say.
    let _ = agent.leave(LEAVE_DEADLINE).await;

    assert_eq!(process.wait().code(), Some(77), "{}", process.log());
    assert!(process.log().contains(&reason), "{}", process.log());
    cut.task.abort();
}
