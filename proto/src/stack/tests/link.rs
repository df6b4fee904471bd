//! Two stacks and a link between them, under virtual time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::{Accepted, Config, ConnectionError, ConnectionId, Read, Stack, StackEvent};
use crate::packet::{Packet, PacketBatch, Transport, build, protocol};

/// What the link does to packets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    /// One way.
    pub(super) delay: Duration,
    /// Of 100,000 packets, so many are lost.
    pub(super) loss: u32,
    /// Of 100,000 packets, so many come 3 ms late.
    pub(super) late: u32,
    /// Bits per second each way, and how many bytes wait at most; `None` is no limit.
    pub(super) rate: Option<(u64, u64)>,
    /// What arrives within this time is taken at once, as by a receiver that has to be woken.
    pub(super) train: Duration,
    /// Timers go off so late at either end, and nothing wakes an end but those and what it gets; `None` wakes both whenever anything happens.
    pub(super) timers_late: Option<Duration>,
}

impl Link {
    pub(super) fn ideal() -> Self {
        Self::with_round_trip(2)
    }

    pub(super) fn with_round_trip(milliseconds: u64) -> Self {
        let delay = Duration::from_micros(milliseconds * 500);
        Self { delay, loss: 0, late: 0, rate: None, train: Duration::ZERO, timers_late: None }
    }
}

type InFlight = Reverse<(Instant, u64, usize, Vec<u8>)>;

pub(super) struct Pair {
    pub(super) now: Instant,
    pub(super) stacks: [Stack<usize>; 2],
    pub(super) events: [Vec<StackEvent<usize>>; 2],
    pub(super) link: Link,
    pub(super) cut: bool,
    pub(super) frozen_until: [Option<Instant>; 2],
    awake: [bool; 2],
    pub(super) packets: u64,
    /// How often time moved on: arrivals and timeouts.
    pub(super) steps: u64,
    in_flight: BinaryHeap<InFlight>,
    link_free: [Instant; 2],
    rng: StdRng,
}

pub(super) const ADDRESSES: [&str; 2] = ["100.64.0.1", "100.64.0.2"];
pub(super) const ADDRESSES_V6: [&str; 2] = ["fd7a:115c:a1e0::1", "fd7a:115c:a1e0::2"];

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

impl Pair {
    pub(super) fn new(link: Link) -> Self {
        Self::with_config(link, Config::default())
    }

    pub(super) fn with_config(link: Link, config: Config) -> Self {
        #[expect(clippy::disallowed_methods, reason = "an arbitrary start for virtual time")]
        let start = Instant::now();
        let stack = |index: usize| {
            let addresses = vec![ip(ADDRESSES[index]), ip(ADDRESSES_V6[index])];
            let config = Config { addresses, ..config.clone() };
            Stack::new(config, Box::new(StdRng::seed_from_u64(index as u64)))
        };
        Self {
            now: start,
            stacks: [stack(0), stack(1)],
            events: [Vec::new(), Vec::new()],
            link,
            cut: false,
            frozen_until: [None, None],
            awake: [true, true],
            packets: 0,
            steps: 0,
            in_flight: BinaryHeap::new(),
            link_free: [start, start],
            rng: StdRng::seed_from_u64(7),
        }
    }

    pub(super) fn send(&mut self, from: usize, packet: &[u8]) {
        self.packets += 1;
        let dice = self.rng.next_u32() % 100_000;
        let late = self.rng.next_u32() % 100_000 < self.link.late;
        if self.cut || dice < self.link.loss {
            return;
        }
        let mut leaves = self.now;
        if let Some((rate, queue)) = self.link.rate {
            let per_byte = 8.0 / rate as f64;
            let free = self.link_free[from].max(self.now);
            let waiting = (free - self.now).as_secs_f64() / per_byte;
            if waiting > queue as f64 {
                return;
            }
            // 60 bytes of WireGuard, UDP and IP around each packet.
            leaves = free + Duration::from_secs_f64((packet.len() + 60) as f64 * per_byte);
            self.link_free[from] = leaves;
        }
        let extra = if late { Duration::from_millis(3) } else { Duration::ZERO };
        let arrives = leaves + self.link.delay + extra;
        self.in_flight.push(Reverse((arrives, self.packets, 1 - from, packet.to_vec())));
    }

    /// Polls both ends until they have nothing more.
    pub(super) fn settle(&mut self) {
        for end in 0..2 {
            if self.is_frozen(end) || !self.awake[end] {
                continue;
            }
            let mut batch = PacketBatch::new();
            loop {
                batch.clear();
                let more = self.stacks[end].poll_packets(self.now, &mut batch, 64);
                let any = !batch.is_empty();
                while let Some((peer, packet)) = batch.first() {
                    assert_eq!(peer, 1 - end);
                    assert!(packet.len() <= 1280, "a packet of {} bytes", packet.len());
                    assert_tcp_checksum(packet);
                    self.send(end, packet);
                    batch.take_first();
                }
                if !more && !any {
                    break;
                }
            }
            while let Some(event) = self.stacks[end].poll_event() {
                self.events[end].push(event);
            }
        }
    }

    fn is_frozen(&self, end: usize) -> bool {
        self.frozen_until[end].is_some_and(|until| until > self.now)
    }

    /// The next thing that happens; `false` if nothing will before `limit`.
    fn step(&mut self, limit: Instant) -> bool {
        let arrival = self.in_flight.peek().map(|Reverse((at, ..))| *at);
        let timers = (0..2).filter_map(|end| {
            let at = self.stacks[end].poll_timeout()? + self.link.timers_late.unwrap_or_default();
            Some(self.frozen_until[end].map_or(at, |until| at.max(until)))
        });
        let arrival = arrival.map(|at| at + self.link.train);
        let Some(next) = timers.chain(arrival).min().filter(|at| *at <= limit) else {
            self.now = limit;
            return false;
        };
        self.now = next.max(self.now);
        self.steps += 1;
        self.awake = [self.link.timers_late.is_none(); 2];
        let mut trains = [PacketBatch::new(), PacketBatch::new()];
        while let Some(Reverse((at, ..))) = self.in_flight.peek()
            && *at <= self.now
        {
            let Some(Reverse((at, number, to, packet))) = self.in_flight.pop() else {
                break;
            };
            match self.frozen_until[to].filter(|until| *until > self.now) {
                Some(until) => self.in_flight.push(Reverse((until.max(at), number, to, packet))),
                None => {
                    self.awake[to] = true;
                    trains[to].push_slice(1 - to, &packet);
                }
            }
        }
        for (stack, train) in self.stacks.iter_mut().zip(&mut trains) {
            stack.handle_packets(self.now, train);
        }
        for end in 0..2 {
            let due = self.stacks[end].poll_timeout().map(|at| at + self.link.timers_late.unwrap_or_default());
            if due.is_some_and(|at| at <= self.now) && !self.is_frozen(end) {
                self.awake[end] = true;
                self.stacks[end].handle_timeout(self.now);
            }
        }
        true
    }

    /// Runs until `done`, or fails after `limit` of virtual time.
    pub(super) fn until(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) {
        let end = self.now + limit;
        loop {
            self.settle();
            let finished = done(self);
            self.settle();
            if finished {
                return;
            }
            assert!(self.step(end), "not done after {limit:?} of virtual time");
        }
    }

    /// Lets `time` pass.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.settle();
            if !self.step(end) {
                return;
            }
        }
    }

    pub(super) fn dial(&mut self, port: u16) -> ConnectionId {
        let remote = SocketAddr::new(ip(ADDRESSES[1]), port);
        self.stacks[0].connect(self.now, remote, None, 1).unwrap()
    }

    /// A connection from end 0 to `port` of end 1, both ends of it.
    pub(super) fn connected(&mut self, port: u16) -> (ConnectionId, Accepted<usize>) {
        let _ = self.stacks[1].listen(port, 16);
        let id = self.dial(port);
        let mut accepted = None;
        self.until(Duration::from_secs(10), |pair| {
            accepted = accepted.or_else(|| pair.stacks[1].accept(port));
            accepted.is_some() && pair.events[0].contains(&StackEvent::Connected { id })
        });
        (id, accepted.unwrap())
    }

    /// Reads all there is: the bytes, and what came after them.
    pub(super) fn read_all(&mut self, end: usize, id: ConnectionId) -> (Vec<u8>, Result<Read, ConnectionError>) {
        let mut all = Vec::new();
        let mut chunk = vec![0; 65536];
        loop {
            match self.stacks[end].read(self.now, id, &mut chunk) {
                Ok(Read::Bytes(length)) => all.extend_from_slice(&chunk[..length]),
                other => return (all, other),
            }
        }
    }

    pub(super) fn closed(&self, end: usize, id: ConnectionId) -> Option<Option<ConnectionError>> {
        self.events[end].iter().find_map(|event| match event {
            StackEvent::Closed { id: closed, error } if *closed == id => Some(*error),
            _ => None,
        })
    }

    /// Sends `total` bytes from end 0 to end 1, checks every one, and says how long it took.
    pub(super) fn transfer(&mut self, total: usize, limit: Duration) -> Duration {
        let (from, to) = self.connected(5000);
        let begun = self.now;
        let data: Vec<u8> = (0..total + 65536).map(pattern).collect();
        let mut sent = 0;
        let mut received = 0;
        let mut chunk = vec![0; 65536];
        self.until(limit, |pair| {
            while sent < total {
                let piece = &data[sent..total.min(sent + 65536)];
                let taken = pair.stacks[0].write(pair.now, from, piece).unwrap();
                sent += taken;
                pair.awake[0] |= taken > 0;
                if taken < piece.len() {
                    break;
                }
                if sent == total {
                    pair.stacks[0].shutdown(pair.now, from).unwrap();
                }
            }
            if sent == total {
                let _ = pair.stacks[0].shutdown(pair.now, from);
            }
            loop {
                match pair.stacks[1].read(pair.now, to.id, &mut chunk).unwrap() {
                    Read::Bytes(length) => {
                        pair.awake[1] = true;
                        assert_eq!(chunk[..length], data[received..received + length]);
                        received += length;
                    }
                    Read::Eof => {
                        assert_eq!(received, total);
                        return true;
                    }
                    Read::Empty => return false,
                }
            }
        });
        self.now - begun
    }
}

fn pattern(position: usize) -> u8 {
    let mixed = (position as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

fn assert_tcp_checksum(bytes: &[u8]) {
    let packet = Packet::parse(bytes).unwrap();
    if !matches!(packet.transport, Transport::Tcp { .. }) {
        return;
    }
    assert_eq!(build::pseudo_checksum(packet.source, packet.destination, protocol::TCP, packet.payload), 0);
}
