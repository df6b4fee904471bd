//! This machine as builds find it: processors, memory, disk, load and speed. On Linux no child is started for any of it.

mod cgroup;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(any(not(target_os = "linux"), test))]
mod macos;
mod speed;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

#[cfg(target_os = "linux")]
use linux as system;
#[cfg(not(target_os = "linux"))]
use macos as system;
pub use speed::{REFERENCE_BYTES_PER_SECOND, speed};

/// The processes whose limits count: those of the builds, as the kernel tells of one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// `/proc/PID/cgroup`.
    pub cgroups: String,
    /// `Cpus_allowed_list` of `/proc/PID/status`, such as `0-3,8`.
    pub allowed_cpus: String,
}

impl Membership {
    /// This process'.
    pub fn own() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        Self {
            cgroups: fs::read_to_string("/proc/self/cgroup").unwrap_or_default(),
            allowed_cpus: allowed.unwrap_or_default().trim().to_owned(),
        }
    }
}

/// What of this machine one group of processes may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Size {
    /// Processors: those that the affinity allows, or as many as the CPU quota pays for. A part of one doesn't count, but
    /// there is one at least.
    pub cores: u32,
    /// Bytes of memory: the machine's or, where it is less, the control group's limit.
    pub memory_bytes: u64,
}

impl Size {
    /// What `members` may use.
    pub fn of(members: &Membership) -> Self {
        let limits = cgroup::Limits::of(&members.cgroups);
        Self {
            cores: cores(&members.allowed_cpus, limits.cpus),
            memory_bytes: limits.memory_bytes.unwrap_or(u64::MAX).min(system::look().total_memory),
        }
    }
}

/// How this machine is at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moment {
    /// Processes that run or wait to run, averaged over a minute; of the whole machine.
    pub load: f64,
    /// Bytes of memory that new work can have without swapping, within the control group's limit.
    pub memory_available_bytes: u64,
    /// Bytes that an ordinary user may still write where the store is; `None` where the disk can't be looked at.
    pub free_disk_bytes: Option<u64>,
}

/// What the system says of the whole machine.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Whole {
    /// Processes that run or wait to run, averaged over a minute.
    load: f64,
    /// Bytes of memory.
    total_memory: u64,
    /// Bytes of it that new work can have without swapping.
    available_memory: u64,
}

/// Looks now. It reads a few small files (on macOS, what one small program says): cheap enough for every second.
///
/// `store` is where the store is on disk, see [`Facts::store_on_disk`](crate::nix::facts::Facts::store_on_disk).
pub fn now(store: &Path) -> Moment {
    let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = cgroup::Limits::of(&cgroups);
    let whole = system::look();
    Moment {
        load: whole.load,
        memory_available_bytes: limits.memory_left_bytes.unwrap_or(u64::MAX).min(whole.available_memory),
        free_disk_bytes: free_disk(store).ok(),
    }
}

/// Free bytes for an ordinary user at `path`, or at the nearest folder above it that exists.
///
/// # Errors
/// What the system says when that folder can't be looked at.
pub fn free_disk(path: &Path) -> Result<u64, DiskError> {
    let existing = path.ancestors().find(|folder| folder.exists()).unwrap_or_else(|| Path::new("/"));
    let found =
        rustix::fs::statvfs(existing).map_err(|error| DiskError { path: existing.to_owned(), source: error.into() })?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// A disk that can't be looked at.
#[derive(Debug, thiserror::Error)]
#[error("can't look at the disk of {}: {source}", path.display())]
pub struct DiskError {
    /// The folder.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

fn cores(allowed: &str, quota: Option<f64>) -> u32 {
    let everybody = || std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let allowed = count_cpus(allowed).unwrap_or_else(everybody);
    let paid = quota.map_or(allowed, |cpus| (cpus as u64).min(allowed));
    u32::try_from(paid.max(1)).unwrap_or(u32::MAX)
}

/// The number of processors in a list like `0-3,8` (cpuset(7), "List format").
fn count_cpus(list: &str) -> Option<u64> {
    let count = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        last.trim().parse::<u64>().ok()?.checked_sub(first.trim().parse().ok()?)?.checked_add(1)
    };
    list.split(',').try_fold(0_u64, |sum, range| sum.checked_add(count(range)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_what_affinity_and_quota_leave() {
        assert_eq!(cores("0-3,8", None), 5);
        assert_eq!(cores("0-7", Some(2.5)), 2);
        assert_eq!(cores("0-1", Some(64.0)), 2);
        assert_eq!(cores("0-7", Some(0.2)), 1);
        // What can't be read leaves what the standard library knows.
        assert!(cores("", None) >= 1);
        for bad in ["x", "3-1", "1,", "-", "0-18446744073709551615"] {
            assert_eq!(count_cpus(bad), None, "{bad}");
        }
    }

    #[test]
    fn our_own_size_is_at_least_something() {
        let own = Size::of(&Membership::own());
        assert!(own.cores >= 1 && own.memory_bytes > 1 << 20, "{own:?}");
    }

    #[test]
    fn this_moment_has_a_load_memory_and_a_disk() {
        let now = now(Path::new("/tmp"));
        assert!((0.0..100_000.0).contains(&now.load), "{now:?}");
        assert!(now.memory_available_bytes > 0 && now.memory_available_bytes <= system::look().total_memory, "{now:?}");
        assert!(now.free_disk_bytes.is_some_and(|free| free > 0), "{now:?}");
    }

    #[test]
    fn free_disk_is_that_of_the_nearest_folder() {
        assert!(free_disk(Path::new("/tmp/there/is/none")).unwrap() > 0);
    }
}
