//! A stream between two agents, each a process of its own, that carries bytes both ways at a steady pace, until it is told to end, and
//! looks at every one.
//!
//! The processes are this test program, started anew for the one test below.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nixtail::agent::{Agent, Config, Stream};
use nixtail::auth::Credential;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::lab::network::Machine;
use crate::lab::process::Process;
use crate::lab::{PATIENCE, wait_for};
use crate::stage::Stage;

/// What goes each way in a second.
const PACE: u64 = 512 << 10;
/// What is written or read at once, at the most.
const CHUNK: u64 = 64 << 10;
const PORT: u16 = 9000;
/// Where an end finds out what it is.
const ROLE: &str = "NIXTAIL_TEST_END";
/// How often a node is looked for that isn't in the netmap yet.
const GLANCE: Duration = Duration::from_millis(50);

/// What an end is told.
#[derive(Serialize, Deserialize)]
struct Role {
    login_server: String,
    key: String,
    name: String,
    /// Whom to dial. The other one listens.
    dials: Option<String>,
    direct: bool,
    /// Once there is a file of this name, nothing more is sent.
    until: PathBuf,
}

/// The two ends of a stream that runs.
pub(crate) struct PacedStream {
    ends: [Process; 2],
    until: PathBuf,
}

impl PacedStream {
    /// Begins one from the stage's left machine to its right one. Its ends join beside what the caller does next.
    pub(crate) fn begin(stage: &Stage) -> Self {
        let until = stage.path("the-stream-may-end");
        let end = |machine: &Machine, name: &str, dials: Option<&str>| {
            let role = Role {
                login_server: stage.headscale.url().to_owned(),
                key: stage.key("tag:stream"),
                name: name.to_owned(),
                dials: dials.map(str::to_owned),
                direct: stage.direct,
                until: until.clone(),
            };
            let role = serde_json::to_string(&role).unwrap();
            let words = ["stream::an_end_of_a_stream", "--exact", "--nocapture", "--test-threads=1"];
            let log = stage.path(&format!("{name}.log"));
            let program = env::current_exe().unwrap();
            Process::start_in(machine.namespace(), name, Path::new(&program), words, [(ROLE, role.as_str())], &log)
        };
        let ends = [end(&stage.right, "listens", None), end(&stage.left, "dials", Some("listens"))];
        Self { ends, until }
    }

    /// Waits until bytes have arrived at both ends that hadn't before.
    pub(crate) fn wait_for_moves(&self) {
        let before = self.moved();
        wait_for("bytes to move both ways", 2 * PATIENCE, || {
            let now = self.moved();
            (now[0] > before[0] && now[1] > before[1]).then_some(())
        });
    }

    /// How much has arrived at each end.
    fn moved(&self) -> [u64; 2] {
        let last = |end: &Process| {
            let log = end.log();
            assert!(!log.contains("panicked"), "an end of the stream:\n{log}");
            assert!(!log.lines().any(|line| line.starts_with("broken: ")), "an end of the stream:\n{log}");
            log.lines().rev().find_map(|line| line.strip_prefix("moved ")?.parse().ok()).unwrap_or(0)
        };
        [last(&self.ends[0]), last(&self.ends[1])]
    }

    /// Freezes or thaws its listening or its dialling end.
    pub(crate) fn signal(&self, which: End, signal: Signal) {
        self.ends[which as usize].signal(signal);
    }

    /// Lets it end, and waits until each end has had all that the other sent, every byte of it right.
    pub(crate) fn ends_well(mut self, patience: Duration) {
        fs::write(&self.until, "").unwrap();
        let figures = [0, 1].map(|index| {
            wait_for("an end of the stream to have had all", patience, || {
                let _ = self.moved();
                let log = self.ends[index].log();
                let figure = |what: &str| log.lines().find_map(|line| line.strip_prefix(what)?.parse::<u64>().ok());
                Some((figure("sent ")?, figure("received ")?))
            })
        });
        let [(left_sent, left_received), (right_sent, right_received)] = figures;
        assert_eq!((left_sent, right_sent), (right_received, left_received));
        eprintln!("figure: the stream carried {left_sent} and {right_sent} bytes, each of them right");
        for end in &mut self.ends {
            end.signal(Signal::TERM);
            end.wait(PATIENCE);
        }
    }
}

/// See [`PacedStream::signal`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Listens,
    Dials,
}

/// Does nothing by itself: [`PacedStream`] starts it, in a process of its own.
#[test]
fn an_end_of_a_stream() {
    let Ok(role) = env::var(ROLE) else { return };
    let role: Role = serde_json::from_str(&role).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let agent = Agent::join(Config {
            direct: role.direct,
            ..Config::new(
                role.login_server.clone(),
                Some(Credential::parse("key", &role.key).unwrap()),
                role.name.clone(),
            )
        })
        .await
        .unwrap();
        let (stream, salts) = match &role.dials {
            Some(peer) => (dial(&agent, peer).await, [1, 2]),
            None => (agent.listen(PORT).await.unwrap().accept().await.unwrap(), [2, 1]),
        };
        match exchange(stream, salts, &role.until).await {
            Ok([sent, received]) => println!("sent {sent}\nreceived {received}"),
            Err(error) => println!("broken: {error}"),
        }
        // Who leaves ends what is still on its way to the other end: the test ends both.
        let () = std::future::pending().await;
    });
}

async fn dial(agent: &Agent, peer: &str) -> Stream {
    let begun = Instant::now();
    loop {
        match agent.dial(peer, PORT).await {
            Ok(stream) => return stream,
            // The other end is on its way.
            Err(error) => assert!(begun.elapsed() < 2 * PATIENCE, "{error}"),
        }
        tokio::time::sleep(GLANCE).await;
    }
}

/// Sends one sequence and receives the other; returns how long they were.
async fn exchange(stream: Stream, [sent, received]: [u64; 2], until: &Path) -> io::Result<[u64; 2]> {
    let (reader, writer) = tokio::io::split(stream);
    let (sent, received) = tokio::try_join!(send(writer, sent, until), receive(reader, received))?;
    Ok([sent, received])
}

async fn send(mut writer: impl AsyncWrite + Unpin, salt: u64, until: &Path) -> io::Result<u64> {
    let begun = Instant::now();
    let mut at = 0;
    while !until.exists() {
        let due = begun.elapsed().as_millis() as u64 * PACE / 1000;
        let next = due.min(at + CHUNK);
        writer.write_all(&sequence(salt, at, next)).await?;
        at = next;
        if at == due {
            tokio::time::sleep(GLANCE).await;
        }
    }
    writer.shutdown().await?;
    Ok(at)
}

async fn receive(mut reader: impl AsyncRead + Unpin, salt: u64) -> io::Result<u64> {
    let (mut at, mut buffer) = (0, vec![0; CHUNK as usize]);
    let mut told = Instant::now();
    loop {
        let length = reader.read(&mut buffer).await?;
        if length == 0 {
            return Ok(at);
        }
        let next = at + length as u64;
        assert!(buffer[..length] == sequence(salt, at, next), "wrong bytes between {at} and {next}");
        at = next;
        if told.elapsed() > GLANCE {
            told = Instant::now();
            println!("moved {at}");
        }
    }
}

/// The bytes of a sequence from `from` to `to`: no two places of it look alike, so a byte that is lost, doubled or moved shows.
fn sequence(salt: u64, from: u64, to: u64) -> Vec<u8> {
    let word = |number: u64| {
        // SplitMix64.
        let mut mixed = (number ^ (salt << 56)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)).to_le_bytes()
    };
    let words = (from / 8..to.div_ceil(8)).flat_map(word);
    words.skip((from % 8) as usize).take((to - from) as usize).collect()
}

/// What Nix is given to copy: `length` bytes of which no two parts are alike.
pub(crate) fn data(length: u64) -> Vec<u8> {
    sequence(3, 0, length)
}
