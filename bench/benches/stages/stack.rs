//! TCP alone: from what an application writes to IP packets, and back.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use divan::Bencher;
use divan::counter::BytesCount;
use nixtail_proto::packet::PacketBatch;
use nixtail_proto::stack::{Config, ConnectionId, Read, Stack};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

/// What an application writes at once.
const CHUNK: usize = 64 << 10;
const PORT: u16 = 5201;
/// Packets that are asked for at once.
const BUDGET: usize = 64;
/// Round trips until a window holds a chunk.
const WARM_UP: usize = 200;

/// Two stacks with a connection from the first to the second.
struct Pair {
    now: Instant,
    stacks: [Stack<u8>; 2],
    ids: [ConnectionId; 2],
    /// What the first says, and the same cut into packets, on their way to the second.
    bursts: PacketBatch<u8>,
    packets: PacketBatch<u8>,
    chunk: Vec<u8>,
}

impl Pair {
    fn connected() -> RefCell<Self> {
        let addresses = [1, 2].map(|number| IpAddr::from(Ipv4Addr::new(100, 64, 0, number)));
        let mut now = Instant::now();
        let mut stacks = addresses.map(|address| {
            let config = Config { addresses: vec![address], ..Config::default() };
            Stack::new(config, Box::new(StdRng::seed_from_u64(1)))
        });
        stacks[1].listen(PORT, 4).unwrap();
        let near = stacks[0].connect(now, (addresses[1], PORT).into(), None, 1).unwrap();
        let far = loop {
            for (from, to) in [(0, 1), (1, 0)] {
                now += Duration::from_micros(100);
                let mut packets = PacketBatch::new();
                stacks[from].poll_packets(now, &mut packets, BUDGET);
                stacks[to].handle_packets(now, &mut packets);
            }
            if let Some(accepted) = stacks[1].accept(PORT) {
                break accepted.id;
            }
        };
        let (bursts, packets) = (PacketBatch::new(), PacketBatch::new());
        let mut pair = Self { now, stacks, ids: [near, far], bursts, packets, chunk: vec![0x5a; CHUNK] };
        for _ in 0..WARM_UP {
            pair.send();
            pair.receive();
            pair.answer();
        }
        RefCell::new(pair)
    }

    /// The first writes a chunk, and says it in packets.
    fn send(&mut self) {
        self.now += Duration::from_micros(100);
        let _ = self.stacks[0].write(self.now, self.ids[0], &self.chunk).unwrap();
        self.bursts.clear();
        while self.stacks[0].poll_packets(self.now, &mut self.bursts, BUDGET) {}
        self.packets.clear();
        while let Some((peer, packet)) = self.bursts.first() {
            self.packets.push_slice(peer, packet);
            self.bursts.take_first();
        }
    }

    /// The second takes the packets; its application reads. Returns how many bytes.
    fn receive(&mut self) -> usize {
        self.stacks[1].handle_packets(self.now, &mut self.packets);
        let mut taken = 0;
        while let Read::Bytes(length) = self.stacks[1].read(self.now, self.ids[1], &mut self.chunk).unwrap() {
            taken += length;
        }
        taken
    }

    /// The second's acknowledgements arrive.
    fn answer(&mut self) {
        self.now += Duration::from_micros(100);
        let mut packets = PacketBatch::new();
        while self.stacks[1].poll_packets(self.now, &mut packets, BUDGET) {}
        self.stacks[0].handle_packets(self.now, &mut packets);
        for stack in &mut self.stacks {
            while stack.poll_event().is_some() {}
            stack.handle_timeout(self.now);
        }
    }
}

#[divan::bench(sample_size = 1, sample_count = 2000)]
fn tcp_out(bencher: Bencher<'_, '_>) {
    let pair = Pair::connected();
    let settle = || {
        let mut pair = pair.borrow_mut();
        if !pair.packets.is_empty() {
            pair.receive();
            pair.answer();
        }
    };
    bencher.counter(BytesCount::new(CHUNK)).with_inputs(settle).bench_local_values(|()| pair.borrow_mut().send());
}

#[divan::bench(sample_size = 1, sample_count = 2000)]
fn tcp_in(bencher: Bencher<'_, '_>) {
    let pair = Pair::connected();
    let settle = || {
        let mut pair = pair.borrow_mut();
        pair.answer();
        pair.send();
    };
    bencher.counter(BytesCount::new(CHUNK)).with_inputs(settle).bench_local_values(|()| {
        assert_eq!(pair.borrow_mut().receive(), CHUNK);
    });
}
