//! Speed factors: how Nix is told that one builder is faster than another.

/// Machines whose speeds differ by no more than this count as equal: the same machine, measured twice, differs so much.
const EQUAL: f64 = 1.2;
/// The greatest factor. Nix puts a load of `running / factor` on each machine, so that more says nothing any more.
const GREATEST: u32 = 16;

/// A builder's speed and how many builds it takes at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    /// Against a usual machine; `None` is unknown, and counts as the slowest.
    pub speed: Option<f64>,
    /// Column 4 of its machines line.
    pub max_jobs: u32,
}

/// The factor of each builder, in the order given: the slowest has 1, and equal machines have equal ones.
///
/// They are integers, as Nix before 2.20 wants them. None is greater than the builder's `max_jobs`: Nix 2.8 divides as
/// integers, so that such a builder would be asked first until it is full, however slow the others get.
#[must_use]
pub fn speed_factors(builders: &[Speed]) -> Vec<u32> {
    let known = |builder: &Speed| builder.speed.filter(|speed| speed.is_finite() && *speed > 0.0);
    let mut speeds: Vec<f64> = builders.iter().filter_map(known).collect();
    speeds.sort_by(f64::total_cmp);
    // Neighbours that are near each other belong together: so the border between two factors never parts equal machines.
    let mut groups: Vec<Vec<f64>> = Vec::new();
    for speed in speeds {
        match groups.last_mut() {
            Some(group) if group.last().is_some_and(|last| speed <= last * EQUAL) => group.push(speed),
            _ => groups.push(vec![speed]),
        }
    }
    let mean = |group: &Vec<f64>| group.iter().sum::<f64>() / group.len() as f64;
    let slowest = groups.first().map_or(1.0, mean);
    let factor = |builder: &Speed| {
        let Some(speed) = known(builder) else { return 1 };
        let group = groups.iter().find(|group| group.contains(&speed)).map_or(slowest, mean);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is between 1 and GREATEST")]
        let factor = (group / slowest).round().clamp(1.0, f64::from(GREATEST)) as u32;
        factor.min(builder.max_jobs.max(1))
    };
    builders.iter().map(factor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factors(speeds: &[f64], max_jobs: u32) -> Vec<u32> {
        let builders: Vec<_> = speeds.iter().map(|speed| Speed { speed: Some(*speed), max_jobs }).collect();
        speed_factors(&builders)
    }

    #[test]
    fn equal_machines_have_equal_factors() {
        assert_eq!(factors(&[1.0, 1.1, 0.95], 8), [1, 1, 1]);
        // On either side of the border at 2.5 times the slowest.
        assert_eq!(factors(&[0.5, 1.2, 1.3, 1.28], 8), [1, 3, 3, 3]);
        assert_eq!(factors(&[2.0, 1.0, 2.1], 8), [2, 1, 2]);
    }

    #[test]
    fn no_factor_makes_nix_prefer_one_builder_always() {
        assert_eq!(factors(&[1.0, 9.0], 4), [1, 4]);
        assert_eq!(factors(&[0.01, 100.0], 100), [1, GREATEST]);
    }

    #[test]
    fn what_is_unknown_or_no_speed_counts_as_the_slowest() {
        let speed = |speed| Speed { speed, max_jobs: 4 };
        let builders = [speed(None), speed(Some(f64::NAN)), speed(Some(-1.0)), speed(Some(3.0)), speed(Some(1.0))];
        assert_eq!(speed_factors(&builders), [1, 1, 1, 3, 1]);
        assert_eq!(speed_factors(&[]), [0; 0]);
    }
}
