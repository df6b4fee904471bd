//! `nixtail stop-builders`, also `stop-nix-builders`: ends the builders of the coordinator at the socket.

use std::time::Duration;

use super::coordinator::Stopped;
use super::socket::SocketArgs;
use crate::report::{Exit, Failure, plain};

/// A builder that doesn't answer is given up after 30 s; all are asked at once.
const DEADLINE: Duration = Duration::from_secs(60);

/// End the builders that this coordinator has claimed.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    socket: SocketArgs,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let stopped: Stopped = args.socket.client()?.post("/stop-builders", &serde_json::json!({}), DEADLINE)?;
    let mut unreached = Vec::new();
    for builder in stopped.builders {
        let name = plain(&builder.name);
        match builder.error {
            None => super::print(&format!("{name} is ending"))?,
            Some(error) => unreached.push(format!("{name} ({})", plain(&error))),
        }
    }
    if unreached.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Exit::Unavailable, format!("could not be told to end: {}", unreached.join(", ")))
        .next("they end by themselves when this coordinator leaves the tailnet (`nixtail down`)"))
}
