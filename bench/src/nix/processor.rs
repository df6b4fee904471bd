//! The processor time of one machine of the stage, as the kernel counts it.
//!
//! We are the first process of the stage: what a measured command has started is waited for by us, by its parent, or stays with us
//! as a zombie. So nothing is lost that has ended meanwhile, OpenSSH's proxies among it, for which it doesn't wait.

use std::fs;
use std::path::Path;

use crate::stage::Machine;

/// The kernel's unit of time in /proc (`USER_HZ`), which is the same wherever Linux runs on x86 and ARM.
const TICKS: f64 = 100.0;

/// Seconds that the machine's processes have taken, and whatever we have waited for: only what it grows by tells something, while we run
/// one command.
pub(super) fn seconds(machine: &Machine) -> f64 {
    let network = |process: &Path| fs::read_link(process.join("ns/net")).ok();
    let (own, wanted) = (Path::new("/proc/self"), network(Path::new(&format!("/proc/{}", machine.id()))));
    let mut ticks = stat(own).map_or(0, |stat| stat.of_children);
    for process in fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path()) {
        let Some(stat) = stat(&process) else { continue };
        // A zombie is in no network any more.
        if stat.is_zombie || (wanted.is_some() && network(&process) == wanted) {
            ticks += stat.of_its_own + stat.of_children;
        }
    }
    ticks as f64 / TICKS
}

#[derive(Debug, PartialEq)]
struct Stat {
    is_zombie: bool,
    of_its_own: u64,
    /// Those that have ended and were waited for.
    of_children: u64,
}

fn stat(process: &Path) -> Option<Stat> {
    process.file_name()?.to_str().filter(|name| *name == "self" || name.parse::<u32>().is_ok())?;
    parse(&fs::read_to_string(process.join("stat")).ok()?)
}

/// See proc_pid_stat(5).
fn parse(stat: &str) -> Option<Stat> {
    // The name may hold anything, a bracket, too; what follows the last one is the third field, counted from 1.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat {
        is_zombie: fields.first() == Some(&"Z"),
        of_its_own: number(14)? + number(15)?,
        of_children: number(16)? + number(17)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_is_read_whatever_the_name_is() {
        let stat = "42 (a) b) Z 7 42 42 0 -1 4194304 100 0 0 0 11 22 33 44 20 0 1 0 100 1000 10 18446744073709551615";
        assert_eq!(parse(stat), Some(Stat { is_zombie: true, of_its_own: 33, of_children: 77 }));
        assert_eq!(parse("nothing"), None);
    }
}
