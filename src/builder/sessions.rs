//! The Nix sessions of a builder over either lane: whose they are, what they build, how much they move, how they end.
//!
//! Each session passes its plain bytes by its [`Session`], which looks at them and goes on.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nixtail_proto::worker::{BuildEvent, BuildOutcome, BuildWatch};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// The builds that are kept after their end for who asks late. A watcher that is away for longer misses some.
const KEPT_BUILDS: usize = 1024;
/// The ended sessions that are kept, for people.
const KEPT_SESSIONS: usize = 32;
/// How long Nix may take for its first byte to a client that has said something. It needs 0.1 s; a client would wait for ever,
/// and with it all of its builds, since Nix connects to one builder after another.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// How long no session is taken after a Nix that didn't answer: until then clients are refused at once.
const SILENCE_REST: Duration = Duration::from_secs(300);

/// Over which lane a session came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// As a command over SSH.
    Ssh,
    /// Nix's protocol straight through the tunnel.
    Direct,
}

/// How a build ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Its outputs are there.
    Built,
    /// Nix says that it failed.
    Failed,
    /// Its session ended first.
    Unfinished,
}

/// A builder's sessions.
#[derive(Debug)]
pub struct Sessions {
    state: Mutex<State>,
    /// How often something changed that a watcher wants to know at once.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    /// Why no session may begin.
    closed: Option<String>,
    /// Until when none may, because Nix didn't answer one.
    silent_until: Option<Instant>,
    /// Why builds may fail now.
    shortage: Option<String>,
    next_session: u64,
    open: BTreeMap<u64, OpenSession>,
    ended: VecDeque<EndedSession>,
    next_build: u64,
    running: BTreeMap<u64, Running>,
    events: VecDeque<Event>,
    next_event: u64,
    tally: Tally,
}

#[derive(Debug)]
struct OpenSession {
    lane: Lane,
    peer: String,
    since: Instant,
    traffic: Arc<Traffic>,
}

#[derive(Debug, Default)]
struct Traffic {
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

/// A build that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Over which lane it was asked for.
    pub lane: Lane,
    /// The derivation's name, without its hash and `.drv`.
    pub derivation: String,
    /// Since when.
    pub since: Instant,
    session: u64,
    build_of_session: u64,
}

/// A build that began or ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Counted from 1 on, without a gap.
    pub number: u64,
    /// The build.
    pub build: u64,
    /// The derivation's name.
    pub derivation: String,
    /// When.
    pub at: Instant,
    /// How it ended; `None` where it began.
    pub outcome: Option<Outcome>,
    /// What is known of why it failed.
    pub words: Option<String>,
}

/// A session that is over, or as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedSession {
    /// The lane.
    pub lane: Lane,
    /// The peer's name.
    pub peer: String,
    /// When it began.
    pub since: Instant,
    /// When it ended and how, in words; `None` while it goes on.
    pub ended: Option<(Instant, String)>,
    /// Bytes from the client.
    pub bytes_in: u64,
    /// Bytes to the client.
    pub bytes_out: u64,
}

/// Counts since the builder began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Builds whose outputs are there.
    pub done: u64,
    /// Builds that failed.
    pub failed: u64,
    /// Builds whose session ended first.
    pub unfinished: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
}

/// Why a session may not begin, in words for its client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no new session here: {0}")]
pub struct NoSession(String);

impl Default for Sessions {
    fn default() -> Self {
        Self { state: Mutex::default(), changes: watch::Sender::new(0) }
    }
}

impl Sessions {
    /// A session of `peer` begins. Both lanes call this before they start anything.
    ///
    /// # Errors
    /// While the builder takes no new ones.
    pub fn begin(self: &Arc<Self>, lane: Lane, peer: &str) -> Result<Session, NoSession> {
        let mut state = self.state();
        if let Some(words) = state.closed.clone().or_else(|| state.silence(Instant::now())) {
            return Err(NoSession(words));
        }
        let number = state.next_session;
        state.next_session += 1;
        let traffic = Arc::<Traffic>::default();
        let open = OpenSession { lane, peer: peer.to_owned(), since: Instant::now(), traffic: Arc::clone(&traffic) };
        state.open.insert(number, open);
        drop(state);
        Ok(Session {
            sessions: Arc::clone(self),
            number,
            lane,
            traffic,
            watch: Mutex::default(),
            end: Mutex::default(),
        })
    }

    /// Takes no new sessions from now on, for this reason, or takes them again. Those that are open go on.
    pub fn close(&self, reason: Option<String>) {
        let mut state = self.state();
        if state.closed != reason {
            state.closed = reason;
            drop(state);
            self.changed();
        }
    }

    /// Waits until no session is open. Cancel safe.
    pub async fn idle(&self) {
        let mut changes = self.changes.subscribe();
        while !self.state().open.is_empty() {
            // The sender is ours, so there is always one.
            let _ = changes.changed().await;
        }
    }

    /// What tells of changes: of builds, of the end of a session, and of [`Self::touch`].
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Something else changed that watchers want to know at once.
    pub fn touch(&self) {
        self.changed();
    }

    /// Whether any build is under way.
    pub fn is_building(&self) -> bool {
        !self.state().running.is_empty()
    }

    /// How many sessions are open.
    pub fn open(&self) -> usize {
        self.state().open.len()
    }

    /// What the machine lacks at the moment, so that a build that fails now can be told why; `None` where it lacks nothing.
    pub fn set_shortage(&self, words: Option<String>) {
        self.state().shortage = words;
    }

    /// Why no session is taken for now, where Nix didn't answer the last one; it is tried again after a while.
    pub fn silence(&self) -> Option<String> {
        self.state().silence(Instant::now())
    }

    /// The builds under way, by number.
    pub fn running(&self) -> Vec<(u64, Running)> {
        self.state().running.iter().map(|(build, running)| (*build, running.clone())).collect()
    }

    /// What happened after event `number`, as far as it is kept, oldest first, at most `limit` of it.
    pub fn events_after(&self, number: u64, limit: usize) -> Vec<Event> {
        self.state().events.iter().filter(|event| event.number > number).take(limit).cloned().collect()
    }

    /// The sums as they stand.
    pub fn tally(&self) -> Tally {
        let state = self.state();
        state.open.values().fold(state.tally, |tally, open| Tally {
            bytes_in: tally.bytes_in + open.traffic.bytes_in.load(Ordering::Relaxed),
            bytes_out: tally.bytes_out + open.traffic.bytes_out.load(Ordering::Relaxed),
            ..tally
        })
    }

    /// The last sessions that ended, then those that are open, oldest first.
    pub fn list(&self) -> Vec<EndedSession> {
        let state = self.state();
        let open = state.open.values().map(|open| open.as_ended(None));
        state.ended.iter().cloned().chain(open).collect()
    }

    fn changed(&self) {
        self.changes.send_modify(|changes| *changes = changes.wrapping_add(1));
    }

    /// Each step leaves it consistent, so that a panic elsewhere spoils nothing.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenSession {
    fn as_ended(&self, ended: Option<(Instant, String)>) -> EndedSession {
        EndedSession {
            lane: self.lane,
            peer: self.peer.clone(),
            since: self.since,
            ended,
            bytes_in: self.traffic.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.traffic.bytes_out.load(Ordering::Relaxed),
        }
    }
}

impl State {
    fn silence(&self, now: Instant) -> Option<String> {
        self.silent_until.filter(|until| now < *until).map(|_| no_answer())
    }

    fn take(&mut self, session: u64, lane: Lane, event: BuildEvent) {
        let at = Instant::now();
        match event {
            BuildEvent::Started { build: build_of_session, derivation } => {
                let build = self.next_build;
                self.next_build += 1;
                tracing::info!(build, %derivation, "a build begins");
                self.tell(Event { number: 0, build, derivation: derivation.clone(), at, outcome: None, words: None });
                self.running.insert(build, Running { lane, derivation, since: at, session, build_of_session });
            }
            BuildEvent::Finished { build: of_session, outcome } => {
                let is_it = |running: &Running| running.session == session && running.build_of_session == of_session;
                let found = self.running.iter().find(|(_, running)| is_it(running)).map(|(build, _)| *build);
                let Some((build, Running { derivation, since, .. })) =
                    found.and_then(|build| self.running.remove_entry(&build))
                else {
                    return;
                };
                let (outcome, count) = match outcome {
                    BuildOutcome::Built => (Outcome::Built, &mut self.tally.done),
                    BuildOutcome::Failed => (Outcome::Failed, &mut self.tally.failed),
                    BuildOutcome::Unfinished => (Outcome::Unfinished, &mut self.tally.unfinished),
                };
                *count += 1;
                let words = self.shortage.clone().filter(|_| outcome == Outcome::Failed);
                tracing::info!(build, %derivation, ?outcome, seconds = since.elapsed().as_secs_f64(), "a build ended");
                if let Some(words) = &words {
                    tracing::warn!(build, %derivation, "a build failed while {words}");
                }
                self.tell(Event { number: 0, build, derivation, at, outcome: Some(outcome), words });
            }
        }
    }

    fn tell(&mut self, event: Event) {
        self.next_event += 1;
        self.events.push_back(Event { number: self.next_event, ..event });
        if self.events.len() > KEPT_BUILDS {
            self.events.pop_front();
        }
    }
}

/// One session. Give it all bytes in the order in which they pass: the client's before the daemon gets them, the daemon's
/// before the client does. Dropping it ends the session.
#[derive(Debug)]
pub struct Session {
    sessions: Arc<Sessions>,
    number: u64,
    lane: Lane,
    traffic: Arc<Traffic>,
    watch: Mutex<BuildWatch>,
    end: Mutex<Option<String>>,
}

impl Session {
    /// Bytes from the client.
    pub fn handle_client_bytes(&self, bytes: &[u8]) {
        self.traffic.bytes_in.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.look(|watch| watch.handle_client_bytes(bytes));
    }

    /// The client says no more, as Nix does only when it gives up: a daemon that was building then answers that it failed, which says
    /// nothing about the build. Tell of it before the daemon can notice.
    pub fn handle_client_end(&self) {
        self.look(BuildWatch::handle_end);
    }

    /// Bytes from the daemon.
    pub fn handle_daemon_bytes(&self, bytes: &[u8]) {
        if self.traffic.bytes_out.fetch_add(bytes.len() as u64, Ordering::Relaxed) == 0 {
            self.sessions.state().silent_until = None;
        }
        self.look(|watch| watch.handle_daemon_bytes(bytes));
    }

    /// Ends once Nix has left a client that said something without a byte for `deadline` ([`ANSWER_DEADLINE`]), or twice that at
    /// the most; gives the words for the client. No session begins for a while then. Cancel safe.
    pub async fn unanswered(&self, deadline: Duration) -> String {
        let mut asked = false;
        loop {
            tokio::time::sleep(deadline).await;
            if self.traffic.bytes_out.load(Ordering::Relaxed) > 0 {
                std::future::pending::<()>().await;
            }
            if asked {
                break;
            }
            asked = self.traffic.bytes_in.load(Ordering::Relaxed) > 0;
        }
        self.sessions.state().silent_until = Some(Instant::now() + SILENCE_REST);
        self.sessions.changed();
        let words = no_answer();
        tracing::warn!("no session is taken for {} s: {words}", SILENCE_REST.as_secs());
        self.set_end(words.clone());
        words
    }

    /// How it ended, in words; the last ones count.
    pub fn set_end(&self, words: impl Into<String>) {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = Some(words.into());
    }

    fn look(&self, look: impl FnOnce(&mut BuildWatch)) {
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        look(&mut watch);
        let Some(event) = watch.poll_event() else { return };
        let events = std::iter::once(event).chain(std::iter::from_fn(|| watch.poll_event()));
        let mut state = self.sessions.state();
        for event in events {
            state.take(self.number, self.lane, event);
        }
        drop(state);
        self.sessions.changed();
    }
}

fn no_answer() -> String {
    format!("this builder's Nix hasn't answered within {} s", ANSWER_DEADLINE.as_secs())
}

impl Drop for Session {
    fn drop(&mut self) {
        self.look(BuildWatch::handle_end);
        let words = self.end.lock().unwrap_or_else(PoisonError::into_inner).take();
        let words = words.unwrap_or_else(|| "broken off".to_owned());
        let mut state = self.sessions.state();
        if let Some(open) = state.open.remove(&self.number) {
            let ended = open.as_ended(Some((Instant::now(), words)));
            state.tally.bytes_in += ended.bytes_in;
            state.tally.bytes_out += ended.bytes_out;
            state.ended.push_back(ended);
            if state.ended.len() > KEPT_SESSIONS {
                state.ended.pop_front();
            }
        }
        drop(state);
        self.sessions.changed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// A client that asked for the build of `name`.
    fn asks_for(session: &Session, name: &str) {
        session.handle_client_bytes(&words(&[0x6e69_7863]));
        session.handle_daemon_bytes(&words(&[0x6478_696f]));
        let mut path = format!("/nix/store/{}-{name}.drv", "0".repeat(32)).into_bytes();
        let length = path.len();
        path.resize(length.next_multiple_of(8), 0);
        session.handle_client_bytes(&[words(&[36, length as u64]), path].concat());
    }

    #[test]
    fn builds_are_counted_and_told_of() {
        let sessions = Arc::<Sessions>::default();
        let mut changes = sessions.changes();
        let (one, other) = (sessions.begin(Lane::Ssh, "c").unwrap(), sessions.begin(Lane::Direct, "c").unwrap());
        asks_for(&one, "a");
        asks_for(&other, "b");
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        let running: Vec<_> = sessions.running().into_iter().map(|(_, build)| (build.derivation, build.lane)).collect();
        assert_eq!(running, [("a".to_owned(), Lane::Ssh), ("b".to_owned(), Lane::Direct)]);
        other.handle_daemon_bytes(&words(&[0x616c_7473, 0]));
        assert!(changes.has_changed().unwrap());
        one.set_end("the client left");
        drop(one);
        let tally = sessions.tally();
        assert_eq!((tally.done, tally.failed, tally.unfinished), (1, 0, 1));
        assert_eq!((tally.bytes_in % 8, tally.bytes_out), (0, 32));
        let told: Vec<_> = sessions.events_after(1, 10).iter().map(|event| (event.number, event.outcome)).collect();
        assert_eq!(told, [(2, None), (3, Some(Outcome::Built)), (4, Some(Outcome::Unfinished))]);
        let list = sessions.list();
        assert_eq!(list[0].ended.as_ref().unwrap().1, "the client left");
        assert_eq!((list.len(), &list[1].ended), (2, &None));
    }

    #[test]
    fn what_the_daemon_says_of_a_build_that_its_client_gave_up_does_not_count() {
        let sessions = Arc::<Sessions>::default();
        let session = sessions.begin(Lane::Direct, "c").unwrap();
        asks_for(&session, "a");
        session.handle_client_end();
        // STDERR_ERROR
        session.handle_daemon_bytes(&words(&[0x6378_7470]));
        drop(session);
        let tally = sessions.tally();
        assert_eq!((tally.done, tally.failed, tally.unfinished), (0, 0, 1));
    }

    #[tokio::test]
    async fn a_builder_that_takes_no_more_says_why_and_becomes_idle() {
        let sessions = Arc::<Sessions>::default();
        let open = sessions.begin(Lane::Ssh, "c").unwrap();
        sessions.close(Some("this builder is ending".to_owned()));
        let refused = sessions.begin(Lane::Ssh, "c").unwrap_err();
        assert_eq!(refused.to_string(), "no new session here: this builder is ending");
        let waiting = tokio::spawn({
            let sessions = Arc::clone(&sessions);
            async move { sessions.idle().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(open);
        tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap().unwrap();
        sessions.close(None);
        assert!(sessions.begin(Lane::Ssh, "c").is_ok());
    }

    #[tokio::test]
    async fn a_nix_that_never_answers_ends_the_session_and_is_left_alone_for_a_while() {
        let sessions = Arc::<Sessions>::default();
        let [stuck, well, quiet] = [(); 3].map(|()| sessions.begin(Lane::Ssh, "c").unwrap());
        for session in [&stuck, &well] {
            session.handle_client_bytes(b"hello");
        }
        well.handle_daemon_bytes(b"hello");
        let soon = Duration::from_millis(20);
        let words = tokio::select! {
            words = stuck.unanswered(soon) => words,
            _ = well.unanswered(soon) => panic!("it was answered"),
            _ = quiet.unanswered(soon) => panic!("its client said nothing"),
        };
        assert_eq!(sessions.begin(Lane::Ssh, "c").unwrap_err().to_string(), format!("no new session here: {words}"));
        assert_eq!(sessions.silence(), Some(words));
        // One that was waiting all the time is answered after all.
        quiet.handle_daemon_bytes(b"hello");
        assert_eq!(sessions.silence(), None);
        assert!(sessions.begin(Lane::Ssh, "c").is_ok());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let sessions = Arc::<Sessions>::default();
        for _ in 0..KEPT_BUILDS {
            asks_for(&sessions.begin(Lane::Ssh, "c").unwrap(), "a");
        }
        assert_eq!(sessions.events_after(0, usize::MAX).len(), KEPT_BUILDS);
        assert_eq!(sessions.list().len(), KEPT_SESSIONS);
        assert_eq!(sessions.tally().unfinished, KEPT_BUILDS as u64);
        assert!(sessions.running().is_empty());
    }
}
