//! What the network is like, for a person who asks: by UDP through a socket of its own, by TCP to the relays.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures::future::join_all;
use nixtail_proto::netcheck::{Findings, Survey};
use nixtail_proto::netmap::DerpRegions;
use nixtail_proto::proxy::{Proxies, Scheme};
use nixtail_proto::relay::Target;
use nixtail_proto::tailcfg::RegionId;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde::Serialize;

use super::derp;
use super::interfaces::local_endpoints;
use super::socket::{ReceiveBuffers, Sockets};
use super::stun_servers;
use crate::report::plain;

/// What a survey found. Its keys are what `nixtail netcheck --json` prints: they are added to, and never change.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Surveyed {
    /// Whether anything came back over UDP.
    pub(crate) udp: bool,
    /// As what others see this machine over IPv4.
    pub(crate) ipv4: Option<SocketAddr>,
    /// Why that isn't known.
    pub(crate) ipv4_silence: Option<Silence>,
    /// As what others see this machine over IPv6.
    pub(crate) ipv6: Option<SocketAddr>,
    /// Why that isn't known.
    pub(crate) ipv6_silence: Option<Silence>,
    /// Whether the NAT gives each destination another address of ours; unknown where fewer than two servers answered.
    pub(crate) mapping_varies: Option<bool>,
    /// The region that would be home.
    pub(crate) nearest: Option<RegionId>,
    /// The HTTP proxy that leads to the relays, and the variable that names it.
    pub(crate) proxy: Option<String>,
    /// Each region of the DERP map, by number.
    pub(crate) regions: Vec<SurveyedRegion>,
}

/// Why nothing came back by one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Silence {
    /// No relay has an address of it, so none was asked.
    Unasked,
    /// This machine has no address of it.
    NoAddress,
    /// None of those that were asked answered.
    NoAnswer,
}

/// What was found of a region.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct SurveyedRegion {
    /// Its number.
    pub(crate) id: RegionId,
    /// Its short name.
    pub(crate) code: String,
    /// Its name for people.
    pub(crate) name: String,
    /// The round trip over UDP, in milliseconds; `None`: no answer.
    pub(crate) udp_ms: Option<f64>,
    /// The round trip to its relay over TLS, in milliseconds, where that was tried and went well.
    pub(crate) relay_ms: Option<f64>,
    /// Why its relay can't be reached, where that was tried.
    pub(crate) relay_error: Option<String>,
}

impl Surveyed {
    /// Whether peers can be reached from here, if only through a relay.
    pub(crate) fn is_usable(&self) -> bool {
        self.udp || self.regions.iter().any(|region| region.relay_ms.is_some())
    }

    /// The nearest region.
    pub(crate) fn nearest_region(&self) -> Option<&SurveyedRegion> {
        self.regions.iter().find(|region| Some(region.id) == self.nearest)
    }
}

/// Looks at the network by these regions. It takes some 12 s at the most: 5 for names, 2 for UDP, 5 for relays; on a
/// network in which all is well, hardly longer than the farthest region's round trip.
pub(crate) async fn survey(regions: &DerpRegions, proxies: &Proxies) -> Surveyed {
    let servers = stun_servers::resolve(regions).await;
    let findings = ask(&servers).await;
    let tried = findings.relays_to_try(regions);
    let probes = regions.iter().filter(|(id, _)| tried.contains(id));
    let probes = probes.map(|(id, region)| async move { (*id, derp::probe(region, proxies).await) });
    let relays: BTreeMap<_, _> = join_all(probes).await.into_iter().collect();
    let reached = relays.iter().filter_map(|(id, tried)| Some((*id, *tried.as_ref().ok()?))).collect();
    let milliseconds = |time: &Duration| time.as_secs_f64() * 1e3;
    let described = |(id, region): (&RegionId, &_)| {
        let nixtail_proto::tailcfg::DerpRegion { region_code, region_name, .. } = region;
        let relay = relays.get(id);
        SurveyedRegion {
            id: *id,
            code: plain(region_code),
            name: plain(region_name),
            udp_ms: findings.latencies.get(id).map(milliseconds),
            relay_ms: relay.and_then(|relay| relay.as_ref().ok()).map(milliseconds),
            relay_error: relay.and_then(|relay| relay.as_ref().err()).map(|error| plain(&error.to_string())),
        }
    };
    // Their ports don't matter.
    let own = local_endpoints(Some(1), Some(1));
    let silence = |ipv4: bool, seen: Option<SocketAddr>| match seen {
        Some(_) => None,
        None if servers.iter().all(|(_, server)| server.is_ipv4() != ipv4) => Some(Silence::Unasked),
        None if own.iter().all(|address| address.is_ipv4() != ipv4) => Some(Silence::NoAddress),
        None => Some(Silence::NoAnswer),
    };
    Surveyed {
        udp: findings.udp(),
        ipv4: findings.ipv4,
        ipv4_silence: silence(true, findings.ipv4),
        ipv6: findings.ipv6,
        ipv6_silence: silence(false, findings.ipv6),
        mapping_varies: findings.mapping_varies,
        nearest: findings.nearest(regions, &reached),
        proxy: proxy(regions, proxies),
        regions: regions.iter().map(described).collect(),
    }
}

/// Asks the STUN servers. A machine that gives no UDP socket has no UDP.
async fn ask(servers: &[(RegionId, SocketAddr)]) -> Findings {
    let sockets = match Sockets::bind(0) {
        Ok(sockets) => sockets,
        Err(error) => {
            tracing::warn!(%error, "this machine gives no UDP socket");
            return Findings::default();
        }
    };
    let mut rng = StdRng::from_rng(&mut rand::rng());
    let mut survey = Survey::new(Instant::now(), servers, &mut rng);
    let mut buffers = ReceiveBuffers::default();
    loop {
        while let Some((server, request)) = survey.poll_transmit() {
            // What the kernel doesn't take is as good as lost, and is sent again.
            let _ = sockets.send(server, &request, request.len());
        }
        let Some(timeout) = survey.poll_timeout() else { return survey.findings() };
        tokio::select! {
            () = poll_fn(|cx| sockets.poll_readable(cx)) => {
                let now = Instant::now();
                sockets.receive(&mut buffers, |from, train, segment_size| {
                    for datagram in train.chunks(segment_size) {
                        survey.handle_response(now, from, datagram);
                    }
                });
            }
            () = tokio::time::sleep_until(timeout.into()) => survey.handle_timeout(Instant::now(), &mut rng),
        }
    }
}

/// The proxy that leads to the first relay that needs one.
fn proxy(regions: &DerpRegions, proxies: &Proxies) -> Option<String> {
    let nodes = regions.values().flat_map(|region| &region.nodes);
    let mut relays = nodes.filter_map(|node| Some((node.host_name.as_str(), Target::derp(node)?.port)));
    relays.find_map(|(host, port)| match proxies.find(Scheme::Https, host, port) {
        Ok(proxy) => proxy.map(ToString::to_string),
        Err(error) => Some(error.to_string()),
    })
}
