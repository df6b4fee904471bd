//! The timeline as an SVG picture: a lane for each build that a builder may do at one time, bars coloured by how they
//! ended, and how many builds ran at once. It follows the viewer's light or dark theme, and needs no script and no font.

use std::fmt::Write as _;
use std::time::Duration;

use super::timeline::{Row, at_once, rows, tick};
use super::{Build, BuilderSummary, Outcome, Summary};
use crate::report::plain;
use crate::report::terminal::cut;
use crate::report::words::{clock, count, duration, percent};

/// The picture's width and that of its parts, in user units; a viewer scales it.
const WIDTH: f64 = 1100.0;
const LEFT: f64 = 190.0;
const RIGHT: f64 = 24.0;
const PLOT: f64 = WIDTH - LEFT - RIGHT;
/// Above the first builder: the title, the legend, the axis.
const TOP: f64 = 92.0;
/// A lane's height, and the room between two.
const LANE: f64 = 18.0;
const LANE_GAP: f64 = 3.0;
/// Around a builder's lanes.
const PADDING: f64 = 7.0;
/// Room for a builder's three lines of text.
const LEAST_GROUP: f64 = 56.0;
/// The strip that shows how many builds ran at once.
const STRIP: f64 = 44.0;
const STRIP_PARTS: usize = 296;
/// About what a character takes in the bars' font, which is 11 units high.
const CHARACTER: f64 = 6.1;

/// More bars can't be told apart, and make a file that viewers are slow with.
const MAX_BARS: usize = 2000;
/// The most lanes of one builder, and the most builders that are shown.
const MAX_LANES: usize = 32;
const MAX_BUILDERS: usize = 128;
/// How many ticks fit on the axis.
const TICKS: u32 = 10;

const STYLE: &str = "
  text { font-family: ui-sans-serif, system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', 'DejaVu Sans', sans-serif; font-size: 11px; fill: #1f2328 }
  .paper { fill: #ffffff }
  .title { font-size: 17px; font-weight: 600 }
  .name { font-size: 13px; font-weight: 600 }
  .faint { fill: #59636e }
  .end { text-anchor: end }
  .middle { text-anchor: middle }
  .grid { stroke: #d1d9e0; stroke-width: 1 }
  .rule { stroke: #d1d9e0; stroke-width: 1 }
  .stay { fill: #f3f5f8 }
  .gone { stroke: #cf222e; stroke-width: 1.5; stroke-dasharray: 3 2 }
  .built rect { fill: #3d7ec0 }
  .failed rect { fill: #cf222e }
  .lost rect { fill: #bf6a02 }
  .abandoned rect { fill: #6e7781 }
  .running rect { fill: #b6d5f5; stroke: #3d7ec0; stroke-dasharray: 3 2 }
  .bar text { fill: #ffffff }
  .running text { fill: #12375c }
  .load { fill: #3d7ec0; fill-opacity: 0.22; stroke: #3d7ec0; stroke-width: 1 }
";

const DARK: &str = "
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .paper { fill: #0d1117 }
    .faint { fill: #9198a1 }
    .grid, .rule { stroke: #2a313a }
    .stay { fill: #161c24 }
    .gone { stroke: #ff7b72 }
    .built rect { fill: #2f6eab }
    .failed rect { fill: #d1383d }
    .lost rect { fill: #a86108 }
    .abandoned rect { fill: #656c76 }
    .running rect { fill: #1b3a5a; stroke: #58a6ff }
    .bar text { fill: #ffffff }
    .running text { fill: #cfe6ff }
    .load { fill: #58a6ff; fill-opacity: 0.20; stroke: #58a6ff }
  }
";

/// The picture's text, a whole SVG file.
pub fn svg(summary: &Summary) -> String {
    let (rows, mut left_out) = rows(summary, MAX_BARS, |build| build.slot < MAX_LANES);
    left_out += rows.iter().skip(MAX_BUILDERS).map(|row| row.builds.len() as u64).sum::<u64>();
    let length_ms = summary.lasted_ms.max(1) as f64;
    let mut canvas = Canvas { ground: String::new(), text: String::new(), length_ms };
    let mut y = TOP;
    for row in rows.iter().take(MAX_BUILDERS) {
        let Some(builder) = summary.builders.get(row.builder) else { continue };
        y = canvas.group(y, builder, row);
    }
    let lanes_end = y;
    y = canvas.strip(y + 14.0, summary);
    let axis = canvas.axis(lanes_end, Duration::from_millis(summary.lasted_ms));
    let hidden_builders = summary.builders.len().saturating_sub(MAX_BUILDERS) as u64;
    for note in notes(left_out, hidden_builders) {
        y += 16.0;
        canvas.label(LEFT, y, "faint", &note);
    }
    let height = y + 18.0;
    frame(summary, height, &[&canvas.ground, &axis, &canvas.text])
}

fn notes(left_out: u64, hidden_builders: u64) -> Vec<String> {
    let mut notes = Vec::new();
    if left_out > 0 {
        notes.push(format!("{} not shown: the shortest of those that were built", count(left_out, "build")));
    }
    if hidden_builders > 0 {
        notes.push(format!("{} not shown", count(hidden_builders, "builder")));
    }
    notes
}

/// Puts the head and the layers together, the lowest first.
fn frame(summary: &Summary, height: f64, layers: &[&str]) -> String {
    let title = summary.headline();
    let subtitle = format!(
        "{} · {} · nixtail {}",
        plain(&summary.coordinator),
        super::time_of_day(summary.began),
        summary.version
    );
    let mut text = String::new();
    let canvas = &mut text;
    let _ = writeln!(
        canvas,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" aria-label="{}">"#,
        escape(&title)
    );
    let _ = writeln!(canvas, "<style>{STYLE}{DARK}</style>");
    let _ = writeln!(canvas, r#"<rect class="paper" width="{WIDTH}" height="{height}" rx="6"/>"#);
    let _ = writeln!(canvas, r#"<text class="title" x="24" y="34">{}</text>"#, escape(&title));
    let _ = writeln!(canvas, r#"<text class="faint" x="24" y="54">{}</text>"#, escape(&subtitle));
    canvas.push_str(&legend(summary));
    layers.iter().for_each(|layer| canvas.push_str(layer));
    canvas.push_str("</svg>\n");
    text
}

/// The colours that occur, at the right of the title, each with its count.
fn legend(summary: &Summary) -> String {
    let totals = &summary.totals;
    let all = [
        (totals.built, Outcome::Built),
        (totals.failed, Outcome::Failed),
        (totals.lost, Outcome::Lost),
        (totals.abandoned, Outcome::Abandoned),
        (totals.running, Outcome::Running),
    ];
    let mut x = WIDTH - RIGHT;
    let mut text = String::new();
    for (number, outcome) in all.into_iter().rev().filter(|(number, _)| *number > 0) {
        let words = format!("{number} {outcome}");
        x -= words.chars().count() as f64 * CHARACTER;
        let _ = writeln!(text, r#"<text x="{x:.1}" y="34">{words}</text>"#);
        x -= 16.0;
        let _ = writeln!(
            text,
            r#"<g class="bar {}"><rect x="{x:.1}" y="25" width="11" height="11" rx="2.5"/></g>"#,
            class(outcome)
        );
        x -= 14.0;
    }
    text
}

struct Canvas {
    /// What lies below the axis' lines.
    ground: String,
    /// What lies above them.
    text: String,
    length_ms: f64,
}

impl Canvas {
    /// One builder: its words at the left, its stays and bars at the right. Returns where it ends.
    fn group(&mut self, top: f64, builder: &BuilderSummary, row: &Row<'_>) -> f64 {
        let lanes = row.builds.iter().map(|build| build.slot + 1).max().unwrap_or(1);
        let height = (lanes as f64 * (LANE + LANE_GAP) - LANE_GAP + 2.0 * PADDING).max(LEAST_GROUP);
        let bottom = top + height;
        for stay in &builder.stays {
            let (from, until) = (self.x(stay.from_ms), self.x(stay.until_ms.unwrap_or(u64::MAX)));
            let _ = writeln!(
                self.ground,
                r#"<rect class="stay" x="{from:.1}" y="{:.1}" width="{:.1}" height="{:.1}" rx="4"/>"#,
                top + 2.0,
                (until - from).max(1.0),
                height - 4.0
            );
        }
        self.words(top, builder);
        for build in &row.builds {
            let y = top + PADDING + build.slot as f64 * (LANE + LANE_GAP);
            self.bar(y, build);
        }
        for stay in builder.stays.iter().filter(|stay| stay.ended_badly()) {
            let Some(until) = stay.until_ms else { continue };
            let why = plain(stay.reason.as_deref().unwrap_or_default());
            let at = clock(Duration::from_millis(until), true);
            self.shape(&format!(
                r#"<g><title>{} went at {at}: {}</title><line class="gone" x1="{x:.1}" x2="{x:.1}" y1="{:.1}" y2="{:.1}"/></g>"#,
                escape(&plain(&builder.name)),
                escape(&why),
                top + 2.0,
                bottom - 2.0,
                x = self.x(until)
            ));
        }
        self.shape(&format!(
            r#"<line class="rule" x1="24" x2="{:.1}" y1="{bottom:.1}" y2="{bottom:.1}"/>"#,
            WIDTH - RIGHT
        ));
        bottom
    }

    fn words(&mut self, top: f64, builder: &BuilderSummary) {
        let room = ((LEFT - 24.0 - 10.0) / 7.2) as usize;
        let sums = &builder.sums;
        let busy = percent(sums.busy(), Duration::from_millis(sums.present_ms));
        self.label(24.0, top + 20.0, "name", &cut(&plain(&builder.name), room));
        self.label(
            24.0,
            top + 35.0,
            "faint",
            &cut(&format!("{} · {}", plain(&builder.system), count(u64::from(builder.cores), "core")), room + 4),
        );
        self.label(24.0, top + 49.0, "faint", &format!("{} · busy {busy}", count(sums.started, "build")));
    }

    fn bar(&mut self, y: f64, build: &Build) {
        let (from, until) = (self.x(build.started_ms), self.x(build.ended_ms));
        // Nothing is too short to be seen, and neighbours keep a hair's breadth between them.
        let width = (until - from - 0.8).max(1.5);
        let name = plain(&build.derivation);
        let at = |milliseconds| clock(Duration::from_millis(milliseconds), true);
        let tooltip = format!(
            "{name}\n{} on {} in {}, {} to {}",
            build.outcome,
            plain(&build.builder),
            duration(build.length()),
            at(build.started_ms),
            at(build.ended_ms)
        );
        let room = ((width - 8.0) / CHARACTER).max(0.0) as usize;
        let label = if room >= 3 {
            format!(r#"<text x="{:.1}" y="{:.1}">{}</text>"#, from + 5.0, y + 13.0, escape(&cut(&name, room)))
        } else {
            String::new()
        };
        self.shape(&format!(
            r#"<g class="bar {}"><title>{}</title><rect x="{from:.1}" y="{y:.1}" width="{width:.1}" height="{LANE}" rx="{:.1}"/>{label}</g>"#,
            class(build.outcome),
            escape(&tooltip),
            (width / 2.0).min(3.5)
        ));
    }

    /// How many builds ran at once, below the lanes. Returns where it ends.
    fn strip(&mut self, top: f64, summary: &Summary) -> f64 {
        let parts = at_once(summary, STRIP_PARTS);
        let most = parts.iter().copied().fold(0.0, f64::max);
        if most <= 0.0 {
            return top;
        }
        let scale = most.ceil();
        let (bottom, part) = (top + STRIP, PLOT / STRIP_PARTS as f64);
        let height = |number: f64| bottom - number / scale * STRIP;
        let mut path = format!("M{LEFT:.1} {bottom:.1}");
        for (index, number) in parts.iter().enumerate() {
            let x = LEFT + index as f64 * part;
            let y = height(*number);
            let _ = write!(path, "L{x:.1} {y:.1}L{:.1} {y:.1}", x + part);
        }
        let _ = write!(path, "L{:.1} {bottom:.1}Z", LEFT + PLOT);
        self.label(24.0, top + 14.0, "name", "builds at once");
        self.label(24.0, top + 29.0, "faint", &format!("{:.1} on the average", summary.at_once()));
        self.label(LEFT - 6.0, top + 8.0, "faint end", &format!("{scale}"));
        self.shape(&format!(r#"<path class="load" d="{path}"/>"#));
        bottom + 4.0
    }

    /// Ticks and their lines, down to `bottom`: text of its own, since it lies below everything else.
    fn axis(&self, bottom: f64, length: Duration) -> String {
        let step = tick(length, TICKS);
        let tenths = !step.as_millis().is_multiple_of(1000);
        let mut text = String::new();
        let mut at = Duration::ZERO;
        while at <= length {
            let x = self.x(u64::try_from(at.as_millis()).unwrap_or(u64::MAX));
            let (class, label) = ("faint middle", clock(at, tenths));
            let _ = writeln!(
                text,
                r#"<line class="grid" x1="{x:.1}" x2="{x:.1}" y1="{:.1}" y2="{bottom:.1}"/>"#,
                TOP - 4.0
            );
            let _ = writeln!(text, r#"<text class="{class}" x="{x:.1}" y="{:.1}">{label}</text>"#, TOP - 10.0);
            at += step;
        }
        text
    }

    fn label(&mut self, x: f64, y: f64, class: &str, words: &str) {
        self.shape(&format!(r#"<text class="{class}" x="{x:.1}" y="{y:.1}">{}</text>"#, escape(words)));
    }

    fn shape(&mut self, shape: &str) {
        self.text.push_str(shape);
        self.text.push('\n');
    }

    /// Where a moment of the run is.
    fn x(&self, milliseconds: u64) -> f64 {
        LEFT + PLOT * (milliseconds as f64 / self.length_ms).min(1.0)
    }
}

fn class(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Built => "built",
        Outcome::Failed => "failed",
        Outcome::Lost => "lost",
        Outcome::Abandoned => "abandoned",
        Outcome::Running => "running",
    }
}

/// Text as XML takes it: markup escaped, and nothing that is no character of XML 1.0 (2.2).
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\u{fffe}' | '\u{ffff}' => {}
            '\n' => escaped.push('\n'),
            character if character.is_control() => {}
            character => escaped.push(character),
        }
    }
    escaped
}
