//! A builder's answers to nixtail's own control verbs.

use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nixtail_proto::key::NodePublic;
use nixtail_proto::nix_command::{ControlRequest, ControlVerb};
use nixtail_proto::run::{Builder, End, Presence};
use tokio::sync::Notify;

use crate::nix::facts::Facts;
use crate::ssh::{ControlReply, ControlVerbs, Peer};

/// The exit code of a verb that is refused.
const REFUSED: u32 = 77;

/// A builder's life and facts, asked from many connections.
pub(super) struct Verbs {
    facts: Facts,
    life: Mutex<Builder>,
    changed: Notify,
}

impl Verbs {
    pub(super) fn new(facts: Facts, idle_timeout: Option<Duration>) -> Self {
        Self { facts, life: Mutex::new(Builder::new(Instant::now(), idle_timeout)), changed: Notify::new() }
    }

    pub(super) fn end(&self) -> Option<End> {
        self.life().end()
    }

    pub(super) fn claimer(&self) -> Option<NodePublic> {
        self.life().claimer()
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.life().poll_timeout()
    }

    pub(super) fn handle_timeout(&self, now: Instant) {
        self.life().handle_timeout(now);
    }

    pub(super) fn handle_presence(&self, now: Instant, presence: Presence) {
        self.life().handle_presence(now, presence);
    }

    pub(super) fn handle_heard(&self, now: Instant) {
        self.life().handle_heard(now);
    }

    /// Waits until a verb changed something. A change before the call counts, too.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Its methods don't panic, so that a poisoned lock can't be.
    fn life(&self) -> MutexGuard<'_, Builder> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reply(&self, peer: &Peer, verb: ControlVerb) -> ControlReply {
        match verb {
            ControlVerb::Facts => match serde_json::to_vec(&self.facts) {
                Ok(json) => data(json),
                Err(error) => refused(format!("facts can't be written: {error}")),
            },
            ControlVerb::Ping => data(b"pong\n".to_vec()),
            ControlVerb::Claim => {
                let claimed = self.life().handle_claim(Instant::now(), peer.node_key);
                self.changed.notify_one();
                match claimed {
                    Ok(()) => {
                        tracing::info!(by = %peer.name, "claimed");
                        data(b"claimed\n".to_vec())
                    }
                    Err(error) => refused(error.to_string()),
                }
            }
            ControlVerb::Stop => {
                let stopped = self.life().handle_stop(peer.node_key);
                self.changed.notify_one();
                match stopped {
                    Ok(()) => data(b"stopping\n".to_vec()),
                    Err(error) => refused(error.to_string()),
                }
            }
        }
    }
}

impl ControlVerbs for Verbs {
    fn answer(&self, peer: &Peer, request: ControlRequest) -> Pin<Box<dyn Future<Output = ControlReply> + Send + '_>> {
        let reply = self.reply(peer, request.verb);
        Box::pin(std::future::ready(reply))
    }
}

fn data(stdout: Vec<u8>) -> ControlReply {
    ControlReply { stdout, ..ControlReply::default() }
}

fn refused(words: String) -> ControlReply {
    ControlReply { stderr: words, exit_code: REFUSED, ..ControlReply::default() }
}
