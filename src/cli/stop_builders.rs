//! `nixtail stop-builders`, also `stop-nix-builders`: ends the builders of the coordinator at the socket.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::coordinator::Stopped;
use super::socket::SocketArgs;
use crate::report::{Exit, Failure, plain};

/// A builder that doesn't answer is given up after 30 s; all are asked at once.
const DEADLINE: Duration = Duration::from_secs(60);

/// End the builders that this coordinator has claimed, those that never became ready, too. Done before, it does nothing.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    socket: SocketArgs,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let path = args.socket.path()?;
    if nobody_listens(path.as_path()) {
        super::say(&format_args!(
            "nothing to stop: no coordinator runs at {} (its builders end by themselves when it leaves)",
            path.as_path().display()
        ));
        return Ok(());
    }
    let stopped: Stopped = args.socket.client()?.post("/stop-builders", &serde_json::json!({}), DEADLINE)?;
    if stopped.builders.is_empty() {
        super::say(&"nothing to stop: no builder is claimed");
    }
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
    Err(Failure::new(Exit::TryAgain, format!("could not be told to end: {}", unreached.join(", ")))
        .next("try again; or else they end by themselves when this coordinator leaves the tailnet (`nixtail down`)"))
}

/// Whether there is no agent. Where it can't be told, the call itself says why.
fn nobody_listens(path: &std::path::Path) -> bool {
    let absent = |error: std::io::Error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused);
    UnixStream::connect(path).err().is_some_and(absent)
}
