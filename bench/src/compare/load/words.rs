//! What the driver says to an end, and what that answers: a line of JSON each.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A line of an end's stdin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub(crate) enum Order {
    /// Open streams, and write to them until told to stop.
    Send(Streams),
    /// Open streams, and read from them until told to stop.
    Receive(Streams),
    /// End all connections, those that others opened, too.
    Stop,
    /// Say how many bytes have come.
    Count,
    /// Send small requests for a time.
    Echo {
        #[serde(flatten)]
        to: Destination,
        bytes: usize,
        depth: usize,
        pause_us: u64,
        millis: u64,
    },
    /// Dial, and wait for the first byte back, so many times.
    Connect {
        #[serde(flatten)]
        to: Destination,
        times: usize,
    },
    /// Say whether a peer is reached directly; an error is that it isn't reached.
    Path {
        /// Its address.
        to: IpAddr,
    },
}

/// Where to dial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Destination {
    /// ADDRESS:PORT; a bare client of a relay has keys instead.
    pub(crate) to: String,
    /// The SOCKS5 proxy that leads there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) through: Option<String>,
}

/// How many streams, and where to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Streams {
    #[serde(flatten)]
    pub(crate) to: Destination,
    pub(crate) streams: usize,
}

/// A line of an end's stdout. The first one says that it is ready.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Answer {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) error: String,
    /// Its addresses in the tailnet, when it is ready; its key, where it has none.
    pub(crate) addresses: Vec<String>,
    /// Where it takes connections.
    pub(crate) port: u16,
    /// Bytes that have come since it started.
    pub(crate) received: u64,
    /// When that was counted, by its own clock.
    pub(crate) at_us: u64,
    /// Requests that were answered, or dials.
    pub(crate) count: u64,
    /// What all of them took.
    pub(crate) seconds: f64,
    /// What each took: half of them no longer than this, and 99 of 100 no longer than that.
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// Whether the peer is reached directly.
    pub(crate) direct: bool,
}

impl Answer {
    /// An error's.
    pub(crate) fn error(error: impl std::fmt::Display) -> Self {
        Self { error: error.to_string(), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_lines_that_go_reads() {
        let to = Destination { to: "100.64.0.2:5201".to_owned(), through: None };
        let send = Order::Send(Streams { to: to.clone(), streams: 8 });
        assert_eq!(serde_json::to_string(&send).unwrap(), r#"{"order":"send","to":"100.64.0.2:5201","streams":8}"#);
        let echo = Order::Echo { to, bytes: 64, depth: 1, pause_us: 2_000, millis: 1_000 };
        let line = serde_json::to_string(&echo).unwrap();
        let wanted = r#"{"order":"echo","to":"100.64.0.2:5201","bytes":64,"depth":1,"pause_us":2000,"millis":1000}"#;
        assert_eq!(line, wanted);
        assert_eq!(serde_json::from_str::<Order>(&line).unwrap(), echo);
        assert_eq!(serde_json::to_string(&Order::Count).unwrap(), r#"{"order":"count"}"#);
    }

    #[test]
    fn an_answer_may_lack_what_it_has_nothing_to_say_of() {
        let answer: Answer = serde_json::from_str(r#"{"port":5201,"addresses":["100.64.0.1"]}"#).unwrap();
        assert_eq!((answer.port, answer.error.as_str(), answer.received), (5201, "", 0));
    }
}
