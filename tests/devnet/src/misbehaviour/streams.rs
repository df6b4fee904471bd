//! Map streams that say something else than the truth, or nothing.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use nixtail_proto::tailcfg::{MapResponse, NodeId};
use serde_json::Value;
use tokio::sync::oneshot;

use super::Conduct;
use super::knobs::PingAnswer;

/// Most messages that wait for one node.
const MAX_WAITING: usize = 20_000;

/// Changes the first message of a map stream: whose, and its JSON.
pub(super) type FirstMapEdit = Arc<dyn Fn(NodeId, &mut Value) + Send + Sync>;

/// How map streams behave.
#[derive(Default)]
pub(super) struct Streams {
    /// Nothing is sent, and no stream ends.
    silent: bool,
    /// Changes are kept back.
    held: bool,
    first_map_edit: Option<FirstMapEdit>,
    waiting: BTreeMap<NodeId, VecDeque<Value>>,
    last_ping: u64,
    /// Whoever waits for the answer to a ping, by the path that it comes to.
    pings: BTreeMap<String, oneshot::Sender<PingAnswer>>,
}

impl fmt::Debug for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streams").field("silent", &self.silent).field("held", &self.held).finish_non_exhaustive()
    }
}

impl Conduct {
    pub(super) fn set_silent(&self, silent: bool) {
        self.lock().streams.silent = silent;
    }

    pub(super) fn set_held(&self, held: bool) {
        self.lock().streams.held = held;
    }

    pub(super) fn set_first_map_edit(&self, edit: Option<FirstMapEdit>) {
        self.lock().streams.first_map_edit = edit;
    }

    /// Whether map streams say nothing.
    pub(crate) fn is_silent(&self) -> bool {
        self.lock().streams.silent
    }

    /// Whether changes are kept back.
    pub(crate) fn holds_changes(&self) -> bool {
        self.lock().streams.held
    }

    /// A stream's first message, changed as ordered; `None` where it was not.
    pub(crate) fn edit_first_map(&self, id: NodeId, first: &MapResponse) -> Option<serde_json::Result<Value>> {
        // Not under the lock: what it calls is the test's own.
        let edit = self.lock().streams.first_map_edit.clone()?;
        Some(serde_json::to_value(first).map(|mut message| {
            edit(id, &mut message);
            message
        }))
    }

    /// Puts a message where a node's map stream fetches it. Whether there was room.
    pub(super) fn queue(&self, id: NodeId, message: Value) -> bool {
        let mut inner = self.lock();
        let waiting = inner.streams.waiting.entry(id).or_default();
        let room = waiting.len() < MAX_WAITING;
        if room {
            waiting.push_back(message);
        }
        room
    }

    /// The messages for a node's map stream.
    pub(crate) fn take_queued(&self, id: NodeId) -> VecDeque<Value> {
        self.lock().streams.waiting.remove(&id).unwrap_or_default()
    }

    /// A path for the answer to a ping, and where it will come out.
    pub(super) fn await_ping(&self) -> (String, oneshot::Receiver<PingAnswer>) {
        let mut inner = self.lock();
        inner.streams.last_ping += 1;
        let path = format!("/machine/ping/{}", inner.streams.last_ping);
        let (sender, receiver) = oneshot::channel();
        inner.streams.pings.retain(|_, sender| !sender.is_closed());
        inner.streams.pings.insert(path.clone(), sender);
        (path, receiver)
    }

    /// Hands the answer to a ping over; `false` when nobody waits for it.
    pub(crate) fn handle_ping_answer(&self, path: &str, answer: PingAnswer) -> bool {
        let sender = self.lock().streams.pings.remove(path);
        sender.is_some_and(|sender| sender.send(answer).is_ok())
    }
}
