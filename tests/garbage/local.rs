//! The local socket: only our own user's processes get there, but any of them may be broken.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::PATIENCE;
use crate::frames::garbage;
use crate::lab::nixtail::Nixtail;
use crate::stage::key;
use crate::usage::Usage;
use nixtail_devnet::{BUILDER_TAG, Config as DevnetConfig, Devnet};

/// Of all connections that it serves at once, each with its head and its answer.
const GROWTH: u64 = 48 << 20;

/// Everything that is said to it and never ends has this long, by `src/local/server.rs`, and a busy machine a little more.
const DEADLINE: Duration = Duration::from_secs(40);

/// Sends `bytes` and reads to the end; `None` when that doesn't come.
async fn talk(node: &Nixtail, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut stream = UnixStream::connect(node.socket()).await.unwrap();
    // It may hang up before it has read everything.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let end = timeout(DEADLINE, stream.read_to_end(&mut answer)).await.ok()?;
    // A reset is an end, too.
    drop(end);
    Some(answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_the_local_socket_is_answered_or_cut_off_in_time() {
    let devnet = Devnet::start(DevnetConfig::default()).await.unwrap();
    let node = Nixtail::up(&devnet.url(), &key(&devnet, BUILDER_TAG), "local", &[]);
    let real = [
        &b"GET /status HTTP/1.1\r\nHost: nixtail\r\nConnection: close\r\n\r\n"[..],
        b"POST /ping HTTP/1.1\r\nHost: nixtail\r\nContent-Length: 20\r\nConnection: close\r\n\r\n{\"host\":\"x\",\"kind\":0}",
        b"POST /stream HTTP/1.1\r\nHost: nixtail\r\nUpgrade: nixtail\r\nConnection: upgrade\r\nContent-Length: 2\r\n\r\n{}",
        b"PUT /status HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    ];
    let real: Vec<Vec<u8>> = real.map(<[u8]>::to_vec).into();
    let process = node.id();
    let before = Usage::of(process);

    // Whole ones get an answer, whatever verb they have.
    let answer = talk(&node, &real[0]).await.expect("an end");
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    let unknown = talk(&node, b"BREW /coffee HTTP/1.1\r\nConnection: close\r\n\r\n").await.expect("an end");
    assert!(String::from_utf8_lossy(&unknown).contains("this agent has no BREW /coffee"), "{unknown:?}");

    let pieces = garbage(&real, 4, 300);
    let talks = pieces.iter().map(|piece| talk(&node, piece));
    let endless = vec![b'x'; 8 << 20];
    let endless_header = [b"GET /status HTTP/1.1\r\nX: ".to_vec(), endless.clone()].concat();
    let many_headers = [b"GET /status HTTP/1.1\r\n".to_vec(), b"a: b\r\n".repeat(500_000)].concat();
    let long_body = [b"POST /ping HTTP/1.1\r\nContent-Length: 8000000\r\n\r\n".to_vec(), endless.clone()].concat();
    let begun = Instant::now();
    let all = async {
        tokio::join!(
            futures::future::join_all(talks),
            talk(&node, &endless),
            talk(&node, &endless_header),
            talk(&node, &many_headers),
            talk(&node, &long_body),
            // Half requests, and one that never begins.
            talk(&node, b"GET /sta"),
            talk(&node, b"POST /ping HTTP/1.1\r\nContent-Length: 10\r\n\r\n{"),
            talk(&node, b""),
        )
    };
    let (pieces, endless, header, headers, body, half, short, nothing) = timeout(2 * PATIENCE, all).await.unwrap();
    println!("figure: all ended after {:?}", begun.elapsed());
    assert!(pieces.iter().all(Option::is_some), "a connection was never ended");
    for (what, end) in [
        ("an endless line", endless),
        ("an endless header", header),
        ("endless headers", headers),
        ("an endless body", body),
        ("half a request", half),
        ("a body that doesn't come", short),
        ("nothing", nothing),
    ] {
        assert!(end.is_some(), "{what} was waited for, for ever");
    }
    let count = u64::try_from(pieces.len()).unwrap();
    let cost = Usage::of(process).report_since(&before, "broken local calls", count);
    assert!(cost.each < Duration::from_millis(50) && cost.grown < GROWTH, "{cost:?}");
    assert_eq!(node.status()["self"]["name"], "local");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_local_connections_leave_room_for_the_next_one() {
    let devnet = Devnet::start(DevnetConfig::default()).await.unwrap();
    let mut node = Nixtail::up(&devnet.url(), &key(&devnet, BUILDER_TAG), "crowded", &[]);
    let process = node.id();
    let before = Usage::of(process);
    let mut held = Vec::new();
    for number in 0..1000 {
        // Those behind what the kernel queues aren't connected until others have gone.
        let connecting = timeout(Duration::from_millis(200), UnixStream::connect(node.socket()));
        let Ok(Ok(mut stream)) = connecting.await else { break };
        if number % 2 == 0 {
            let _ = stream.write_all(b"GET /status HTTP/1.1\r\nX: ").await;
        }
        held.push(stream);
    }
    println!("figure: {} connections were taken", held.len());
    assert!(held.len() >= 500);
    let cost = Usage::of(process).report_since(&before, "connections that say half", held.len() as u64);
    assert!(cost.grown < GROWTH, "{cost:?}");
    // They are cut off one after another, and a call gets its turn; the command line waits for it.
    let begun = Instant::now();
    let status = node.status();
    println!("figure: status after {:?}", begun.elapsed());
    assert_eq!(status["self"]["name"], "crowded");
    drop(held);
    assert!(node.end(rustix::process::Signal::TERM).success());
}
