//! One round of STUN requests.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand_core::CryptoRng;

use super::NO_ANSWER_TIMEOUT;
use crate::stun::{self, TransactionId};
use crate::tailcfg::RegionId;

/// When a request to each server is sent, after the round's begin, while it hasn't answered.
const SCHEDULE: [Duration; 3] = [Duration::ZERO, Duration::from_millis(100), Duration::from_millis(300)];
/// How long others get at least, after the first answer: on a fast network twice the best is nothing.
pub(super) const MIN_GRACE: Duration = Duration::from_millis(50);
/// How long a patient round waits for a region that doesn't answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// How long a patient round waits for the other family once every region has answered by one.
const FAMILY_PATIENCE: Duration = Duration::from_millis(300);

/// Requests that are out, and their answers.
#[derive(Debug)]
pub(super) struct Round {
    started: Instant,
    probes: Vec<Probe>,
    /// Whether every server is waited for, and not only the nearest.
    is_patient: bool,
    /// When the round ends at the latest.
    deadline: Instant,
    over: bool,
}

/// The requests to one server.
#[derive(Debug)]
struct Probe {
    region: RegionId,
    server: SocketAddr,
    sent: Vec<(TransactionId, Instant)>,
    answer: Option<SocketAddr>,
}

impl Round {
    pub(super) fn new(now: Instant, servers: &[(RegionId, SocketAddr)]) -> Self {
        let probe = |(region, server): &(RegionId, SocketAddr)| Probe {
            region: *region,
            server: *server,
            sent: Vec::new(),
            answer: None,
        };
        let probes = servers.iter().map(probe).collect();
        Self { started: now, probes, is_patient: false, deadline: now + NO_ANSWER_TIMEOUT, over: false }
    }

    /// A round that waits for every region, and a little for every server.
    pub(super) fn patient(now: Instant, servers: &[(RegionId, SocketAddr)]) -> Self {
        Self { is_patient: true, deadline: now + PATIENCE, ..Self::new(now, servers) }
    }

    /// Sends what is due.
    pub(super) fn handle_timeout(
        &mut self,
        now: Instant,
        rng: &mut dyn CryptoRng,
        transmits: &mut VecDeque<(SocketAddr, Vec<u8>)>,
    ) {
        for probe in &mut self.probes {
            while probe.due(self.started).is_some_and(|due| due <= now) {
                let txid = TransactionId::generate(rng);
                probe.sent.push((txid, now));
                transmits.push_back((probe.server, stun::request(txid)));
            }
        }
    }

    /// Takes an answer: which region gave it, and how long it took. `None` when it answers nothing that was asked, or a
    /// second time.
    pub(super) fn handle_answer(
        &mut self,
        now: Instant,
        from: SocketAddr,
        txid: TransactionId,
        mapped: SocketAddr,
    ) -> Option<(RegionId, Duration)> {
        let asked = |probe: &&mut Probe| probe.server == from && probe.sent.iter().any(|(sent, _)| *sent == txid);
        let probe = self.probes.iter_mut().find(asked).filter(|probe| probe.answer.is_none())?;
        let (_, sent) = probe.sent.iter().find(|(sent, _)| *sent == txid)?;
        let latency = now.saturating_duration_since(*sent);
        probe.answer = Some(mapped);
        let region = probe.region;
        if !self.is_patient {
            self.deadline = self.deadline.min(now + latency.max(MIN_GRACE));
        } else if self.every_region_answered() {
            self.deadline = self.deadline.min(now + FAMILY_PATIENCE);
        }
        Some((region, latency))
    }

    /// Ends the round when every region answered (a patient one: every server) or the time is over. `true` once.
    pub(super) fn finish_if_done(&mut self, now: Instant) -> bool {
        if self.over {
            return false;
        }
        let is_complete = if self.is_patient {
            self.probes.iter().all(|probe| probe.answer.is_some())
        } else {
            self.every_region_answered()
        };
        self.over = now >= self.deadline || is_complete;
        self.over
    }

    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let requests = self.probes.iter().filter_map(|probe| probe.due(self.started));
        requests.chain((!self.over).then_some(self.deadline)).min()
    }

    pub(super) fn answered(&self) -> bool {
        self.probes.iter().any(|probe| probe.answer.is_some())
    }

    /// Whether a server answered over IPv4, over IPv6.
    pub(super) fn families(&self) -> (bool, bool) {
        let answered = |ipv4: bool| self.probes.iter().any(|p| p.answer.is_some() && p.server.is_ipv4() == ipv4);
        (answered(true), answered(false))
    }

    /// Whether two IPv4 servers saw us differently. `None` when fewer than two say.
    pub(super) fn mapping_varies(&self) -> Option<bool> {
        let mapped: Vec<_> = self.probes.iter().filter(|p| p.server.is_ipv4()).filter_map(|p| p.answer).collect();
        (mapped.len() > 1).then(|| mapped.windows(2).any(|pair| pair.first() != pair.last()))
    }

    fn every_region_answered(&self) -> bool {
        let answered: BTreeSet<_> = self.probes.iter().filter(|p| p.answer.is_some()).map(|p| p.region).collect();
        !self.probes.is_empty() && self.probes.iter().all(|probe| answered.contains(&probe.region))
    }
}

impl Probe {
    /// When the next request to this server is to be sent.
    fn due(&self, started: Instant) -> Option<Instant> {
        if self.answer.is_some() {
            return None;
        }
        SCHEDULE.get(self.sent.len()).map(|after| started + *after)
    }
}
