//! `nixtail bench`: what the tunnel moves between two nodes, and what this machine could.

mod asked;
mod loopback;
mod run;
mod serve;

pub(super) use asked::add_routes;

use super::join::JoinArgs;
use crate::local::Client;
use crate::report::{Exit, Failure};

/// Measure what streams through the tunnel move, what they cost, and what packets beside them wait.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Serve(serve::Args),
    Run(run::Args),
    Loopback(loopback::Args),
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    match &args.command {
        Command::Serve(args) => serve::run(args),
        Command::Run(args) => run::run(args),
        Command::Loopback(args) => loopback::run(args),
    }
}

/// The flag that asks for the running agent.
#[derive(clap::Args)]
struct AgentArgs {
    /// Measure from the agent that runs on this machine already (`nixtail up`), not from a node that joins for it [default: where
    /// there is nothing to log in with].
    #[arg(long)]
    agent: bool,
}

impl AgentArgs {
    /// The running agent, where it is to be asked. `None`: a node is to join.
    fn client(&self, join: &JoinArgs) -> Result<Option<Client>, Failure> {
        if self.agent {
            return join.socket.client().map(Some);
        }
        if join.names_way_in() {
            return Ok(None);
        }
        let client = join.socket.client()?;
        match client.get::<serde_json::Value>("/status", asked::CALL_TIME) {
            Ok(_) => Ok(Some(client)),
            Err(failure) if failure.exit == Exit::Unavailable => {
                let message = format!("there is nothing to log in with, and {}", failure.message);
                Err(Failure::new(Exit::Configuration, message).next(
                    "set TS_AUTHKEY, or give --auth-key file:PATH; or start an agent with `nixtail up`, and measure from that",
                ))
            }
            Err(failure) => Err(failure),
        }
    }
}
