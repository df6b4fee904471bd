//! What nodes asked of control, for tests to look at.

use std::collections::VecDeque;
use std::fmt;
use std::time::Instant;

use nixtail_proto::key::MachinePublic;
use serde_json::Value;

use super::{Call, Conduct};

/// Most calls that are kept; older ones are forgotten.
const MAX_RECORDED: usize = 1024;
/// A longer request is kept without its body.
const MAX_BODY: usize = 64 << 10;

/// A call that reached control inside ts2021, whatever became of it.
#[derive(Clone, PartialEq)]
pub struct RecordedCall {
    /// What was asked.
    pub call: Call,
    /// Who asked.
    pub machine: MachinePublic,
    /// The capability version of its handshake.
    pub version: u16,
    /// When.
    pub at: Instant,
    /// The request's JSON; `null` where it was none, or too long. It may hold an auth key.
    pub body: Value,
}

impl fmt::Debug for RecordedCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordedCall").field("call", &self.call).field("at", &self.at).finish_non_exhaustive()
    }
}

/// The calls of late.
#[derive(Debug, Default)]
pub(super) struct Recorder(VecDeque<RecordedCall>);

impl Conduct {
    /// Keeps a call to be looked at.
    pub(crate) fn record(&self, call: Call, machine: MachinePublic, version: u16, body: &[u8]) {
        let json = if body.len() <= MAX_BODY { serde_json::from_slice(body).unwrap_or_default() } else { Value::Null };
        let calls = &mut self.lock().recorder.0;
        if calls.len() >= MAX_RECORDED {
            calls.pop_front();
        }
        calls.push_back(RecordedCall { call, machine, version, at: Instant::now(), body: json });
    }

    /// The calls of this kind, oldest first.
    pub(super) fn recorded(&self, call: Call) -> Vec<RecordedCall> {
        self.lock().recorder.0.iter().filter(|recorded| recorded.call == call).cloned().collect()
    }
}
