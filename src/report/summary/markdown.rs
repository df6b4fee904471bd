//! A summary as Markdown, as GitHub shows it in a job's summary: a table, what went wrong, and the timeline.

use std::fmt::Write as _;
use std::time::Duration;

use super::{BuilderSummary, Outcome, Summary, Sums, mermaid, time_of_day};
use crate::report::words::{clock, duration, mebibytes, path, percent, round_trip};
use crate::report::{markdown as escaped, plain};

/// The most entries of one list: of failed builds, of errors.
const MAX_ENTRIES: usize = 50;

/// The summary's Markdown. It stays below the 1 MiB that GitHub takes: builders and entries are bounded, and so is the
/// chart.
pub fn markdown(summary: &Summary) -> String {
    let mut text = String::new();
    let started = summary.totals.started > 0;
    let outcomes = if started { format!(": {}", summary.outcomes()) } else { String::new() };
    line(&mut text, &format!("### {}{outcomes}\n", summary.headline()));
    line(&mut text, &introduction(summary));
    if !summary.builders.is_empty() {
        table(&mut text, summary);
    }
    troubles(&mut text, summary);
    if !summary.builds.is_empty() {
        line(&mut text, &format!("```mermaid\n{}```", mermaid(summary)));
    }
    text
}

fn introduction(summary: &Summary) -> String {
    let at_once = if summary.totals.started > 0 {
        format!(", {:.1} builds at once on the average", summary.at_once())
    } else {
        String::new()
    };
    let mode = if summary.mode.is_empty() { String::new() } else { format!(" in mode {}", code(&summary.mode)) };
    format!("Coordinator {}{mode}, from {}{at_once}.\n", code(&summary.coordinator), time_of_day(summary.began))
}

fn table(text: &mut String, summary: &Summary) {
    line(
        text,
        "| builder | system | cores | path | RTT | MiB in | MiB out | built | failed | lost | abandoned | busy | wait |",
    );
    line(text, "|:--|:--|--:|:--|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    for builder in &summary.builders {
        line(text, &row(builder));
    }
    if summary.builders.len() > 1 {
        let cores: u64 = summary.builders.iter().map(|builder| u64::from(builder.cores)).sum();
        line(text, &format!("| **total** | | {cores} | | | {} |", sums(&summary.totals).join(" | ")));
    }
    line(text, "");
}

fn row(builder: &BuilderSummary) -> String {
    let gone = builder.is_gone();
    let name = format!("{}{}", code(&builder.name), if gone { " (gone)" } else { "" });
    let rtt = builder.rtt_ms.map_or_else(|| "-".to_owned(), round_trip);
    let first = [name, code(&builder.system), builder.cores.to_string(), escaped(&path(&builder.path)), rtt];
    format!("| {} | {} |", first.join(" | "), sums(&builder.sums).join(" | "))
}

fn sums(sums: &Sums) -> [String; 8] {
    let bad = |number: u64| if number > 0 { format!("**{number}**") } else { number.to_string() };
    [
        mebibytes(sums.bytes_in),
        mebibytes(sums.bytes_out),
        sums.built.to_string(),
        bad(sums.failed),
        bad(sums.lost),
        sums.abandoned.to_string(),
        format!("{} ({})", duration(sums.busy()), percent(sums.busy(), sums.present())),
        duration(sums.wait()),
    ]
}

fn troubles(text: &mut String, summary: &Summary) {
    let at = |milliseconds: u64| clock(Duration::from_millis(milliseconds), false);
    let missing =
        summary.missing.iter().map(|missing| format!("{} {}", code(&missing.name), escaped(&missing.standing)));
    list(text, "Never ready", missing, 0);
    let departures = summary.departures();
    let departures =
        departures.map(|(builder, until, why)| format!("{} at {}: {}", code(&builder.name), at(until), escaped(why)));
    list(text, "Builders that went", departures, 0);
    let mishaps = summary.mishaps().map(|build| {
        let (name, builder) = (code(&build.derivation), code(&build.builder));
        let how = if build.outcome == Outcome::Lost { "lost with" } else { "failed on" };
        format!("{name} {how} {builder}, {} after it began at {}", duration(build.length()), at(build.started_ms))
    });
    list(text, "Builds that failed or were lost", mishaps, 0);
    let errors = summary.errors.iter();
    let errors =
        errors.map(|error| format!("{} at {}: {}", code(&error.builder), at(error.at_ms), escaped(&error.message)));
    list(text, "Errors on the way", errors, summary.errors_left_out);
}

fn list(text: &mut String, title: &str, entries: impl Iterator<Item = String>, left_out: u64) {
    let entries: Vec<String> = entries.collect();
    if entries.is_empty() && left_out == 0 {
        return;
    }
    line(text, &format!("#### {title}\n"));
    for entry in entries.iter().take(MAX_ENTRIES) {
        line(text, &format!("- {entry}"));
    }
    let rest = entries.len().saturating_sub(MAX_ENTRIES) as u64 + left_out;
    if rest > 0 {
        line(text, &format!("- … and {rest} more"));
    }
    line(text, "");
}

/// A name, which nothing in it can turn into markup: neither the end of the code, nor a table's next column.
fn code(name: &str) -> String {
    let name = plain(name).replace('`', "'").replace('\\', "/").replace('|', "\\|");
    if name.trim().is_empty() { "-".to_owned() } else { format!("`{name}`") }
}

fn line(text: &mut String, words: &str) {
    // Writing to a string can't fail.
    let _ = writeln!(text, "{words}");
}
