//! What each stage of a packet's way costs, in one thread: `cargo bench --package nixtail-bench --bench stages [FILTER]`, and first in
//! `make bench`. Compare figures of one machine with each other, before and after a change: the ratios count, not the values.
//!
//! Whether something takes more instructions or allocations than before, `tests/counted` says.
#![allow(clippy::unwrap_used, reason = "what goes wrong here ends the bench")]

mod netmap;
mod packets;
mod session;
mod stack;
mod udp;

use divan::counter::BytesCount;
use divan::{AllocProfiler, Bencher};
use nixtail_bench::hub::{Direction, Hub, Plan};

/// Shows what was allocated in one iteration, where anything was.
#[global_allocator]
static ALLOCATOR: AllocProfiler<std::alloc::System> = AllocProfiler::system();

/// A segment's payload at the tunnel's MTU of 1,280.
const PAYLOAD: usize = 1240;
/// A full packet.
const PACKET: usize = 1280;
/// A full packet, sealed.
const SEALED: usize = PACKET + nixtail_proto::tunnel::session::OVERHEAD;
/// What one send holds of those.
const TRAIN: usize = 49;

fn main() {
    divan::main();
}

/// All of it but the sockets: one TCP stream from node to node, both ends.
#[divan::bench(sample_size = 1, sample_count = 30)]
fn whole_stream(bencher: Bencher<'_, '_>) {
    const BYTES: usize = 8 << 20;
    let mut hub = Hub::connected(Plan { peers: 1, present: 1, streams: 1 }).unwrap();
    hub.warm_up(Direction::Send).unwrap();
    hub.transfer(Direction::Send, BYTES).unwrap();
    bencher.counter(BytesCount::new(BYTES)).bench_local(|| hub.transfer(Direction::Send, BYTES).unwrap());
}
