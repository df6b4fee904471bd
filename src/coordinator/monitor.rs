//! The watch over the builders that are ready: one open stream of reports from each, and what follows from them.
//!
//! Nix waits for ever for a builder that froze. Here a builder that says nothing for a while is found lost, so that its
//! streams can be reset and Nix gets its error. The record of the run and `nixtail status` live on the same reports.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nixtail_proto::key::NodePublic;
use nixtail_proto::run::{BuilderFacts, Failure, Liveness, Outcome, Stage};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use super::prove::{Acquaintance, Prover, Via};
use super::{Chronicle, Live};
use crate::builder::sessions;
use crate::builder::{MAX_REPORT_LINE, Report, ReportEvent};
use crate::report::plain;

/// Reports that wait to be looked at. Each watch waits for its place, so a fast builder only slows itself down.
const WAITING_REPORTS: usize = 64;
/// The pause before a watch that broke is opened again, and how far it grows.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The watch over all ready builders.
pub(super) struct Monitor {
    prover: Arc<Prover>,
    silence: Duration,
    watched: BTreeMap<String, Watched>,
    tasks: JoinSet<()>,
    sender: mpsc::Sender<Sign>,
    signs: mpsc::Receiver<Sign>,
    numbers: u64,
    chronicle: Chronicle,
}

struct Watched {
    number: u64,
    node_key: NodePublic,
    liveness: Liveness,
    task: AbortHandle,
    /// Why no build should go there, though it is ready.
    withheld: Option<String>,
}

/// What came of a watch.
struct Sign {
    name: String,
    number: u64,
    what: What,
}

enum What {
    Report(Box<Report>),
    /// The builder refuses to be watched, or ended it in order.
    Over(Failure),
}

/// What the coordinator must heed.
#[derive(Debug)]
pub(super) enum Finding {
    /// A builder is lost. All streams to its node are of no use.
    Lost { name: String, reason: String },
    /// Whether builds should go to a builder has changed.
    Withheld,
}

impl Monitor {
    /// A builder that says nothing for `silence` is lost. `chronicle` is told of what the builders do.
    pub(super) fn new(prover: Arc<Prover>, silence: Duration, chronicle: Chronicle) -> Self {
        let (sender, signs) = mpsc::channel(WAITING_REPORTS);
        Self { prover, silence, watched: BTreeMap::new(), tasks: JoinSet::new(), sender, signs, numbers: 0, chronicle }
    }

    /// A builder is ready: it is watched from now on.
    pub(super) fn begin(&mut self, name: &str, known: &Acquaintance) {
        let now = Instant::now();
        self.end(name, "it is proved anew");
        let facts = BuilderFacts { system: plain(&known.facts.system), cores: known.facts.cores };
        self.chronicle.record(|record| record.handle_ready(now, name, &facts));
        self.numbers += 1;
        let number = self.numbers;
        let watch = Watch {
            prover: Arc::clone(&self.prover),
            name: name.to_owned(),
            number,
            via: known.via,
            host_keys: known.host_keys.clone(),
            sender: self.sender.clone(),
        };
        let task = self.tasks.spawn(watch.run());
        let liveness = Liveness::new(now, self.silence);
        let watched = Watched { number, node_key: known.node_key, liveness, task, withheld: None };
        self.watched.insert(name.to_owned(), watched);
    }

    /// A builder is ready no more, for this reason. What it was building is lost. Returns its node.
    pub(super) fn end(&mut self, name: &str, reason: &str) -> Option<NodePublic> {
        let watched = self.watched.remove(name)?;
        watched.task.abort();
        self.chronicle.handle_gone(Instant::now(), name, reason);
        Some(watched.node_key)
    }

    /// Why no build should go to a builder though it is ready, if so.
    pub(super) fn withheld(&self, name: &str) -> Option<&str> {
        self.watched.get(name)?.withheld.as_deref()
    }

    /// The next thing to heed. Cancel safe.
    pub(super) async fn next(&mut self) -> Finding {
        loop {
            // Those that are over are of no more interest; a panic in one shows as a builder that falls silent.
            while self.tasks.try_join_next().is_some() {}
            let due = self.watched.values().map(|watched| watched.liveness.poll_timeout()).min();
            let due = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => pending().await,
                }
            };
            let finding = tokio::select! {
                // First what was said: a coordinator that was held up has it all waiting here.
                biased;
                Some(sign) = self.signs.recv() => self.handle_sign(sign),
                () = due => self.look(),
            };
            if let Some(finding) = finding {
                return finding;
            }
        }
    }

    /// Ends all watches.
    pub(super) async fn stop(&mut self) {
        self.tasks.shutdown().await;
    }

    fn look(&mut self) -> Option<Finding> {
        let now = Instant::now();
        let lost = |watched: &mut Watched| watched.liveness.handle_timeout(now);
        let (name, lost) = self.watched.iter_mut().find_map(|(name, watched)| Some((name.clone(), lost(watched)?)))?;
        Some(Finding::Lost { name, reason: lost.to_string() })
    }

    fn handle_sign(&mut self, Sign { name, number, what }: Sign) -> Option<Finding> {
        let watched = self.watched.get_mut(&name).filter(|watched| watched.number == number)?;
        match what {
            What::Over(failure) => {
                let reason =
                    watched.withheld.clone().unwrap_or_else(|| format!("{}: {}", failure.stage, failure.reason));
                Some(Finding::Lost { name, reason })
            }
            What::Report(report) => {
                let now = Instant::now();
                watched.liveness.handle_heard(now);
                let withheld = report.ending.as_ref().or(report.resting.as_ref()).map(|words| plain(words));
                let changed = withheld != watched.withheld;
                watched.withheld = withheld;
                if let (true, Some(words)) = (changed, &watched.withheld) {
                    tracing::warn!(builder = %name, reason = %words, "takes no more builds; Nix is told of it no more");
                } else if changed {
                    tracing::info!(builder = %name, "takes builds again");
                }
                remember(&self.chronicle, now, &name, *report);
                changed.then_some(Finding::Withheld)
            }
        }
    }
}

/// Tells the chronicle what a report says.
fn remember(chronicle: &Chronicle, now: Instant, name: &str, report: Report) {
    // By how long it is past, on the builder's clock.
    let at = |ms: u64| now.checked_sub(Duration::from_millis(report.uptime_ms.saturating_sub(ms))).unwrap_or(now);
    for event in &report.events {
        let ReportEvent { build, derivation, started_ms, finished_ms, outcome, words, .. } = event;
        let derivation = plain(derivation);
        chronicle.record(|record| {
            if let Some(started) = started_ms {
                record.handle_started(at(*started), name, *build, &derivation);
            }
            if let (Some(finished), Some(outcome)) = (finished_ms, outcome) {
                record.handle_finished(at(*finished), name, *build, outcome_of(*outcome, report.ending.is_some()));
            }
        });
        if let Some(words) = words {
            chronicle.handle_error(now, name, &format!("{derivation} failed; {words}"));
            tracing::warn!(builder = %name, %derivation, words = %plain(words), "a build failed");
        }
    }
    chronicle.record(|record| record.handle_traffic(name, report.bytes_in, report.bytes_out));
    let live = Live {
        load: Some(report.load),
        memory_available_bytes: Some(report.memory_available_bytes),
        free_disk_bytes: report.free_disk_bytes,
        ending: report.ending.as_deref().map(plain),
        resting: report.resting.as_deref().map(plain),
    };
    chronicle.handle_live(name, live);
}

/// A build whose session ended before it did is lost where its builder is `ending`. Else it was Nix that gave it up, as it does
/// with all others once one has failed or was lost.
fn outcome_of(outcome: sessions::Outcome, ending: bool) -> Outcome {
    match outcome {
        sessions::Outcome::Built => Outcome::Built,
        sessions::Outcome::Failed => Outcome::Failed,
        sessions::Outcome::Unfinished if ending => Outcome::Lost,
        sessions::Outcome::Unfinished => Outcome::Abandoned,
    }
}

/// One builder's watch, opened again whenever it breaks.
struct Watch {
    prover: Arc<Prover>,
    name: String,
    number: u64,
    via: Via,
    host_keys: Vec<String>,
    sender: mpsc::Sender<Sign>,
}

impl Watch {
    async fn run(self) {
        let (mut after, mut pause) = (0, FIRST_PAUSE);
        loop {
            match self.follow(&mut after, &mut pause).await {
                WatchEnd::Over(failure) => return self.tell(What::Over(failure)).await,
                WatchEnd::Broken(failure) => {
                    tracing::info!(builder = %self.name, reason = %failure.reason, "its watch broke and is opened again");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// One watch from its beginning to its end.
    async fn follow(&self, after: &mut u64, pause: &mut Duration) -> WatchEnd {
        let mut lines = match self.prover.open_watch(&self.name, self.via, &self.host_keys, *after).await {
            Ok(lines) => lines,
            Err(failure) => return WatchEnd::of(failure),
        };
        loop {
            let line = match lines.next(MAX_REPORT_LINE).await {
                Ok(line) => line,
                // Also where the policy ended the session: another one may be let in.
                Err(failure) => return WatchEnd::Broken(failure),
            };
            match line.map(|line| Report::read(&line)) {
                Some(Ok(report)) => {
                    *after = report.events.last().map_or(*after, |event| event.number);
                    *pause = FIRST_PAUSE;
                    self.tell(What::Report(Box::new(report))).await;
                }
                Some(Err(reason)) => return WatchEnd::Over(Failure { stage: Stage::Facts, reason: plain(&reason) }),
                None => {
                    let reason = "it ended its reports".to_owned();
                    return WatchEnd::Over(Failure { stage: Stage::Connect, reason });
                }
            }
        }
    }

    async fn tell(&self, what: What) {
        // Where nobody listens any more, this is about to be aborted.
        let _ = self.sender.send(Sign { name: self.name.clone(), number: self.number, what }).await;
    }
}

/// How a watch ended.
enum WatchEnd {
    /// The connection broke, or there was none: another may go better.
    Broken(Failure),
    /// The builder ended it, or won't have it.
    Over(Failure),
}

impl WatchEnd {
    fn of(failure: Failure) -> Self {
        match failure.stage {
            Stage::Connect => Self::Broken(failure),
            _ => Self::Over(failure),
        }
    }
}
