//! The map streams of a node, one after the other, and the netmap that outlives them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::printable;
use crate::netmap::{Changes, Netmap, NetmapError, NetmapState};
use crate::tailcfg::{MapResponse, PingRequest, Timestamp};

/// A stream that brings no byte for so long is dead. Control sends a sign of life each 50 to 65 s.
pub const WATCHDOG: Duration = Duration::from_secs(120);

/// A message that can't be used: control's fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// It is no JSON, or no netmap.
    #[error("control sent a netmap that can't be read: {0}")]
    Json(#[from] serde_json::Error),
    /// It doesn't fit to what came before.
    #[error(transparent)]
    Netmap(#[from] NetmapError),
}

/// What a message brought.
#[derive(Debug, Default)]
pub struct Message {
    /// What differs from the netmap before. `None`: nothing, and there is no new netmap.
    pub changes: Option<Changes>,
    /// What control wants answered.
    pub ping: Option<PingRequest>,
    /// A page that control wants a person to open, fit to be shown.
    pub open_url: Option<String>,
}

/// The netmap over all map streams. While a stream is being dialled, the last netmap holds.
#[derive(Debug, Default)]
pub struct MapSession {
    state: NetmapState,
    netmap: Option<Arc<Netmap>>,
    last_ping_url: String,
    last_open_url: String,
    deadline: Option<Instant>,
}

impl MapSession {
    /// The newest netmap.
    #[must_use]
    pub fn netmap(&self) -> Option<&Arc<Netmap>> {
        self.netmap.as_ref()
    }

    /// A stream begins: its first message is the whole truth, and the watchdog runs.
    pub fn handle_stream_opened(&mut self, now: Instant) {
        let earlier = self.netmap.as_ref().map(|netmap| netmap.peers.clone()).unwrap_or_default();
        self.state = NetmapState::after(earlier);
        self.handle_sign_of_life(now);
    }

    /// Some bytes came, be it half a message.
    pub fn handle_sign_of_life(&mut self, now: Instant) {
        self.deadline = Some(now + WATCHDOG);
    }

    /// The stream is gone.
    pub fn handle_stream_closed(&mut self) {
        self.deadline = None;
    }

    /// When the stream counts as dead, unless bytes come before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadline
    }

    /// Takes one message, bare JSON. `clock` is the wall clock, for keys that end.
    ///
    /// # Errors
    /// When it can't be used: the stream is to be closed and opened anew. The netmap stays as it was.
    pub fn handle_message(&mut self, clock: Timestamp, json: &[u8]) -> Result<Message, MapError> {
        let mut response: MapResponse = serde_json::from_slice(json)?;
        let ping = response.ping_request.take().filter(|ping| ping.url != self.last_ping_url);
        if let Some(ping) = &ping {
            self.last_ping_url.clone_from(&ping.url);
        }
        let open_url = printable(std::mem::take(&mut response.pop_browser_url).as_bytes());
        let open_url = Some(open_url).filter(|url| !url.is_empty() && *url != self.last_open_url);
        if let Some(url) = &open_url {
            self.last_open_url.clone_from(url);
        }
        let is_keep_alive = response.keep_alive;
        self.state.handle_response(response, clock);
        // Signs of life may come before the first netmap.
        let changes = if is_keep_alive { self.handle_clock(clock) } else { self.renew(clock)? };
        Ok(Message { changes, ping, open_url })
    }

    /// Judges peers anew by the clock: keys end between messages, too. To be called now and then.
    pub fn handle_clock(&mut self, clock: Timestamp) -> Option<Changes> {
        self.renew(clock).ok().flatten()
    }

    fn renew(&mut self, clock: Timestamp) -> Result<Option<Changes>, MapError> {
        let netmap = Arc::new(self.state.netmap(clock)?);
        let nothing = Netmap::default();
        let changes = Changes::between(self.netmap.as_deref().unwrap_or(&nothing), &netmap);
        let is_new = self.netmap.as_deref() != Some(&*netmap);
        self.netmap = Some(netmap);
        Ok(is_new.then_some(changes))
    }
}
