//! What a process costs, by the kernel's own books.

use std::time::Duration;

/// What a process has used so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// Bytes of memory that it has in use.
    pub(crate) resident: u64,
    /// Processor time of all its threads, in user and kernel mode.
    pub(crate) cpu: Duration,
}

impl Usage {
    /// Of the process with this id, now.
    pub(crate) fn of(process: u32) -> Self {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{process}/{name}")).unwrap();
        let pages: u64 = read("statm").split_whitespace().nth(1).unwrap().parse().unwrap();
        let stat = read("stat");
        // The name in parentheses may hold anything. After it, time in user and kernel mode are the 12th and 13th field.
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let ticks: u64 = fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
        Self {
            resident: pages * u64::try_from(rustix::param::page_size()).unwrap(),
            cpu: Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()),
        }
    }

    /// What it has used since `before`, for each of `count` things. Prints it, as a figure for people.
    pub(crate) fn report_since(&self, before: &Self, what: &str, count: u64) -> Cost {
        let cost = Cost {
            each: (self.cpu - before.cpu) / u32::try_from(count.max(1)).unwrap(),
            grown: self.resident.saturating_sub(before.resident),
        };
        println!(
            "figure: {count} {what}: {:?} of CPU each, {} MiB grown to {} MiB",
            cost.each,
            cost.grown >> 20,
            self.resident >> 20
        );
        cost
    }
}

/// What things that were sent to a process cost it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    /// Processor time for each.
    pub(crate) each: Duration,
    /// Bytes of memory that it has more than before.
    pub(crate) grown: u64,
}

/// How many datagrams the kernel has dropped at a UDP port of this machine because nobody read them in time.
pub(crate) fn dropped_at(port: u16) -> u64 {
    let table = std::fs::read_to_string("/proc/net/udp").unwrap();
    let address = format!(":{port:04X}");
    let line = table.lines().find(|line| line.split_whitespace().nth(1).is_some_and(|local| local.ends_with(&address)));
    line.and_then(|line| line.split_whitespace().last()?.parse().ok()).unwrap_or(0)
}
