//! What was measured, round by round, and what follows from it: medians, spreads, ratios.

use std::collections::BTreeMap;

use super::plan::{Peer, Quantity};
use crate::nix::figures::{Spread, spread};

/// A value by nearest rank: one that was measured, and that `percent` of 100 don't exceed.
pub(super) fn quantile(values: &[f64], percent: usize) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get((values.len() * percent).div_ceil(100).saturating_sub(1)).copied()
}

/// One figure for each round in which there was one.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Samples(BTreeMap<u8, f64>);

impl Samples {
    pub(super) fn values(&self) -> Vec<f64> {
        self.0.values().copied().collect()
    }

    pub(super) fn spread(&self) -> Option<Spread> {
        spread(self.0.values().copied())
    }
}

/// The ratio of two peers' figures.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(super) struct Ratio {
    /// Of the medians: what targets are about.
    pub(super) of_medians: f64,
    /// The least and the most of the rounds' own ratios: what slowed one of a round down slowed the other one down, too.
    pub(super) least: f64,
    pub(super) most: f64,
}

/// All figures of a run: by link, what it is a figure of, and whose.
#[derive(Debug, Clone, Default)]
pub(super) struct Figures(BTreeMap<(&'static str, Quantity, Peer), Samples>);

impl Figures {
    pub(super) fn add(&mut self, link: &'static str, quantity: Quantity, peer: Peer, round: u8, value: f64) {
        // A ratio of it would mean nothing.
        if value.is_finite() {
            self.0.entry((link, quantity, peer)).or_default().0.insert(round, value);
        }
    }

    pub(super) fn get(&self, link: &'static str, quantity: Quantity, peer: Peer) -> Option<&Samples> {
        self.0.get(&(link, quantity, peer))
    }

    /// How one peer's figures compare to another's.
    pub(super) fn ratio(&self, link: &'static str, quantity: Quantity, [own, other]: [Peer; 2]) -> Option<Ratio> {
        let (own, other) = (self.get(link, quantity, own)?, self.get(link, quantity, other)?);
        let rounds = own.0.iter().filter_map(|(round, own)| Some(own / other.0.get(round)?));
        let rounds = spread(rounds.filter(|ratio| ratio.is_finite()))?;
        let of_medians = own.spread()?.median / other.spread()?.median;
        Some(Ratio { of_medians, least: rounds.least, most: rounds.most })
    }

    /// Whoever has figures of any of these quantities on a link, in the order of [`Peer`].
    pub(super) fn peers(&self, link: &'static str, quantities: &[Quantity]) -> Vec<Peer> {
        let has = |peer: &Peer| quantities.iter().any(|quantity| self.get(link, *quantity, *peer).is_some());
        Peer::ALL.into_iter().filter(has).collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&(&'static str, Quantity, Peer), &Samples)> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        assert_eq!(quantile(&[], 50), None);
        assert_eq!(quantile(&[7.0], 99), Some(7.0));
        let values: Vec<f64> = (1..=1_000).rev().map(f64::from).collect();
        assert_eq!([50, 99, 100].map(|percent| quantile(&values, percent)), [500.0, 990.0, 1000.0].map(Some));
    }

    fn figures(ours: &[f64], theirs: &[f64]) -> Figures {
        let mut figures = Figures::default();
        for (peer, values) in [(Peer::Nixtail, ours), (Peer::Tsnet, theirs)] {
            for (round, value) in (0..).zip(values) {
                figures.add("clean", Quantity::One, peer, round, *value);
            }
        }
        figures
    }

    const BOTH: [Peer; 2] = [Peer::Nixtail, Peer::Tsnet];

    #[test]
    fn a_ratio_is_that_of_the_medians_and_its_spread_that_of_the_rounds() {
        let ratio = figures(&[30.0, 20.0, 40.0], &[10.0, 5.0, 20.0]).ratio("clean", Quantity::One, BOTH).unwrap();
        assert_eq!(ratio, Ratio { of_medians: 3.0, least: 2.0, most: 4.0 });
    }

    #[test]
    fn a_round_that_failed_for_one_is_no_ratio() {
        let mut figures = figures(&[30.0, f64::NAN, 40.0], &[10.0, 5.0, 20.0]);
        figures.add("clean", Quantity::One, Peer::Nixtail, 1, f64::INFINITY);
        let ratio = figures.ratio("clean", Quantity::One, BOTH).unwrap();
        assert_eq!(ratio, Ratio { of_medians: 3.5, least: 2.0, most: 3.0 });
        assert_eq!(figures.get("clean", Quantity::One, Peer::Nixtail).unwrap().values(), [30.0, 40.0]);
        assert_eq!(figures.ratio("clean", Quantity::Eight, BOTH), None);
        assert_eq!(figures.ratio("clean", Quantity::One, [Peer::Nixtail, Peer::Kernel]), None);
    }

    #[test]
    fn who_was_measured_comes_in_a_fixed_order() {
        let figures = figures(&[1.0], &[1.0]);
        assert_eq!(figures.peers("clean", &[Quantity::Eight, Quantity::One]), BOTH);
        assert_eq!(figures.peers("far", &[Quantity::One]), []);
    }
}
