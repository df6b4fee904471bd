//! `nixtail ping`: whether a peer answers, over which path, and how fast.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{print, socket::SocketArgs};
use crate::agent::{Path, PingKind, Pong};
use crate::report::{Exit, Failure, plain};

/// Between two pings, as `tailscale ping` waits.
const INTERVAL: Duration = Duration::from_secs(1);
/// The agent's own deadline is the ping's; this is for its answer to get here.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// Ping a peer and show the path.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The peer's name, full name, or tailnet address.
    host: String,
    /// How many pings to send.
    #[arg(short = 'c', long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Ping the peer's system through the tunnel, by ICMP.
    #[arg(long, conflicts_with = "tsmp")]
    icmp: bool,
    /// Ping the peer's node through the tunnel, by TSMP.
    #[arg(long)]
    tsmp: bool,
    /// Stop as soon as the path is direct; fail if it never is.
    #[arg(long)]
    until_direct: bool,
    /// Seconds to wait for each answer.
    #[arg(long, default_value_t = 5.0, value_name = "SECONDS")]
    timeout: f64,
    #[command(flatten)]
    socket: SocketArgs,
}

/// What `POST /ping` takes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Question {
    pub(super) host: String,
    pub(super) kind: PingKind,
    pub(super) timeout_ms: u64,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let client = args.socket.client()?;
    let kind = match (args.icmp, args.tsmp) {
        (true, _) => PingKind::Icmp,
        (_, true) => PingKind::Tsmp,
        _ => PingKind::Disco,
    };
    let timeout = Duration::try_from_secs_f64(args.timeout.clamp(0.01, 3600.0)).unwrap_or(ANSWER_TIME);
    let question =
        Question { host: args.host.clone(), kind, timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX) };
    let mut last_failure = None;
    let mut answered = false;
    for number in 1..=args.count {
        let begun = Instant::now();
        match client.post::<Pong>("/ping", &question, timeout + ANSWER_TIME) {
            Ok(pong) => {
                answered = true;
                show(&pong)?;
                if args.until_direct && matches!(pong.path, Path::Direct { .. }) {
                    return Ok(());
                }
            }
            // Silence may end; anything else stays as it is.
            Err(failure) if failure.exit == Exit::Timeout => {
                super::say(&failure.message);
                last_failure = Some(failure);
            }
            Err(failure) => return Err(failure),
        }
        if number < args.count {
            std::thread::sleep(INTERVAL.saturating_sub(begun.elapsed()));
        }
    }
    if !answered && let Some(failure) = last_failure {
        return Err(failure);
    }
    if args.until_direct {
        let message = format!("no direct path to {} within {} pings", plain(&args.host), args.count);
        return Err(Failure::new(Exit::TryAgain, message).next("traffic goes through a relay meanwhile"));
    }
    Ok(())
}

fn show(pong: &Pong) -> Result<(), Failure> {
    let via = match pong.path {
        Path::None => String::new(),
        path => format!(" via {path}"),
    };
    print(&format!("pong from {} ({}){via} in {:.1} ms", plain(&pong.name), pong.address, pong.latency_ms))
}
