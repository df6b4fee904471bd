//! A coordinator's builders as a table.

use std::time::Duration;

use super::node::{address, home};
use crate::coordinator::{BuilderView, CoordinatorStatus, RunningBuild};
use crate::report::plain;
use crate::report::table::{Cell, Column, Table};
use crate::report::terminal::{Style, Terminal};
use crate::report::words::{bytes, count, duration, path, round_trip};

/// The most running builds that stand in a builder's line.
const NAMED_BUILDS: usize = 8;

/// The head line, and the table of builders with what each of them builds.
pub(super) fn lines(status: &CoordinatorStatus, terminal: &Terminal) -> Vec<String> {
    let own = &status.node.own;
    let mode = status.mode.map(|mode| format!("  mode: {}", mode.as_str())).unwrap_or_default();
    let node = format!("{}  {}  {}{mode}", plain(&own.name), address(&own.addresses), home(own.home_region));
    let mut lines = vec![
        terminal.paint(Style::Strong, &terminal.cut(&head(status))),
        terminal.paint(Style::Faint, &terminal.cut(&node)),
    ];
    lines.push(String::new());
    lines.extend(table(&status.builders).lines(terminal));
    lines
}

/// `2 of 3 builders ready · 4 builds under way, 12 built, 1 failed · for 1m 12s`.
fn head(status: &CoordinatorStatus) -> String {
    let ready = status.builders.iter().filter(|builder| builder.standing.ready).count();
    let builders = format!("{ready} of {} ready", count(status.builders.len() as u64, "builder"));
    let totals = &status.totals;
    let others = [(totals.failed, "failed"), (totals.lost, "lost"), (totals.abandoned, "abandoned")];
    let others = others.iter().filter(|(number, _)| *number > 0).map(|(number, words)| format!(", {number} {words}"));
    let builds =
        format!("{} under way, {} built{}", count(totals.running, "build"), totals.built, others.collect::<String>());
    format!("{builders} · {builds} · for {}", duration(Duration::from_millis(status.lasted_ms)))
}

fn table(builders: &[BuilderView]) -> Table {
    let mut table = Table::new([
        Column::text("BUILDER", 0),
        Column::text("SYSTEM", 3),
        Column::number("CORES", 8),
        Column::number("LOAD", 7),
        Column::text("PATH", 6),
        Column::number("RTT", 9),
        Column::number("IN", 5),
        Column::number("OUT", 5),
        Column::number("DISK", 10),
        Column::number("BUILT", 1),
        Column::number("FAILED", 2),
        Column::number("LOST", 2),
        Column::number("ABANDONED", 11),
        Column::number("BUSY", 4),
        Column::number("WAIT", 4),
    ]);
    for builder in builders {
        let name = plain(&builder.standing.name);
        if !builder.standing.ready {
            table.words(Cell::new(Style::Notable, name), Cell::new(Style::Notable, not_ready(builder)));
            continue;
        }
        table.row(row(name, builder));
        if !builder.running_builds.is_empty() {
            table.note(Cell::new(Style::Faint, running(&builder.running_builds)));
        }
        let words = [("ending", &builder.live.ending), ("takes no new build for now", &builder.live.resting)];
        for (what, why) in words.iter().filter_map(|(what, why)| Some((what, why.as_deref()?))) {
            table.note(Cell::new(Style::Notable, format!("{what}: {}", plain(why))));
        }
    }
    table
}

fn row(name: String, builder: &BuilderView) -> Vec<Cell> {
    let unknown = || "-".to_owned();
    let sums = &builder.sums;
    let bad = |number: u64| Cell::new(if number > 0 { Style::Bad } else { Style::Plain }, number.to_string());
    vec![
        Cell::new(Style::Good, name),
        builder.standing.system.as_deref().map_or_else(unknown, plain).into(),
        builder.standing.cores.map_or_else(unknown, |cores| cores.to_string()).into(),
        builder.live.load.map_or_else(unknown, |load| format!("{load:.2}")).into(),
        path(&builder.path).into(),
        builder.rtt_ms.map_or_else(unknown, round_trip).into(),
        bytes(sums.bytes_in).into(),
        bytes(sums.bytes_out).into(),
        builder.live.free_disk_bytes.map_or_else(unknown, bytes).into(),
        sums.built.to_string().into(),
        bad(sums.failed),
        bad(sums.lost),
        sums.abandoned.to_string().into(),
        duration(sums.busy()).into(),
        duration(sums.wait()).into(),
    ]
}

/// How a builder stands that isn't ready, and what it did before.
fn not_ready(builder: &BuilderView) -> String {
    let sums = &builder.sums;
    let standing = plain(&builder.standing.standing);
    if sums.started == 0 {
        return standing;
    }
    let all = [(sums.built, "built"), (sums.failed, "failed"), (sums.lost, "lost"), (sums.abandoned, "abandoned")];
    let some = all.iter().filter(|(number, _)| *number > 0).map(|(number, words)| format!("{number} {words}"));
    format!("{standing} ({})", some.collect::<Vec<_>>().join(", "))
}

/// `builds hello-2.12 (4.2 s), gcc-14.3.0 (1m 05s) and 3 more`.
pub(super) fn running(builds: &[RunningBuild]) -> String {
    let named = builds.iter().take(NAMED_BUILDS);
    let named =
        named.map(|build| format!("{} ({})", plain(&build.derivation), duration(Duration::from_millis(build.for_ms))));
    let named = named.collect::<Vec<_>>().join(", ");
    match builds.len().saturating_sub(NAMED_BUILDS) {
        0 => format!("builds {named}"),
        more => format!("builds {named} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(json: serde_json::Value) -> BuilderView {
        let mut whole = serde_json::json!({
            "name": "builder-1", "standing": "ready", "ready": true, "system": "x86_64-linux", "cores": 4,
            "load": 3.12, "free_disk_bytes": 21_474_836_480_u64,
            "path": {"kind": "direct", "address": "192.0.2.7:41641"}, "rtt_ms": 0.42, "running_builds": [],
            "present_ms": 74_000, "busy_ms": 62_000, "wait_ms": 12_000, "building_ms": 120_000,
            "started": 13, "running": 0, "built": 12, "failed": 1, "lost": 0, "abandoned": 2, "bytes_in": 12_900_000, "bytes_out": 1_300_000
        });
        let change = json.as_object().cloned().unwrap_or_default();
        whole.as_object_mut().unwrap().extend(change);
        serde_json::from_value(whole).unwrap()
    }

    #[test]
    fn each_builder_is_a_row_and_what_it_builds_stands_below() {
        let builders = [
            view(serde_json::json!({"running_builds": [
                {"derivation": "gcc-14.3.0", "for_ms": 65_000}, {"derivation": "hello-2.12", "for_ms": 4_250}]})),
            view(
                serde_json::json!({"name": "builder-2", "ready": false, "standing": "not in the netmap", "started": 0}),
            ),
            view(serde_json::json!({"name": "builder-3", "ready": false, "standing": "gone"})),
            view(serde_json::json!({"name": "builder-4", "path": {"kind": "derp", "region": 4}, "load": null,
                "resting": "the disk is full\u{1b}[2J"})),
        ];
        let expected = [
            "BUILDER    SYSTEM        CORES  LOAD  PATH                RTT        IN      OUT      DISK  BUILT  FAILED  LOST  ABANDONED    BUSY  WAIT",
            "builder-1  x86_64-linux      4  3.12  192.0.2.7:41641  0.4 ms  12.3 MiB  1.2 MiB  20.0 GiB     12       1     0          2  1m 02s  12 s",
            "  builds gcc-14.3.0 (1m 05s), hello-2.12 (4.2 s)",
            "builder-2  not in the netmap",
            "builder-3  gone (12 built, 1 failed, 2 abandoned)",
            "builder-4  x86_64-linux      4     -  DERP 4           0.4 ms  12.3 MiB  1.2 MiB  20.0 GiB     12       1     0          2  1m 02s  12 s",
            "  takes no new build for now: the disk is full[2J",
        ];
        assert_eq!(table(&builders).lines(&Terminal::NONE), expected);
        let narrow = Terminal { width: Some(40), ..Terminal::NONE };
        assert_eq!(table(&builders).lines(&narrow)[1], "builder-1     12       1     0");
    }

    #[test]
    fn many_builds_are_counted() {
        let build = RunningBuild { derivation: "x".to_owned(), for_ms: 1000 };
        assert!(running(&vec![build; 11]).ends_with("x (1.0 s) and 3 more"));
    }
}
