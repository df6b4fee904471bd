//! The UDP port: garbage, and floods of handshakes, while a transfer goes on.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nixtail::agent::{Agent, LEAVE_DEADLINE};
use nixtail_devnet::{COORDINATOR_TAG, Crowd};

use crate::frames::{Sender, Victim, datagrams, garbage};
use crate::stage::{BUILDER, Stage, eventually, netmap_with};
use crate::usage::{Usage, dropped_at};

/// Different ones; they are sent again and again.
const PIECES: usize = 3000;
/// Addresses that they come from, all of them this machine's.
const SOURCES: u8 = 200;
/// How many a millisecond, where nothing else goes on.
const AT_ONCE: usize = 32;
/// Of a process, beside what it has: what allocators keep, and queues that have a bound.
const GROWTH: u64 = 64 << 20;
/// What a piece of garbage may cost: two Diffie-Hellmans in a build that isn't optimised. Most need none.
const EACH: Duration = Duration::from_micros(300);

/// Sends pieces to a port from many addresses, at a pace that its reader can keep up with.
struct Flood {
    sockets: Vec<UdpSocket>,
    to: SocketAddr,
    sent: AtomicU64,
}

impl Flood {
    fn new(port: u16) -> Arc<Self> {
        let bind = |n: u8| UdpSocket::bind((Ipv4Addr::new(127, 0, 1, n), 0)).unwrap();
        Arc::new(Self {
            sockets: (1..=SOURCES).map(bind).collect(),
            to: (Ipv4Addr::LOCALHOST, port).into(),
            sent: AtomicU64::new(0),
        })
    }

    /// Sends each once, so many in a millisecond.
    fn send(&self, pieces: &[Vec<u8>], at_once: usize) {
        for (at, piece) in pieces.iter().enumerate() {
            let socket = &self.sockets[at % self.sockets.len()];
            // One that the kernel has no room for wasn't sent.
            if socket.send_to(piece, self.to).is_ok() {
                self.sent.fetch_add(1, Ordering::Relaxed);
            }
            if at % at_once == 0 {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Sends until `over`: a few thousand a second, which is many times what is let in and not all that this machine can do: good
    /// packets must be seen among them.
    fn go_on(self: &Arc<Self>, pieces: Arc<Vec<Vec<u8>>>, over: &Arc<AtomicBool>) -> thread::JoinHandle<()> {
        let (flood, over) = (Arc::clone(self), Arc::clone(over));
        thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                flood.send(&pieces, 4);
            }
        })
    }

    /// How many the process behind the port has had to look at.
    fn arrived(&self) -> u64 {
        self.sent.load(Ordering::Relaxed) - dropped_at(self.to.port()).min(self.sent.load(Ordering::Relaxed))
    }
}

/// Puts a node into the builder's netmap whose keys are `sender`'s.
async fn make_known(stage: &Stage, sender: &Sender) {
    let crowd = Crowd { count: 1, tags: vec![COORDINATOR_TAG.to_owned()], ..Crowd::default() };
    let id = stage.devnet.add_crowd(&crowd).unwrap()[0];
    let (node, disco) = (sender.node.public(), sender.disco.public());
    let change = |made_up: &mut nixtail_proto::tailcfg::Node| (made_up.key, made_up.disco_key) = (node, disco);
    stage.devnet.change_made_up(id, change).unwrap();
    let name = format!("crowd-{id}");
    eventually("the builder to know the sender", || stage.builder.status().to_string().contains(&name)).await;
}

async fn victim(stage: &Stage, from: &Agent) -> (Victim, u16) {
    let netmap = netmap_with(from, BUILDER).await;
    let peer = netmap.peers.values().find(|peer| peer.short_name() == BUILDER).unwrap();
    let port = stage.devnet.node(BUILDER).unwrap().endpoints.iter().find(|at| at.is_ipv4()).unwrap().port();
    (Victim { node: peer.key, disco: peer.disco_key }, port)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_the_udp_port_costs_little_and_stops_no_transfer() {
    let Some(mut stage) = Stage::start().await else { return };
    let good = stage.coordinator("good").await;
    let (victim, port) = victim(&stage, &good).await;
    let (known, stranger) = (Sender::new(1), Sender::new(2));
    make_known(&stage, &known).await;
    stage.fetch(&good).await;
    let pieces = Arc::new(garbage(&datagrams(&known, &stranger, &victim), 1, PIECES));
    let (process, log_before) = (stage.builder.id(), stage.builder.log().len());

    // Alone, so that its cost can be seen.
    let flood = Flood::new(port);
    let before = Usage::of(process);
    for _ in 0..8 {
        flood.send(&pieces, AT_ONCE);
    }
    let cost = Usage::of(process).report_since(&before, "pieces of garbage by UDP", flood.arrived());
    assert!(cost.each < EACH && cost.grown < GROWTH, "{cost:?}");

    // Together with good packets of others.
    let over = Arc::new(AtomicBool::new(false));
    let sending = flood.go_on(Arc::clone(&pieces), &over);
    stage.fetch(&good).await;
    over.store(true, Ordering::Relaxed);
    sending.join().unwrap();

    stage.assert_well(&good).await;
    let grown = Usage::of(process).resident.saturating_sub(before.resident);
    assert!(grown < GROWTH, "{} MiB", grown >> 20);
    // Its log at `-vv` doesn't grow with what strangers send.
    let written = stage.builder.log().len() - log_before;
    assert!(written < 64 << 10, "{written} bytes of log");
    good.leave(LEAVE_DEADLINE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_handshakes_is_bounded_and_a_good_node_still_comes_in() {
    let Some(mut stage) = Stage::start().await else { return };
    let good = stage.coordinator("good").await;
    let (victim, port) = victim(&stage, &good).await;
    stage.fetch(&good).await;
    // Each says properly who it is meant for (the first MAC is right), and comes from a key that nobody knows.
    let initiations = (10..60).flat_map(|seed| Sender::new(seed).initiations(&victim, 40)).collect::<Vec<_>>();
    assert_eq!(initiations.len(), 2000);
    let initiations = Arc::new(initiations);
    let (process, flood) = (stage.builder.id(), Flood::new(port));
    let before = Usage::of(process);
    for _ in 0..10 {
        flood.send(&initiations, AT_ONCE);
    }
    let cost = Usage::of(process).report_since(&before, "handshakes of strangers", flood.arrived());
    assert!(cost.each < EACH && cost.grown < GROWTH, "{cost:?}");

    // One that begins a session has to come through the same door, and one that has it goes on.
    let over = Arc::new(AtomicBool::new(false));
    let sending = flood.go_on(initiations, &over);
    let late = stage.coordinator("late").await;
    netmap_with(&late, BUILDER).await;
    tokio::join!(stage.fetch(&good), stage.fetch(&late));
    over.store(true, Ordering::Relaxed);
    sending.join().unwrap();
    stage.assert_well(&late).await;
    for agent in [good, late] {
        agent.leave(LEAVE_DEADLINE).await.unwrap();
    }
}
