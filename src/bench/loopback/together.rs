//! All stages together: two dataplanes of this process, each on a thread of its own, over 127.0.0.1, without control or relay.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use nixtail_proto::key::{DiscoPrivate, NodePrivate, NodePublic};
use nixtail_proto::node::NodeConfig;
use nixtail_proto::proxy::Proxies;
use nixtail_proto::stack::ConnectionId;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::nodes::{PORT, netmap, record, remote};
use super::{LoopbackError, Together};
use crate::agent::{DIAL_DEADLINE, DialError, LEAVE_DEADLINE, Path};
use crate::bench::{self, Direction, Plan, Server, Target};
use crate::net::dataplane::{Command, Dataplane, Setup, StreamParts};
use crate::net::pipe::PipeEnd;

pub(super) async fn measure(time: Duration, stop: &CancellationToken) -> Result<Together, LoopbackError> {
    let failed = |error: &dyn std::fmt::Display| LoopbackError::Stage("all of it together", error.to_string());
    let network = Network::start().await.map_err(|error| failed(&error))?;
    let plan = Plan::new(Direction::Upload, 1, time);
    let report = bench::run(&network, "127.0.0.1", &plan, stop, |_| {}).await;
    network.stop().await;
    match report {
        Ok(report) if report.interrupted => Err(LoopbackError::Interrupted),
        // One process is both ends, so its costs are those of both.
        Ok(report) => Ok(Together { gbit_per_s: report.gbit_per_s, cpu_s_per_gb: report.cpu_s_per_gb }),
        Err(bench::BenchError::Interrupted) => Err(LoopbackError::Interrupted),
        Err(error) => Err(failed(&error)),
    }
}

struct Network {
    near: Dataplane,
    far: Dataplane,
    server: Arc<Server<NodePublic>>,
    peer: NodePublic,
    _accepting: AbortOnDropHandle<()>,
}

impl Network {
    async fn start() -> std::io::Result<Self> {
        let mut rng = rand::rng();
        let configs = [(); 2].map(|()| NodeConfig {
            node_key: NodePrivate::generate(&mut rng),
            disco_key: DiscoPrivate::generate(&mut rng),
            direct: true,
            derp: false,
        });
        let ports = free_ports()?;
        let endpoint = |index: usize| SocketAddr::from((Ipv4Addr::LOCALHOST, ports[index]));
        let records = [0, 1].map(|index| record(&configs[index], index, endpoint(index)));
        let setup = |index: usize| Setup {
            node_key: configs[index].node_key.clone(),
            disco_key: configs[index].disco_key.clone(),
            port: ports[index],
            direct: true,
            derp: false,
            proxies: Proxies::default(),
        };
        let (near, far) = (Dataplane::start(setup(0)).await?, Dataplane::start(setup(1)).await?);
        near.send(Command::Netmap(Arc::new(netmap(&records[0], &records[1])))).await;
        far.send(Command::Netmap(Arc::new(netmap(&records[1], &records[0])))).await;
        let (reply, listening) = oneshot::channel();
        far.send(Command::Listen { port: PORT, reply }).await;
        let listening = listening.await.map_err(std::io::Error::other)?.map_err(std::io::Error::other)?;
        let (server, _) = Server::new();
        let server = Arc::new(server);
        let accepting = tokio::spawn(accept(listening, Arc::clone(&server)));
        let peer = records[1].key;
        Ok(Self { near, far, server, peer, _accepting: AbortOnDropHandle::new(accepting) })
    }

    async fn stop(self) {
        self.server.stop().await;
        self.near.stop(LEAVE_DEADLINE).await;
        self.far.stop(LEAVE_DEADLINE).await;
    }
}

async fn accept(mut listening: mpsc::Receiver<StreamParts>, server: Arc<Server<NodePublic>>) {
    while let Some(stream) = listening.recv().await {
        server.handle_stream(stream.end, stream.peer);
    }
}

/// Two ports that nobody has at the moment.
fn free_ports() -> std::io::Result<[u16; 2]> {
    let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0));
    let (one, other) = (bind()?, bind()?);
    Ok([one.local_addr()?.port(), other.local_addr()?.port()])
}

impl Target for Network {
    type Stream = PipeEnd<ConnectionId>;

    async fn dial(&self) -> Result<Self::Stream, DialError> {
        let failed = |reason: String| DialError::Failed { host: "127.0.0.1".to_owned(), port: PORT, reason };
        let (reply, answer) = oneshot::channel();
        self.near.send(Command::Connect { remote: remote(), reply }).await;
        let answer = tokio::time::timeout(DIAL_DEADLINE, answer).await.map_err(|error| failed(error.to_string()))?;
        let connected = answer.map_err(|_| DialError::NotRunning)?;
        connected.map(|parts| parts.end).map_err(|error| failed(error.to_string()))
    }

    async fn path(&self) -> Path {
        let (reply, answer) = oneshot::channel();
        self.near.send(Command::Peers { reply }).await;
        let peers = answer.await.unwrap_or_default();
        peers.iter().find(|known| known.key == self.peer).map_or(Path::None, |known| known.path.into())
    }
}
