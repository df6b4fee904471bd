//! TCP alone: two stacks that hand their packets to each other, under virtual time.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use nixtail_proto::packet::PacketBatch;
use nixtail_proto::stack::{Config, ConnectionId, Read, Stack};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::budget::{Budget, Meter};
use super::{CHUNK, Ends, LoopbackError, TRAIN};

const PORT: u16 = 5201;
/// Time that passes from round to round: the round trip of a near machine.
const STEP: Duration = Duration::from_micros(200);
/// Rounds in which a connection comes about, or a round brings anything: far more than it takes.
const MAX_ROUNDS: u32 = 10_000;

pub(super) fn measure(budget: &Budget) -> Result<Ends, LoopbackError> {
    let mut wire =
        Wire::connected().ok_or_else(|| LoopbackError::Stage("TCP", "no connection came about".to_owned()))?;
    let (mut ends, mut rounds, mut idle) = (Ends::default(), budget.rounds(), 0);
    let mut meter = Meter::start();
    while rounds() {
        let before = ends.bytes;
        wire.send();
        meter.lap(&mut ends.sending);
        ends.bytes += wire.receive();
        meter.lap(&mut ends.receiving);
        wire.acknowledge();
        meter.lap(&mut ends.sending);
        idle = if ends.bytes == before { idle + 1 } else { 0 };
        if idle > MAX_ROUNDS {
            return Err(LoopbackError::Stage("TCP", "the stream stands still".to_owned()));
        }
    }
    Ok(ends)
}

/// Both ends, and what is between them.
struct Wire {
    now: Instant,
    stacks: [Stack<u8>; 2],
    near: ConnectionId,
    far: ConnectionId,
    bursts: PacketBatch<u8>,
    there: PacketBatch<u8>,
    back: PacketBatch<u8>,
    chunk: Vec<u8>,
    buffer: Vec<u8>,
}

impl Wire {
    fn connected() -> Option<Self> {
        let addresses: [IpAddr; 2] = [[100, 64, 0, 1].into(), [100, 64, 0, 2].into()];
        let now = Instant::now();
        let stack = |address, seed| {
            let config = Config { addresses: vec![address], ..Config::default() };
            Stack::new(config, Box::new(StdRng::seed_from_u64(seed)))
        };
        let mut stacks = [stack(addresses[0], 1), stack(addresses[1], 2)];
        stacks[1].listen(PORT, 1).ok()?;
        let near = stacks[0].connect(now, SocketAddr::new(addresses[1], PORT), None, 1).ok()?;
        let (chunk, buffer) = (vec![0x5a; CHUNK], vec![0; CHUNK]);
        let [bursts, there, back] = std::array::from_fn(|_| PacketBatch::new());
        let mut wire = Self { now, stacks, near, far: near, bursts, there, back, chunk, buffer };
        for _ in 0..MAX_ROUNDS {
            wire.carry_there();
            if let Some(accepted) = wire.stacks[1].accept(PORT) {
                wire.far = accepted.id;
                return Some(wire);
            }
            wire.carry_back();
        }
        None
    }

    /// Fills the sender's ring, and takes a train from it, cut into packets.
    fn send(&mut self) {
        // What doesn't fit is written in the next round: the bytes are all the same.
        while self.stacks[0].write(self.now, self.near, &self.chunk).is_ok_and(|taken| taken == self.chunk.len()) {}
        self.poll_there();
    }

    fn poll_there(&mut self) {
        poll(&mut self.stacks[0], self.now, &mut self.bursts);
        self.there.clear();
        while let Some((peer, packet)) = self.bursts.first() {
            self.there.push_slice(peer, packet);
            self.bursts.take_first();
        }
    }

    /// Takes the train in, reads what came, and takes what is to be said back.
    fn receive(&mut self) -> u64 {
        let Self { now, stacks: [_, stack], far, there, back, buffer, .. } = self;
        stack.handle_packets(*now, there);
        let mut received = 0;
        while let Ok(Read::Bytes(length)) = stack.read(*now, *far, buffer) {
            received += length as u64;
        }
        poll(stack, *now, back);
        received
    }

    fn acknowledge(&mut self) {
        self.stacks[0].handle_packets(self.now, &mut self.back);
        self.now += STEP;
    }

    fn carry_there(&mut self) {
        self.poll_there();
        self.stacks[1].handle_packets(self.now, &mut self.there);
    }

    fn carry_back(&mut self) {
        poll(&mut self.stacks[1], self.now, &mut self.back);
        self.stacks[0].handle_packets(self.now, &mut self.back);
        self.now += STEP;
    }
}

/// What an end has to say now.
fn poll(stack: &mut Stack<u8>, now: Instant, packets: &mut PacketBatch<u8>) {
    if stack.poll_timeout().is_some_and(|at| at <= now) {
        stack.handle_timeout(now);
    }
    while stack.poll_event().is_some() {}
    packets.clear();
    stack.poll_packets(now, packets, TRAIN);
}
