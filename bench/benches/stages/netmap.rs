//! What a netmap of a large tailnet costs: the map session, and the node that takes over what it says.

use std::fmt::Write as _;
use std::time::Instant;

use divan::{Bencher, black_box};
use nixtail_proto::control::MapSession;
use nixtail_proto::key::{DiscoPrivate, NodePrivate};
use nixtail_proto::node::{Node, NodeConfig};
use nixtail_proto::tailcfg::Timestamp;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

const PEERS: u32 = 10_000;
/// From one peer that changes to the next: another chunk each time.
const STEP: u32 = 7919;
const CLOCK: Timestamp = Timestamp::from_unix(1_800_000_000);

/// The first message, with 10,000 peers.
#[divan::bench(sample_count = 10, sample_size = 1)]
fn netmap_first(bencher: Bencher<'_, '_>) {
    let whole = whole();
    bencher.bench_local(|| {
        let mut member = Member::new();
        assert!(member.take(black_box(&whole)));
        member
    });
}

/// One of 10,000 peers goes, or comes back.
#[divan::bench(sample_count = 1000)]
fn netmap_goes_or_comes(bencher: Bencher<'_, '_>) {
    changes(bencher, |_, round| {
        let id = (round - 1) / 2 * STEP % PEERS + 1;
        format!(r#"{{"OnlineChange":{{"{id}":{}}}}}"#, round % 2 == 0)
    });
}

/// One of 10,000 peers has another endpoint.
#[divan::bench(sample_count = 1000)]
fn netmap_endpoint(bencher: Bencher<'_, '_>) {
    changes(bencher, |id, round| {
        let port = round % 50_000 + 1;
        format!(r#"{{"PeersChangedPatch":[{{"NodeID":{id},"Endpoints":["192.0.2.1:{port}"]}}]}}"#)
    });
}

/// One of 10,000 peers leaves, and another comes.
#[divan::bench(sample_count = 1000)]
fn netmap_replaced(bencher: Bencher<'_, '_>) {
    changes(bencher, |_, round| {
        let node = node(PEERS + 2 + round);
        format!(r#"{{"PeersRemoved":[{}],"PeersChanged":[{node}]}}"#, PEERS + 1 + round)
    });
}

fn changes(bencher: Bencher<'_, '_>, change: fn(u32, u32) -> String) {
    let mut known = Member::new();
    known.take(&whole());
    let mut round = 0_u32;
    // Another peer each time: what a change costs mustn't rest in the caches.
    let next = || {
        round += 1;
        change(round.wrapping_mul(STEP) % PEERS + 1, round)
    };
    bencher.with_inputs(next).bench_local_refs(|message| assert!(known.take(message)));
}

/// What a netmap goes through: the session and the dataplane's node.
struct Member {
    session: MapSession,
    node: Node,
}

impl Member {
    fn new() -> Self {
        let mut rng = StdRng::seed_from_u64(1);
        let config = NodeConfig {
            node_key: NodePrivate::generate(&mut rng),
            disco_key: DiscoPrivate::generate(&mut rng),
            direct: true,
            derp: true,
        };
        Self { session: MapSession::default(), node: Node::new(config, Instant::now(), Box::new(rng)) }
    }

    /// Takes a message. Says whether it made another netmap.
    fn take(&mut self, json: &str) -> bool {
        let is_new = self.session.handle_message(CLOCK, json.as_bytes()).is_ok_and(|message| message.changes.is_some());
        if let Some(netmap) = self.session.netmap() {
            self.node.handle_netmap(Instant::now(), netmap);
        }
        is_new
    }
}

/// What control would say first.
fn whole() -> String {
    let mut json = format!(r#"{{"Domain":"example.com","Node":{},"Peers":["#, node(PEERS + 1));
    for number in 1..=PEERS {
        let comma = if number == 1 { "" } else { "," };
        write!(json, "{comma}{}", node(number)).unwrap();
    }
    json.push_str("]}");
    json
}

fn node(number: u32) -> String {
    let [_, top, high, low] = number.to_be_bytes();
    let mut json = String::new();
    write!(json, r#"{{"ID":{number},"StableID":"n{number}","Name":"host{number}.example.ts.net.","User":1,"#).unwrap();
    for (name, kind) in [("Key", "nodekey"), ("Machine", "mkey"), ("DiscoKey", "discokey")] {
        write!(json, r#""{name}":"{kind}:{number:064x}","#).unwrap();
    }
    let (upper, lower) = (number >> 16, number & 0xffff);
    let addresses = format!(r#"["100.{}.{high}.{low}/32","fd7a:115c:a1e0::{upper:x}:{lower:x}/128"]"#, 64 + top % 64);
    write!(json, r#""Addresses":{addresses},"AllowedIPs":{addresses},"#).unwrap();
    write!(json, r#""Endpoints":["192.0.2.{low}:41641","198.51.100.{low}:41641"],"HomeDERP":1,"Cap":113,"#).unwrap();
    write!(json, r#""Hostinfo":{{"OS":"linux","Hostname":"host{number}","Services":[]}},"#).unwrap();
    json.push_str(r#""KeyExpiry":"0001-01-01T00:00:00Z","MachineAuthorized":true,"Online":true}"#);
    json
}
