//! The process at either end of a pair: an agent, and one stream that carries bytes both ways until it is told to stop.
//!
//! It is the test program itself, started again in another network. What it sees, it writes to stdout: a line with its
//! [`State`] every 50 ms, and `done` in front of the last one.

use std::env;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nixtail::agent::{Agent, Config, LEAVE_DEADLINE, Path, Stream};
use nixtail::auth::Credential;
use nixtail_proto::secret::Secret;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::lab::PATIENCE;
use crate::lab::sites::Side;

/// Tells the test program that it is one: which side, and what else it must know.
pub(crate) const SIDE: &str = "NIXTAIL_NATS_SIDE";
pub(crate) const URL: &str = "NIXTAIL_NATS_URL";
pub(crate) const KEY: &str = "NIXTAIL_NATS_KEY";
pub(crate) const PORT: &str = "NIXTAIL_NATS_PORT";
/// The file whose appearance means that it is to stop sending.
pub(crate) const STOP: &str = "NIXTAIL_NATS_STOP";
/// The file beside it that says that both ends have received everything.
pub(crate) const OVER: &str = "over";

/// The port within the tunnel.
const TUNNEL_PORT: u16 = 7000;
/// What is written at a time.
const CHUNK: usize = 32 << 10;
/// The pause between two chunks: a pace that leaves a busy machine something to do, and fills no queue.
const PACE: Duration = Duration::from_millis(20);
const REPORT_EVERY: Duration = Duration::from_millis(50);
/// How long the stream may stand still. The slowest recovery takes half of it.
const SILENCE: Duration = PATIENCE.saturating_mul(2);

/// What an end says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) sent: u64,
    /// All of them right, and in their places.
    pub(crate) received: u64,
    /// Where packets for the other end go to now; `None` is a relay, or nowhere.
    pub(crate) direct: Option<SocketAddr>,
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let direct = self.direct.map_or_else(|| "-".to_owned(), |address| address.to_string());
        write!(f, "state {} {} {direct}", self.sent, self.received)
    }
}

impl FromStr for State {
    type Err = ();

    fn from_str(line: &str) -> Result<Self, ()> {
        let words: Vec<&str> = line.split(' ').collect();
        let &["state", sent, received, direct] = words.as_slice() else { return Err(()) };
        let number = |word: &str| word.parse().map_err(|_| ());
        Ok(Self { sent: number(sent)?, received: number(received)?, direct: direct.parse().ok() })
    }
}

/// Is an end, if it was started as one.
pub(crate) fn run() {
    let Ok(side) = env::var(SIDE) else { return };
    let side = if side == "left" { Side::Left } else { Side::Right };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(be(side));
}

async fn be(side: Side) {
    let told = |name: &str| env::var(name).unwrap_or_else(|_| panic!("{name} isn't set"));
    let agent = Agent::join(Config {
        port: told(PORT).parse().unwrap(),
        ..Config::new(told(URL), Some(Credential::AuthKey(Secret::new(told(KEY)))), side.to_string())
    });
    let agent = agent.await.unwrap();
    let stream = meet(&agent, side).await;
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (sent, received) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let stop = PathBuf::from(told(STOP));
    let sending = tokio::spawn({
        let (sent, stop) = (Arc::clone(&sent), stop.clone());
        async move { send(&mut writer, side, &stop, &sent).await }
    });
    let receiving = tokio::spawn({
        let received = Arc::clone(&received);
        async move { receive(&mut reader, other(side), &received).await }
    });
    let whole = async { tokio::try_join!(sending, receiving).unwrap() };
    tokio::pin!(whole);
    let mut report = interval(REPORT_EVERY);
    loop {
        let over = tokio::select! {
            _ = &mut whole => true,
            _ = report.tick() => false,
        };
        let status = agent.status().await;
        let direct = status.peers.iter().find_map(|peer| match peer.path {
            Path::Direct { address } => Some(address),
            Path::Derp { .. } | Path::None => None,
        });
        let state = State { sent: sent.load(Ordering::Relaxed), received: received.load(Ordering::Relaxed), direct };
        if over {
            println!("\ndone {state}");
            break;
        }
        // The test harness leaves a line unfinished before the first one.
        println!("\n{state}");
    }
    // Who leaves takes along what the other hasn't acknowledged yet.
    let over = stop.with_file_name(OVER);
    let waiting = async {
        while !over.exists() {
            sleep(PACE).await;
        }
    };
    timeout(SILENCE, waiting).await.expect("the other end has it all");
    agent.leave(LEAVE_DEADLINE).await.unwrap();
}

/// The stream between the two: the left one dials.
async fn meet(agent: &Agent, side: Side) -> Stream {
    if side == Side::Right {
        let mut listener = agent.listen(TUNNEL_PORT).await.unwrap();
        return timeout(SILENCE, listener.accept()).await.expect("the other end in time").unwrap();
    }
    let mut netmap = agent.netmap();
    let seen = netmap.wait_for(|netmap| {
        netmap.as_ref().is_some_and(|netmap| netmap.peers.values().any(|peer| peer.short_name() == "right"))
    });
    drop(timeout(SILENCE, seen).await.expect("the other end in the netmap").unwrap());
    agent.dial("right", TUNNEL_PORT).await.unwrap()
}

async fn send(writer: &mut (impl AsyncWrite + Unpin), side: Side, stop: &std::path::Path, sent: &AtomicU64) {
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut at = 0;
    while !stop.exists() {
        pace.tick().await;
        let chunk: Vec<u8> = (at..).take(CHUNK).map(|at| byte(side, at)).collect();
        timeout(SILENCE, writer.write_all(&chunk)).await.expect("the stream moves").unwrap();
        at += chunk.len() as u64;
        sent.store(at, Ordering::Relaxed);
    }
    writer.shutdown().await.unwrap();
}

async fn receive(reader: &mut (impl AsyncRead + Unpin), from: Side, received: &AtomicU64) {
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    loop {
        let length = timeout(SILENCE, reader.read(&mut buffer)).await.expect("the stream moves").unwrap();
        if length == 0 {
            return;
        }
        for (got, place) in buffer[..length].iter().zip(at..) {
            assert_eq!(*got, byte(from, place), "byte {place} is wrong");
        }
        at += length as u64;
        received.store(at, Ordering::Relaxed);
    }
}

fn other(side: Side) -> Side {
    match side {
        Side::Left => Side::Right,
        Side::Right => Side::Left,
    }
}

/// What stands in a place of a side's bytes: one that was lost, doubled or moved shows.
fn byte(side: Side, at: u64) -> u8 {
    let salt = if side == Side::Left { 0 } else { 1 << 40 };
    let mixed = (at ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.to_be_bytes()[0]
}

/// Keeps the shape of a report and of its reader together.
#[test]
fn a_report_is_read_as_it_was_written() {
    for direct in [None, Some("192.0.2.2:7".parse().unwrap())] {
        let state = State { sent: 1, received: 2, direct };
        assert_eq!(state.to_string().parse(), Ok(state));
    }
    assert_eq!("test result: ok".parse::<State>(), Err(()));
    let bytes = |side| (0..1 << 16).map(|at| byte(side, at)).collect::<Vec<_>>();
    assert_ne!(bytes(Side::Left), bytes(Side::Right));
}
