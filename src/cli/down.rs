//! `nixtail down`: stops an agent.

use std::time::Duration;

use super::session::Stop;
use super::socket::SocketArgs;
use crate::agent::LEAVE_DEADLINE;
use crate::coordinator::mode::{Layout, put_back};
use crate::report::{Exit, Failure};

/// Stop the agent, log it out unless --state-dir keeps it, and return when it has left the tailnet. Where a coordinator was killed, put root's files back.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    socket: SocketArgs,
    /// Log out a node that --state-dir keeps, too: its identity is removed, and its next start is another node's.
    #[arg(long)]
    logout: bool,
    /// How much longer than usual to wait for its end, such as for the builds that its --drain lets go on.
    #[arg(long, value_name = "TIME", value_parser = super::duration::parse_duration, default_value = "0s")]
    wait: Duration,
}

/// What the agent itself takes at the most, and a little for the answer.
const DEADLINE: Duration = LEAVE_DEADLINE.saturating_add(Duration::from_secs(10));

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let stopped = args.socket.client()?.post::<serde_json::Value>(
        "/stop",
        &Stop { log_out: args.logout },
        DEADLINE.saturating_add(args.wait),
    );
    let Err(failure) = stopped else { return Ok(()) };
    if failure.exit != Exit::Unavailable {
        return Err(failure);
    }
    // Nobody runs there. One that was killed had no chance to put anything back.
    let socket = args.socket.path()?.as_path().to_owned();
    let put_back = put_back(&Layout::of_system(socket.with_extension("run"), socket))
        .map_err(|error| Failure::new(Exit::Configuration, error).next("run this as root: the files are root's"))?;
    for path in &put_back {
        super::say(&format_args!("{} is as it was before a coordinator that was killed", path.display()));
    }
    if put_back.is_empty() { Err(failure) } else { Ok(()) }
}
