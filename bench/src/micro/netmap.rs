//! What a netmap of a large tailnet costs: the map session, and the node that takes over what it says.

use std::error::Error;
use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Instant;

use nixtail_proto::control::MapSession;
use nixtail_proto::key::{DiscoPrivate, NodePrivate};
use nixtail_proto::node::{Node, NodeConfig};
use nixtail_proto::tailcfg::Timestamp;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::Size;
use super::measure::{Row, per_call};

const PEERS: u32 = 10_000;
/// From one peer that changes to the next: another chunk each time.
const STEP: u32 = 7919;
const CLOCK: Timestamp = Timestamp::from_unix(1_800_000_000);

pub(crate) fn measure(size: Size) -> Result<Vec<Row>, Box<dyn Error>> {
    let whole = whole()?;
    let memory = resident();
    let mut known = Member::new();
    known.take(&whole);
    let taken = memory.zip(resident()).map(|(before, after)| after.saturating_sub(before));
    let mut round = 0_u32;
    // Another peer each time: what a change costs mustn't rest in the caches.
    let mut changes = |known: &mut Member, change: fn(u32, u32) -> String| {
        round += 1;
        known.take(&change(round * STEP % PEERS + 1, round))
    };
    Ok(vec![
        per_call(format!("netmap: the first message, {PEERS} peers"), size.netmaps, || {
            let mut member = Member::new();
            member.take(black_box(&whole)) && member.peers() == Some(PEERS as usize)
        })?,
        Row {
            what: format!("  the most memory that it took, its {:.0} MiB apart", mib(whole.len() as u64)),
            value: taken.map(mib),
            unit: "MiB",
        },
        per_call(format!("netmap: one of {PEERS} peers goes or comes"), size.deltas, || {
            // Each goes first and comes back then.
            changes(&mut known, |_, round| {
                let id = (round - 1) / 2 * STEP % PEERS + 1;
                format!(r#"{{"OnlineChange":{{"{id}":{}}}}}"#, round % 2 == 0)
            })
        })?,
        per_call(format!("netmap: one of {PEERS} peers has another endpoint"), size.deltas, || {
            changes(&mut known, |id, round| {
                let port = round % 50_000 + 1;
                format!(r#"{{"PeersChangedPatch":[{{"NodeID":{id},"Endpoints":["192.0.2.1:{port}"]}}]}}"#)
            })
        })?,
        per_call(format!("netmap: one of {PEERS} peers leaves, another comes"), size.deltas, || {
            changes(&mut known, |_, round| {
                let node = node(PEERS + 2 + round).unwrap_or_default();
                format!(r#"{{"PeersRemoved":[{}],"PeersChanged":[{node}]}}"#, PEERS + 1 + round)
            })
        })?,
    ])
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

    fn peers(&self) -> Option<usize> {
        self.session.netmap().map(|netmap| netmap.peers.len())
    }
}

/// The most memory that this process ever had, in bytes (`VmHWM`, proc_pid_status(5)).
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

#[allow(clippy::cast_precision_loss, reason = "figures for people: 53 bits of bytes are enough")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// What control would say first.
fn whole() -> Result<String, std::fmt::Error> {
    let mut json = format!(r#"{{"Domain":"example.com","Node":{},"Peers":["#, node(PEERS + 1)?);
    for number in 1..=PEERS {
        let comma = if number == 1 { "" } else { "," };
        write!(json, "{comma}{}", node(number)?)?;
    }
    json.push_str("]}");
    Ok(json)
}

fn node(number: u32) -> Result<String, std::fmt::Error> {
    let [_, top, high, low] = number.to_be_bytes();
    let mut json = String::new();
    write!(json, r#"{{"ID":{number},"StableID":"n{number}","Name":"host{number}.example.ts.net.","User":1,"#)?;
    for (name, kind) in [("Key", "nodekey"), ("Machine", "mkey"), ("DiscoKey", "discokey")] {
        write!(json, r#""{name}":"{kind}:{number:064x}","#)?;
    }
    let (upper, lower) = (number >> 16, number & 0xffff);
    let addresses = format!(r#"["100.{}.{high}.{low}/32","fd7a:115c:a1e0::{upper:x}:{lower:x}/128"]"#, 64 + top % 64);
    write!(json, r#""Addresses":{addresses},"AllowedIPs":{addresses},"#)?;
    write!(json, r#""Endpoints":["192.0.2.{low}:41641","198.51.100.{low}:41641"],"HomeDERP":1,"Cap":113,"#)?;
    write!(json, r#""Hostinfo":{{"OS":"linux","Hostname":"host{number}","Services":[]}},"#)?;
    json.push_str(r#""KeyExpiry":"0001-01-01T00:00:00Z","MachineAuthorized":true,"Online":true}"#);
    Ok(json)
}
