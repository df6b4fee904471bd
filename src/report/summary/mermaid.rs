//! The timeline as a Mermaid Gantt chart, which GitHub draws where it stands in Markdown.
//!
//! The syntax is that of Mermaid's `gantt.jison`: a task's name ends at the first `:`; `#` and `;` end a line anywhere; `%`
//! begins a comment; and a line that begins like a keyword is one (`gantt`, `title `, `click `, a date), which is why each
//! name here begins with a mark. Times are written as local ones of a made-up day, so that the axis shows the time since
//! the run began in every time zone.

use std::fmt::Write as _;
use std::time::Duration;

use super::timeline::{rows, tick};
use super::{Build, Outcome, Summary};
use crate::report::terminal::cut;

/// GitHub refuses charts of more than 50,000 characters; a bar has some 110 at the most.
const MAX_BARS: usize = 300;
/// The longest name of a bar or a builder.
const MAX_NAME: usize = 40;
/// About how many characters fit over the whole length of a chart as GitHub draws it. Mermaid writes a name that is longer
/// than its bar beside it, over its neighbours: so names are cut to their bars.
const CHARACTERS: f64 = 130.0;
/// The most builders that are shown.
const MAX_BUILDERS: usize = 64;
/// How many ticks fit.
const TICKS: u32 = 8;

/// The chart's text.
pub fn mermaid(summary: &Summary) -> String {
    let (rows, mut left_out) = rows(summary, MAX_BARS, |_| true);
    for row in rows.iter().skip(MAX_BUILDERS) {
        left_out += row.builds.len() as u64;
    }
    let length = Duration::from_millis(summary.lasted_ms);
    let mut text = String::from("---\ndisplayMode: compact\n---\ngantt\n");
    let more = if left_out > 0 { format!(" ({left_out} short ones not shown)") } else { String::new() };
    line(&mut text, &format!("    title {}{more}", safe(&summary.headline(), usize::MAX)));
    line(&mut text, "    dateFormat YYYY-MM-DD HH:mm:ss.SSS");
    line(
        &mut text,
        &format!("    axisFormat {}", if length < Duration::from_secs(3600) { "%M:%S" } else { "%H:%M:%S" }),
    );
    line(&mut text, &format!("    tickInterval {}", interval(tick(length, TICKS))));
    line(&mut text, "    todayMarker off");
    for row in rows.iter().take(MAX_BUILDERS).filter(|row| !row.builds.is_empty()) {
        let Some(builder) = summary.builders.get(row.builder) else { continue };
        line(&mut text, &format!("    section {}", safe(&builder.name, MAX_NAME)));
        for build in &row.builds {
            line(&mut text, &format!("    {}", task(build, length)));
        }
    }
    text
}

/// One bar: `mark name :tags, from, until`.
fn task(build: &Build, whole: Duration) -> String {
    let (mark, tags) = match build.outcome {
        Outcome::Built => ('✓', ""),
        Outcome::Failed => ('✗', "crit, "),
        Outcome::Lost => ('!', "crit, done, "),
        Outcome::Abandoned => ('–', "done, "),
        Outcome::Running => ('…', "active, "),
    };
    let ended = build.ended_ms.max(build.started_ms + 1);
    let part = build.length().as_secs_f64() / whole.as_secs_f64().max(0.001);
    let room = (part * CHARACTERS) as usize;
    // Without room for the mark and some letters of the name, the mark alone.
    let name = if room >= 5 { safe(&build.derivation, MAX_NAME.min(room - 2)) } else { String::new() };
    format!("{mark} {name} :{tags}{}, {}", time(build.started_ms), time(ended))
}

/// A moment of the run, on a day without a change of the clocks.
fn time(milliseconds: u64) -> String {
    let (seconds, fraction) = (milliseconds / 1000, milliseconds % 1000);
    // January has days enough: a month later, the axis is of no use anyway.
    let day = (seconds / 86_400).min(30) + 1;
    format!("2000-01-{day:02} {:02}:{:02}:{:02}.{fraction:03}", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60)
}

/// Mermaid's words for a distance between ticks: a whole number of one unit.
fn interval(tick: Duration) -> String {
    let milliseconds = tick.as_millis();
    let units = [(86_400_000, "day"), (3_600_000, "hour"), (60_000, "minute"), (1000, "second"), (1, "millisecond")];
    let unit = units.into_iter().find(|(length, _)| milliseconds.is_multiple_of(*length)).unwrap_or((1, "millisecond"));
    format!("{}{}", milliseconds / unit.0, unit.1)
}

/// Only what names are made of; anything else may mean something to Mermaid, or to the page it stands in.
fn safe(text: &str, length: usize) -> String {
    let plain = |character: char| character.is_alphanumeric() || " ._+-?=()/".contains(character);
    let text: String = text.chars().map(|character| if plain(character) { character } else { '_' }).collect();
    cut(&text, length)
}

fn line(text: &mut String, words: &str) {
    // Writing to a string can't fail.
    let _ = writeln!(text, "{words}");
}
