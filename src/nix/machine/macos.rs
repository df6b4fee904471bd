//! What macOS says of the whole machine: sysctl(8).

use super::Whole;

/// What is asked for. Pages that are free, or would be at once: purgeable ones, and those that are files' and can be read again.
#[cfg(not(target_os = "linux"))]
const NAMES: [&str; 7] = [
    "hw.memsize",
    "hw.pagesize",
    "vm.loadavg",
    "vm.page_free_count",
    "vm.page_speculative_count",
    "vm.page_purgeable_count",
    "vm.page_pageable_external_count",
];

/// Looks now. The calls behind it need unsafe code; the program is there on every Mac, and takes milliseconds.
#[cfg(not(target_os = "linux"))]
pub(super) fn look() -> Whole {
    let asked = std::process::Command::new("/usr/sbin/sysctl").args(NAMES).output();
    let said = asked.map(|answer| answer.stdout).unwrap_or_default();
    read(&String::from_utf8_lossy(&said))
}

/// Reads lines like `NAME: VALUE`. What isn't there counts as nothing, but for memory: what is unknown isn't taken away.
fn read(said: &str) -> Whole {
    let value = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let number = |name: &str| value(name)?.trim().parse::<u64>().ok();
    let total_memory = number("hw.memsize").unwrap_or(0);
    let pages = ["free", "speculative", "purgeable", "pageable_external"]
        .map(|kind| number(&format!("vm.page_{kind}_count")).unwrap_or(0));
    let free = pages.into_iter().fold(0, u64::saturating_add).checked_mul(number("hw.pagesize").unwrap_or(0));
    Whole {
        // `{ 1.52 1.60 1.71 }`: over one, five and fifteen minutes.
        load: value("vm.loadavg").and_then(|loads| loads.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0.0),
        total_memory,
        available_memory: free.filter(|free| *free > 0).unwrap_or(total_memory).min(total_memory),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answers_of_sysctl_are_read() {
        let said = "hw.memsize: 17179869184\nhw.pagesize: 16384\nvm.loadavg: { 1.52 1.60 1.71 }\nvm.page_free_count: 1000\n\
             vm.page_speculative_count: 200\nvm.page_purgeable_count: 30\nvm.page_pageable_external_count: 4\n";
        let whole = Whole { load: 1.52, total_memory: 16 << 30, available_memory: 1234 * 16384 };
        assert_eq!(read(said), whole);
    }

    #[test]
    fn what_it_does_not_know_takes_nothing_away() {
        let whole = Whole { load: 0.0, total_memory: 8 << 30, available_memory: 8 << 30 };
        assert_eq!(read("hw.memsize: 8589934592\nvm.loadavg: x\nvm.page_free_count: -1\n"), whole);
        assert_eq!(read(""), Whole { load: 0.0, total_memory: 0, available_memory: 0 });
    }
}
