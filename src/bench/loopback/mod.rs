//! What this machine could do, stage by stage, without a network: `nixtail bench loopback`.
//!
//! A byte goes through TCP, the node (WireGuard, filter, peers) and the system's calls, all in one thread at each end. So each
//! stage is measured alone, in CPU time of one thread: what they take adds up, and the largest is the limit. Then all of it runs
//! together, over 127.0.0.1.

mod budget;
mod ciphers;
mod datagrams;
mod nodes;
mod result;
mod stacks;
mod together;
mod wireguard;
pub mod words;

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use budget::Budget;
pub use result::{End, Ends, Limit, Loopback, LoopbackError, Spent, Stage, StageName, Together};

/// The version of what `bench loopback --json` prints.
pub const SCHEMA: u32 = 1;
/// The longest time for one stage: WireGuard renews its keys after two minutes.
pub const MAX_STAGE_TIME: Duration = Duration::from_secs(60);

/// Bytes of a TCP segment's payload at the tunnel's MTU of 1,280, over IPv4.
const PAYLOAD: usize = 1240;
/// Bytes of an IP packet that carries that.
const PACKET: usize = 1280;
/// Packets that go through a stage at once, as a train of the dataplane's.
const TRAIN: usize = 48;
/// What is written and read at once.
const CHUNK: usize = super::CHUNK;

/// Measures each stage for `each`, and all of it together. `tell` hears what is measured next.
///
/// # Errors
/// A stage that doesn't work here, or `stop` was cancelled.
pub async fn run(
    each: Duration,
    stop: &CancellationToken,
    mut tell: impl FnMut(&'static str),
) -> Result<Loopback, LoopbackError> {
    let mut measure = async |what: &'static str, stage: fn(&Budget) -> Result<Ends, LoopbackError>| {
        tell(what);
        let budget = Budget::new(each, stop.clone());
        // A thread of its own, whose CPU time nobody else adds to.
        let measured = tokio::task::spawn_blocking(move || stage(&budget)).await;
        let measured = measured.map_err(|error| LoopbackError::Stage(what, error.to_string()))?;
        if stop.is_cancelled() { Err(LoopbackError::Interrupted) } else { measured }
    };
    let tcp = measure("TCP", stacks::measure).await?;
    let wireguard = measure("WireGuard", wireguard::measure).await?;
    let node = measure("the whole node in memory", nodes::measure).await?;
    let syscalls = measure("system calls", |budget| datagrams::measure(budget, datagrams::is_offload_wanted())).await?;
    let one_by_one = measure("system calls without GSO", |budget| datagrams::measure(budget, false)).await?;
    #[cfg_attr(not(feature = "ssh-nix"), expect(unused_mut, reason = "there are no ciphers to add"))]
    let mut others = vec![(StageName::SyscallsOneByOne, one_by_one)];
    #[cfg(feature = "ssh-nix")]
    for (name, what, stage) in ciphers::ALL {
        others.push((*name, measure(what, *stage).await?));
    }
    tell("all of it over 127.0.0.1");
    let together = together::measure(each, stop).await?;
    let path = [
        (StageName::Tcp, tcp),
        (StageName::Wireguard, wireguard),
        (StageName::Node, node.without(&tcp).without(&wireguard)),
        (StageName::Syscalls, syscalls),
    ];
    Ok(Loopback::new(&path, &others, together, datagrams::is_offload_wanted()))
}

#[cfg(test)]
mod tests;
