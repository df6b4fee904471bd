//! The last flows that we began over protocols without connections, so that the answers to them are let in.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

/// So many flows are remembered (Go: `lruMax`).
pub(super) const MAX_FLOWS: usize = 512;

/// As an answer to it looks: from the peer to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    pub(super) protocol: u8,
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
}

/// A set of the flows that were used last.
#[derive(Debug, Clone, Default)]
pub(super) struct Flows {
    used: HashMap<Flow, u64>,
    by_use: BTreeMap<u64, Flow>,
    uses: u64,
}

impl Flows {
    pub(super) fn insert(&mut self, flow: Flow) {
        self.uses += 1;
        if let Some(before) = self.used.insert(flow, self.uses) {
            self.by_use.remove(&before);
        }
        self.by_use.insert(self.uses, flow);
        if self.by_use.len() > MAX_FLOWS
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.used.remove(&oldest);
        }
    }

    /// Whether `flow` is there; it counts as used then.
    pub(super) fn touch(&mut self, flow: &Flow) -> bool {
        let known = self.used.contains_key(flow);
        if known {
            self.insert(*flow);
        }
        known
    }
}
