//! The table, as Markdown, and the JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::figures::Figures;
use super::plan::{LinkPlan, Peer, Quantity};
use super::targets::{ELSEWHERE, Verdict};

/// Raised when a key of the JSON changes its meaning.
const SCHEMA: u32 = 1;

/// Above the tables: what figures mean, and what they don't.
const NOTES: &str = "\
Median (least–most) of the rounds; behind it how many times as much nixtail has. Every round measures everybody, in an order that
changes. Both ends, and the emulated link with its four threads, share the processors of this machine: ratios count, values don't.
The left end sends; a row with an arrow has another node at either end. Milliseconds of a link are those of a round trip.
Nodes of a tailnet and wireguard-go have an MTU of 1280.
A side's processor time is that of its processes, the one that makes the load among them; the kernel's work in interrupts
is nobody's, which flatters the kernel's own TCP and whoever uses it. Memory is that of the node (a library's with its load end).";

/// Everything that a run has to say.
#[derive(Debug)]
pub(super) struct Report<'a> {
    pub(super) links: &'a [LinkPlan],
    pub(super) figures: &'a Figures,
    pub(super) verdicts: &'a [Verdict],
    pub(super) machine: Vec<String>,
    pub(super) rounds: u8,
    /// Lengths so short that figures mean nothing.
    pub(super) quick: bool,
    /// What wasn't measured, and why.
    pub(super) left_out: &'a [String],
    /// What was to be measured, and didn't work.
    pub(super) failed: &'a [String],
    /// What emulated links did to packets.
    pub(super) packets: &'a [String],
}

impl Report<'_> {
    /// For people.
    pub(super) fn markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a string can't fail.
        let _ = writeln!(text, "# nixtail beside its peers\n\n{}; rounds: {}\n", self.machine.join("; "), self.rounds);
        if self.quick {
            let _ = writeln!(text, "**A quick run, to see that all works: these figures mean nothing.**\n");
        }
        let _ = writeln!(text, "{NOTES}\n");
        for link in self.links {
            self.link(&mut text, link);
        }
        self.targets(&mut text);
        for (title, lines) in
            [("Left out", self.left_out), ("Failed", self.failed), ("Packets on emulated links", self.packets)]
        {
            if !lines.is_empty() {
                let _ = writeln!(
                    text,
                    "## {title}\n\n{}\n",
                    lines.iter().map(|line| format!("- {line}\n")).collect::<String>()
                );
            }
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        text
    }

    fn link(&self, text: &mut String, link: &LinkPlan) {
        let any = Quantity::GROUPS.iter().any(|(_, group)| !self.figures.peers(link.key, group).is_empty());
        if !any {
            return;
        }
        let _ = writeln!(text, "## {}\n", link.title);
        for (title, group) in Quantity::GROUPS {
            let peers = self.figures.peers(link.key, group);
            let measured = |quantity: &&Quantity| peers.iter().any(|peer| self.cell(link, **quantity, *peer).is_some());
            let columns: Vec<Quantity> = group.iter().filter(measured).copied().collect();
            if columns.is_empty() {
                continue;
            }
            let titles: String = columns.iter().map(|quantity| format!(" {} |", quantity.title())).collect();
            let _ = writeln!(text, "{title}\n\n| |{titles}\n|---|{}", "---|".repeat(columns.len()));
            for peer in peers {
                let cells = columns.iter().map(|quantity| self.cell(link, *quantity, peer).unwrap_or_default());
                let cells: String = cells.map(|cell| format!(" {cell} |")).collect();
                let _ = writeln!(text, "| {} |{cells}", peer.title());
            }
            text.push('\n');
        }
    }

    fn cell(&self, link: &LinkPlan, quantity: Quantity, peer: Peer) -> Option<String> {
        let spread = self.figures.get(link.key, quantity, peer)?.spread()?;
        let mut cell = format!("{} ({}–{})", short(spread.median), short(spread.least), short(spread.most));
        let [left, right] = peer.nodes();
        if peer != Peer::Nixtail
            && left == right
            && let Some(ratio) = self.figures.ratio(link.key, quantity, [Peer::Nixtail, peer])
        {
            let _ = write!(cell, ", {} ×", short(ratio.of_medians));
        }
        Some(cell)
    }

    fn targets(&self, text: &mut String) {
        let _ = writeln!(text, "## Targets\n\n| target | wanted | is | rounds | |\n|---|---|---|---|---|");
        for verdict in self.verdicts {
            let is = verdict.is.map(short).unwrap_or_default();
            let spread = verdict.spread.map(|[least, most]| format!("{}–{}", short(least), short(most)));
            let judged = match verdict.met.zip(verdict.margin) {
                None => "not measured".to_owned(),
                Some((true, margin)) => format!("met, {} % beyond", short(margin * 100.0)),
                Some((false, margin)) => format!("**missed by {} %**", short(-margin * 100.0)),
            };
            let (target, wanted) = (verdict.target, &verdict.wanted);
            let _ = writeln!(text, "| {target} | {wanted} | {is} | {} | {judged} |", spread.unwrap_or_default());
        }
        let _ = writeln!(text, "\nMeasured elsewhere:\n\n{}", ELSEWHERE.map(|line| format!("- {line}\n")).concat());
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        let rows = self.figures.iter().map(|((link, quantity, peer), samples)| {
            let ratio = self.figures.ratio(link, *quantity, [Peer::Nixtail, *peer]).filter(|_| *peer != Peer::Nixtail);
            json!({
                "link": link, "quantity": quantity, "title": quantity.title(), "peer": peer,
                "more_is_better": quantity.more_is_better(),
                "samples": samples.values(), "spread": samples.spread(), "nixtail_times_as_much": ratio,
            })
        });
        json!({
            "schema": SCHEMA, "machine": self.machine, "rounds": self.rounds, "quick": self.quick,
            "links": self.links.iter().map(|link| (link.key.to_owned(), json!(link.title))).collect::<serde_json::Map<_, _>>(),
            "rows": rows.collect::<Vec<_>>(), "targets": self.verdicts,
            "left_out": self.left_out, "failed": self.failed, "packets": self.packets,
        })
    }
}

/// As many digits as mean something.
pub(super) fn short(value: f64) -> String {
    let digits = match value.abs() {
        value if value >= 99.95 => 0,
        value if value >= 9.995 => 1,
        value if value >= 0.0995 || value == 0.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::super::plan::LINKS;
    use super::super::targets::verdicts;
    use super::*;

    fn figures() -> Figures {
        let mut figures = Figures::default();
        for (round, speed) in (0..).zip([2_000.0, 2_200.0, 1_900.0]) {
            figures.add("clean", Quantity::One, Peer::Nixtail, round, speed);
            figures.add("clean", Quantity::One, Peer::Tsnet, round, speed / 2.5);
            figures.add("clean", Quantity::Eight, Peer::Nixtail, round, speed);
            figures.add("clean", Quantity::One, Peer::TsnetToTun, round, 500.0);
        }
        figures
    }

    #[test]
    fn the_table_has_medians_spreads_and_ratios_and_says_what_is_missed() {
        let (figures, left_out) = (figures(), ["tailscaled: it isn't there".to_owned()]);
        let verdicts = verdicts(&figures, None);
        let report = Report {
            links: &LINKS,
            figures: &figures,
            verdicts: &verdicts,
            machine: vec!["one processor".to_owned()],
            rounds: 3,
            quick: false,
            left_out: &left_out,
            failed: &[],
            packets: &[],
        };
        let text = report.markdown();
        for line in [
            "| | one stream | eight streams |",
            "| nixtail | 2000 (1900–2200) | 2000 (1900–2200) |",
            "| tsnet | 800 (760–880), 2.50 × |  |",
            "| tsnet → tailscaled, TUN | 500 (500–500) |  |",
            "| clean link, one stream, beside tsnet | ≥ 3 × | 2.50 | 2.50–2.50 | **missed by 16.7 %** |",
            "| 20 ms, beside tsnet | ≥ 1.5 × |  |  | not measured |",
            "- tailscaled: it isn't there",
        ] {
            assert!(text.contains(line), "{line:?} isn't in\n{text}");
        }
        assert!(!text.contains("## 20 ms") && !text.contains("## Failed"), "what has no figures has no heading");
        let json = report.json();
        assert_eq!(json["rows"].as_array().map(Vec::len), Some(4));
        assert_eq!(json["rows"][1]["nixtail_times_as_much"]["of_medians"], 2.5, "{json:#}");
        assert_eq!(json["targets"][0]["met"], false);
    }

    #[test]
    fn figures_have_as_many_digits_as_mean_something() {
        let shown = [2_140.4, 99.96, 12.34, 3.456, 0.1, 0.0123, 0.0].map(short);
        assert_eq!(shown, ["2140", "100", "12.3", "3.46", "0.10", "0.012", "0.00"]);
    }
}
