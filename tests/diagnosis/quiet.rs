//! The log has moments, and no line per packet: at any level that people use, whatever goes through.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nixtail::agent::{Agent, Config, LEAVE_DEADLINE};
use nixtail::auth::Credential;
use nixtail_devnet::{AuthKeyOptions, Config as DevnetConfig, Devnet, Policy};
use nixtail_proto::secret::Secret;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::lab::PATIENCE;

/// Seven thousand packets, and as many acknowledgements as there are.
const AMOUNT: usize = 8 << 20;
/// What may be said meanwhile: a path that is found, a handshake, a round of netcheck, on both sides.
const LINES: usize = 30;

/// What the agents of this process have logged; the other tests' agents are processes of their own.
static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Log;

impl io::Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line).into_owned();
        if text.contains(" nixtail::") || text.contains(" nixtail_proto::") {
            LOG.lock().unwrap_or_else(PoisonError::into_inner).push(text);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn logged() -> Vec<String> {
    LOG.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

async fn join(devnet: &Devnet, key: &Secret, hostname: &str, direct: bool) -> Agent {
    let config =
        Config { direct, ..Config::new(devnet.url(), Some(Credential::AuthKey(key.clone())), hostname.to_owned()) };
    Agent::join(config).await.unwrap()
}

async fn transfer(from: &Agent, to: &Agent) {
    let mut listener = to.listen(9000).await.unwrap();
    let receive = async {
        let mut stream = listener.accept().await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        assert_eq!(all.len(), AMOUNT);
        stream.shutdown().await.unwrap();
    };
    let send = async {
        let mut stream = from.dial("right", 9000).await.unwrap();
        stream.write_all(&vec![7; AMOUNT]).await.unwrap();
        stream.shutdown().await.unwrap();
        stream.read_to_end(&mut Vec::new()).await.unwrap();
    };
    timeout(2 * PATIENCE, async { tokio::join!(receive, send) }).await.expect("all of it in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_adds_no_line_per_packet_directly_or_by_relay() {
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_ansi(false);
    subscriber.with_writer(|| Log).try_init().unwrap();
    let devnet = Devnet::start(DevnetConfig { policy: Policy::allow_all(), ..DevnetConfig::default() }).await.unwrap();
    let options = AuthKeyOptions { reusable: true, ephemeral: true, ..AuthKeyOptions::default() };
    let key = devnet.add_auth_key(options).unwrap();
    for direct in [true, false] {
        let (left, right) = tokio::join!(join(&devnet, &key, "left", direct), join(&devnet, &key, "right", direct));
        let mut netmap = left.netmap();
        let sees = netmap.wait_for(|netmap| netmap.as_ref().is_some_and(|netmap| netmap.peers.len() == 1));
        drop(timeout(PATIENCE, sees).await.expect("the peer in time").unwrap());
        let before = logged().len();
        assert!(before > 0, "nothing is heard");
        transfer(&left, &right).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let lines = logged().split_off(before);
        assert!(lines.len() <= LINES, "{} lines: {:?}", lines.len(), lines.iter().take(2 * LINES).collect::<Vec<_>>());
        assert!(lines.iter().any(|line| line.contains("right: ")), "not how the peer is reached: {lines:?}");
        left.leave(LEAVE_DEADLINE).await.unwrap();
        right.leave(LEAVE_DEADLINE).await.unwrap();
    }
    devnet.shutdown().await;
}
