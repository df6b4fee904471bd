//! What a bystander sees in the plain bytes of a Nix session: which derivation is asked for, and how its build ended.
//!
//! It reads Nix's worker protocol (`nix-daemon --stdio`) and its older serve protocol (`nix-store --serve`), as far as
//! builds go, from the sources of Nix 2.8 to 2.35 (`worker-protocol.hh`, `daemon.cc`, `remote-store.cc`,
//! `serve-protocol.hh`, `nix-store.cc`). It never changes, delays or keeps a byte that is passed on.
//!
//! Both protocols are strictly one request, one answer: a client sends the next request once it has read the whole answer to
//! the last. So a request begins with the client's first bytes after the daemon's, and only those are looked at: gigabytes
//! of NARs in between cost one comparison a chunk. What doesn't begin as a build does isn't looked into any further, so no
//! other operation, and no version's way to write it, needs to be known.
//!
//! What it says is for people and for records. A client that sends requests without waiting for answers isn't followed, and
//! one that means to can have a wrong name shown: nothing that matters hangs on either.

mod reply;
mod request;

use std::collections::VecDeque;

use reply::{Progress, Reply};
use request::{Parsed, Request};

#[cfg(test)]
mod tests;

/// What a client of the worker protocol says first (`WORKER_MAGIC_1`).
const WORKER_MAGIC: u64 = 0x6e69_7863;
/// What a client of the serve protocol says first (`SERVE_MAGIC_1`).
const SERVE_MAGIC: u64 = 0x390c_9deb;

/// The builds of one request that are followed. Nix's build hook sends one.
pub const MAX_BUILDS: usize = 64;

/// Follows the builds of one session. Feed it the bytes of both directions, in the order in which they pass: those of the
/// client before the daemon can answer them, those of the daemon before the client can.
#[derive(Debug, Default)]
pub struct BuildWatch {
    state: State,
    events: VecDeque<BuildEvent>,
    /// How many builds this session has asked for.
    builds: u64,
}

/// What became known of a session's builds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildEvent {
    /// The client asked for a build.
    Started {
        /// Its number in this session.
        build: u64,
        /// The derivation's name, without its hash and `.drv`: characters that Nix allows in one, 211 at the most.
        derivation: String,
    },
    /// A build that was started ended.
    Finished {
        /// Its number in this session.
        build: u64,
        /// How.
        outcome: BuildOutcome,
    },
}

/// How a build ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuildOutcome {
    /// Its outputs are there: built, substituted, or there before.
    Built,
    /// The daemon says that it failed. Where one request asked for several and only the whole is answered for, of all of them.
    Failed,
    /// No word of it was seen: the session ended first, or said something that isn't known here.
    Unfinished,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Worker,
    Serve,
}

#[derive(Debug)]
enum State {
    /// The client's first eight bytes tell the protocol.
    Greeting(Vec<u8>),
    /// What the client sends is of no interest until the daemon has spoken.
    Passing(Protocol),
    /// The daemon spoke last: the client's next bytes begin a request.
    Turn(Protocol, Request),
    /// A build was asked for. It numbers the request's builds from `first`.
    Building { protocol: Protocol, first: u64, reply: Reply },
    /// Neither protocol.
    Unknown,
}

impl Default for State {
    fn default() -> Self {
        Self::Greeting(Vec::new())
    }
}

impl BuildWatch {
    /// Bytes that the client sent.
    pub fn handle_client_bytes(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if let State::Building { protocol, reply, .. } = &self.state {
            // Nothing comes from a client while it waits, unless what was left of the answer isn't to be found.
            if !reply.may_be_over() {
                return;
            }
            let protocol = *protocol;
            self.abandon();
            self.state = State::Turn(protocol, Request::default());
        }
        match &mut self.state {
            State::Greeting(greeting) => {
                greeting.extend(bytes.iter().take(8 - greeting.len()));
                if let Ok(magic) = <[u8; 8]>::try_from(greeting.as_slice()) {
                    self.state = match u64::from_le_bytes(magic) {
                        WORKER_MAGIC => State::Passing(Protocol::Worker),
                        SERVE_MAGIC => State::Passing(Protocol::Serve),
                        _ => State::Unknown,
                    };
                }
            }
            State::Turn(protocol, request) => {
                let protocol = *protocol;
                match request.push(protocol, bytes) {
                    Parsed::Incomplete => {}
                    Parsed::Other => self.state = State::Passing(protocol),
                    Parsed::Builds(kind, wanted) => {
                        let first = self.builds;
                        for derivation in &wanted {
                            let (build, derivation) = (self.builds, derivation.name.clone());
                            self.events.push_back(BuildEvent::Started { build, derivation });
                            self.builds += 1;
                        }
                        let wanted = wanted.into_iter().map(|derivation| derivation.asked).collect();
                        self.state = State::Building { protocol, first, reply: Reply::new(kind, wanted) };
                    }
                }
            }
            State::Passing(_) | State::Building { .. } | State::Unknown => {}
        }
    }

    /// Bytes that the daemon sent.
    pub fn handle_daemon_bytes(&mut self, bytes: &[u8]) {
        match &mut self.state {
            _ if bytes.is_empty() => {}
            State::Greeting(_) | State::Unknown => {}
            State::Passing(protocol) => self.state = State::Turn(*protocol, Request::default()),
            State::Turn(_, request) => request.clear(),
            State::Building { protocol, first, reply } => {
                let (protocol, first) = (*protocol, *first);
                let progress = reply.push(bytes, |index, outcome| {
                    self.events.push_back(BuildEvent::Finished { build: first + index as u64, outcome });
                });
                match progress {
                    Progress::Waiting => {}
                    Progress::Over => self.state = State::Turn(protocol, Request::default()),
                    Progress::Lost => {
                        self.abandon();
                        self.state = State::Turn(protocol, Request::default());
                    }
                }
            }
        }
    }

    /// The session is over.
    pub fn handle_end(&mut self) {
        self.abandon();
        self.state = State::Unknown;
    }

    /// What became known, oldest first.
    pub fn poll_event(&mut self) -> Option<BuildEvent> {
        self.events.pop_front()
    }

    /// Nothing more is to be learned of the builds under way.
    fn abandon(&mut self) {
        if let State::Building { first, reply, .. } = &self.state {
            let unfinished = reply
                .unanswered()
                .map(|index| BuildEvent::Finished { build: first + index as u64, outcome: BuildOutcome::Unfinished });
            self.events.extend(unfinished);
        }
    }
}
