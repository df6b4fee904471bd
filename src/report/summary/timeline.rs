//! Which builds a picture of a run shows, and how its time axis is divided. Both pictures are drawn from this.

use std::time::Duration;

use super::{Build, Outcome, Summary};

/// The builds that are shown of one builder, by start.
pub(super) struct Row<'a> {
    /// The builder, as an index into the summary's.
    pub(super) builder: usize,
    /// Its builds.
    pub(super) builds: Vec<&'a Build>,
}

/// The most important builds, up to `limit`, by builder; and how many are left out. What wasn't built or runs comes
/// first, then what took long.
pub(super) fn rows(summary: &Summary, limit: usize, shows: impl Fn(&Build) -> bool) -> (Vec<Row<'_>>, u64) {
    let mut builds: Vec<&Build> = summary.builds.iter().filter(|build| shows(build)).collect();
    builds.sort_by_key(|build| (build.outcome == Outcome::Built, std::cmp::Reverse(build.length())));
    builds.truncate(limit);
    let left_out = summary.builds_left_out + (summary.builds.len() - builds.len()) as u64;
    builds.sort_by_key(|build| (build.started_ms, build.slot));
    let rows = summary.builders.iter().enumerate().map(|(index, builder)| Row {
        builder: index,
        builds: builds.iter().copied().filter(|build| build.builder == builder.name).collect(),
    });
    (rows.collect(), left_out)
}

/// The distance of ticks on an axis of that length with about `wanted` of them: a time that people divide by.
pub(super) fn tick(length: Duration, wanted: u32) -> Duration {
    const STEPS_MS: [u64; 22] = [
        100,
        200,
        500,
        1_000,
        2_000,
        5_000,
        10_000,
        15_000,
        30_000,
        60_000,
        120_000,
        300_000,
        600_000,
        900_000,
        1_800_000,
        3_600_000,
        7_200_000,
        14_400_000,
        21_600_000,
        43_200_000,
        86_400_000,
        172_800_000,
    ];
    let least = length / wanted.max(1);
    let step = STEPS_MS.into_iter().map(Duration::from_millis).find(|step| *step >= least);
    step.unwrap_or_else(|| Duration::from_secs(86_400 * least.as_secs().div_ceil(86_400)))
}

/// How many builds ran at one time, on the average in each of `parts` equal parts of the run.
pub(super) fn at_once(summary: &Summary, parts: usize) -> Vec<f64> {
    let mut sums = vec![0.0; parts];
    let part = summary.lasted_ms.max(1) as f64 / parts as f64;
    for build in &summary.builds {
        let (from, until) = (build.started_ms as f64 / part, build.ended_ms as f64 / part);
        for (index, sum) in
            sums.iter_mut().enumerate().skip(from as usize).take_while(|(index, _)| (*index as f64) < until)
        {
            let (begin, end) = (index as f64, index as f64 + 1.0);
            *sum += until.min(end) - from.max(begin);
        }
    }
    sums
}
