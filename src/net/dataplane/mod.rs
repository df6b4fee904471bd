//! The dataplane: one OS thread that owns the sockets and the [`Node`](nixtail_proto::node::Node), and moves bytes
//! between them, the relays and the streams' queues.
//!
//! The rest of the process talks to it through one bounded channel of commands and the streams' own queues; it tells
//! what it learned in [`Facts`], of which only the newest counts.

mod command;
mod driver;
mod moments;
mod relays;
mod streams;

use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nixtail_proto::key::{DiscoPrivate, NodePrivate};
use nixtail_proto::proxy::Proxies;
use nixtail_proto::tailcfg::{EndpointType, NetInfo, RegionId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::net::memory::take_large_blocks_from_the_system;
pub(crate) use command::{Command, ConnectFailure, PongFact, StreamParts};

/// Commands that wait for the dataplane. It takes them all at each turn, so this fills only when it is stuck.
const COMMANDS: usize = 64;

/// What the dataplane is made with.
pub(crate) struct Setup {
    pub(crate) node_key: NodePrivate,
    pub(crate) disco_key: DiscoPrivate,
    /// The UDP port; 0 lets the kernel choose.
    pub(crate) port: u16,
    /// Whether UDP paths may be used. Off only in tests of the relayed path.
    pub(crate) direct: bool,
    /// Whether relays may be used. Off only in tests of the direct path.
    pub(crate) derp: bool,
    /// The proxies that lead to relays.
    pub(crate) proxies: Proxies,
}

/// What the dataplane knows that control and the agent want to know.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Facts {
    /// Where peers may reach us. `None` until the first look.
    pub(crate) endpoints: Option<Vec<(SocketAddr, EndpointType)>>,
    /// The relay that peers should find us at.
    pub(crate) home_region: Option<RegionId>,
    /// What the network is like.
    pub(crate) net_info: Option<NetInfo>,
    /// The relays that are connected.
    pub(crate) connected_regions: Vec<RegionId>,
}

/// A running dataplane.
#[derive(Debug)]
pub(crate) struct Dataplane {
    commands: mpsc::Sender<Command>,
    facts: watch::Receiver<Facts>,
    cancel: CancellationToken,
    ended: Mutex<Option<oneshot::Receiver<()>>>,
}

impl Dataplane {
    /// Binds the sockets and starts the thread. Relay connections are tasks of the current tokio runtime.
    ///
    /// # Errors
    /// No socket of either family can be bound, or no thread started.
    pub(crate) async fn start(setup: Setup) -> io::Result<Self> {
        take_large_blocks_from_the_system();
        let (commands, command_receiver) = mpsc::channel(COMMANDS);
        let (fact_sender, facts) = watch::channel(Facts::default());
        let (started, starting) = oneshot::channel();
        let (ending, ended) = oneshot::channel();
        let cancel = CancellationToken::new();
        let (stop, outer) = (cancel.clone(), tokio::runtime::Handle::current());
        std::thread::Builder::new().name("nixtail-data".to_owned()).spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(started.send(Err(error))),
            };
            runtime.block_on(async {
                match driver::Driver::new(setup, fact_sender, outer) {
                    Ok(driver) => {
                        // If nobody waits, `stop` is cancelled too.
                        let _ = started.send(Ok(()));
                        driver.run(command_receiver, stop).await;
                    }
                    Err(error) => drop(started.send(Err(error))),
                }
            });
            let _ = ending.send(());
        })?;
        let dataplane = Self { commands, facts, cancel, ended: Mutex::new(Some(ended)) };
        starting.await.unwrap_or_else(|_| Err(io::Error::other("the dataplane thread ended as it began")))?;
        Ok(dataplane)
    }

    /// Hands a command over. Answers whether the dataplane still runs.
    pub(crate) async fn send(&self, command: Command) -> bool {
        self.commands.send(command).await.is_ok()
    }

    /// A sender of commands that doesn't keep the dataplane alive any longer than it wants to.
    pub(crate) fn sender(&self) -> mpsc::Sender<Command> {
        self.commands.clone()
    }

    /// What the dataplane knows, and how it changes.
    pub(crate) fn facts(&self) -> watch::Receiver<Facts> {
        self.facts.clone()
    }

    /// Ends all streams, says so to the peers, and waits for the thread. Answers whether it ended in time.
    pub(crate) async fn stop(&self, deadline: Duration) -> bool {
        self.cancel.cancel();
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner).take();
        match ended {
            Some(ended) => tokio::time::timeout(deadline, ended).await.is_ok(),
            None => true,
        }
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use nixtail_proto::netmap::Netmap;
    use nixtail_proto::stun;
    use nixtail_proto::tailcfg::{DerpNode, DerpRegion};
    use tokio::net::UdpSocket;
    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// Thing 14 that independent clients get wrong: what the world sees of another socket leads peers nowhere.
    #[tokio::test]
    async fn stun_goes_out_of_the_tunnels_own_socket() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        // One that was free a moment ago.
        let port = UdpSocket::bind("0.0.0.0:0").await.unwrap().local_addr().unwrap().port();
        let mut rng = rand::rng();
        let setup = Setup {
            node_key: NodePrivate::generate(&mut rng),
            disco_key: DiscoPrivate::generate(&mut rng),
            port,
            direct: true,
            derp: false,
            proxies: Proxies::default(),
        };
        let dataplane = Dataplane::start(setup).await.unwrap();
        let relay = DerpNode { ipv4: "127.0.0.1".to_owned(), ..DerpNode::default() };
        let region = DerpRegion { region_id: 1, nodes: vec![relay], ..DerpRegion::default() };
        let netmap = Netmap { derp_map: Arc::new(BTreeMap::from([(1, region)])), ..Netmap::default() };
        assert!(dataplane.send(Command::Netmap(Arc::new(netmap))).await);
        assert!(dataplane.send(Command::StunServers(vec![(1, server.local_addr().unwrap())])).await);

        let mut request = [0; 1500];
        let (len, source) = timeout(PATIENCE, server.recv_from(&mut request)).await.expect("a request").unwrap();
        assert_eq!(source.port(), port);
        let mapped = SocketAddr::from(([203, 0, 113, 7], 4242));
        let answer = stun::response(stun::parse_request(&request[..len]).unwrap(), mapped);
        server.send_to(&answer, source).await.unwrap();

        let mut facts = dataplane.facts();
        let told = facts.wait_for(|facts| facts.endpoints.iter().flatten().any(|(address, _)| *address == mapped));
        drop(timeout(PATIENCE, told).await.expect("the endpoint is told").unwrap());
        assert!(dataplane.stop(PATIENCE).await);
    }
}
