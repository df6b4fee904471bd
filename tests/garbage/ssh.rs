//! The port inside the tunnel, with SSH and the direct lane behind it: from a node that may connect and means no good.

use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt as _};
use nixtail::agent::{Agent, LEAVE_DEADLINE, Stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::PATIENCE;
use crate::frames::garbage;
use crate::stage::{BUILDER, LOGIN, Stage, netmap_with};
use crate::usage::Usage;

const GROWTH: u64 = 96 << 20;
/// Of as many connections as there may be, each with its buffers.
const MOST: u64 = 256 << 20;
/// What a broken connection may cost: TCP inside the tunnel, a task, and a key exchange at the worst.
const EACH: Duration = Duration::from_millis(30);
/// Connections of the flood.
const MANY: usize = 1000;
/// How many of them at once.
const LANES: usize = 100;
const BANNER: &[u8] = b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u7\r\n";

/// A key exchange's first packet (RFC 4253 §6 and §7.1), without meaning in its lists.
fn key_exchange() -> Vec<u8> {
    let list = b"curve25519-sha256";
    let mut payload = [&[20][..], &[7; 16]].concat();
    for _ in 0..10 {
        payload.extend(u32::try_from(list.len()).unwrap().to_be_bytes());
        payload.extend_from_slice(list);
    }
    payload.extend([0; 5]);
    let padding = 8 - (payload.len() + 5) % 8 + 8;
    let length = u32::try_from(payload.len() + padding + 1).unwrap();
    [&length.to_be_bytes()[..], &[u8::try_from(padding).unwrap()], &payload, &vec![0; padding]].concat()
}

/// What clients send who are broken, in whole; each of it must come to an end by itself.
fn broken() -> Vec<(&'static str, Vec<u8>)> {
    let kex = key_exchange();
    let with_banner = |rest: &[u8]| [BANNER, rest].concat();
    let request = |rest: &str| format!("nixtail-direct {rest}").into_bytes();
    vec![
        ("noise before a banner", (0..4000_u32).map(|n| (n * 31 % 251) as u8).collect()),
        ("noise behind a banner", with_banner(&[0xa7; 3000])),
        ("an endless banner", vec![b'S'; 4 << 20]),
        ("lines before the banner, without end", b"hello\r\n".repeat(200_000)),
        ("an endless version", [b"SSH-2.0-".to_vec(), vec![b'x'; 4 << 20]].concat()),
        ("another protocol", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("a packet of four gigabytes", with_banner(&[0xff; 64])),
        ("a packet without a byte", with_banner(&[0; 64])),
        ("a key exchange cut short, then noise", with_banner(&[&kex[..40], &[0x5a; 4000][..]].concat())),
        ("a key exchange twice", with_banner(&[kex.clone(), kex.clone()].concat())),
        ("lists without an end", with_banner(&[&[0, 0, 0x80, 0, 4, 20][..], &[0xff; 40_000]].concat())),
        ("an endless request", request(&"1 nix ".repeat(1 << 20))),
        ("a request of another version", request("999 nix nix-daemon --stdio\n")),
        ("a request without a command", request("1 nix\n")),
        ("a request that is no text", [request("1 "), vec![0xff; 30], b"\n".to_vec()].concat()),
        ("a command that isn't on the list", request("1 nix sh -c id\n")),
        ("another login", request("1 root nix-daemon --stdio\n")),
    ]
}

/// Sends `bytes`, and says whether the other end closed within `patience`.
async fn ends(stream: &mut Stream, bytes: &[u8], patience: Duration) -> bool {
    let (mut reading, mut writing) = tokio::io::split(stream);
    let talk = async {
        // It may reset the connection before it has read everything.
        let write = async {
            let _ = writing.write_all(bytes).await;
            let _ = writing.flush().await;
        };
        let read = async {
            let mut buffer = [0; 4096];
            while !matches!(reading.read(&mut buffer).await, Ok(0) | Err(_)) {}
        };
        tokio::join!(write, read);
    };
    timeout(patience, talk).await.is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_the_port_inside_the_tunnel_ends_its_connection_and_nothing_else() {
    let Some(mut stage) = Stage::start().await else { return };
    let (good, hostile) = tokio::join!(stage.coordinator("good"), stage.coordinator("hostile"));
    tokio::join!(netmap_with(&good, BUILDER), netmap_with(&hostile, BUILDER));
    stage.fetch(&good).await;
    let process = stage.builder.id();
    let before = Usage::of(process);

    let broken = broken();
    let begun = Instant::now();
    let attempts = broken.iter().map(|(what, bytes)| {
        let (stage, hostile) = (&stage, &hostile);
        async move {
            let mut stream = stage.dial(hostile).await;
            assert!(ends(&mut stream, bytes, PATIENCE).await, "{what}: it was waited for more");
        }
    });
    // Meanwhile, somebody works there.
    tokio::join!(futures::future::join_all(attempts), stage.fetch(&good));
    println!("figure: {} broken clients ended after {:?}", broken.len(), begun.elapsed());

    // The same in pieces, cut and changed; these say goodbye themselves, as what is half is waited for.
    let real: Vec<Vec<u8>> = broken.iter().map(|(_, bytes)| bytes[..bytes.len().min(600)].to_vec()).collect();
    let pieces = garbage(&real, 5, 200);
    stream::iter(&pieces)
        .for_each_concurrent(20, |piece| {
            let (stage, hostile) = (&stage, &hostile);
            async move {
                let mut stream = stage.dial(hostile).await;
                let _ = stream.write_all(piece).await;
                let _ = stream.shutdown().await;
                let mut rest = Vec::new();
                let end = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
                assert!(end.is_ok(), "no end after {piece:02x?}");
            }
        })
        .await;
    let count = u64::try_from(broken.len() + pieces.len()).unwrap();
    let cost = Usage::of(process).report_since(&before, "broken clients", count);
    assert!(cost.grown < GROWTH, "{cost:?}");
    stage.assert_well(&good).await;
    for agent in [good, hostile] {
        agent.leave(LEAVE_DEADLINE).await.unwrap();
    }
}

/// A connection that is refused, or closed at once, was one too many.
async fn hold(from: &Agent) -> Option<Stream> {
    let mut stream = from.dial(BUILDER, 22).await.ok()?;
    stream.write_all(b"nixtail-direct 1 ").await.ok()?;
    let refused = timeout(Duration::from_millis(300), stream.read(&mut [0; 1])).await.is_ok();
    (!refused).then_some(stream)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_connections_are_bounded_and_shut_nobody_else_out() {
    let Some(mut stage) = Stage::start().await else { return };
    let (good, hostile) = tokio::join!(stage.coordinator("good"), stage.coordinator("hostile"));
    tokio::join!(netmap_with(&good, BUILDER), netmap_with(&hostile, BUILDER));
    stage.fetch(&good).await;
    let process = stage.builder.id();
    let before = Usage::of(process);

    // One after another, each with a few words, and gone. What they take is had once, by as many as there are at a time.
    let words = [BANNER.to_vec(), [BANNER, &key_exchange()].concat(), format!("nixtail-direct 1 {LOGIN}").into_bytes()];
    let mut used = Vec::new();
    for _ in 0..2 {
        let (begun, before) = (Instant::now(), Usage::of(process));
        let opened = stream::iter(0..MANY)
            .map(|number| {
                let (hostile, words) = (&hostile, &words[number % words.len()]);
                async move {
                    let Ok(mut stream) = hostile.dial(BUILDER, 22).await else { return 0 };
                    let _ = stream.write_all(words).await;
                    stream.abort();
                    1_u64
                }
            })
            .buffer_unordered(LANES)
            .fold(0, |sum, one| async move { sum + one })
            .await;
        println!("figure: {opened} of {MANY} connections came about in {:?}", begun.elapsed());
        assert!(opened > MANY as u64 / 2);
        used.push(Usage::of(process).report_since(&before, "connections", opened));
    }
    assert!(used.iter().all(|cost| cost.each < EACH), "{used:?}");
    assert!(used[0].grown < MOST && used[1].grown < GROWTH, "{used:?}");

    // As many as there may be are held open in mid-word, and somebody else comes in all the same.
    let held = stream::iter(0..300).map(|_| hold(&hostile)).buffer_unordered(LANES).filter_map(std::future::ready);
    let held: Vec<_> = held.collect().await;
    println!("figure: {} connections are held", held.len());
    assert!((100..=200).contains(&held.len()), "{}", held.len());
    stage.fetch(&good).await;
    drop(held);
    stage.assert_well(&good).await;
    let grown = Usage::of(process).resident.saturating_sub(before.resident);
    assert!(grown < MOST, "{} MiB", grown >> 20);
    for agent in [good, hostile] {
        agent.leave(LEAVE_DEADLINE).await.unwrap();
    }
}
