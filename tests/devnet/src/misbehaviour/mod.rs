//! What control does wrong when it is told to: calls that are delayed, refused, cut or never answered, and map streams
//! that are silent or say something else than the truth.

mod knobs;
mod recorded;
mod streams;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;

pub use knobs::PingAnswer;
pub use recorded::RecordedCall;

use recorded::Recorder;
use streams::Streams;

/// What a node asks of control.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Call {
    /// `GET /key`.
    Key,
    /// `POST /ts2021`: the upgrade and the Noise handshake.
    Upgrade,
    /// `/machine/register`: login, renewal, logout.
    Register,
    /// `/machine/map` with `Stream`, or for one whole netmap.
    Map,
    /// `/machine/map` for a lite update.
    Update,
    /// The API's access tokens, for a secret or in exchange for an id token.
    AccessToken,
    /// The API's auth keys.
    AuthKey,
    /// GitHub's id tokens.
    IdToken,
}

/// What happens to a call in place of what should.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Misbehaviour {
    /// It is served, but so much later.
    Delay(Duration),
    /// It isn't served and gets this.
    Answer(Answer),
    /// It is never answered; the connection stays.
    Silence,
    /// It isn't served, and its connection is cut.
    Cut,
    /// It is served, but its connection is cut before the answer: what the node asked for has happened.
    LoseAnswer,
}

/// An HTTP answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Such as 429.
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// An answer with a text.
    #[must_use]
    pub fn text(status: u16, text: &str) -> Self {
        let headers = vec![("content-type".to_owned(), "text/plain".to_owned())];
        Self { status, headers, body: text.into() }
    }

    /// 200 with JSON.
    #[must_use]
    pub fn json(value: &Value) -> Self {
        let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        Self { status: 200, headers, body: value.to_string().into_bytes() }
    }

    /// The same with another header field.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// Everything that control was told to do wrong, and what it was asked.
#[derive(Debug, Default)]
pub(crate) struct Conduct(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    calls: BTreeMap<Call, VecDeque<Order>>,
    recorder: Recorder,
    streams: Streams,
}

/// What the next calls meet.
#[derive(Debug)]
struct Order {
    misbehaviour: Misbehaviour,
    times: usize,
}

impl Conduct {
    /// Calls of this kind meet this, so many of them, after what was ordered before.
    fn order(&self, call: Call, misbehaviour: Misbehaviour, times: usize) {
        if times > 0 {
            self.lock().calls.entry(call).or_default().push_back(Order { misbehaviour, times });
        }
    }

    /// Forgets all orders.
    fn behave(&self) {
        self.lock().calls.clear();
    }

    /// What this call meets, if not what it should.
    pub(crate) fn next(&self, call: Call) -> Option<Misbehaviour> {
        let mut inner = self.lock();
        let orders = inner.calls.get_mut(&call)?;
        let order = orders.front_mut()?;
        let misbehaviour = order.misbehaviour.clone();
        order.times -= 1;
        if order.times == 0 {
            orders.pop_front();
        }
        Some(misbehaviour)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing that runs under the lock can leave it half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
