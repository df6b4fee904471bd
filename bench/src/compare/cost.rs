//! What a side costs: processor time and memory of its processes, as the kernel counts them.
//!
//! A side is all that one end of a pair needs: a daemon, the load end, what these have started. What the kernel does for a
//! packet in an interrupt is counted for nobody, or for whoever happened to run: so the kernel's own TCP looks cheaper than it is.

use std::collections::HashMap;
use std::fs;

/// The kernel's unit of time in /proc (`USER_HZ`), which is the same wherever Linux runs on x86 and ARM.
const TICKS: f64 = 100.0;

/// The processor time of processes and of all that they have started, in seconds.
pub(super) fn cpu_seconds(roots: &[u32]) -> f64 {
    let mut stats = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // One that has ended meanwhile is in its parent's count.
        if let Some(stat) = fs::read_to_string(entry.path().join("stat")).ok().as_deref().and_then(parse) {
            stats.insert(id, stat);
        }
    }
    sum(&stats, roots) as f64 / TICKS
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Stat {
    parent: u32,
    /// Its own, and that of its children that have ended and were waited for.
    ticks: u64,
}

/// See proc_pid_stat(5).
fn parse(stat: &str) -> Option<Stat> {
    // The name may hold anything, a bracket, too; what follows the last one doesn't.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    // The fields are counted from 1 there, and the first one here is the third one.
    let ticks = (14..=17).map(|field| number(field - 3)).sum::<Option<u64>>()?;
    Some(Stat { parent: u32::try_from(number(4 - 3)?).ok()?, ticks })
}

fn sum(stats: &HashMap<u32, Stat>, roots: &[u32]) -> u64 {
    let belongs = |mut id: u32| {
        // A parent is older than its child, so no way up is longer than this.
        for _ in 0..stats.len() {
            if roots.contains(&id) {
                return true;
            }
            let Some(stat) = stats.get(&id) else { return false };
            id = stat.parent;
        }
        false
    };
    stats.iter().filter(|(id, _)| belongs(**id)).map(|(_, stat)| stat.ticks).sum()
}

/// Lets the kernel count the most memory of these processes from now on.
pub(super) fn forget_peak(processes: &[u32]) {
    for process in processes {
        // Where that isn't allowed, it counts from its start.
        let _ = fs::write(format!("/proc/{process}/clear_refs"), "5");
    }
}

/// The most memory that these processes had together, at the most, in MiB.
pub(super) fn peak_memory(processes: &[u32]) -> f64 {
    memory(processes, "VmHWM:")
}

/// The memory that these processes have now, in MiB.
pub(super) fn memory_now(processes: &[u32]) -> f64 {
    memory(processes, "VmRSS:")
}

fn memory(processes: &[u32], field: &str) -> f64 {
    let of = |process: &u32| {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()).unwrap_or_default()
    };
    processes.iter().map(of).sum::<f64>() / 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_is_read_whatever_the_name_is() {
        let stat = "42 (a) b) R 7 42 42 0 -1 4194304 100 0 0 0 11 22 33 44 20 0 1 0 100 1000 10 18446744073709551615";
        assert_eq!(parse(stat), Some(Stat { parent: 7, ticks: 110 }));
        assert_eq!(parse("nothing"), None);
    }

    #[test]
    fn a_side_is_its_processes_and_what_they_started() {
        let stats = [(1, 0, 1), (10, 1, 10), (11, 10, 100), (12, 11, 1_000), (20, 1, 10_000)];
        let stats = stats.map(|(id, parent, ticks)| (id, Stat { parent, ticks })).into_iter().collect();
        assert_eq!(sum(&stats, &[10]), 1_110);
        assert_eq!(sum(&stats, &[10, 20]), 11_110);
        assert_eq!(sum(&stats, &[11, 10]), 1_110, "once, though its parent counts, too");
        assert_eq!(sum(&stats, &[99]), 0);
    }

    #[test]
    fn this_process_has_memory_and_costs_something() {
        let own = [std::process::id()];
        assert!(peak_memory(&own) >= 1.0 && memory_now(&own) >= 1.0);
        let begun = std::time::Instant::now();
        while cpu_seconds(&own) == 0.0 {
            assert!(begun.elapsed().as_secs() < 60, "it has run for so long");
        }
    }
}
