//! What is remembered of a run beside what is to be done next: its [`Record`], the last word of each builder on itself,
//! the last known path to it, and what went wrong on the way.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use nixtail_proto::run::Record;

use super::BuilderStatus;
use super::mode::Mode;
use super::status::{BuilderView, Live, RunningBuild};
use crate::agent::{Path, Peer, Status};
use crate::report::summary::{Missing, Summary, Surroundings};

/// The most errors that are kept. The first ones tell the most; of those that follow, there is a count.
const MAX_ERRORS: usize = 128;

/// The memory of a run. Clones share it.
#[derive(Debug, Clone)]
pub struct Chronicle(Arc<Mutex<Kept>>);

#[derive(Debug)]
struct Kept {
    record: Record,
    live: BTreeMap<String, Live>,
    links: BTreeMap<String, Link>,
    errors: Vec<(Instant, String, String)>,
    errors_left_out: u64,
}

/// The way to a builder, as it was when it was looked at last.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Link {
    path: Path,
    rtt_ms: Option<f64>,
}

impl Chronicle {
    /// An empty one, which begins now.
    #[must_use]
    pub fn begin(now: Instant) -> Self {
        let record = Record::new(now);
        let (live, links) = (BTreeMap::new(), BTreeMap::new());
        Self(Arc::new(Mutex::new(Kept { record, live, links, errors: Vec::new(), errors_left_out: 0 })))
    }

    /// Looks at the record, or tells it something. The record is locked meanwhile.
    pub fn record<T>(&self, look: impl FnOnce(&mut Record) -> T) -> T {
        look(&mut self.kept().record)
    }

    /// What `builder` says of itself now.
    pub fn handle_live(&self, builder: &str, live: Live) {
        let mut kept = self.kept();
        // Who was never ready has no place in the record either, so this is bounded as that is.
        if kept.record.builder(builder).is_some() {
            kept.live.insert(builder.to_owned(), live);
        }
    }

    /// `builder` is ready no more: what it said of itself isn't true any longer.
    pub fn handle_gone(&self, now: Instant, builder: &str, reason: &str) {
        let mut kept = self.kept();
        kept.record.handle_gone(now, builder, reason);
        kept.live.remove(builder);
    }

    /// Something went wrong between Nix and `builder`, in words for people: a lane's error, which Nix may have shown to
    /// nobody.
    pub fn handle_error(&self, now: Instant, builder: &str, message: &str) {
        let mut kept = self.kept();
        if kept.errors.len() < MAX_ERRORS {
            let (builder, message) = (crate::report::plain(builder), crate::report::plain(message));
            kept.errors.push((now, builder, message));
        } else {
            kept.errors_left_out += 1;
        }
    }

    /// The ways to the builders are as this status of the agent says.
    pub(super) fn handle_status(&self, status: &Status) {
        let mut kept = self.kept();
        let Kept { record, links, .. } = &mut *kept;
        for (name, _) in record.builders() {
            // A builder that has left keeps its last way; and one that nothing was sent to for long has none to tell of.
            if let Some(peer) = peer(status, name).filter(|peer| peer.path != Path::None) {
                links.insert(name.to_owned(), Link { path: peer.path, rtt_ms: peer.rtt_ms });
            }
        }
    }

    /// One builder as it is shown.
    pub(super) fn view(&self, now: Instant, standing: BuilderStatus, status: &Status) -> BuilderView {
        let kept = self.kept();
        let peer = peer(status, &standing.name);
        let recorded = kept.record.builder(&standing.name);
        let running = recorded.into_iter().flat_map(|builder| builder.running()).map(|running| RunningBuild {
            derivation: running.derivation.clone(),
            for_ms: u64::try_from(now.saturating_duration_since(running.started).as_millis()).unwrap_or(u64::MAX),
        });
        let mut running: Vec<RunningBuild> = running.collect();
        running.sort_by_key(|running| std::cmp::Reverse(running.for_ms));
        BuilderView {
            live: kept.live.get(&standing.name).cloned().unwrap_or_default(),
            path: peer.map_or(Path::None, |peer| peer.path),
            rtt_ms: peer.and_then(|peer| peer.rtt_ms),
            running_builds: running,
            sums: recorded.map(|builder| builder.tally(now).into()).unwrap_or_default(),
            standing,
        }
    }

    /// What came of the run until now.
    pub(super) fn summary(&self, now: Instant, status: &Status, mode: Mode, builders: &[BuilderStatus]) -> Summary {
        let kept = self.kept();
        let unix_now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let missing =
            |builder: &BuilderStatus| Missing { name: builder.name.clone(), standing: builder.standing.clone() };
        let paths: Vec<_> = kept.links.iter().map(|(name, link)| (name.clone(), link.path, link.rtt_ms)).collect();
        let surroundings = Surroundings {
            coordinator: status.own.name.clone(),
            mode: mode.as_str(),
            unix_now: i64::try_from(unix_now).unwrap_or_default(),
            paths: &paths,
            standings: builders.iter().map(missing).collect(),
            errors: kept.errors.clone(),
            errors_left_out: kept.errors_left_out,
        };
        Summary::of(&kept.record, now, surroundings)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The peer that a builder's name means: its whole DNS name or the first label of it.
fn peer<'a>(status: &'a Status, name: &str) -> Option<&'a Peer> {
    let name = name.trim_end_matches('.');
    let is = |other: &str| other.eq_ignore_ascii_case(name);
    status.peers.iter().find(|peer| is(&peer.dns_name) || is(&peer.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_errors_are_kept_and_the_others_counted() {
        let now = Instant::now();
        let chronicle = Chronicle::begin(now);
        for number in 0..MAX_ERRORS + 3 {
            chronicle.handle_error(now, "a", &format!("\u{1b}[31m{number}"));
        }
        let kept = chronicle.kept();
        assert_eq!((kept.errors.len(), kept.errors_left_out), (MAX_ERRORS, 3));
        assert_eq!(kept.errors[0].2, "[31m0");
    }

    #[test]
    fn who_is_gone_says_nothing_of_itself() {
        let now = Instant::now();
        let chronicle = Chronicle::begin(now);
        let live = || Live { load: Some(1.0), ..Live::default() };
        chronicle.handle_live("a", live());
        assert!(chronicle.kept().live.is_empty(), "nobody knows it yet");
        let facts = nixtail_proto::run::BuilderFacts { system: "x86_64-linux".to_owned(), cores: 1 };
        chronicle.record(|record| record.handle_ready(now, "a", &facts));
        chronicle.handle_live("a", live());
        assert_eq!(chronicle.kept().live.len(), 1);
        chronicle.handle_gone(now, "a", "silent");
        assert!(chronicle.kept().live.is_empty());
        assert!(!chronicle.record(|record| record.builder("a").is_some_and(|builder| builder.is_present())));
    }
}
