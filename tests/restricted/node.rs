//! What other processes of this test program do: a node of the library's, which moves bytes, and an echo for probes.

use std::env;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use nixtail::agent::{Agent, Config, LEAVE_DEADLINE, Path, Stream};
use nixtail::auth::Credential;
use nixtail_proto::proxy::Proxies;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};

use crate::lab::process::Process;
use crate::lab::{PATIENCE, wait_for};
use crate::world::{ECHO, Machine, World, start_in_role};

/// Where an echo listens: addresses with blanks between.
pub(crate) const ECHO_ADDRESSES: &str = "NIXTAIL_TEST_ECHO";
/// What it says when it does.
pub(crate) const ECHOES: &str = "echo: ready";

const ORDERS: &str = "NIXTAIL_TEST_NODE";
const READY: &str = "node: ready";
const EXCHANGED: &str = "node: exchanged ";
/// Where a node takes streams inside the tunnel.
const PORT: u16 = 9000;
/// How long one transfer may take.
const TRANSFER: Duration = Duration::from_secs(120);
/// Bytes that go at once.
const CHUNK: usize = 64 << 10;
/// After how many bytes a stream's pattern repeats: no divisor of a chunk or a packet.
const PERIOD: usize = 251;

/// How a node joins, and what it does then.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Orders {
    pub(crate) login_server: String,
    pub(crate) key: String,
    pub(crate) name: String,
    /// May it reach peers by UDP?
    pub(crate) direct: bool,
    /// Whom to exchange bytes with, once; else it waits for others who do.
    pub(crate) exchange: Option<Exchange>,
}

/// Bytes to exchange with a peer: so many there, and then as many back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Exchange {
    pub(crate) peer: String,
    pub(crate) bytes: usize,
    /// Whether to begin only when there is a direct path.
    pub(crate) wait_for_direct: bool,
}

/// How an exchange went; both ends have compared every byte.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Exchanged {
    /// The paths to the peer before and after.
    pub(crate) paths: [Path; 2],
    pub(crate) mbit_per_s: [f64; 2],
    /// From the start to the tailnet.
    pub(crate) join_ms: u128,
    /// From the dial to the stream.
    pub(crate) dial_ms: u128,
    /// This node's own endpoints, as it tells them.
    pub(crate) endpoints: Vec<SocketAddr>,
}

impl Exchanged {
    /// Whether all went directly.
    pub(crate) fn is_direct(&self) -> bool {
        self.paths.iter().all(|path| matches!(path, Path::Direct { .. }))
    }

    /// Whether all went over a relay.
    pub(crate) fn is_relayed(&self) -> bool {
        self.paths.iter().all(|path| matches!(path, Path::Derp { .. }))
    }
}

/// A node in a machine.
pub(crate) struct Node(Process);

impl Node {
    /// Starts one; `wrap` are words before its own, such as of a sandbox.
    pub(crate) fn start(
        world: &World,
        machine: &Machine,
        wrap: &[String],
        orders: &Orders,
        more: &[(&str, &str)],
    ) -> Self {
        let log = world.folder().join(format!("node-{}.log", orders.name));
        let entrance = [machine.entrance(), wrap.to_vec()].concat();
        let mut environment: Vec<_> = more.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        environment.push((ORDERS, serde_json::to_string(orders).unwrap()));
        Self(start_in_role("node", &orders.name, &entrance, &environment, &log))
    }

    /// Waits until it is on the tailnet and takes streams.
    pub(crate) fn wait_until_ready(&mut self) {
        self.wait_for(READY, 2 * PATIENCE);
    }

    /// Waits for its exchange to be done, and for its end.
    pub(crate) fn finish(mut self) -> Exchanged {
        let line = self.wait_for(EXCHANGED, 2 * PATIENCE + 2 * TRANSFER);
        assert!(self.0.wait(PATIENCE).success(), "{}", self.0.log());
        let exchanged = serde_json::from_str(&line).unwrap();
        eprintln!("figure: {exchanged:?}");
        exchanged
    }

    /// Lets it leave.
    pub(crate) fn end(mut self) {
        self.0.signal(Signal::TERM);
        assert!(self.0.wait(PATIENCE).success(), "{}", self.0.log());
    }

    /// Waits for a line that begins so, and returns the rest of it.
    fn wait_for(&mut self, start: &str, patience: Duration) -> String {
        wait_for(start, patience, || {
            let (ended, log) = (self.0.ended(), self.0.log());
            // The test harness has begun the line.
            let found = log.lines().find_map(|line| Some(line.split_once(start)?.1.to_owned()));
            assert!(found.is_some() || ended.is_none(), "a node ended ({ended:?}):\n{log}");
            found
        })
    }
}

/// Is a node, until its exchange is done or SIGTERM comes.
pub(crate) fn run() {
    tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_ansi(false).init();
    let orders: Orders = serde_json::from_str(&env::var(ORDERS).unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let begun = Instant::now();
        let agent = Agent::join(Config {
            direct: orders.direct,
            proxies: Proxies::read(|name| env::var(name).ok()),
            join_deadline: 2 * PATIENCE,
            ..Config::new(orders.login_server, Some(Credential::parse("the orders", &orders.key).unwrap()), orders.name)
        })
        .await
        .unwrap();
        let join_ms = begun.elapsed().as_millis();
        match orders.exchange {
            Some(exchange) => {
                let exchanged = Exchanged { join_ms, ..begin(&agent, &exchange).await };
                println!("{EXCHANGED}{}", serde_json::to_string(&exchanged).unwrap());
            }
            None => answer(&agent).await,
        }
        agent.leave(LEAVE_DEADLINE).await.unwrap();
    });
}

async fn begin(agent: &Agent, exchange: &Exchange) -> Exchanged {
    let find = async || agent.status().await.peers.into_iter().find(|peer| peer.name == exchange.peer);
    let deadline = Instant::now() + 2 * PATIENCE;
    while find().await.is_none() {
        assert!(Instant::now() < deadline, "no peer {}", exchange.peer);
        sleep(Duration::from_millis(50)).await;
    }
    let begun = Instant::now();
    let mut stream = timeout(2 * PATIENCE, agent.dial(&exchange.peer, PORT)).await.expect("a dial in time").unwrap();
    let dial_ms = begun.elapsed().as_millis();
    let path = async || find().await.unwrap().path;
    while exchange.wait_for_direct && !matches!(path().await, Path::Direct { .. }) {
        assert!(Instant::now() < deadline, "no direct path: {}", path().await);
        sleep(Duration::from_millis(50)).await;
    }
    let before = path().await;
    let begun = Instant::now();
    send(&mut stream, exchange.bytes, 0).await;
    // Its first byte says that it has all of ours.
    let mut first = [0];
    timeout(TRANSFER, stream.read_exact(&mut first)).await.expect("an answer in time").unwrap();
    let there = begun.elapsed();
    let begun = Instant::now();
    assert_eq!(receive(&mut stream, 1).await, exchange.bytes);
    let rate = |elapsed: Duration| (exchange.bytes as f64 * 8.0 / 1e6 / elapsed.as_secs_f64()).round();
    Exchanged {
        paths: [before, path().await],
        mbit_per_s: [rate(there), rate(begun.elapsed())],
        join_ms: 0,
        dial_ms,
        endpoints: agent.status().await.own.endpoints,
    }
}

async fn answer(agent: &Agent) {
    let mut listener = agent.listen(PORT).await.unwrap();
    let mut stop = signal(SignalKind::terminate()).unwrap();
    println!("{READY}");
    loop {
        let mut stream = tokio::select! {
            stream = listener.accept() => stream.unwrap(),
            _ = stop.recv() => return,
        };
        let bytes = receive(&mut stream, 0).await;
        stream.write_all(&[0]).await.unwrap();
        send(&mut stream, bytes, 1).await;
    }
}

/// Sends so many bytes of a pattern, and the end of the stream.
async fn send(stream: &mut Stream, bytes: usize, pattern: usize) {
    let data = repeated(pattern);
    let mut at = 0;
    while at < bytes {
        let length = CHUNK.min(bytes - at);
        let chunk = &data[at % PERIOD..][..length];
        timeout(TRANSFER, stream.write_all(chunk)).await.expect("written in time").unwrap();
        at += length;
    }
    stream.shutdown().await.unwrap();
}

/// Reads to the end and compares each byte with the pattern; returns how many there were.
async fn receive(stream: &mut Stream, pattern: usize) -> usize {
    let data = repeated(pattern);
    let (mut at, mut buffer) = (0, vec![0; CHUNK]);
    loop {
        let length = timeout(TRANSFER, stream.read(&mut buffer)).await.expect("read in time").unwrap();
        if length == 0 {
            return at;
        }
        assert!(buffer[..length] == data[at % PERIOD..][..length], "wrong bytes after {at}");
        at += length;
    }
}

/// A pattern long enough for a chunk from anywhere in its period.
fn repeated(pattern: usize) -> Vec<u8> {
    (0..CHUNK + PERIOD).map(|at| (at % PERIOD + pattern) as u8).collect()
}

/// Is an echo: of each datagram, and there for TCP.
pub(crate) fn echo() {
    for address in env::var(ECHO_ADDRESSES).unwrap().split(' ') {
        let address: IpAddr = address.parse().unwrap();
        let udp = UdpSocket::bind((address, ECHO)).unwrap();
        let tcp = TcpListener::bind((address, ECHO)).unwrap();
        thread::spawn(move || {
            let mut buffer = [0; 1500];
            // An answer that can't be sent is one that doesn't come.
            while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(&buffer[..length], from);
            }
        });
        thread::spawn(move || tcp.incoming().for_each(drop));
    }
    println!("{ECHOES}");
    loop {
        thread::park();
    }
}
