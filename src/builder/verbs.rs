//! A builder's answers to nixtail's own control verbs.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::BoxStream;
use nixtail_proto::key::NodePublic;
use nixtail_proto::nix_command::{ControlRequest, ControlVerb};
use nixtail_proto::run::{Builder, ClaimError, End, Presence, Room, Told};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::report::{BuilderStatus, Report, SessionStatus, Surroundings};
use super::sessions::Sessions;
use super::{Options, watching};
use crate::nix::facts::Facts;
use crate::nix::machine::{self, Moment};
use crate::ssh::{ControlReply, ControlVerbs, Peer};

/// The exit code of a verb that is refused.
const REFUSED: u32 = 77;
/// The exit code of a claim on a builder that another coordinator has; who that is stands on stdout, as a [`Holder`].
const TAKEN: u32 = 75;

/// A builder's life and facts, asked from many connections.
pub(super) struct Verbs {
    facts: Facts,
    /// Where the store is on disk.
    store: PathBuf,
    began: Instant,
    life: Mutex<Life>,
    sessions: Arc<Sessions>,
    changed: Notify,
}

struct Life {
    builder: Builder,
    /// What the netmap called the claimer when it claimed.
    claimer_name: String,
    /// How the machine was when it was looked at last.
    moment: Moment,
    room: Room,
}

/// Who has a builder: the answer to a claim that comes too late.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Holder {
    pub(crate) node_key: NodePublic,
    pub(crate) name: String,
}

impl Verbs {
    pub(super) fn new(options: &Options) -> Self {
        let facts = options.facts.clone();
        let now = Instant::now();
        let builder = Builder::new(now, options.idle_timeout)
            .of_run(facts.run.clone())
            .with_claimer_silence(options.claimer_silence);
        let store = PathBuf::from(facts.store_on_disk.as_ref().unwrap_or(&facts.store_folder));
        let moment = machine::now(&store);
        let room = Room::new(options.min_free_disk);
        let life = Life { builder, claimer_name: String::new(), moment, room };
        let verbs =
            Self { facts, store, began: now, life: Mutex::new(life), sessions: Arc::default(), changed: Notify::new() };
        verbs.look_around();
        verbs
    }

    /// The builder's Nix sessions.
    pub(super) fn sessions(&self) -> &Arc<Sessions> {
        &self.sessions
    }

    pub(super) fn end(&self) -> Option<End> {
        self.life().builder.end()
    }

    pub(super) fn claimer(&self) -> Option<NodePublic> {
        self.life().builder.claimer()
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.life().builder.poll_timeout()
    }

    pub(super) fn handle_timeout(&self, now: Instant) {
        self.life().builder.handle_timeout(now);
    }

    pub(super) fn handle_presence(&self, now: Instant, presence: Presence) {
        self.life().builder.handle_presence(now, presence);
    }

    pub(super) fn handle_heard(&self, now: Instant) {
        self.life().builder.handle_heard(now);
    }

    pub(super) fn handle_sessions(&self, now: Instant) {
        let any = self.sessions.open() > 0;
        self.life().builder.handle_sessions(now, any);
    }

    pub(super) fn handle_watch_ended(&self, from: NodePublic) {
        self.life().builder.handle_watch_ended(Instant::now(), from);
        self.changed.notify_one();
    }

    /// Whoever runs this builder ends it.
    pub(super) fn handle_told(&self, told: Told, drain: Duration) {
        self.life().builder.handle_told(Instant::now(), told, drain);
        self.heed_end();
    }

    /// Nothing runs any more, or may.
    pub(super) fn finish(&self) {
        self.life().builder.handle_finished(Instant::now());
        self.heed_end();
    }

    /// Whether nothing that runs may go on any longer.
    pub(super) fn is_over(&self) -> bool {
        self.life().builder.is_over(Instant::now())
    }

    /// Takes no more sessions once the builder ends, and lets its watchers know.
    pub(super) fn heed_end(&self) {
        let life = self.life();
        let ending = life.builder.end().map(|end| format!("this builder is ending: {end}"));
        let resting = life.room.lacking().map(|lacking| lacking.to_string());
        drop(life);
        self.sessions.close(ending.or(resting));
        self.sessions.touch();
        self.changed.notify_one();
    }

    /// Looks at the machine again: load, memory, and whether there is room left on the disk.
    pub(super) fn look_around(&self) {
        let moment = machine::now(&self.store);
        let mut life = self.life();
        life.moment = moment;
        let changed = moment.free_disk_bytes.is_some_and(|free| life.room.handle_free(free));
        let lacking = life.room.lacking();
        drop(life);
        if changed {
            match lacking {
                Some(lacking) => tracing::warn!("no build is taken for now: {lacking}"),
                None => tracing::warn!("builds are taken again: there is room on the disk"),
            }
            self.sessions.set_shortage(lacking.map(|lacking| lacking.to_string()));
            self.heed_end();
        }
    }

    /// How the builder is, and what happened after event `after`.
    pub(super) fn report(&self, after: u64) -> Report {
        let life = self.life();
        let around = Surroundings {
            began: self.began,
            cores: self.facts.cores,
            load: life.moment.load,
            memory_available_bytes: life.moment.memory_available_bytes,
            free_disk_bytes: life.moment.free_disk_bytes,
            ending: life.builder.end().map(|end| end.to_string()),
            resting: life.room.lacking().map(|lacking| lacking.to_string()).or_else(|| self.sessions.silence()),
        };
        drop(life);
        Report::make(&self.sessions, around, after)
    }

    /// For `nixtail status` at the builder's own socket.
    pub(super) fn status(&self) -> BuilderStatus {
        let claimed_by = {
            let life = self.life();
            life.builder.claimer().map(|_| life.claimer_name.clone())
        };
        let sessions = self.sessions.list().into_iter().map(|session| SessionStatus {
            lane: session.lane,
            peer: session.peer,
            lasted_ms: millis(session.ended.as_ref().map_or_else(Instant::now, |(at, _)| *at) - session.since),
            ended: session.ended.map(|(_, words)| words),
            bytes_in: session.bytes_in,
            bytes_out: session.bytes_out,
        });
        let sessions = sessions.collect();
        // A report is an object.
        let mut report = match serde_json::to_value(self.report(u64::MAX)) {
            Ok(serde_json::Value::Object(report)) => report,
            _ => serde_json::Map::new(),
        };
        for left_out in ["schema", "events"] {
            report.remove(left_out);
        }
        BuilderStatus { claimed_by, report, sessions }
    }

    /// Waits until a verb changed something. A change before the call counts, too.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Its methods don't panic, so that a poisoned lock can't be.
    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reply(&self, peer: &Peer, request: &ControlRequest) -> ControlReply {
        match request.verb {
            ControlVerb::Facts => match serde_json::to_vec(&self.facts) {
                Ok(json) => data(json),
                Err(error) => refused(format!("facts can't be written: {error}")),
            },
            ControlVerb::Ping => data(b"pong\n".to_vec()),
            ControlVerb::Claim => self.claim(peer, request.arguments.first().map(String::as_str)),
            ControlVerb::Release => {
                let released = self.life().builder.handle_release(Instant::now(), peer.node_key);
                self.changed.notify_one();
                released.map_or_else(|error| refused(error.to_string()), |()| data(b"released\n".to_vec()))
            }
            ControlVerb::Stop => {
                let stopped = self.life().builder.handle_stop(Instant::now(), peer.node_key);
                self.heed_end();
                stopped.map_or_else(|error| refused(error.to_string()), |()| data(b"stopping\n".to_vec()))
            }
            ControlVerb::Watch => match self.life().builder.may_watch(peer.node_key) {
                Ok(()) => data(Vec::new()),
                Err(error) => refused(error.to_string()),
            },
        }
    }

    fn claim(&self, peer: &Peer, run: Option<&str>) -> ControlReply {
        let mut life = self.life();
        let claimed = life.builder.handle_claim(Instant::now(), peer.node_key, run);
        self.changed.notify_one();
        match claimed {
            Ok(()) => {
                tracing::info!(by = %peer.name, run = run.unwrap_or_default(), "claimed");
                life.claimer_name.clone_from(&peer.name);
                data(b"claimed\n".to_vec())
            }
            Err(ClaimError::Taken(node_key)) => {
                let holder = Holder { node_key, name: life.claimer_name.clone() };
                let words = format!("this builder is claimed by the coordinator {}", holder.name);
                // A key and a name can always be written; without them the words are there.
                let stdout = serde_json::to_vec(&holder).unwrap_or_default();
                ControlReply { stdout, stderr: words, exit_code: TAKEN }
            }
            Err(error) => refused(error.to_string()),
        }
    }
}

impl ControlVerbs for Verbs {
    fn answer(&self, peer: &Peer, request: ControlRequest) -> Pin<Box<dyn Future<Output = ControlReply> + Send + '_>> {
        let reply = self.reply(peer, &request);
        Box::pin(std::future::ready(reply))
    }

    fn follow(self: Arc<Self>, peer: &Peer, request: &ControlRequest) -> Option<BoxStream<'static, Bytes>> {
        if request.verb != ControlVerb::Watch {
            return None;
        }
        let after = request.arguments.first().and_then(|after| after.parse().ok()).unwrap_or(0);
        // It may have lost the claim since it was answered.
        self.life().builder.handle_watch_began(peer.node_key).ok()?;
        Some(watching::reports(self, peer.node_key, after))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn data(stdout: Vec<u8>) -> ControlReply {
    ControlReply { stdout, ..ControlReply::default() }
}

fn refused(words: String) -> ControlReply {
    ControlReply { stderr: words, exit_code: REFUSED, ..ControlReply::default() }
}
