//! Medians, the 99th of a hundred, and whether that will do.

use std::error::Error;

/// What the 99th of a hundred may take from the dial to the first byte back, and what any may, in seconds.
const P99: f64 = 1.5;
const MOST: f64 = 3.0;

/// Where values lie, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(super) struct Quantiles {
    pub(super) count: usize,
    pub(super) median: f64,
    pub(super) p99: f64,
    pub(super) most: f64,
}

impl Quantiles {
    /// By nearest rank: each figure is one that was measured.
    pub(super) fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let rank = |percent: usize| values.get((values.len() * percent).div_ceil(100).saturating_sub(1)).copied();
        Some(Self { count: values.len(), median: rank(50)?, p99: rank(99)?, most: rank(100)? })
    }

    /// In milliseconds, for people.
    pub(super) fn shown(self) -> String {
        let [median, p99, most] = [self.median, self.p99, self.most].map(|seconds| seconds * 1e3);
        format!("{median:.1}  {p99:.1}  {most:.1}")
    }
}

/// What is judged: ours.
pub(super) struct Verdict {
    pub(super) quantiles: Option<Quantiles>,
    pub(super) failed: usize,
}

impl Verdict {
    pub(super) fn judge(&self) -> Result<(), Box<dyn Error>> {
        if self.failed > 0 {
            return Err(format!("{} pairs of ours didn't meet at all", self.failed).into());
        }
        let Quantiles { p99, most, .. } = self.quantiles.ok_or("no pair of ours has met")?;
        if p99 >= P99 || most > MOST {
            return Err(format!("p99 {p99:.3} s (must be below {P99}), most {most:.3} s (at most {MOST})").into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f64]) -> Option<Quantiles> {
        Quantiles::of(values.iter().copied())
    }

    #[test]
    fn quantiles_are_values_that_were_measured() {
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[2.0]), Some(Quantiles { count: 1, median: 2.0, p99: 2.0, most: 2.0 }));
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(of(&values), Some(Quantiles { count: 200, median: 100.0, p99: 198.0, most: 200.0 }));
    }

    #[test]
    fn too_slow_and_failed_pairs_fail_the_run() {
        let judge = |values: &[f64], failed| Verdict { quantiles: of(values), failed }.judge().is_ok();
        assert!(judge(&[0.1, 1.4], 0));
        assert!(!judge(&[0.1, 1.5], 0));
        assert!(!judge(&[0.1], 1) && !judge(&[], 0));
        let mut values = vec![0.1; 200];
        values[0] = 2.9;
        assert!(judge(&values, 0), "one of two hundred");
        values[0] = 3.1;
        assert!(!judge(&values, 0));
    }
}
