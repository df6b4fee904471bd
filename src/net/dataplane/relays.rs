//! The relay connections that the node asked for. Each is a task of the process' own runtime: its TLS runs beside the
//! dataplane, not in it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use nixtail_proto::key::{NodePrivate, NodePublic};
use nixtail_proto::netmap::{DerpRegions, Netmap};
use nixtail_proto::node::Node;
use nixtail_proto::proxy::Proxies;
use nixtail_proto::tailcfg::RegionId;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::moments::Moments;
use crate::net::derp::{DerpConfig, DerpConnection, DerpEvent, DerpEventKind, probe};

/// What relays said that waits for the dataplane, mostly batches of packets. They drop packets when it is full.
const INBOX: usize = 256;

/// Relays that are measured at the same time, each with a TLS handshake. Tailscale's map has some thirty regions.
const MEASURED_AT_ONCE: usize = 16;

/// Measurements under way and waiting: some rounds of all regions, which a network that keeps changing may begin before the last one ends.
const MAX_MEASURING: usize = 256;

/// Something that a relay said, or that was found out about one.
pub(super) enum RelayInput {
    /// By its connection.
    Said(DerpEvent),
    /// How far it is; `None` where it can't be reached.
    Measured { region: RegionId, time: Option<Duration> },
}

pub(super) struct Relays {
    node_key: NodePrivate,
    proxies: Arc<Proxies>,
    outer: Handle,
    regions: Arc<DerpRegions>,
    home: Option<RegionId>,
    connections: HashMap<RegionId, Active>,
    // Tells the events of a closed connection from those of the next one to the same region.
    last_number: u64,
    inbox: mpsc::Receiver<DerpEvent>,
    events: mpsc::Sender<DerpEvent>,
    measuring: JoinSet<(RegionId, Option<Duration>)>,
    measured_at_once: Arc<Semaphore>,
}

struct Active {
    connection: DerpConnection,
    number: u64,
    up: bool,
}

impl Relays {
    pub(super) fn new(node_key: NodePrivate, proxies: Proxies, outer: Handle) -> Self {
        let proxies = Arc::new(proxies);
        let (events, inbox) = mpsc::channel(INBOX);
        let (connections, regions) = (HashMap::new(), Arc::default());
        Self {
            node_key,
            proxies,
            outer,
            regions,
            home: None,
            connections,
            last_number: 0,
            inbox,
            events,
            measuring: JoinSet::new(),
            measured_at_once: Arc::new(Semaphore::new(MEASURED_AT_ONCE)),
        }
    }

    pub(super) fn handle_map(&mut self, netmap: &Netmap) {
        self.regions = netmap.derp_map.clone();
    }

    /// The relays are told which of them is our home.
    pub(super) fn set_home(&mut self, home: RegionId) {
        self.home = Some(home);
        for (region, active) in &self.connections {
            active.connection.set_home(*region == home);
        }
    }

    /// Begins to dial a region.
    pub(super) fn dial(&mut self, node: &mut Node, now: Instant, region: RegionId) {
        self.close(region);
        let Some(derp) = self.regions.get(&region) else {
            tracing::debug!(region, "a relay was wanted that the DERP map doesn't have");
            node.handle_derp_disconnected(now, region);
            return;
        };
        self.last_number += 1;
        let config = DerpConfig {
            region: derp.clone(),
            node_key: self.node_key.clone(),
            proxies: Arc::clone(&self.proxies),
            home: self.home == Some(region),
            first_node: node.first_derp_node(region),
            connection: self.last_number,
        };
        let _outer = self.outer.enter();
        let connection = DerpConnection::spawn(config, self.events.clone());
        self.connections.insert(region, Active { connection, number: self.last_number, up: false });
    }

    /// Begins to measure a region over TCP.
    pub(super) fn measure(&mut self, node: &mut Node, now: Instant, region: RegionId) {
        let derp = self.regions.get(&region).cloned().filter(|_| self.measuring.len() < MAX_MEASURING);
        let Some(derp) = derp else {
            node.handle_relay_time(now, region, None);
            return;
        };
        let (proxies, turn) = (Arc::clone(&self.proxies), Arc::clone(&self.measured_at_once));
        let measure = async move {
            // Never closed.
            let _turn = turn.acquire().await;
            let measured = probe(&derp, &proxies).await;
            tracing::debug!(region, ?measured, "measured a relay, since UDP reaches none");
            (region, measured.ok())
        };
        self.measuring.spawn_on(measure, &self.outer);
    }

    /// Closes a region's connection, which says goodbye by itself.
    pub(super) fn close(&mut self, region: RegionId) {
        if let Some(Active { connection, .. }) = self.connections.remove(&region) {
            self.outer.spawn(connection.close());
        }
    }

    /// Asks a region's relay for a sign of life.
    pub(super) fn check(&self, region: RegionId) {
        if let Some(Active { connection, .. }) = self.connections.get(&region) {
            connection.check();
        }
    }

    /// Sends packets to a peer through a region.
    pub(super) fn send(&self, region: RegionId, peer: &NodePublic, data: &[u8], segment_size: usize) {
        if let Some(Active { connection, .. }) = self.connections.get(&region) {
            connection.send_train(peer, data, segment_size);
        }
    }

    /// The next thing that a relay said.
    pub(super) async fn next(&mut self) -> Option<RelayInput> {
        tokio::select! {
            said = self.inbox.recv() => said.map(RelayInput::Said),
            Some(measured) = self.measuring.join_next() => measured.ok().map(measured_input),
        }
    }

    /// As [`Self::next`], without waiting.
    pub(super) fn try_next(&mut self) -> Option<RelayInput> {
        let said = self.inbox.try_recv().ok().map(RelayInput::Said);
        said.or_else(|| self.measuring.try_join_next()?.ok().map(measured_input))
    }

    /// Tells the node, and the log, what a relay said.
    pub(super) fn handle(&mut self, node: &mut Node, moments: &mut Moments, now: Instant, input: RelayInput) {
        let input = match input {
            RelayInput::Said(said) => said,
            RelayInput::Measured { region, time } => return node.handle_relay_time(now, region, time),
        };
        let region = input.region;
        let Some(active) = self.connections.get_mut(&region).filter(|active| active.number == input.connection) else {
            return;
        };
        match input.kind {
            DerpEventKind::Connected => {
                moments.handle_relay_connected(now, region);
                active.up = true;
                node.handle_derp_connected(now, region);
            }
            DerpEventKind::Packets(packets) => node.handle_derp_packets(now, region, packets.iter()),
            DerpEventKind::PeerGone { peer, .. } => node.handle_derp_peer_gone(now, region, peer),
            DerpEventKind::Health(words) => node.handle_derp_health(now, region, words),
            DerpEventKind::Restarting { reconnect_in, try_for } => {
                tracing::trace!(region, ?reconnect_in, ?try_for, "the relay restarts");
                node.handle_derp_restarting(now, region, reconnect_in, try_for);
            }
            DerpEventKind::Disconnected(reason) => {
                tracing::debug!(region, %reason, "a relay's connection ended");
                moments.handle_relay_lost(now, region, reason.to_string());
                self.connections.remove(&region);
                node.handle_derp_disconnected(now, region);
            }
        }
    }

    /// The regions that are connected.
    pub(super) fn connected(&self) -> Vec<RegionId> {
        let up = self.connections.iter().filter(|(_, active)| active.up);
        let mut regions: Vec<_> = up.map(|(region, _)| *region).collect();
        regions.sort_unstable();
        regions
    }

    /// Closes all connections and waits for them.
    pub(super) async fn close_all(mut self) {
        self.measuring.shutdown().await;
        join_all(self.connections.into_values().map(|active| active.connection.close())).await;
    }
}

fn measured_input((region, time): (RegionId, Option<Duration>)) -> RelayInput {
    RelayInput::Measured { region, time }
}
