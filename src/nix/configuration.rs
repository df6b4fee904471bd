//! The settings that a builder gives its own Nix, since a coordinator's don't come along: `ssh-ng` forwards neither
//! `timeout` nor `max-silent-time` nor `cores`.
//!
//! They go to each child as `NIX_CONFIG`. Nix reads that last, so it wins against every file; unlike a `nix.conf` of ours it
//! leaves the machine's own in force (its substituters, its netrc beside it), it lies nowhere on the disk, and a child that
//! relays to the system's daemon forwards what stands there, but nothing that stands in `nix.conf`
//! (`loadConfFile` and `RemoteStore::setOptions`). Whether that reaches a build is found by a
//! [`probe`](super::probe): a child that opens the store itself obeys in any case, one that relays does since Nix 2.20.

use std::fmt::Write as _;
use std::time::Duration;

use super::machine::Size;
use super::settings::Settings;

/// Memory that a job should find: C++ and Rust compilers and their linkers take about so much.
const MEMORY_OF_JOB: u64 = 2 << 30;
/// Processors that a job should find while there are enough: most builds are parallel only in parts.
const CORES_OF_JOB: u32 = 2;
/// Fewer jobs than this and a coordinator's Nix polls for the one slot, every five seconds.
const LEAST_JOBS: u32 = 2;

/// What the operator wants of a builder's Nix, beside what its `nix.conf` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Builds at once.
    pub max_jobs: Option<u32>,
    /// Processors of one build; 0 is all of them.
    pub cores: Option<u32>,
    /// The longest a build may take.
    pub timeout: Option<Duration>,
    /// The longest a build may be silent.
    pub max_silent_time: Option<Duration>,
    /// More lines of nix.conf.
    pub lines: String,
}

/// How a machine is divided between builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Division {
    /// Builds at once.
    pub jobs: u32,
    /// Processors of each; 0 is all of them.
    pub cores: u32,
}

impl Division {
    /// By wish, else by `nix.conf`, else so that all jobs together have about as many processors as there are.
    pub fn of(wishes: &Wishes, settings: &Settings, size: &Size) -> Self {
        let by_memory = u32::try_from(size.memory_bytes / MEMORY_OF_JOB).unwrap_or(u32::MAX);
        let fitting = (size.cores / CORES_OF_JOB).min(by_memory).max(LEAST_JOBS);
        // Where nix.conf forbids builds of its own, it means those of this machine's users.
        let jobs = wishes.max_jobs.or_else(|| settings.max_jobs.filter(|jobs| *jobs > 0)).unwrap_or(fitting);
        let cores = wishes.cores.or(settings.cores).unwrap_or_else(|| (size.cores / jobs.max(1)).max(1));
        Self { jobs, cores }
    }
}

/// The operator's own words: what the environment says, and what was asked for.
pub fn given(inherited: &str, wishes: &Wishes) -> String {
    ended(inherited) + &ended(&wishes.lines)
}

/// The whole text for the children that serve.
pub fn serving(inherited: &str, wishes: &Wishes, division: Division, features: &[String]) -> String {
    let mut text = ended(inherited);
    let seconds = [("timeout", wishes.timeout), ("max-silent-time", wishes.max_silent_time)];
    // Writing to a string doesn't fail.
    let _ = writeln!(text, "max-jobs = {}\ncores = {}", division.jobs, division.cores);
    for (name, duration) in seconds {
        if let Some(duration) = duration {
            let _ = writeln!(text, "{name} = {}", whole_seconds(duration));
        }
    }
    let _ = writeln!(text, "fallback = true\nsystem-features = {}", features.join(" "));
    // A machine that is its own builder's coordinator would forward in circles.
    text + &ended(&wishes.lines) + "builders =\n"
}

/// Nix counts in seconds, and takes 0 for no limit.
pub(super) fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

fn ended(text: &str) -> String {
    if text.is_empty() || text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::settings::tests::defaults;

    const GIB: u64 = 1 << 30;

    #[test]
    fn jobs_times_cores_is_about_the_processors() {
        for (cores, memory, jobs, cores_of_each) in
            [(1, 2, 2, 1), (2, 7, 2, 1), (4, 16, 2, 2), (8, 32, 4, 2), (64, 256, 32, 2), (64, 16, 8, 8), (16, 1, 2, 8)]
        {
            let size = Size { cores, memory_bytes: memory * GIB };
            let division = Division::of(&Wishes::default(), &defaults(), &size);
            assert_eq!(division, Division { jobs, cores: cores_of_each }, "{cores} cores, {memory} GiB");
        }
    }

    #[test]
    fn a_wish_goes_before_nix_conf_and_that_before_our_own_division() {
        let size = Size { cores: 8, memory_bytes: 64 * GIB };
        let settings = Settings { max_jobs: Some(3), cores: Some(5), ..defaults() };
        let wishes = Wishes { max_jobs: Some(6), ..Wishes::default() };
        assert_eq!(Division::of(&Wishes::default(), &settings, &size), Division { jobs: 3, cores: 5 });
        assert_eq!(Division::of(&wishes, &settings, &size), Division { jobs: 6, cores: 5 });
        let wishes = Wishes { cores: Some(0), ..wishes };
        assert_eq!(Division::of(&wishes, &settings, &size), Division { jobs: 6, cores: 0 });
        let forbidden = Settings { max_jobs: Some(0), ..defaults() };
        assert_eq!(Division::of(&Wishes::default(), &forbidden, &size).jobs, 4);
    }

    #[test]
    fn the_operators_words_win_but_nothing_is_sent_on() {
        let wishes = Wishes {
            timeout: Some(Duration::from_secs(3600)),
            lines: "cores = 9\nbuilders = ssh://x".into(),
            ..Wishes::default()
        };
        let text = serving("experimental-features = a", &wishes, Division { jobs: 2, cores: 1 }, &["kvm".into()]);
        assert_eq!(
            text,
            "experimental-features = a\nmax-jobs = 2\ncores = 1\ntimeout = 3600\nfallback = true\n\
             system-features = kvm\ncores = 9\nbuilders = ssh://x\nbuilders =\n"
        );
    }
}
