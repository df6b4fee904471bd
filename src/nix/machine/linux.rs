//! What Linux says of the whole machine: sysinfo(2) and proc(5).

use super::Whole;

/// Looks now.
pub(super) fn look() -> Whole {
    let info = rustix::system::sysinfo();
    let total_memory = u64::from(info.mem_unit) * info.totalram;
    Whole {
        // The kernel's figures have 16 bits behind the point.
        load: info.loads[0] as f64 / 65536.0,
        total_memory,
        available_memory: available_memory().unwrap_or(total_memory),
    }
}

/// What `/proc/meminfo` calls so.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}
