//! `nixtail status`: this node, and what its role adds: a coordinator's builders, a builder's work.

mod builder;
mod changes;
mod coordinator;
mod node;
mod watch;

use std::time::Duration;

use serde_json::Value;

use super::duration::parse_duration;
use super::socket::SocketArgs;
use super::{print, print_json};
use crate::agent::{State, Status};
use crate::coordinator::CoordinatorStatus;
use crate::local::Client;
use crate::report::terminal::Terminal;
use crate::report::{Exit, Failure, plain};
use builder::BuilderAnswer;

/// The agent answers from memory.
const DEADLINE: Duration = Duration::from_secs(10);

/// Show this node, the path to each peer, and the builders and their work.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Print JSON; its keys are stable under one `schema` number. With --watch, one document a line.
    #[arg(long)]
    json: bool,
    /// Go on until the agent ends or Ctrl-C: redraw every so often, or print what changes where there is no terminal.
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, default_missing_value = "2s", value_parser = parse_duration)]
    watch: Option<Duration>,
    /// Show the other nodes of the tailnet, too, where there are builders to show.
    #[arg(long)]
    peers: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

/// An agent's status, by its role.
enum Seen {
    Node(Status),
    Builder(Status, BuilderAnswer),
    Coordinator(Box<CoordinatorStatus>),
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let client = args.socket.client()?;
    if let Some(interval) = args.watch {
        return watch::run(client, args, interval);
    }
    let answer = fetch(&client)?;
    if args.json {
        // As the agent says it: keys that this version doesn't know pass through.
        return print_json(&answer);
    }
    let seen = Seen::read(answer)?;
    for line in seen.lines(args.peers, &Terminal::of(std::io::stdout())) {
        print(&line)?;
    }
    let node = seen.node();
    node.health.iter().for_each(|line| super::say(&plain(line)));
    standing(node)
}

/// Asks an agent for its node's status.
pub(super) fn get(client: &Client) -> Result<Status, Failure> {
    client.get("/status", DEADLINE)
}

/// Asks an agent for all that its role has to say.
fn fetch(client: &Client) -> Result<Value, Failure> {
    let mut answer: Value = client.get("/status", DEADLINE)?;
    if answer.get("builders").is_none() {
        match client.get::<Value>("/builder", DEADLINE) {
            Ok(mut builder) => {
                // One number for the whole answer.
                builder.as_object_mut().and_then(|builder| builder.remove("schema"));
                if let Some(answer) = answer.as_object_mut() {
                    answer.insert("builder".to_owned(), builder);
                }
            }
            // It has no such verb: it is no builder.
            Err(failure) if failure.exit == Exit::Usage => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(answer)
}

impl Seen {
    fn read(mut answer: Value) -> Result<Self, Failure> {
        fn read<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, Failure> {
            serde_json::from_value(value).map_err(|error| {
                Failure::new(Exit::General, format!("the agent's status can't be read: {error}"))
                    .next("agent and command are of different versions; --json shows what it says")
            })
        }
        if answer.get("builders").is_some() {
            return Ok(Self::Coordinator(Box::new(read(answer)?)));
        }
        match answer.as_object_mut().and_then(|answer| answer.remove("builder")) {
            Some(builder) => Ok(Self::Builder(read(answer)?, read(builder)?)),
            None => Ok(Self::Node(read(answer)?)),
        }
    }

    fn node(&self) -> &Status {
        match self {
            Self::Node(node) | Self::Builder(node, _) => node,
            Self::Coordinator(status) => &status.node,
        }
    }

    fn lines(&self, peers: bool, terminal: &Terminal) -> Vec<String> {
        let mut lines = match self {
            Self::Node(node) => return node::lines(node),
            Self::Builder(node, builder) => builder::lines(node, builder, terminal),
            Self::Coordinator(status) => coordinator::lines(status, terminal),
        };
        if peers {
            lines.push(String::new());
            lines.extend(node::lines(self.node()));
        }
        lines
    }
}

/// Whether the node is where it should be.
fn standing(node: &Status) -> Result<(), Failure> {
    match node.state {
        State::Running => Ok(()),
        State::ControlLost => Err(Failure::new(Exit::Unavailable, "the connection to control is down")
            .next("peers stay reachable meanwhile; the agent dials again by itself")),
        State::Refused => {
            Err(Failure::new(Exit::Refused, "control took this node off the tailnet")
                .next("start it again with a new key"))
        }
        State::Leaving => Err(Failure::new(Exit::Unavailable, "the agent is leaving the tailnet")),
    }
}
