//! The rounds of one link: everybody in each of them, in an order that changes.

use std::error::Error;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::figures::Figures;
use super::measure::{self, REST, Times};
use super::plan::{LinkPlan, Measure, Peer, order};
use super::site::{Pair, Site};
use crate::link::Counts;

/// What is left out of a run, and by how much it is shortened.
#[derive(Debug, Clone)]
pub(super) struct Selection {
    pub(super) rounds: u8,
    /// Only what holds this: LINK/MEASURE/PEER.
    pub(super) only: Option<String>,
    /// By what every length is divided.
    pub(super) shortened: u32,
    /// Whoever can't be measured on this machine.
    pub(super) without: Vec<Peer>,
}

impl Selection {
    fn wants(&self, link: &LinkPlan, measure: Measure, peer: Peer) -> bool {
        let key = format!("{}/{}/{}", link.key, measure.key(), peer.key());
        !self.without.contains(&peer) && self.only.as_ref().is_none_or(|part| key.contains(part.as_str()))
    }

    /// Who is measured on a link, in the order in which they are started.
    pub(super) fn peers(&self, link: &LinkPlan) -> Vec<Peer> {
        let wanted = |peer: &Peer| {
            link.rows.iter().any(|(measure, peers)| peers.contains(peer) && self.wants(link, *measure, *peer))
        };
        Peer::ALL.into_iter().filter(wanted).collect()
    }
}

/// Whether anything is under way on the link still.
pub(super) trait Settle {
    /// Packets that have gone over it, in either direction; `None` where nobody counts.
    fn passed(&self) -> Option<u64>;
}

impl Settle for crate::stage::network::Link<'_> {
    fn passed(&self) -> Option<u64> {
        self.counts().map(|counts: [Counts; 2]| counts.iter().map(|counts| counts.passed).sum())
    }
}

/// Loopback.
impl Settle for () {
    fn passed(&self) -> Option<u64> {
        None
    }
}

/// Runs all rounds. Whoever fails is told of in `failed`, and is left out of that round alone.
pub(super) fn run(
    link: &LinkPlan,
    selection: &Selection,
    site: &Site<'_>,
    wire: &impl Settle,
    figures: &mut Figures,
    failed: &mut Vec<String>,
) {
    let mut pairs = Vec::new();
    for peer in selection.peers(link) {
        say(&format!("{}: {} find each other", link.key, peer.title()));
        match site.pair(peer) {
            Ok(pair) => pairs.push(pair),
            Err(error) => fail(failed, format!("{}: {}: {error}", link.key, peer.title())),
        }
    }
    for round in 0..selection.rounds {
        for (measure, peers) in link.rows {
            let taking_part =
                |pair: &&Pair<'_>| peers.contains(&pair.peer) && selection.wants(link, *measure, pair.peer);
            let row: Vec<&Pair<'_>> = pairs.iter().filter(taking_part).collect();
            if *measure == Measure::Rest && !row.is_empty() {
                sleep(REST / selection.shortened);
            }
            for pair in order(row.len(), round).filter_map(|index| row.get(index)) {
                let place = format!("{}: {}: {}/{}", link.key, measure.key(), round + 1, selection.rounds);
                let short = |time: Duration| time / selection.shortened;
                let times = Times { warm_up: short(link.warm_up), length: short(link.length) };
                match measure::measure(pair, *measure, times) {
                    Ok(said) => {
                        say(&format!("{place}: {}: {}", pair.peer.title(), measure::shown(*measure, &said)));
                        for (quantity, value) in said {
                            figures.add(link.key, quantity, pair.peer, round, value);
                        }
                    }
                    Err(error) => fail(failed, format!("{place}: {}: {error}", pair.peer.title())),
                }
                if *measure != Measure::Rest {
                    settle(wire, link);
                }
            }
        }
    }
}

/// Waits until nothing goes over the link any more but what idle nodes say.
fn settle(wire: &impl Settle, link: &LinkPlan) {
    /// How long is looked, and what idle nodes may send in that time.
    const LOOK: Duration = Duration::from_millis(150);
    const CHATTER: u64 = 50;
    /// Whoever sends for longer than that disturbs, and is seen in the figures.
    const PATIENCE: Duration = Duration::from_secs(5);
    let deadline = Instant::now() + PATIENCE;
    let delay = link.conditions.map_or(Duration::ZERO, |conditions| conditions.delay);
    let mut before = wire.passed();
    loop {
        sleep(LOOK + delay);
        let now = wire.passed();
        let gone = now.zip(before).map_or(0, |(now, before)| now - before);
        if gone <= CHATTER || Instant::now() >= deadline {
            return;
        }
        before = now;
    }
}

fn fail(failed: &mut Vec<String>, what: String) {
    say(&format!("FAILED: {what}"));
    failed.push(what);
}

/// Progress, for people.
pub(super) fn say(words: &str) {
    eprintln!("compare: {words}");
}

/// Something that went wrong before anything could be measured on a link.
pub(super) fn note(failed: &mut Vec<String>, link: &LinkPlan, error: &dyn Error) {
    fail(failed, format!("{}: {error}", link.key));
}

#[cfg(test)]
mod tests {
    use super::super::plan::LINKS;
    use super::*;

    fn selection(only: Option<&str>, without: &[Peer]) -> Selection {
        Selection { rounds: 1, only: only.map(str::to_owned), shortened: 1, without: without.to_vec() }
    }

    #[test]
    fn a_part_of_a_key_takes_some() {
        let [clean, .., derp] = LINKS;
        assert_eq!(selection(Some("derp/"), &[]).peers(&clean), []);
        assert_eq!(selection(Some("derp/"), &[]).peers(&derp).len(), 4);
        assert_eq!(selection(Some("one/nixtail-to"), &[]).peers(&clean), [Peer::NixtailToTun]);
        assert_eq!(selection(None, &[Peer::Tsnet]).peers(&derp), [Peer::Nixtail, Peer::Tun, Peer::BareDerp]);
    }
}
