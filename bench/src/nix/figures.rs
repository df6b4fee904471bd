//! Medians, spreads and ratios.

use std::time::Duration;

/// What one measurement took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Taken {
    pub(crate) time: Duration,
    /// Seconds of the coordinator's processors.
    pub(crate) processor: f64,
}

/// What one lane took in each round of a row.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Samples {
    seconds: Vec<f64>,
    processor: Vec<f64>,
}

/// A median and what lies around it.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Samples {
    pub(crate) fn add(&mut self, taken: Duration) {
        self.seconds.push(taken.as_secs_f64());
    }

    /// As [`Samples::add`], with what it cost.
    pub(crate) fn add_taken(&mut self, taken: Taken) {
        self.add(taken.time);
        self.processor.push(taken.processor);
    }

    /// Seconds, in the order of the rounds.
    pub(crate) fn seconds(&self) -> &[f64] {
        &self.seconds
    }

    /// Seconds.
    pub(crate) fn spread(&self) -> Option<Spread> {
        spread(self.seconds.iter().copied())
    }

    /// How many times as fast as `other` this is, round by round: what slowed a round down slowed both down.
    pub(crate) fn speed_against(&self, other: &Self) -> Option<Spread> {
        spread(other.seconds.iter().zip(&self.seconds).map(|(other, own)| other / own))
    }

    /// Seconds of the coordinator's processors.
    pub(crate) fn processor(&self) -> Option<Spread> {
        spread(self.processor.iter().copied())
    }
}

/// Where values lie; the middle of an even number of them is between two.
pub(crate) fn spread(values: impl Iterator<Item = f64>) -> Option<Spread> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (least, most) = (*values.first()?, *values.last()?);
    let (below, above) = (values.get((values.len() - 1) / 2)?, values.get(values.len() / 2)?);
    Some(Spread { median: f64::midpoint(*below, *above), least, most })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(seconds: &[f64]) -> Samples {
        Samples { seconds: seconds.to_vec(), processor: Vec::new() }
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(samples(&[]).spread(), None);
        assert_eq!(samples(&[3.0, 1.0, 2.0]).spread(), Some(Spread { median: 2.0, least: 1.0, most: 3.0 }));
        assert_eq!(samples(&[4.0, 1.0]).spread().map(|spread| spread.median), Some(2.5));
    }

    #[test]
    fn speed_is_compared_round_by_round() {
        // A busy second round says nothing about either.
        let (plain, ours) = (samples(&[1.0, 10.0, 1.2]), samples(&[0.5, 5.0, 0.4]));
        let speed = ours.speed_against(&plain).unwrap();
        assert_eq!(speed.median, 2.0);
        assert!((speed.most - 3.0).abs() < 1e-9);
    }
}
