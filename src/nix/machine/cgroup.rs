//! What control groups leave of a machine: version 1 and 2, or both side by side (cgroups(7)).
//!
//! A limit may stand at any group from a process' own up to the root, so all of them are read and the tightest one counts.

use std::fs;
use std::path::{Path, PathBuf};

/// A v1 memory limit above this means none: the kernel writes 2^63 rounded down to a page.
const NO_LIMIT: u64 = 1 << 62;

/// Groups between a process and the root that are read; real machines have under ten.
const MAX_DEPTH: usize = 64;

/// What is left by all groups together; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Limits {
    /// Processors that the quota pays for.
    pub(super) cpus: Option<f64>,
    /// Bytes of memory in all.
    pub(super) memory_bytes: Option<u64>,
    /// Bytes of memory that aren't used yet, or only by files that can be read again.
    pub(super) memory_left_bytes: Option<u64>,
}

impl Limits {
    /// Those of a process whose `/proc/PID/cgroup` this is.
    pub(super) fn of(cgroups: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        read(cgroups, &mounts, &|path| fs::read_to_string(path).ok())
    }

    fn add(&mut self, other: Self) {
        self.cpus = least(self.cpus, other.cpus, f64::min);
        self.memory_bytes = least(self.memory_bytes, other.memory_bytes, u64::min);
        self.memory_left_bytes = least(self.memory_left_bytes, other.memory_left_bytes, u64::min);
    }
}

fn least<T>(one: Option<T>, other: Option<T>, smaller: impl Fn(T, T) -> T) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(smaller(one, other)),
        (one, other) => one.or(other),
    }
}

type ReadFile<'a> = &'a dyn Fn(&Path) -> Option<String>;

fn read(cgroups: &str, mounts: &str, file: ReadFile<'_>) -> Limits {
    let mut limits = Limits::default();
    for line in cgroups.lines() {
        // hierarchy:controllers:path, see cgroups(7).
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let has = |wanted: &str| controllers.split(',').any(|controller| controller == wanted);
        for folder in folders(mounts, controllers, path) {
            if controllers.is_empty() {
                limits.add(version_2(&folder, file));
            }
            if has("cpu") {
                limits.cpus = least(limits.cpus, cpu_version_1(&folder, file), f64::min);
            }
            if has("memory") {
                limits.add(memory_version_1(&folder, file));
            }
        }
    }
    limits
}

/// The folder of a group and of those above it, as far as they can be seen from here.
fn folders(mounts: &str, controllers: &str, path: &str) -> Vec<PathBuf> {
    let Some((root, mount)) = mounts.lines().find_map(|line| mount_of(line, controllers)) else { return Vec::new() };
    // In a container the mount may begin at its own group, or the path at a root that can't be seen.
    let below = Path::new(path).strip_prefix(root).unwrap_or_else(|_| Path::new(""));
    let below = if below.components().any(|part| part.as_os_str() == "..") { Path::new("") } else { below };
    let deepest = Path::new(mount).join(below);
    deepest.ancestors().take(MAX_DEPTH).take_while(|folder| folder.starts_with(mount)).map(Path::to_owned).collect()
}

/// Root and mount point, if this line of mountinfo (proc(5)) is the mount of these controllers.
fn mount_of<'a>(line: &'a str, controllers: &str) -> Option<(&'a str, &'a str)> {
    let (mount, kind) = line.split_once(" - ")?;
    let mut kind = kind.split(' ');
    let (filesystem, options) = (kind.next()?, kind.nth(1).unwrap_or_default());
    let is_it = match controllers {
        "" => filesystem == "cgroup2",
        named => filesystem == "cgroup" && named.split(',').all(|one| options.split(',').any(|option| option == one)),
    };
    let mut fields = mount.split(' ').skip(3);
    is_it.then_some((fields.next()?, fields.next()?))
}

fn version_2(folder: &Path, file: ReadFile<'_>) -> Limits {
    let number = |name: &str| file(&folder.join(name)).and_then(|text| text.trim().parse::<u64>().ok());
    let cpus = file(&folder.join("cpu.max")).and_then(|text| {
        // `max 100000` or `QUOTA PERIOD`, in microseconds.
        let (quota, period) = text.trim().split_once(' ')?;
        ratio(quota, period)
    });
    let left = |limit| Some(left(limit, number("memory.current")?, folder, "inactive_file", file));
    let memory_bytes = number("memory.max");
    Limits { cpus, memory_bytes, memory_left_bytes: memory_bytes.and_then(left) }
}

fn cpu_version_1(folder: &Path, file: ReadFile<'_>) -> Option<f64> {
    // A quota of -1 is none.
    ratio(file(&folder.join("cpu.cfs_quota_us"))?.trim(), file(&folder.join("cpu.cfs_period_us"))?.trim())
}

fn memory_version_1(folder: &Path, file: ReadFile<'_>) -> Limits {
    let number = |name: &str| file(&folder.join(name)).and_then(|text| text.trim().parse::<u64>().ok());
    let memory_bytes = number("memory.limit_in_bytes").filter(|limit| *limit < NO_LIMIT);
    let left = |limit| Some(left(limit, number("memory.usage_in_bytes")?, folder, "total_inactive_file", file));
    Limits { cpus: None, memory_bytes, memory_left_bytes: memory_bytes.and_then(left) }
}

/// What a group may still use: its cache of files that nobody uses gives way.
fn left(limit: u64, used: u64, folder: &Path, cache: &str, file: ReadFile<'_>) -> u64 {
    let statistics = file(&folder.join("memory.stat")).unwrap_or_default();
    let cached = statistics.lines().find_map(|line| line.strip_prefix(cache)?.trim().parse::<u64>().ok());
    limit.saturating_sub(used.saturating_sub(cached.unwrap_or(0)))
}

fn ratio(quota: &str, period: &str) -> Option<f64> {
    let (quota, period): (u64, u64) = (quota.parse().ok()?, period.parse().ok()?);
    (period > 0).then(|| quota as f64 / period as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(cgroups: &str, mounts: &str, files: &[(&str, &str)]) -> Limits {
        read(cgroups, mounts, &|path| {
            files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| (*text).to_owned())
        })
    }

    const VERSION_2: &str = "30 1 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
    const VERSION_1: &str = "33 25 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
         34 25 0:30 /docker/1f /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

    #[test]
    fn the_tightest_group_of_version_2_counts() {
        let files = [
            ("/sys/fs/cgroup/system.slice/cpu.max", "150000 100000\n"),
            ("/sys/fs/cgroup/system.slice/memory.max", "4096\n"),
            ("/sys/fs/cgroup/system.slice/memory.current", "3000\n"),
            ("/sys/fs/cgroup/system.slice/memory.stat", "anon 100\ninactive_file 1000\n"),
            ("/sys/fs/cgroup/system.slice/nix.service/cpu.max", "max 100000\n"),
            ("/sys/fs/cgroup/system.slice/nix.service/memory.max", "max\n"),
        ];
        let found = limits("0::/system.slice/nix.service\n", VERSION_2, &files);
        let wanted = Limits { cpus: Some(1.5), memory_bytes: Some(4096), memory_left_bytes: Some(2096) };
        assert_eq!(found, wanted);
        assert_eq!(limits("0::/\n", VERSION_2, &files), Limits::default());
    }

    #[test]
    fn version_1_in_a_container_counts_from_its_own_mount() {
        let files = [
            ("/sys/fs/cgroup/cpu,cpuacct/docker/1f/cpu.cfs_quota_us", "200000\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/docker/1f/cpu.cfs_period_us", "100000\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "1000000\n"),
            ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "600000\n"),
            ("/sys/fs/cgroup/memory/memory.stat", "inactive_file 5\ntotal_inactive_file 100000\n"),
        ];
        let found = limits("5:memory:/docker/1f\n3:cpu,cpuacct:/docker/1f\n0::/x\n", VERSION_1, &files);
        let wanted = Limits { cpus: Some(2.0), memory_bytes: Some(1_000_000), memory_left_bytes: Some(500_000) };
        assert_eq!(found, wanted);
    }

    #[test]
    fn no_limit_is_none() {
        let files = [
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        assert_eq!(limits("5:memory:/\n3:cpu,cpuacct:/\n", VERSION_1, &files), Limits::default());
    }

    #[test]
    fn nonsense_is_no_limit() {
        let files = [("/sys/fs/cgroup/cpu.max", "1 0"), ("/sys/fs/cgroup/memory.max", "-7")];
        for (cgroups, mounts) in
            [("", ""), ("::", VERSION_2), ("0::/../../etc", VERSION_2), ("x", "y"), ("0::/", "30 - cgroup2")]
        {
            assert_eq!(limits(cgroups, mounts, &files), Limits::default(), "{cgroups:?}");
        }
    }

    /// A real group with a real quota, where root may make one.
    #[test]
    fn a_quota_that_the_kernel_holds_is_seen() {
        let mount = Path::new("/sys/fs/cgroup/cpu");
        let group = mount.join(format!("nixtail-test-{}", std::process::id()));
        if !mount.join("cpu.cfs_quota_us").parent().is_some_and(Path::exists) || fs::create_dir(&group).is_err() {
            eprintln!("skipped: no control group of version 1 can be made here");
            return;
        }
        let set = fs::write(group.join("cpu.cfs_quota_us"), "150000");
        let name = group.file_name().unwrap().to_str().unwrap();
        let found = Limits::of(&format!("3:cpu:/{name}\n"));
        fs::remove_dir(&group).unwrap();
        set.unwrap();
        assert_eq!(found.cpus, Some(1.5));
    }
}
