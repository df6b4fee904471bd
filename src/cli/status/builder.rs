//! A builder's own view of its work.

use std::time::Duration;

use serde::Deserialize;

use super::coordinator::running;
use super::node::{address, home};
use crate::agent::Status;
use crate::coordinator::RunningBuild;
use crate::report::plain;
use crate::report::terminal::{Style, Terminal};
use crate::report::words::{bytes, count, duration};

/// What `GET /builder` of a builder answers, as far as it is shown here.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct BuilderAnswer {
    pub(super) claimed_by: Option<String>,
    uptime_ms: u64,
    load: f64,
    cores: u32,
    memory_available_bytes: u64,
    free_disk_bytes: Option<u64>,
    running: Vec<RunningNow>,
    done: u64,
    failed: u64,
    unfinished: u64,
    bytes_in: u64,
    bytes_out: u64,
    pub(super) ending: Option<String>,
    resting: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct RunningNow {
    derivation: String,
    since_ms: u64,
}

impl BuilderAnswer {
    /// What it builds now, the longest first.
    pub(super) fn running(&self) -> Vec<RunningBuild> {
        let running = self.running.iter().map(|build| RunningBuild {
            derivation: build.derivation.clone(),
            for_ms: self.uptime_ms.saturating_sub(build.since_ms),
        });
        let mut running: Vec<_> = running.collect();
        running.sort_by_key(|build| std::cmp::Reverse(build.for_ms));
        running
    }

    /// Builds that have ended, by how they did.
    pub(super) fn ended(&self) -> String {
        let unfinished = if self.unfinished > 0 { format!(", {} given up", self.unfinished) } else { String::new() };
        format!("{} built, {} failed{unfinished}", self.done, self.failed)
    }

    /// Who has it, in words.
    pub(super) fn claim(&self) -> String {
        match &self.claimed_by {
            Some(claimer) => format!("claimed by {}", plain(claimer)),
            None => "claimed by nobody".to_owned(),
        }
    }

    /// How it is going to end, in words.
    pub(super) fn end(&self) -> String {
        match (&self.ending, &self.claimed_by) {
            (Some(reason), _) => format!("is ending: {}", plain(reason)),
            (None, Some(_)) => "ends when its coordinator says so, or leaves".to_owned(),
            (None, None) => "ends when nobody claims it in time".to_owned(),
        }
    }
}

/// A line for each thing that can be said.
pub(super) fn lines(node: &Status, builder: &BuilderAnswer, terminal: &Terminal) -> Vec<String> {
    let own = &node.own;
    let up = duration(Duration::from_millis(builder.uptime_ms));
    let mut lines = vec![(Style::Strong, format!("{} · {} · for {up}", builder.claim(), builder.ended()))];
    lines.push((Style::Faint, format!("{}  {}  {}", plain(&own.name), address(&own.addresses), home(own.home_region))));
    lines.push((Style::Plain, String::new()));
    lines.push(match builder.running() {
        running if running.is_empty() => (Style::Plain, "builds nothing now".to_owned()),
        builds => (Style::Good, running(&builds)),
    });
    let disk = builder.free_disk_bytes.map(|free| format!(", {} of disk free", bytes(free))).unwrap_or_default();
    let memory = bytes(builder.memory_available_bytes);
    let cores = count(u64::from(builder.cores), "core");
    lines.push((Style::Plain, format!("load {:.2} on {cores}, {memory} of memory free{disk}", builder.load)));
    lines.push((Style::Plain, format!("{} in, {} out", bytes(builder.bytes_in), bytes(builder.bytes_out))));
    if let Some(why) = &builder.resting {
        lines.push((Style::Notable, format!("takes no new build for now: {}", plain(why))));
    }
    lines.push((if builder.ending.is_some() { Style::Notable } else { Style::Faint }, builder.end()));
    lines.into_iter().map(|(style, line)| terminal.paint(style, &terminal.cut(&line))).collect()
}
