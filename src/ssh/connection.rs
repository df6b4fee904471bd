//! What a connection's handler, its sessions and its endpoint share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nixtail_proto::nix_command::Shown;
use nixtail_proto::ssh_policy::{Acceptance, Rejection};
use russh::server::Msg;
use russh::{ChannelId, ChannelWriteHalf};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admission::{Admission, Peer};
use super::endpoint::{ConnectionEnd, ConnectionReport, Endpoint};
use super::flow::{Gate, InputQueue, MemoryShare, WindowExceeded, Windows, lock};
use super::session::SessionParts;
use crate::builder::sessions::{Lane, NoSession, Session};

#[cfg(test)]
mod tests;

/// A suffix of the user name with which clients ask to be asked for a password (`tailscale ssh` documents it).
const PASSWORD_SUFFIX: &str = "+password";

/// How long a client that was refused may take to see that and go.
const REFUSED_GRACE: Duration = Duration::from_secs(2);

pub(crate) struct Connection {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) gate: Arc<Gate>,
    memory: Arc<MemoryShare>,
    pub(crate) windows: Mutex<Windows<ChannelId>>,
    channels: Mutex<HashMap<ChannelId, OpenChannel>>,
    /// Sessions end when this does.
    pub(crate) sessions: CancellationToken,
    /// The stream breaks when this is cancelled; parent of nothing, set on the way out.
    pub(crate) abort: CancellationToken,
    pub(crate) tasks: TaskTracker,
    pub(crate) counters: Counters,
    end: watch::Sender<Option<ConnectionEnd>>,
}

/// A channel that neither side has closed.
struct OpenChannel {
    queue: Arc<InputQueue>,
    cancel: CancellationToken,
    /// `None` once a command runs.
    idle: Option<ChannelWriteHalf<Msg>>,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) commands_run: AtomicUsize,
    pub(crate) commands_refused: AtomicUsize,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    pub(crate) highest_queued: AtomicUsize,
}

impl Connection {
    pub(crate) fn new(endpoint: Arc<Endpoint>, peer: Peer) -> Self {
        let abort = CancellationToken::new();
        let windows = Mutex::new(Windows::new(endpoint.config.limits.window));
        let admission = endpoint.config.admission.begin(peer);
        let memory = endpoint.budget.share();
        Self {
            endpoint,
            admission,
            gate: Arc::new(Gate::new(Arc::clone(&memory))),
            memory,
            windows,
            channels: Mutex::default(),
            sessions: abort.child_token(),
            abort,
            tasks: TaskTracker::new(),
            counters: Counters::default(),
            end: watch::Sender::new(None),
        }
    }

    /// Who is at the other end.
    pub(crate) fn peer(&self) -> &Peer {
        self.admission.peer()
    }

    /// What the policy of this moment says about `user`; the words of a refusal are for the client.
    pub(crate) fn decide(&self, user: &str) -> Result<Acceptance, Rejection> {
        self.admission.decide(policy_user(user))
    }

    /// Lets `user` in, if the policy of this moment does.
    pub(crate) fn log_in(&self, user: &str) -> Result<Acceptance, Rejection> {
        self.admission.log_in(policy_user(user))
    }

    /// Whether a channel may open, or run something, at this moment: somebody is logged in, the policy still lets them
    /// in, and nothing has ended the connection. A client that russh was told to accept only to send it the words of a
    /// refusal is not logged in.
    pub(crate) fn may_run(&self) -> bool {
        self.chosen_end().is_none() && self.admission.check()
    }

    /// Ends the connection; the first reason counts.
    pub(crate) fn end(&self, reason: ConnectionEnd) {
        self.end.send_if_modified(|end| {
            let first = end.is_none();
            end.get_or_insert(reason);
            first
        });
    }

    /// The reason given to [`Connection::end`].
    pub(crate) fn chosen_end(&self) -> Option<ConnectionEnd> {
        self.end.borrow().clone()
    }

    /// A channel begins; false where there are too many.
    pub(crate) fn open_channel(&self, write: ChannelWriteHalf<Msg>) -> bool {
        let limits = &self.endpoint.config.limits;
        let mut channels = lock(&self.channels);
        if channels.len() >= limits.sessions {
            return false;
        }
        let queue = Arc::new(InputQueue::new(Arc::clone(&self.memory)));
        lock(&self.windows).open(write.id(), Arc::clone(&queue));
        let cancel = self.sessions.child_token();
        channels.insert(write.id(), OpenChannel { queue, cancel, idle: Some(write) });
        true
    }

    /// What a session on `channel` needs; `None` where there is no such channel or it has one.
    pub(crate) fn begin_session(self: &Arc<Self>, channel: ChannelId) -> Option<SessionParts> {
        let mut channels = lock(&self.channels);
        let open = channels.get_mut(&channel)?;
        let write = open.idle.take()?;
        let (queue, cancel) = (Arc::clone(&open.queue), open.cancel.clone());
        Some(SessionParts { connection: Arc::clone(self), write, queue, cancel })
    }

    /// A Nix session begins, if the builder takes one now.
    pub(crate) fn begin_nix_session(&self) -> Result<Session, NoSession> {
        self.endpoint.config.sessions.begin(Lane::Ssh, &self.peer().name)
    }

    /// Data for a session's child; never waits.
    pub(crate) fn take_data(&self, channel: ChannelId, data: &[u8]) -> Result<(), WindowExceeded> {
        let queue = lock(&self.channels).get(&channel).map(|open| Arc::clone(&open.queue));
        let mut windows = lock(&self.windows);
        windows.data(&channel, data.len())?;
        if let Some(queue) = queue {
            queue.push(data);
        }
        if windows.is_overfull(&channel) {
            self.gate.shut();
        }
        Ok(())
    }

    /// The client's EOF.
    pub(crate) fn finish_input(&self, channel: ChannelId) {
        if let Some(open) = lock(&self.channels).get(&channel) {
            open.queue.finish();
        }
    }

    /// The client wants the command to end.
    pub(crate) fn cancel_session(&self, channel: ChannelId) {
        if let Some(open) = lock(&self.channels).get(&channel) {
            open.cancel.cancel();
        }
    }

    /// A channel ends. Where we close first, russh doesn't tell of the client's answer; so sessions call this too.
    pub(crate) fn close_channel(&self, channel: ChannelId) {
        lock(&self.windows).close(&channel);
        if let Some(open) = lock(&self.channels).remove(&channel) {
            open.cancel.cancel();
        }
    }

    /// Kills the children.
    pub(crate) fn end_sessions(&self) {
        self.sessions.cancel();
    }

    /// Waits for anything but the client itself that ends this connection.
    pub(crate) async fn wait_for_end(&self, cancel: &CancellationToken) -> ConnectionEnd {
        let mut ends = self.end.subscribe();
        let chosen = async {
            match ends.wait_for(Option::is_some).await.map(|end| end.clone()) {
                Ok(Some(end)) => {
                    if matches!(end, ConnectionEnd::Refused(_)) {
                        tokio::time::sleep(REFUSED_GRACE).await;
                    }
                    end
                }
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            end = chosen => end,
            end = self.wait_for_limits() => end,
            () = cancel.cancelled() => {
                self.end(ConnectionEnd::Cancelled);
                ConnectionEnd::Cancelled
            }
        }
    }

    async fn wait_for_limits(&self) -> ConnectionEnd {
        let grace = self.endpoint.config.limits.login_grace;
        if tokio::time::timeout(grace, self.admission.logged_in()).await.is_err() {
            return ConnectionEnd::LoginTimeout;
        }
        ConnectionEnd::Disallowed(self.admission.ended().await)
    }

    pub(crate) fn report(&self, end: ConnectionEnd) -> ConnectionReport {
        let counters = &self.counters;
        ConnectionReport {
            end,
            user: self.admission.user().map(|user| Shown::new(&user).to_string()),
            commands_run: counters.commands_run.load(Ordering::Relaxed),
            commands_refused: counters.commands_refused.load(Ordering::Relaxed),
            bytes_in: counters.bytes_in.load(Ordering::Relaxed),
            bytes_out: counters.bytes_out.load(Ordering::Relaxed),
            highest_queued: counters.highest_queued.load(Ordering::Relaxed),
            reads_rested: self.gate.times_shut(),
        }
    }
}

/// The user that the policy is asked about.
fn policy_user(user: &str) -> &str {
    user.strip_suffix(PASSWORD_SUFFIX).unwrap_or(user)
}

/// Whether the client wants to be asked for a password, any of which will do.
pub(crate) fn wants_password(user: &str) -> bool {
    user.ends_with(PASSWORD_SUFFIX)
}
