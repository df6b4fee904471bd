//! What is to be reached, most of it as ratios of medians of one run, and whether it is.

use serde::Serialize;

use super::figures::{Figures, Ratio};
use super::plan::{CLEAN, DERP, FAR, LATE, LOSSY, Peer, Quantity};

/// What is to be reached.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Wanted {
    /// At least so many times as much as somebody else's.
    AtLeast(f64, Peer),
    /// At most so many times as much as somebody else's.
    AtMost(f64, Peer),
    /// At most so much.
    Bound(f64),
}

/// One line of the table of targets.
#[derive(Debug, Clone, Copy)]
struct Target {
    what: &'static str,
    link: &'static str,
    quantity: Quantity,
    ours: Peer,
    wanted: Wanted,
}

/// The same everywhere but for what is compared.
const fn target(what: &'static str, link: &'static str, quantity: Quantity, ours: Peer, wanted: Wanted) -> Target {
    Target { what, link, quantity, ours, wanted }
}

const TARGETS: [Target; 13] = {
    use Peer::{BareDerp, Nixtail, NixtailToTun, Tsnet, TsnetToTun, Tun, TunToNixtail, TunToTsnet};
    use Quantity::{LoadedP99, One, ReceiverCpu, RestingMemory, SenderCpu, SendingMemory};
    use Wanted::{AtLeast, AtMost, Bound};
    [
        target("clean link, one stream, beside tsnet", CLEAN, One, Nixtail, AtLeast(3.0, Tsnet)),
        target("clean link, one stream, beside tailscaled with TUN", CLEAN, One, Nixtail, AtLeast(1.5, Tun)),
        target("sender's s/GB, beside tsnet", CLEAN, SenderCpu, Nixtail, AtMost(1.0 / 3.0, Tsnet)),
        target("receiver's s/GB, beside tsnet", CLEAN, ReceiverCpu, Nixtail, AtMost(1.0 / 3.0, Tsnet)),
        target("nixtail → tailscaled, beside tsnet → tailscaled", CLEAN, One, NixtailToTun, AtLeast(1.0, TsnetToTun)),
        target("tailscaled → nixtail, beside tailscaled → tsnet", CLEAN, One, TunToNixtail, AtLeast(1.0, TunToTsnet)),
        target("memory while sending, MiB", CLEAN, SendingMemory, Nixtail, Bound(64.0)),
        target("memory at rest, MiB", CLEAN, RestingMemory, Nixtail, Bound(20.0)),
        target("latency under load, p99, beside tsnet", CLEAN, LoadedP99, Nixtail, AtMost(0.5, Tsnet)),
        target("relay alone, beside two bare DERP clients", DERP, One, Nixtail, AtLeast(0.5, BareDerp)),
        target("20 ms, beside tsnet", FAR, One, Nixtail, AtLeast(1.5, Tsnet)),
        target("66 ms, late and lost packets, beside tsnet", LATE, One, Nixtail, AtLeast(1.0, Tsnet)),
        target("20 ms, lost packets, beside tsnet", LOSSY, One, Nixtail, AtLeast(1.0, Tsnet)),
    ]
};

/// What the stripped release binary may be, in MiB.
const BINARY: f64 = 15.0;

/// What other commands measure.
pub(super) const ELSEWHERE: [&str; 2] = [
    "OpenSSH → our endpoint, `nix copy`, the direct lane: `nixtail-bench nix`",
    "packet cost at 256 peers and 100 streams, idle CPU: counted in `make test`",
];

/// Whether a target is met.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Verdict {
    pub(super) target: &'static str,
    /// In words.
    pub(super) wanted: String,
    /// The figure, where there is one: a ratio, or what is bounded.
    pub(super) is: Option<f64>,
    /// The least and the most of the rounds.
    pub(super) spread: Option<[f64; 2]>,
    /// `None`: it wasn't measured.
    pub(super) met: Option<bool>,
    /// How far beyond the target the figure is, as a part of it; below 0 it is missed by that.
    pub(super) margin: Option<f64>,
}

impl Target {
    fn judge(&self, figures: &Figures) -> Verdict {
        let ratio = |other: Peer| figures.ratio(self.link, self.quantity, [self.ours, other]);
        let with = |ratio: Option<Ratio>| ratio.map(|ratio| (ratio.of_medians, [ratio.least, ratio.most]));
        let own = || {
            let spread = figures.get(self.link, self.quantity, self.ours)?.spread()?;
            Some((spread.median, [spread.least, spread.most]))
        };
        let (wanted, figure, bound, more) = match self.wanted {
            Wanted::AtLeast(bound, other) => (format!("≥ {bound} ×"), with(ratio(other)), bound, true),
            Wanted::AtMost(bound, other) => (format!("≤ {} ×", short(bound)), with(ratio(other)), bound, false),
            Wanted::Bound(bound) => (format!("≤ {bound}"), own(), bound, false),
        };
        judge(self.what, wanted, figure, bound, more)
    }
}

fn judge(
    target: &'static str,
    wanted: String,
    figure: Option<(f64, [f64; 2])>,
    bound: f64,
    more_is_better: bool,
) -> Verdict {
    let margin = figure.map(|(is, _)| if more_is_better { is / bound - 1.0 } else { 1.0 - is / bound });
    Verdict {
        target,
        wanted,
        is: figure.map(|(is, _)| is),
        spread: figure.map(|(_, spread)| spread),
        met: margin.map(|margin| margin >= 0.0),
        margin,
    }
}

/// All verdicts; the binary's size is in bytes.
pub(super) fn verdicts(figures: &Figures, binary: Option<u64>) -> Vec<Verdict> {
    let mut verdicts: Vec<Verdict> = TARGETS.iter().map(|target| target.judge(figures)).collect();
    let size = binary.map(|bytes| bytes as f64 / f64::from(1 << 20)).map(|size| (size, [size, size]));
    verdicts.push(judge("release binary, MiB", format!("≤ {BINARY}"), size, BINARY, false));
    verdicts
}

/// A third without its tail.
fn short(ratio: f64) -> String {
    if (ratio - 1.0 / 3.0).abs() < 1e-9 { "1/3".to_owned() } else { format!("{ratio}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(quantity: Quantity, ours: f64, theirs: f64) -> Figures {
        let mut figures = Figures::default();
        for (peer, value) in [(Peer::Nixtail, ours), (Peer::Tsnet, theirs)] {
            figures.add(CLEAN, quantity, peer, 0, value);
        }
        figures
    }

    fn verdict(figures: &Figures, what: &str) -> Verdict {
        verdicts(figures, None).into_iter().find(|verdict| verdict.target == what).unwrap()
    }

    #[test]
    fn a_ratio_is_met_from_its_bound_on_and_missed_by_what_lacks() {
        let what = "clean link, one stream, beside tsnet";
        let met = verdict(&figures(Quantity::One, 3_000.0, 1_000.0), what);
        assert_eq!((met.wanted.as_str(), met.is, met.met, met.margin), ("≥ 3 ×", Some(3.0), Some(true), Some(0.0)));
        let missed = verdict(&figures(Quantity::One, 1_500.0, 1_000.0), what);
        assert_eq!((missed.met, missed.margin), (Some(false), Some(-0.5)));
    }

    #[test]
    fn less_is_better_where_it_costs() {
        let what = "sender's s/GB, beside tsnet";
        let met = verdict(&figures(Quantity::SenderCpu, 0.5, 3.0), what);
        assert_eq!((met.wanted.as_str(), met.met), ("≤ 1/3 ×", Some(true)));
        assert!((met.margin.unwrap() - 0.5).abs() < 1e-9);
        assert_eq!(verdict(&figures(Quantity::SenderCpu, 2.0, 3.0), what).met, Some(false));
        let memory = verdict(&figures(Quantity::SendingMemory, 65.0, 0.0), "memory while sending, MiB");
        assert_eq!((memory.is, memory.met), (Some(65.0), Some(false)));
    }

    #[test]
    fn what_was_not_measured_is_neither_met_nor_missed() {
        let verdicts = verdicts(&Figures::default(), Some(10 << 20));
        assert_eq!(verdicts.len(), TARGETS.len() + 1);
        assert!(verdicts.iter().take(TARGETS.len()).all(|verdict| verdict.met.is_none() && verdict.is.is_none()));
        assert_eq!(verdicts.last().map(|binary| (binary.is, binary.met)), Some((Some(10.0), Some(true))));
    }
}
