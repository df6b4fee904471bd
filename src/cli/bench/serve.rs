//! `nixtail bench serve`: takes part in the measurements of other nodes.

use nixtail_proto::key::NodePublic;
use tokio::sync::mpsc;

use super::{AgentArgs, asked};
use crate::agent::{Agent, Listener};
use crate::bench::{DEFAULT_PORT, Served, Server, words};
use crate::cli::join::JoinArgs;
use crate::cli::session::{self, Background, Role};
use crate::local::Routes;
use crate::report::{Failure, plain};

/// Take part in measurements until told to stop: as a node that joins for it, or as the running agent.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    join: JoinArgs,
    #[command(flatten)]
    agent: AgentArgs,
    #[command(flatten)]
    background: Background,
    /// The port inside the tunnel.
    #[arg(long = "bench-port", value_name = "PORT", default_value_t = DEFAULT_PORT)]
    bench_port: u16,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    // One that is detached has its key on stdin, and nothing in its environment.
    let client = if args.background.is_wanted() { None } else { args.agent.client(&args.join)? };
    match client {
        Some(client) => asked::serve(&client, args.bench_port),
        None => session::run(&args.join, &args.background, Serving { port: args.bench_port, at: None }),
    }
}

struct Serving {
    port: u16,
    at: Option<Place>,
}

impl Role for Serving {
    async fn start(&mut self, agent: &Agent, _: &mut Routes) -> Result<(), Failure> {
        self.at = Some(Place::open(agent, self.port).await?);
        Ok(())
    }

    async fn finished(&mut self) -> Result<(), Failure> {
        let Some(place) = &mut self.at else { return Ok(()) };
        loop {
            // In the background nobody reads stdout; the log has it all the same.
            let _ = crate::cli::print(&place.next().await);
        }
    }

    async fn stop(&mut self) -> Result<(), Failure> {
        if let Some(place) = self.at.take() {
            place.close().await;
        }
        Ok(())
    }
}

/// A port of an agent where runs are served.
pub(super) struct Place {
    agent: Agent,
    listener: Listener,
    server: Server<NodePublic>,
    ended: mpsc::Receiver<Served<NodePublic>>,
}

impl Place {
    /// Takes connections to a port of the agent.
    pub(super) async fn open(agent: &Agent, port: u16) -> Result<Self, Failure> {
        let listener = agent.listen(port).await?;
        let (server, ended) = Server::new();
        Ok(Self { agent: agent.clone(), listener, server, ended })
    }

    /// Serves until a run has ended, and tells of it in a line. Cancel safe.
    pub(super) async fn next(&mut self) -> String {
        loop {
            tokio::select! {
                stream = self.listener.accept() => match stream {
                    Ok(stream) => {
                        let peer = stream.peer();
                        self.server.handle_stream(stream, peer);
                    }
                    // The node has left: whoever runs it ends this, too.
                    Err(_) => return std::future::pending().await,
                },
                Some(served) = self.ended.recv() => return words::served(&self.name(&served.peer), &served),
            }
        }
    }

    fn name(&self, peer: &NodePublic) -> String {
        let netmap = self.agent.netmap();
        let netmap = netmap.borrow();
        let node = netmap.as_ref().and_then(|netmap| netmap.peer_by_key(peer));
        node.map_or_else(|| "a node that has left".to_owned(), |node| plain(node.short_name()))
    }

    /// Breaks off what goes on, and gives the port back.
    pub(super) async fn close(self) {
        drop(self.listener);
        self.server.stop().await;
    }
}
