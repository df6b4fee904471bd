//! The choice of the home region: the nearest of the last minutes, with reluctance to move.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::tailcfg::RegionId;

/// For how long measurements count.
const HISTORY: Duration = Duration::from_secs(5 * 60);
/// How many rounds are kept: what [`HISTORY`] holds at the usual pace, and some that were asked for.
const MAX_ROUNDS: usize = 32;
/// A region that didn't answer in so many rounds isn't there: one round may lose its answers.
const PATIENCE: usize = 2;
/// Home stays unless the other one is nearer by this much …
const MIN_GAIN: Duration = Duration::from_millis(10);
/// … and takes less than this part of its time.
const MIN_GAIN_RATIO: f64 = 2.0 / 3.0;
/// How many regions besides home a restricted round measures.
const NEAREST: usize = 3;

/// The latencies of the last rounds.
#[derive(Debug)]
pub(super) struct History {
    rounds: VecDeque<(Instant, BTreeMap<RegionId, Duration>)>,
    /// What a choice without data is made with.
    seed: u64,
}

impl History {
    pub(super) fn new(seed: u64) -> Self {
        Self { rounds: VecDeque::new(), seed }
    }

    /// A round begins; the oldest ones are forgotten.
    pub(super) fn begin(&mut self, now: Instant) {
        while let Some((began, _)) = self.rounds.front()
            && (now.saturating_duration_since(*began) > HISTORY || self.rounds.len() >= MAX_ROUNDS)
        {
            self.rounds.pop_front();
        }
        self.rounds.push_back((now, BTreeMap::new()));
    }

    /// A region answered in the latest round.
    pub(super) fn record(&mut self, region: RegionId, latency: Duration) {
        if let Some((_, latest)) = self.rounds.back_mut() {
            let best = latest.entry(region).or_insert(latency);
            *best = latency.min(*best);
        }
    }

    /// Forgets regions that can't be home.
    pub(super) fn retain(&mut self, keep: impl Fn(RegionId) -> bool) {
        self.rounds.iter_mut().for_each(|(_, round)| round.retain(|region, _| keep(*region)));
    }

    /// The best latency of each region.
    pub(super) fn latencies(&self) -> BTreeMap<RegionId, Duration> {
        let mut best = BTreeMap::new();
        for (region, latency) in self.rounds.iter().flat_map(|(_, round)| round) {
            let known = best.entry(*region).or_insert(*latency);
            *known = (*known).min(*latency);
        }
        best
    }

    /// Whether nothing is known of the home region.
    pub(super) fn home_is_guess(&self, home: Option<RegionId>) -> bool {
        home.is_none_or(|home| !self.rounds.iter().any(|(_, round)| round.contains_key(&home)))
    }

    /// The home region and the nearest ones.
    pub(super) fn nearest(&self, candidates: &BTreeMap<RegionId, f64>, home: Option<RegionId>) -> BTreeSet<RegionId> {
        let mut known: Vec<_> = self.scored(candidates).collect();
        known.sort_unstable();
        known.into_iter().take(NEAREST).map(|(_, region)| region).chain(home).collect()
    }

    /// The home region from now on, given what it is. Where no region answers over UDP, `relays` decides, what is known of
    /// them over TCP. `is_heard`: home's relay is there, and stays home if it once answered. `None` only without candidates.
    pub(super) fn choose(
        &self,
        candidates: &BTreeMap<RegionId, f64>,
        home: Option<RegionId>,
        relays: &BTreeMap<RegionId, Duration>,
        is_heard: bool,
    ) -> Option<RegionId> {
        let home = home.filter(|home| candidates.contains_key(home));
        let by_udp = self.scored(candidates).filter(|(_, region)| self.latest(*region).is_some()).min();
        let by_relay = || scored(candidates, relays).min();
        let Some((best, nearest)) = by_udp.or_else(by_relay) else {
            return home.or_else(|| self.guess(candidates));
        };
        let known = |home| if by_udp.is_some() { self.latest(home) } else { relays.get(&home).copied() };
        let current = |home| Some((home, scale(known(home)?, *candidates.get(&home)?)));
        let Some((home, current)) = home.and_then(current) else {
            let is_there = |home: &RegionId| is_heard && self.latencies().contains_key(home);
            return home.filter(is_there).or(Some(nearest));
        };
        let stays = best.saturating_add(MIN_GAIN) > current || best > current.mul_f64(MIN_GAIN_RATIO);
        Some(if stays { home } else { nearest })
    }

    /// Best latencies times control's factors.
    fn scored(&self, candidates: &BTreeMap<RegionId, f64>) -> impl Iterator<Item = (Duration, RegionId)> {
        scored(candidates, &self.latencies()).collect::<Vec<_>>().into_iter()
    }

    /// A region's latency now. `None` when it no longer answers.
    fn latest(&self, region: RegionId) -> Option<Duration> {
        self.rounds.iter().rev().take(PATIENCE).find_map(|(_, round)| round.get(&region)).copied()
    }

    /// Without data: one of the regions, always the same one while it is there, and not the same for all nodes.
    fn guess(&self, candidates: &BTreeMap<RegionId, f64>) -> Option<RegionId> {
        candidates.keys().copied().max_by_key(|region| mix(self.seed ^ u64::from(*region)))
    }
}

fn scored(
    candidates: &BTreeMap<RegionId, f64>,
    latencies: &BTreeMap<RegionId, Duration>,
) -> impl Iterator<Item = (Duration, RegionId)> {
    candidates.iter().filter_map(move |(id, score)| Some((scale(*latencies.get(id)?, *score), *id)))
}

/// A latency times a factor, without overflow whatever the factor.
fn scale(latency: Duration, factor: f64) -> Duration {
    Duration::try_from_secs_f64(latency.as_secs_f64() * factor).unwrap_or(Duration::MAX)
}

/// SplitMix64's finaliser: every bit of the result depends on every bit of `n`.
fn mix(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}
