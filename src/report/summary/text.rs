//! A summary as a table for people.

use std::time::Duration;

use super::{BuilderSummary, Outcome, Summary, Sums};
use crate::report::plain;
use crate::report::table::{Cell, Column, Table};
use crate::report::terminal::{Style, Terminal};
use crate::report::words::{bytes, clock, duration, path, percent, round_trip};

/// The most lines of one kind below the table: of failed builds, of errors.
const MAX_LINES: usize = 10;

/// The lines of a summary: what was built, the builders, and what went wrong.
pub fn lines(summary: &Summary, terminal: &Terminal) -> Vec<String> {
    let mut lines = vec![terminal.cut(&headline(summary))];
    if !summary.builders.is_empty() {
        lines.extend(table(summary).lines(terminal));
    }
    lines.extend(troubles(summary).into_iter().map(|(style, words)| terminal.paint(style, &terminal.cut(&words))));
    lines
}

/// `12 builds on 2 builders in 3.2 s: 12 built; 3.4 at once on the average`.
fn headline(summary: &Summary) -> String {
    let headline = summary.headline();
    if summary.totals.started == 0 {
        return headline;
    }
    format!("{headline}: {}; {:.1} at once on the average", summary.outcomes(), summary.at_once())
}

fn table(summary: &Summary) -> Table {
    let mut table = Table::new([
        Column::text("BUILDER", 0),
        Column::text("SYSTEM", 3),
        Column::number("CORES", 6),
        Column::text("PATH", 7),
        Column::number("RTT", 8),
        Column::number("IN", 5),
        Column::number("OUT", 5),
        Column::number("BUILT", 1),
        Column::number("FAILED", 2),
        Column::number("LOST", 2),
        Column::number("ABANDONED", 6),
        Column::number("BUSY", 4),
        Column::number("WAIT", 4),
    ]);
    for builder in &summary.builders {
        table.row(row(builder));
    }
    if summary.builders.len() > 1 {
        let cores: u64 = summary.builders.iter().map(|builder| u64::from(builder.cores)).sum();
        let mut cells =
            vec![Cell::new(Style::Strong, "total"), "".into(), cores.to_string().into(), "".into(), "".into()];
        cells.extend(sums(&summary.totals));
        table.row(cells);
    }
    table
}

fn row(builder: &BuilderSummary) -> Vec<Cell> {
    let gone = builder.is_gone();
    let style = if gone { Style::Notable } else { Style::Plain };
    let mut cells = vec![
        Cell::new(style, plain(&builder.name)),
        plain(&builder.system).into(),
        builder.cores.to_string().into(),
        path(&builder.path).into(),
        builder.rtt_ms.map_or_else(|| "-".to_owned(), round_trip).into(),
    ];
    cells.extend(sums(&builder.sums));
    cells
}

fn sums(sums: &Sums) -> [Cell; 8] {
    let bad = |number: u64| Cell::new(if number > 0 { Style::Bad } else { Style::Plain }, number.to_string());
    [
        bytes(sums.bytes_in).into(),
        bytes(sums.bytes_out).into(),
        sums.built.to_string().into(),
        bad(sums.failed),
        bad(sums.lost),
        sums.abandoned.to_string().into(),
        format!("{} ({})", duration(sums.busy()), percent(sums.busy(), sums.present())).into(),
        duration(sums.wait()).into(),
    ]
}

/// What went wrong, a line each.
fn troubles(summary: &Summary) -> Vec<(Style, String)> {
    let at = |milliseconds: u64| clock(Duration::from_millis(milliseconds), false);
    let mut lines = Vec::new();
    let missing = summary.missing.iter();
    lines.extend(some(
        missing.map(|missing| format!("{} was never ready: {}", plain(&missing.name), plain(&missing.standing))),
        "more were never ready",
        0,
    ));
    let departures = summary.departures();
    lines.extend(some(
        departures
            .map(|(builder, until, why)| format!("{} went at {}: {}", plain(&builder.name), at(until), plain(why))),
        "more went",
        0,
    ));
    let mishaps = summary.mishaps().map(|build| {
        let (name, builder) = (plain(&build.derivation), plain(&build.builder));
        let (begun, length) = (at(build.started_ms), duration(build.length()));
        match build.outcome {
            Outcome::Lost => format!("{name} was lost with {builder}, {length} after it began at {begun}"),
            _ => format!("{name} failed on {builder}, {length} after it began at {begun}"),
        }
    });
    lines.extend(some(mishaps, "more failed or were lost", 0));
    let errors = summary.errors.iter();
    lines.extend(some(
        errors.map(|error| {
            format!("error at {} with {}: {}", at(error.at_ms), plain(&error.builder), plain(&error.message))
        }),
        "more errors",
        summary.errors_left_out,
    ));
    lines.into_iter().map(|line| (Style::Notable, line)).collect()
}

/// The first of many lines, and how many there are more.
fn some(all: impl Iterator<Item = String>, more: &str, left_out: u64) -> Vec<String> {
    let mut lines: Vec<String> = all.collect();
    let rest = lines.len().saturating_sub(MAX_LINES) as u64 + left_out;
    lines.truncate(MAX_LINES);
    if rest > 0 {
        lines.push(format!("… and {rest} {more}"));
    }
    lines
}
