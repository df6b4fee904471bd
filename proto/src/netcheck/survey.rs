//! A survey of the network for a person who asks: once, and every region is waited for.
//!
//! A node goes on as soon as it has a home; who asks what is wrong wants to see each region, both families, and what
//! doesn't answer.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand_core::CryptoRng;

use super::round::Round;
use super::{MAX_SERVERS, canonical, may_be_home};
use crate::stun;
use crate::tailcfg::{DerpRegion, RegionId};

/// One look at the network: requests that are out, and what came back.
#[derive(Debug)]
pub struct Survey {
    round: Round,
    latencies: BTreeMap<RegionId, Duration>,
    /// As what the nearest server of each family sees us.
    ipv4: Option<(Duration, SocketAddr)>,
    ipv6: Option<(Duration, SocketAddr)>,
    transmits: VecDeque<(SocketAddr, Vec<u8>)>,
}

/// What a survey found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// As what the nearest IPv4 server sees us; `None` where none answered.
    pub ipv4: Option<SocketAddr>,
    /// As what the nearest IPv6 server sees us; `None` where none answered.
    pub ipv6: Option<SocketAddr>,
    /// Whether the NAT maps each destination differently. `None` when fewer than two IPv4 servers said.
    pub mapping_varies: Option<bool>,
    /// The best round trip to each region that answered.
    pub latencies: BTreeMap<RegionId, Duration>,
}

impl Survey {
    /// Asks the regions' STUN servers, resolved.
    #[must_use]
    pub fn new(now: Instant, servers: &[(RegionId, SocketAddr)], rng: &mut dyn CryptoRng) -> Self {
        let mut servers: Vec<_> = servers.iter().map(|(id, server)| (*id, canonical(*server))).collect();
        servers.sort_unstable();
        servers.dedup();
        servers.truncate(MAX_SERVERS);
        let mut survey = Self {
            round: Round::patient(now, &servers),
            latencies: BTreeMap::new(),
            ipv4: None,
            ipv6: None,
            transmits: VecDeque::new(),
        };
        survey.handle_timeout(now, rng);
        survey
    }

    /// Takes a datagram. Says whether it was an answer to us.
    pub fn handle_response(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) -> bool {
        let Ok((txid, mapped)) = stun::parse_response(datagram) else { return false };
        let Some((region, latency)) = self.round.handle_answer(now, canonical(from), txid, mapped) else {
            return false;
        };
        let best = self.latencies.entry(region).or_insert(latency);
        *best = latency.min(*best);
        let seen = if mapped.is_ipv4() { &mut self.ipv4 } else { &mut self.ipv6 };
        if seen.is_none_or(|(nearest, _)| latency < nearest) {
            *seen = Some((latency, mapped));
        }
        self.round.finish_if_done(now);
        true
    }

    /// Sends requests again, or ends the survey.
    pub fn handle_timeout(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        self.round.handle_timeout(now, rng, &mut self.transmits);
        self.round.finish_if_done(now);
    }

    /// The next request to send: whom to, and the datagram.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.transmits.pop_front()
    }

    /// When [`Self::handle_timeout`] has something to do. `None`: the survey is over.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.round.is_over() { None } else { self.round.poll_timeout() }
    }

    /// What is known.
    #[must_use]
    pub fn findings(&self) -> Findings {
        Findings {
            ipv4: self.ipv4.map(|(_, mapped)| mapped),
            ipv6: self.ipv6.map(|(_, mapped)| mapped),
            mapping_varies: self.round.mapping_varies(),
            latencies: self.latencies.clone(),
        }
    }
}

impl Findings {
    /// Whether anything came back over UDP.
    #[must_use]
    pub fn udp(&self) -> bool {
        !self.latencies.is_empty()
    }

    /// Whose relays are worth a try over TCP: those of regions that UDP didn't reach, and the nearest one's, which
    /// would be home.
    #[must_use]
    pub fn relays_to_try(&self, regions: &BTreeMap<RegionId, DerpRegion>) -> Vec<RegionId> {
        let nearest = self.nearest(regions, &BTreeMap::new());
        let wanted = |id: &RegionId| !self.latencies.contains_key(id) || nearest == Some(*id);
        regions.keys().copied().filter(wanted).collect()
    }

    /// The nearest region that may be home: by UDP, and where that reaches none by `relays`, the round trips over TCP.
    #[must_use]
    pub fn nearest(
        &self,
        regions: &BTreeMap<RegionId, DerpRegion>,
        relays: &BTreeMap<RegionId, Duration>,
    ) -> Option<RegionId> {
        let candidate = |(id, _): &(&RegionId, &Duration)| regions.get(id).is_some_and(may_be_home);
        let best = |known: &BTreeMap<RegionId, Duration>| {
            known.iter().filter(candidate).min_by_key(|(_, latency)| **latency).map(|(id, _)| *id)
        };
        best(&self.latencies).or_else(|| best(relays))
    }
}

#[cfg(test)]
#[path = "survey/tests.rs"]
mod tests;
