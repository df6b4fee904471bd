//! `nixtail ping`: whether a peer answers, over which path, how that changes, and how fast.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{print, socket::SocketArgs};
use crate::agent::{Path, PingKind, Pong};
use crate::local::SCHEMA;
use crate::report::words::duration;
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
    /// Print each answer as a line of JSON; its keys are stable under one `schema` number.
    #[arg(long)]
    json: bool,
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

/// What `--json` prints of each answer.
#[derive(Serialize)]
struct Printed<'a> {
    schema: u32,
    /// Which ping it answers, from 1.
    number: u32,
    #[serde(flatten)]
    pong: &'a Pong,
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
    let (started, mut path) = (Instant::now(), None);
    for number in 1..=args.count {
        let begun = Instant::now();
        match client.post::<Pong>("/ping", &question, timeout + ANSWER_TIME) {
            Ok(pong) => {
                answered = true;
                let before = path.replace(pong.path);
                if args.json {
                    let line = serde_json::to_string(&Printed { schema: SCHEMA, number, pong: &pong });
                    print(&line.map_err(|error| Failure::new(Exit::General, error))?)?;
                } else {
                    if let Some(line) = change(before, pong.path, started.elapsed()) {
                        print(&line)?;
                    }
                    show(&pong)?;
                }
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

/// What is said where the path isn't the one of the answer before. Pings through the tunnel may not know theirs.
fn change(before: Option<Path>, path: Path, after: Duration) -> Option<String> {
    let before = before.filter(|before| *before != path && *before != Path::None && path != Path::None)?;
    Some(format!("the path is now {path}, before it was {before}; after {}", duration(after)))
}

fn show(pong: &Pong) -> Result<(), Failure> {
    let via = match pong.path {
        Path::None => String::new(),
        path => format!(" via {path}"),
    };
    print(&format!("pong from {} ({}){via} in {:.1} ms", plain(&pong.name), pong.address, pong.latency_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_path_is_a_change() {
        let direct = Path::Direct { address: "192.0.2.1:7".parse().unwrap() };
        let relay = Path::Derp { region: 4 };
        let at = Duration::from_secs(3);
        let said = "the path is now 192.0.2.1:7, before it was DERP region 4; after 3.0 s";
        assert_eq!(change(Some(relay), direct, at).as_deref(), Some(said));
        for (before, now) in
            [(None, direct), (Some(direct), direct), (Some(Path::None), direct), (Some(relay), Path::None)]
        {
            assert_eq!(change(before, now, at), None);
        }
    }
}
