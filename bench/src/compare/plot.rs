//! The picture: a panel of bars for each link, and some for what a stream costs. An SVG of our own, in light and dark.

use std::fmt::Write as _;

use super::figures::Figures;
use super::plan::{CLEAN, LOOPBACK, LinkPlan, Peer, Quantity};
use super::report::short;
use crate::nix::figures::Spread;

/// The picture's width. All lengths are pixels where it is shown at its own size.
const WIDTH: f64 = 980.0;
/// What stays free at either side.
const MARGIN: f64 = 24.0;
/// What stands above the panels.
const TOP: f64 = 112.0;
/// From one entry of the legend to the next: more than the words of one take.
const ENTRY: f64 = 230.0;
/// Panels that stand side by side, and what is between them.
const COLUMNS: usize = 2;
const GAP: f64 = 36.0;
const PANEL: f64 = (WIDTH - 2.0 * MARGIN - (COLUMNS - 1) as f64 * GAP) / COLUMNS as f64;
/// What names take of a panel, and figures behind the bars.
const NAMES: f64 = 164.0;
const FIGURES: f64 = 62.0;
const BARS: f64 = PANEL - NAMES - FIGURES;
/// A panel's two lines of words, a line for each bar, and what is free below the last one.
const HEAD: f64 = 38.0;
const LINE: f64 = 22.0;
const FOOT: f64 = 18.0;
/// How thick a bar is.
const BAR: f64 = 12.0;
/// A limit's bar that would be so many times as long as all others is cut off, so that those can be told apart.
const CUT: f64 = 4.0;
/// How long it is then, beside the longest of the others.
const CUT_LENGTH: f64 = 1.3;

const STYLE: &str = "\
text{font:12px system-ui,sans-serif;fill:#24292f}.title{font-size:17px;font-weight:600}.head{font-weight:600}\
.faint{fill:#59636e}.paper{fill:#fff}.ours{fill:#0969da}.theirs{fill:#9198a1}.limit{fill:#d1d9e0}\
.spread{stroke:#24292f;stroke-width:1.2}.cut{stroke:#fff;stroke-width:2;fill:none}.name{text-anchor:end}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.faint{fill:#9198a1}.paper{fill:#0d1117}.ours{fill:#4493f8}\
.theirs{fill:#656c76}.limit{fill:#3d444d}.spread{stroke:#e6edf3}.cut{stroke:#0d1117}}";

/// What colours mean.
const LEGEND: [(&str, &str); 3] = [
    ("ours", "nixtail at one end or both"),
    ("theirs", "others"),
    ("limit", "limits: no tunnel, no TCP in the tunnel"),
];

/// Bars of one kind.
struct Panel {
    link: &'static str,
    what: &'static str,
    bars: Vec<(Peer, Spread)>,
}

/// A whole SVG file.
pub(super) fn svg(links: &[LinkPlan], figures: &Figures, subtitle: &str) -> String {
    let panels = panels(links, figures);
    let mut body = String::new();
    let mut y = TOP;
    for row in panels.chunks(COLUMNS) {
        for (column, panel) in row.iter().enumerate() {
            draw(&mut body, MARGIN + column as f64 * (PANEL + GAP), y, panel);
        }
        let longest = row.iter().map(|panel| panel.bars.len()).max().unwrap_or_default();
        y += HEAD + LINE * longest as f64 + FOOT;
    }
    let height = y + 4.0;
    let mut text = String::new();
    // Writing to a string can't fail.
    let _ = writeln!(
        text,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" aria-label="nixtail beside its peers">"#
    );
    let _ = writeln!(text, "<style>{STYLE}</style>");
    let _ = writeln!(text, r#"<rect class="paper" width="{WIDTH}" height="{height}" rx="6"/>"#);
    label(&mut text, [MARGIN, 34.0], "title", "nixtail beside its peers");
    label(&mut text, [MARGIN, 54.0], "faint", subtitle);
    for (index, (class, words)) in LEGEND.into_iter().enumerate() {
        let x = MARGIN + index as f64 * ENTRY;
        let _ = writeln!(text, r#"<rect class="{class}" x="{x}" y="66" width="{BAR}" height="{BAR}" rx="2"/>"#);
        label(&mut text, [x + BAR + 6.0, 76.0], "faint", words);
    }
    text.push_str(&body);
    text.push_str("</svg>\n");
    text
}

fn panels(links: &[LinkPlan], figures: &Figures) -> Vec<Panel> {
    let panel = |link: &LinkPlan, quantity: Quantity, what: &'static str| {
        let peers = figures.peers(link.key, &[quantity]).into_iter();
        let bars = peers.filter_map(|peer| Some((peer, figures.get(link.key, quantity, peer)?.spread()?)));
        let bars: Vec<_> = bars.collect();
        (!bars.is_empty()).then_some(Panel { link: link.title, what, bars })
    };
    let streams = links.iter().map(|link| panel(link, Quantity::One, "one stream, Mbit/s"));
    let costs = [
        (Quantity::Eight, "eight streams, Mbit/s"),
        (Quantity::SenderCpu, "sender's processor seconds for 10⁹ bytes"),
        (Quantity::ReceiverCpu, "receiver's processor seconds for 10⁹ bytes"),
        (Quantity::LoadedP99, "latency beside a stream, p99, ms"),
        (Quantity::SendingMemory, "memory while sending, MiB"),
    ];
    let whole = links.iter().filter(|link| [CLEAN, LOOPBACK].contains(&link.key));
    let costs = whole.flat_map(|link| costs.map(|(quantity, what)| panel(link, quantity, what)));
    streams.chain(costs).flatten().collect()
}

fn draw(text: &mut String, x: f64, y: f64, panel: &Panel) {
    label(text, [x, y], "head", panel.link);
    label(text, [x, y + 17.0], "faint", panel.what);
    let end = end_of_scale(&panel.bars);
    let at = |value: f64| x + NAMES + value.min(end) / end * BARS;
    for (index, (peer, spread)) in panel.bars.iter().enumerate() {
        let top = y + HEAD + LINE * index as f64 - 6.0;
        let middle = top + BAR / 2.0;
        let (start, length) = (at(0.0), (at(spread.median) - at(0.0)).max(0.5));
        label(text, [start - 8.0, middle + 4.0], "name", peer.title());
        let _ = writeln!(
            text,
            r#"<rect class="{}" x="{start:.1}" y="{top:.1}" width="{length:.1}" height="{BAR}" rx="2"/>"#,
            class(*peer)
        );
        let (least, most) = (at(spread.least), at(spread.most));
        if spread.median > end {
            // Broken: two strokes across, in the colour of the paper.
            let _ =
                writeln!(text, r#"<path class="cut" d="M{:.1} {:.1}l6 -16m5 0l-6 16"/>"#, most - 24.0, top + BAR + 2.0);
        } else {
            let cap = middle - 3.0;
            let _ = writeln!(
                text,
                r#"<path class="spread" d="M{least:.1} {middle:.1}H{most:.1}M{least:.1} {cap:.1}v6M{most:.1} {cap:.1}v6"/>"#
            );
        }
        label(text, [most + 6.0, middle + 4.0], "faint", &short(spread.median));
    }
}

/// What the longest bar stands for.
fn end_of_scale(bars: &[(Peer, Spread)]) -> f64 {
    let most = |wanted: &dyn Fn(Peer) -> bool| {
        let of = bars.iter().filter(|(peer, _)| wanted(*peer)).map(|(_, spread)| spread.most);
        of.fold(f64::MIN_POSITIVE, f64::max)
    };
    let (all, others) = (most(&|_| true), most(&|peer| class(peer) != "limit"));
    if others > f64::MIN_POSITIVE && all > CUT * others { CUT_LENGTH * others } else { all }
}

/// Ours, theirs, or what nobody can be better than.
fn class(peer: Peer) -> &'static str {
    match peer {
        Peer::Nixtail | Peer::NixtailToTun | Peer::TunToNixtail => "ours",
        Peer::Kernel | Peer::OpenSsh | Peer::BareDerp => "limit",
        _ => "theirs",
    }
}

fn label(text: &mut String, [x, y]: [f64; 2], class: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(text, r#"<text class="{class}" x="{x:.1}" y="{y:.1}">{words}</text>"#);
}

#[cfg(test)]
mod tests {
    use super::super::plan::LINKS;
    use super::*;

    /// Every tag is closed in its turn, attributes are quoted, and nothing else holds a `<` or a bare `&`.
    fn well_formed(text: &str) -> Result<(), String> {
        let mut open = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find('<') {
            let (before, tag) = rest.split_at(at);
            for (at, _) in before.match_indices('&') {
                let entity = before[at..].split(';').next().unwrap_or_default();
                if !["&amp", "&lt", "&gt"].contains(&entity) {
                    return Err(format!("a bare &: {entity}"));
                }
            }
            let end = tag.find('>').ok_or("a tag without an end")?;
            let inside = &tag[1..end];
            rest = &tag[end + 1..];
            if let Some(name) = inside.strip_prefix('/') {
                let opened = open.pop().ok_or("more ends than beginnings")?;
                if opened != name {
                    return Err(format!("{opened} is ended by {name}"));
                }
                continue;
            }
            if inside.matches('"').count() % 2 != 0 {
                return Err(format!("a quote is open: {inside}"));
            }
            if !inside.ends_with('/') {
                open.push(inside.split(' ').next().unwrap_or_default().to_owned());
            }
        }
        if open.is_empty() && rest.trim().is_empty() { Ok(()) } else { Err(format!("open: {open:?}, rest: {rest:?}")) }
    }

    #[test]
    fn the_picture_is_well_formed_whatever_was_measured() {
        let mut figures = Figures::default();
        well_formed(&svg(&LINKS, &figures, "nothing & <nobody>")).unwrap();
        for link in &LINKS {
            for (round, value) in (0..).zip([90.0, 100.0, 130.0]) {
                for peer in Peer::ALL {
                    figures.add(link.key, Quantity::One, peer, round, value);
                    figures.add(link.key, Quantity::LoadedP99, peer, round, 0.0);
                }
            }
        }
        let text = svg(&LINKS, &figures, "two cores");
        well_formed(&text).unwrap();
        assert_eq!(
            text.matches("class=\"head\"").count(),
            LINKS.len() + 1,
            "a panel for each link, and one for latency"
        );
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        assert!(well_formed("<a><b></a></b>").is_err() && well_formed("<a>& b</a>").is_err());
    }

    #[test]
    fn bars_stand_in_proportion() {
        let mut figures = Figures::default();
        figures.add(CLEAN, Quantity::One, Peer::Nixtail, 0, 200.0);
        figures.add(CLEAN, Quantity::One, Peer::Tsnet, 0, 50.0);
        let text = svg(&LINKS, &figures, "");
        assert!(
            text.contains(&format!("width=\"{BARS:.1}\"")) && text.contains(&format!("width=\"{:.1}\"", BARS / 4.0))
        );
    }
}
