//! The table and the JSON.

use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use super::figures::{Samples, Spread};
use super::lanes::Lane;
use super::rows::{DIRECT_PROCESSOR, DIRECT_ROUND_TRIPS, Row, RowKind, Target};
use crate::link::Counts;
use crate::stage::host;

/// Raised when a key of the JSON changes its meaning.
const SCHEMA: u32 = 1;

const PLAIN: &str = "plain";
const TAILSCALED: &str = "tailscaled";
const SSH: &str = "nixtail-ssh";
const DIRECT: &str = "nixtail-direct";

/// All figures of a run.
#[derive(Debug)]
pub(crate) struct Report {
    rounds: u8,
    quick: bool,
    rows: Vec<Measured>,
    round_trips: Vec<(&'static str, &'static str, f64)>,
    links: Vec<String>,
}

#[derive(Debug)]
struct Measured {
    row: Row,
    lanes: Vec<(&'static str, &'static str, Samples)>,
}

impl Measured {
    fn samples(&self, key: &str) -> Option<&Samples> {
        self.lanes.iter().find(|(lane, ..)| *lane == key).map(|(.., samples)| samples)
    }

    /// How many times as fast as plain sshd a lane is.
    fn speed(&self, key: &str) -> Option<Spread> {
        self.samples(key)?.speed_against(self.samples(PLAIN)?)
    }

    /// What is asked of a lane, and whether it is so; `None` where nothing is or nothing was measured.
    fn verdict(&self, key: &str) -> Option<(String, bool)> {
        let target = match key {
            SSH => self.row.ssh,
            DIRECT => self.row.direct,
            _ => return None,
        };
        let (wanted, against, name) = match target {
            Target::Plain(wanted) => (wanted, PLAIN, ""),
            Target::Tailscaled(wanted) => (wanted, TAILSCALED, " of tailscaled"),
            Target::None => return None,
        };
        let speed = self.samples(key)?.speed_against(self.samples(against)?)?.median;
        let told = if against == PLAIN { String::new() } else { format!(", is {speed:.2}") };
        Some((format!("≥ {wanted}{name}{told}"), speed >= wanted))
    }
}

impl Measured {
    /// What a large copy takes of the coordinator's processors, and whether the direct lane takes little enough beside the SSH lane.
    fn processor(&self, key: &str) -> Option<(Spread, Option<bool>)> {
        let is_large = matches!(self.row.kind, RowKind::LargeTo | RowKind::LargeFrom);
        let taken = self.samples(key).filter(|_| is_large)?.processor()?;
        let of_ssh = self.samples(SSH).and_then(Samples::processor).filter(|_| key == DIRECT && self.row.is_clean());
        Some((taken, of_ssh.map(|ssh| taken.median <= DIRECT_PROCESSOR * ssh.median)))
    }
}

impl Report {
    /// Nothing measured yet.
    pub(crate) fn new(rounds: u8, quick: bool) -> Self {
        Self { rounds, quick, rows: Vec::new(), round_trips: Vec::new(), links: Vec::new() }
    }

    /// One row's samples, in the order of the lanes.
    pub(crate) fn add(&mut self, row: &Row, lanes: &[Lane], samples: Vec<Samples>) {
        let lanes = lanes.iter().zip(samples).map(|(lane, samples)| (lane.key, lane.title, samples)).collect();
        self.rows.push(Measured { row: *row, lanes });
    }

    /// Round trips: by how much the time grows with the round-trip time, `rtt` of which lies between the two rows.
    pub(crate) fn count_round_trips(&mut self, near: &Row, far: &Row, rtt: Duration) {
        let find = |row: &Row| self.rows.iter().find(|measured| measured.row.key == row.key);
        let (Some(near), Some(far)) = (find(near), find(far)) else { return };
        let slope = |(key, title, samples): &(&'static str, &'static str, Samples)| {
            let grown = samples.spread()?.median - near.samples(key)?.spread()?.median;
            Some((*key, *title, grown / rtt.as_secs_f64()))
        };
        self.round_trips = far.lanes.iter().filter_map(slope).collect();
    }

    /// What an emulated link did to packets.
    pub(crate) fn note_link(&mut self, link: &str, counts: [Counts; 2]) {
        let [to, from] = counts.map(|counts| format!("{} passed, {} overflowed", counts.passed, counts.overflowed));
        self.links.push(format!("{link}: to the builder {to}; from it {from}"));
    }

    /// Prints all of it to stdout.
    pub(crate) fn print(&self, json: bool) -> Result<(), Box<dyn Error>> {
        let text = if json { format!("{:#}\n", self.json()) } else { self.table() };
        Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
    }

    fn table(&self) -> String {
        let mut text = String::new();
        let title = "Nix over nixtail, beside plain sshd without a tunnel and tailscaled with a TUN device";
        // Writing to a string can't fail.
        let _ = writeln!(text, "{title}\n{}\n", machine().join("; "));
        let _ = writeln!(
            text,
            "Seconds: median (least to most) of {} interleaved rounds, of {} for 1 GiB. × is how many times as fast as\n\
             plain sshd, the median of the rounds' ratios. Both ends, and the link, share this machine: ratios count.\n",
            self.rounds,
            RowKind::LargeTo.rounds(self.rounds)
        );
        if self.quick {
            let _ = writeln!(text, "SMALL SIZES: these figures mean nothing.\n");
        }
        for measured in &self.rows {
            let _ = writeln!(text, "{}, {}", measured.row.what, measured.row.link);
            for (key, title, samples) in &measured.lanes {
                let Some(Spread { median, least, most }) = samples.spread() else { continue };
                let _ = write!(text, "  {title:<22} {median:>8.3} ({least:.3} to {most:.3})");
                if let Some(speed) = measured.speed(key).filter(|_| *key != PLAIN) {
                    let _ = write!(text, "   {:.2} × ({:.2} to {:.2})", speed.median, speed.least, speed.most);
                }
                if let Some((wanted, is_met)) = measured.verdict(key) {
                    let _ = write!(text, "   {} {wanted}", if is_met { "met:" } else { "MISSED:" });
                }
                text.push('\n');
                if let Some((Spread { median, least, most }, is_met)) = measured.processor(key) {
                    let _ = write!(text, "    of the coordinator's processors {median:.2} s ({least:.2} to {most:.2})");
                    if let Some(is_met) = is_met {
                        let met = if is_met { "met:" } else { "MISSED:" };
                        let _ = write!(text, "   {met} ≤ {DIRECT_PROCESSOR} of the SSH lane's");
                    }
                    text.push('\n');
                }
            }
            text.push('\n');
        }
        if !self.round_trips.is_empty() {
            let _ = writeln!(text, "round trips of a no-op remote build (from the two rows before)");
            for (key, title, trips) in &self.round_trips {
                let _ = write!(text, "  {title:<22} {trips:>8.1}");
                if let Some((wanted, is_met)) = self.round_trips_verdict(key, *trips) {
                    let _ = write!(text, "   {} {wanted}", if is_met { "met:" } else { "MISSED:" });
                }
                text.push('\n');
            }
            text.push('\n');
        }
        for link in &self.links {
            let _ = writeln!(text, "packets, {link}");
        }
        text
    }

    fn round_trips_verdict(&self, key: &str, trips: f64) -> Option<(String, bool)> {
        match key {
            DIRECT => Some((format!("≤ {DIRECT_ROUND_TRIPS}"), trips <= DIRECT_ROUND_TRIPS)),
            SSH => {
                let plain = self.round_trips.iter().find(|(key, ..)| *key == PLAIN)?.2;
                Some((format!("≤ {plain:.1}"), trips <= plain))
            }
            _ => None,
        }
    }

    fn json(&self) -> serde_json::Value {
        let rows = self.rows.iter().map(|measured| {
            let lanes = measured.lanes.iter().map(|(key, _, samples)| {
                let verdict = measured.verdict(key);
                let value = serde_json::json!({
                    "seconds": samples.seconds(),
                    "spread": samples.spread(),
                    "speed_against_plain": measured.speed(key),
                    "coordinator_processor_seconds": samples.processor(),
                    "target": verdict.as_ref().map(|(wanted, _)| wanted),
                    "target_met": verdict.as_ref().map(|(_, is_met)| is_met),
                });
                ((*key).to_owned(), value)
            });
            serde_json::json!({
                "key": measured.row.key, "link": measured.row.link, "what": measured.row.what,
                "lanes": lanes.collect::<serde_json::Map<_, _>>(),
            })
        });
        let trips = self.round_trips.iter().map(|(key, _, trips)| ((*key).to_owned(), serde_json::json!(trips)));
        serde_json::json!({
            "schema": SCHEMA, "machine": machine(), "rounds": self.rounds, "small_sizes": self.quick,
            "rows": rows.collect::<Vec<_>>(), "round_trips": trips.collect::<serde_json::Map<_, _>>(),
            "links": self.links,
        })
    }
}

/// What was measured on, for people.
fn machine() -> Vec<String> {
    let nix = crate::stage::process::run("nix-build", &["--version"]).unwrap_or_default();
    let mut machine = host::described();
    machine.insert(2, nix.trim().to_owned());
    machine
}
