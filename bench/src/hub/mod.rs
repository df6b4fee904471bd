//! A node with many peers and streams, whole and in memory: every datagram is handed over as the kernel would hand it over, in
//! trains, and time passes only when somebody says so.
//!
//! Each node is driven as `src/net/dataplane` drives its own: what came in first, then timers, events and sends until there are
//! none, so many a turn. What the hub's node is asked to do goes through [`counted`].

mod host;
mod plan;

use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::net::SocketAddr;
use std::ops::Add;
use std::time::{Duration, Instant};

use nixtail_proto::stack::ConnectionId;

use host::Host;
pub use host::counted;
pub use plan::Plan;

/// The port that every node listens to.
const PORT: u16 = 5201;
/// What goes over a stream in one train: 16 segments.
pub const BURST: usize = 16 * 1240;
/// From one end of the network to the other.
const DELAY: Duration = Duration::from_micros(100);
/// Longer than any handshake or transfer takes here, of virtual time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which way the bytes of a transfer go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the hub to its peers.
    Send,
    /// From the peers to the hub.
    Receive,
}

/// What a transfer moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Moved {
    /// Datagrams that went with the bytes.
    pub packets: u64,
    /// Datagrams that went the other way.
    pub answers: u64,
    /// Trains that the packets went in.
    pub trains: u64,
}

impl Add for Moved {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            answers: self.answers + other.answers,
            trains: self.trains + other.trains,
        }
    }
}

/// The hub, its peers and the streams between them.
pub struct Hub {
    now: Instant,
    hub: Host,
    /// In the order of their addresses.
    peers: Vec<Host>,
    by_address: HashMap<SocketAddr, usize>,
    streams: Vec<Stream>,
}

/// A stream: which peer has it, and its two ends.
#[derive(Debug, Clone, Copy)]
struct Stream {
    peer: usize,
    near: ConnectionId,
    far: ConnectionId,
}

impl Hub {
    /// Joins the nodes and connects the streams, one after the other.
    ///
    /// # Errors
    /// If a stream doesn't come about.
    pub fn connected(plan: Plan) -> Result<Self, Box<dyn Error>> {
        // Virtual time needs an origin.
        let now = Instant::now();
        let (hub, peers) = plan::nodes(plan, now)?;
        let by_address = peers.iter().enumerate().map(|(number, peer)| (peer.address, number)).collect();
        let mut hub = Self { now, hub, peers, by_address, streams: Vec::new() };
        hub.connect(plan.streams)?;
        // Paths are found, and whatever the handshakes left is said.
        hub.pass(Duration::from_secs(1))?;
        Ok(hub)
    }

    /// Lets each stream's window grow until it holds a [`BURST`], by the shortest trains, which are acknowledged one by one.
    ///
    /// # Errors
    /// If a stream ends, or stands still.
    pub fn warm_up(&mut self, direction: Direction) -> Result<(), Box<dyn Error>> {
        self.set_hosts(|host| host.limits = host::SHORTEST);
        self.transfer(direction, 2 * BURST)?;
        self.set_hosts(|host| host.limits = host::USUAL);
        // Once as it will be, so that no buffer has to grow any more.
        self.transfer(direction, BURST)?;
        Ok(())
    }

    /// Moves `bytes` over each stream, over all of them at once.
    ///
    /// # Errors
    /// If a stream ends, or stands still.
    pub fn transfer(&mut self, direction: Direction, bytes: usize) -> Result<Moved, Box<dyn Error>> {
        let before = self.sent();
        for stream in &self.streams {
            let (near, far) = (&mut self.hub, &mut self.peers[stream.peer]);
            let (from, to, ids) = match direction {
                Direction::Send => (near, far, (stream.near, stream.far)),
                Direction::Receive => (far, near, (stream.far, stream.near)),
            };
            from.offer(ids.0, bytes);
            to.expect(ids.1, bytes);
        }
        let deadline = self.now + PATIENCE;
        while self.hub.is_busy() || self.peers.iter().any(Host::is_busy) {
            if self.now >= deadline {
                return Err("a transfer stands still".into());
            }
            self.step()?;
        }
        // The last acknowledgements.
        self.pass(4 * DELAY)?;
        let after = self.sent();
        let [hub, peers] = [0, 1].map(|end| [0, 1].map(|what: usize| after[end][what] - before[end][what]));
        let ([packets, trains], [answers, _]) = match direction {
            Direction::Send => (hub, peers),
            Direction::Receive => (peers, hub),
        };
        Ok(Moved { packets, answers, trains })
    }

    /// From now on what the hub's node is asked to do goes through [`counted`], or no more.
    pub fn set_counted(&mut self, is_counted: bool) {
        self.hub.is_counted = is_counted;
    }

    fn set_hosts(&mut self, mut set: impl FnMut(&mut Host)) {
        std::iter::once(&mut self.hub).chain(&mut self.peers).for_each(&mut set);
    }

    /// Lets `time` pass, in which everybody does only what they do by themselves.
    fn pass(&mut self, time: Duration) -> Result<(), Box<dyn Error>> {
        let until = self.now + time;
        loop {
            let now = self.now;
            let hosts = std::iter::once(&mut self.hub).chain(&mut self.peers);
            let Some(at) = hosts.filter_map(|host| host.wants_turn_at(now)).min().filter(|at| *at <= until) else {
                self.now = until;
                return Ok(());
            };
            self.now = at.max(now);
            self.turn()?;
        }
    }

    /// Connects all streams, each to the next peer.
    fn connect(&mut self, streams: usize) -> Result<(), Box<dyn Error>> {
        let mut near = vec![VecDeque::new(); self.peers.len()];
        for peer in (0..self.peers.len()).cycle().take(streams) {
            let remote = SocketAddr::new(self.peers[peer].tailnet_address, PORT);
            near[peer].push_back(self.hub.node.connect(self.now, remote)?);
            self.hub.has_more = true;
        }
        let deadline = self.now + PATIENCE;
        while self.streams.len() < streams {
            self.step()?;
            for (peer, near) in near.iter_mut().enumerate() {
                while let Some(accepted) = self.peers[peer].node.accept(PORT) {
                    let near = near.pop_front().ok_or("a stream that nobody wanted")?;
                    self.streams.push(Stream { peer, near, far: accepted.id });
                }
            }
            if self.now >= deadline {
                return Err(format!("{} of {streams} streams came about", self.streams.len()).into());
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), Box<dyn Error>> {
        self.now += DELAY;
        self.turn()
    }

    /// Everybody's turn at this moment. What is sent arrives after [`DELAY`].
    fn turn(&mut self) -> Result<(), Box<dyn Error>> {
        let (now, arrival) = (self.now, self.now + DELAY);
        let (peers, by_address) = (&mut self.peers, &self.by_address);
        self.hub.turn(now, |from, to, segment_size, data| {
            if let Some(peer) = by_address.get(&to) {
                peers[*peer].arrive(arrival, from, segment_size, data);
            }
        })?;
        for peer in &mut self.peers {
            let hub = &mut self.hub;
            peer.turn(now, |from, to, segment_size, data| {
                if to == hub.address {
                    hub.arrive(arrival, from, segment_size, data);
                }
            })?;
        }
        Ok(())
    }

    /// What the hub sent, and what the peers did: datagrams and trains.
    fn sent(&self) -> [[u64; 2]; 2] {
        let of_peers = self.peers.iter().map(|peer| peer.sent);
        [self.hub.sent, of_peers.fold([0; 2], |sum, sent| [sum[0] + sent[0], sum[1] + sent[1]])]
    }
}
