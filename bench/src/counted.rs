//! What `tests/counted` looks at under callgrind: transfers over a [`nixtail_bench::hub`], the same each time.

use std::error::Error;

use nixtail_bench::hub::{BURST, Direction, Hub, Moved, Plan};

/// Move data in memory, for callgrind to count what that takes (`make counted`).
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Args {
    /// Whether the hub sends or receives: that end is counted.
    #[arg(value_enum)]
    way: Way,
    /// Peers in the netmap.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=60_000))]
    peers: u16,
    /// How many of them have streams.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    present: u16,
    /// Streams, each to the next peer.
    #[arg(long, value_name = "N", default_value_t = 1)]
    streams: usize,
    /// Each stream waits so often until a train of 16 segments was read. 0: it doesn't wait, and moves 2 MiB.
    #[arg(long, value_name = "N", default_value_t = 0)]
    bursts: usize,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Way {
    Send,
    Receive,
}

/// What a stream without bursts moves.
const BULK: usize = 2 << 20;

/// Warms up, then moves. Prints what was moved meanwhile as a line of JSON.
pub(crate) fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let Args { peers, present, streams, .. } = *args;
    let direction = match args.way {
        Way::Send => Direction::Send,
        Way::Receive => Direction::Receive,
    };
    let mut hub = Hub::connected(Plan { peers, present, streams })?;
    hub.warm_up(direction)?;
    let mut moved = Moved::default();
    if args.bursts == 0 {
        hub.transfer(direction, BULK)?;
        hub.set_counted(true);
        moved = hub.transfer(direction, BULK)?;
    } else {
        hub.set_counted(true);
        for _ in 0..args.bursts {
            moved = moved + hub.transfer(direction, BURST)?;
        }
    }
    println!("{}", serde_json::to_string(&moved)?);
    Ok(())
}
