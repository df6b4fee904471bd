//! The machine that all of this runs on, in words: no figure means anything without it.

use std::fs;

/// Its processors, its kernel and that one's TCP, and how busy it is now.
pub(crate) fn described() -> Vec<String> {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or("an unknown processor", |(_, model)| model.trim());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    let control = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap_or_default();
    vec![
        format!("{cores} × {model}"),
        format!("Linux {}, TCP {}", kernel.trim(), control.trim()),
        format!("load at the end {load}"),
    ]
}
