//! `nixtail down`: stops an agent.

use std::time::Duration;

use super::socket::SocketArgs;
use crate::agent::LEAVE_DEADLINE;
use crate::report::Failure;

/// Log out and stop the agent; return when it has left the tailnet.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    socket: SocketArgs,
}

/// What the agent itself takes at the most, and a little for the answer.
const DEADLINE: Duration = LEAVE_DEADLINE.saturating_add(Duration::from_secs(10));

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let _: serde_json::Value = args.socket.client()?.post("/stop", &serde_json::json!({}), DEADLINE)?;
    Ok(())
}
