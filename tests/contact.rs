//! First contact of cold pairs: new keys, joined within a second of each other, nothing cached, either one dials. How long it
//! takes beside tsnet's, `nixtail-bench contact` measures; here nobody may wait for a lost handshake.
#![allow(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

mod lab;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream;
use lab::headscale::{ALLOW_ALL, Headscale, KeyTerms};
use nixtail::agent::{Agent, Config, LEAVE_DEADLINE};
use nixtail::auth::Credential;
use nixtail_devnet::{AuthKeyOptions, Config as DevnetConfig, Devnet, Policy};
use nixtail_proto::netmap::Netmap;
use nixtail_proto::secret::Secret;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{sleep, timeout};
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

const PATIENCE: Duration = Duration::from_secs(60);
/// What a first contact may take on a machine that is there for us …
const LONGEST: Duration = Duration::from_secs(3);
/// … which one is where a sleeper is woken within this time of its hour.
const BUSY: Duration = Duration::from_millis(100);
/// How many handshakes a pair may begin on average: one, and some more where one was too early.
const HANDSHAKES: usize = 3;
const PORT: u16 = 7000;

/// The tests count what the process does, so they go one after the other.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn forty_cold_pairs_meet_on_the_devnet() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    runtime().block_on(async {
        let devnet =
            Devnet::start(DevnetConfig { policy: Policy::allow_all(), ..DevnetConfig::default() }).await.unwrap();
        let options = AuthKeyOptions { reusable: true, ephemeral: true, ..AuthKeyOptions::default() };
        let key = devnet.add_auth_key(options).unwrap();
        meet(&devnet.url(), &key, 40, 8, Duration::from_millis(300)).await;
    });
}

#[test]
fn twelve_cold_pairs_meet_on_headscale() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(headscale) = Headscale::start(ALLOW_ALL) else { return };
    let key = headscale.preauth_key(KeyTerms { ephemeral: true, reusable: true, tags: &[] });
    runtime().block_on(meet(headscale.url(), &Secret::new(key), 12, 6, Duration::from_secs(1)));
}

/// Once, in a bench with two worker threads, a dial over a session that stood wasn't answered within 10 s, which was never
/// explained. Here thousands are, each by a stream of its own, after pauses of any length.
#[test]
#[ignore = "make test-long: a minute of dials"]
fn every_one_of_four_thousand_dials_is_answered() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    runtime().block_on(async {
        let devnet =
            Devnet::start(DevnetConfig { policy: Policy::allow_all(), ..DevnetConfig::default() }).await.unwrap();
        let options = AuthKeyOptions { reusable: true, ephemeral: true, ..AuthKeyOptions::default() };
        let key = devnet.add_auth_key(options).unwrap();
        let (url, key) = (devnet.url(), &key);
        let dials = (0..8).map(|seed| keep_dialling(&url, key, seed, 500));
        let longest = stream::iter(dials).buffer_unordered(8).fold(Duration::ZERO, async |a, b| a.max(b)).await;
        eprintln!("figure: the longest of 4,000 dials took {longest:?}");
    });
}

/// The longest of so many dials, one after the other. Panics if one fails.
async fn keep_dialling(control: &str, key: &Secret, seed: u64, dials: usize) -> Duration {
    let mut rng = StdRng::seed_from_u64(seed);
    let join = |name: &str| Agent::join(config(control, key, &format!("{name}-{seed}")));
    let (dialler, dialled) = tokio::join!(join("dialler"), join("dialled"));
    let (dialler, dialled) = (dialler.unwrap(), dialled.unwrap());
    let mut listener = dialled.listen(PORT).await.unwrap();
    let echoes = tokio::spawn(async move {
        while let Ok(mut stream) = listener.accept().await {
            tokio::spawn(async move {
                let mut byte = [0];
                stream.read_exact(&mut byte).await.unwrap();
                stream.write_all(&byte).await.unwrap();
            });
        }
    });
    let wanted = dialled.node_key();
    let mut netmap = dialler.netmap();
    let knows = |map: &Option<Arc<Netmap>>| map.as_ref().is_some_and(|map| map.peer_by_key(&wanted).is_some());
    drop(timeout(PATIENCE, netmap.wait_for(knows)).await.expect("the peer in the netmap").unwrap());
    let mut longest = Duration::ZERO;
    for dial in 0..dials {
        sleep(Duration::from_millis(rng.random_range(0..100))).await;
        let begun = Instant::now();
        let stream = dialler.dial(&format!("dialled-{seed}"), PORT).await;
        let mut stream = stream.unwrap_or_else(|error| panic!("dial {dial} of pair {seed}: {error}"));
        stream.write_all(b"x").await.unwrap();
        timeout(PATIENCE, stream.read_exact(&mut [0])).await.expect("a byte in time").unwrap();
        longest = longest.max(begun.elapsed());
    }
    let _ = tokio::join!(dialler.leave(LEAVE_DEADLINE), dialled.leave(LEAVE_DEADLINE));
    echoes.abort();
    longest
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Lets so many pairs meet, some at a time, whose nodes start at most so far from each other.
async fn meet(control: &str, key: &Secret, pairs: u64, at_once: usize, apart: Duration) {
    let handshakes = Handshakes::count_anew();
    let watch = tokio::spawn(lateness());
    let begun = Instant::now();
    let contacts = stream::iter((0..pairs).map(|seed| cold_pair(control, key, seed, apart)));
    let mut times: Vec<Duration> = contacts.buffer_unordered(at_once).collect().await;
    watch.abort();
    let late = Duration::from_micros(LATEST.load(Ordering::Relaxed) as u64);
    times.sort_unstable();
    let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
    let begun_handshakes = handshakes.load(Ordering::Relaxed);
    eprintln!("figure: {pairs} first contacts in {:?}: median {median:?}, longest {longest:?}", begun.elapsed());
    eprintln!("figure: {begun_handshakes} handshakes begun; sleepers woke {late:?} late at most");
    assert!(begun_handshakes <= HANDSHAKES * times.len(), "{begun_handshakes} handshakes");
    assert!(longest <= LONGEST || late > BUSY, "{longest:?}: {times:?}");
}

/// Two new nodes; answers how long it took from the dial to the first byte back.
async fn cold_pair(control: &str, key: &Secret, seed: u64, apart: Duration) -> Duration {
    let mut rng = StdRng::seed_from_u64(seed);
    let (apart, last_dials) = (apart.mul_f64(rng.random_range(0.0..1.0)), rng.random::<bool>());
    let join = |name: &str| Agent::join(config(control, key, &format!("{name}-{seed}")));
    let last = async {
        sleep(apart).await;
        join("last").await
    };
    let (first, last) = tokio::join!(join("first"), last);
    let (first, last) = (first.unwrap(), last.unwrap());
    let (dialler, dialled) = if last_dials { (&last, &first) } else { (&first, &last) };
    let mut listener = dialled.listen(PORT).await.unwrap();
    let echo = tokio::spawn(async move {
        let mut stream = listener.accept().await.unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).await.unwrap();
        stream.write_all(&byte).await.unwrap();
        // The dialler has its byte before this stream goes.
        let _ = stream.read(&mut byte).await;
    });
    let (wanted, address) = (dialled.node_key(), dialled.status().await.own.addresses[0].to_string());
    let mut netmap = dialler.netmap();
    let knows = |map: &Option<Arc<Netmap>>| map.as_ref().is_some_and(|map| map.peer_by_key(&wanted).is_some());
    drop(timeout(PATIENCE, netmap.wait_for(knows)).await.expect("the peer in the netmap").unwrap());
    let begun = Instant::now();
    let mut stream = dialler.dial(&address, PORT).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    timeout(PATIENCE, stream.read_exact(&mut [0])).await.expect("a byte in time").unwrap();
    let took = begun.elapsed();
    drop(stream);
    echo.await.unwrap();
    let (first, last) = tokio::join!(first.leave(LEAVE_DEADLINE), last.leave(LEAVE_DEADLINE));
    // That it leaves cleanly is other tests' business.
    let _ = (first, last);
    took
}

fn config(control: &str, key: &Secret, hostname: &str) -> Config {
    Config::new(control.to_owned(), Some(Credential::AuthKey(key.clone())), hostname.to_owned())
}

/// Microseconds that a sleeper was woken late, at most.
static LATEST: AtomicUsize = AtomicUsize::new(0);

/// Sleeps again and again, and notes how late it is woken.
async fn lateness() {
    let nap = Duration::from_millis(10);
    loop {
        let begun = Instant::now();
        sleep(nap).await;
        let late = begun.elapsed().saturating_sub(nap).as_micros();
        LATEST.fetch_max(usize::try_from(late).unwrap_or(usize::MAX), Ordering::Relaxed);
    }
}

/// Counts what nodes say when they begin a handshake.
struct Handshakes(Arc<AtomicUsize>);

impl Handshakes {
    fn count_anew() -> Arc<AtomicUsize> {
        static BEGUN: std::sync::OnceLock<Arc<AtomicUsize>> = std::sync::OnceLock::new();
        let begun = BEGUN.get_or_init(|| {
            let begun = Arc::new(AtomicUsize::new(0));
            let filter = tracing_subscriber::EnvFilter::new("nixtail_proto::node=debug");
            let counting = tracing_subscriber::registry().with(filter).with(Self(Arc::clone(&begun)));
            tracing::subscriber::set_global_default(counting).unwrap();
            begun
        });
        begun.store(0, Ordering::Relaxed);
        LATEST.store(0, Ordering::Relaxed);
        Arc::clone(begun)
    }
}

impl<S: tracing::Subscriber> Layer<S> for Handshakes {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        struct Message(bool);
        impl Visit for Message {
            fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
                self.0 |= field.name() == "message" && format!("{value:?}") == "begins a handshake";
            }
        }
        let mut message = Message(false);
        event.record(&mut message);
        self.0.fetch_add(usize::from(message.0), Ordering::Relaxed);
    }
}
