//! The relay: three that are hostile, each in its own way, and one that is good, in one region.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nixtail::agent::{LEAVE_DEADLINE, PingKind};
use nixtail_devnet::{BUILDER_TAG, COORDINATOR_TAG, Config as DevnetConfig, Devnet, Policy, RELAY_REGION};
use nixtail_proto::derp::{Decoder, Frame, PeerGoneReason, write_recv_packet};
use nixtail_proto::key::NodePublic;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::PATIENCE;
use crate::frames::{Sender, Victim, datagrams, garbage};
use crate::lab::nixtail::Nixtail;
use crate::scripted_relay::{Scripted, Session};
use crate::stage::{eventually, join, key, netmap_with};
use crate::usage::Usage;

const GROWTH: u64 = 48 << 20;
/// Of frames that mean something: how many of a flood there are.
const FLOOD: usize = 20_000;
/// The last ping of a flood.
const LAST: [u8; 8] = *b"the last";
/// What a frame may cost: TLS, a look, and what a peer's packet makes a session try.
const EACH: Duration = Duration::from_micros(300);

/// Frames of every kind that a relay may send, and some that it may not.
fn frames(real: &[Vec<u8>], peer: NodePublic) -> Vec<Vec<u8>> {
    let stranger = NodePublic::from_bytes([9; 32]);
    let restarting = |seconds| Frame::Restarting {
        reconnect_in: Duration::from_secs(seconds),
        try_for: Duration::from_secs(seconds),
    };
    let mut frames: Vec<Vec<u8>> = [
        Frame::KeepAlive,
        Frame::PeerGone { peer, reason: PeerGoneReason::Disconnected },
        Frame::PeerGone { peer, reason: PeerGoneReason::NotHere },
        Frame::PeerGone { peer: stranger, reason: PeerGoneReason::Other(77) },
        Frame::PeerPresent { peer: stranger },
        Frame::ForwardPacket { from: stranger, to: peer, packet: b"no mesh here" },
        Frame::WatchConnections,
        Frame::ClosePeer { peer },
        Frame::Ping(*b"12345678"),
        Frame::Pong(*b"notasked"),
        Frame::Health(b"\x1b[31mnews of today\r\n"),
        Frame::Health(b""),
        restarting(0),
        restarting(4_000_000),
        Frame::NotePreferred(true),
    ]
    .iter()
    .map(|frame| {
        let mut bytes = Vec::new();
        frame.write(&mut bytes).unwrap();
        bytes
    })
    .collect();
    for piece in garbage(real, 2, 300) {
        for from in [peer, stranger] {
            let mut bytes = Vec::new();
            write_recv_packet(&from, &piece, &mut bytes).unwrap();
            frames.push(bytes);
        }
    }
    // Of a later version.
    frames.push([&[0xee, 0, 0, 0, 4][..], b"what"].concat());
    frames
}

/// Reads until the client hangs up.
async fn hung_up(session: &mut Session) {
    let reading = async {
        let mut buffer = [0; 4096];
        while !matches!(session.stream.read(&mut buffer).await, Ok(0) | Err(_)) {}
    };
    timeout(PATIENCE, reading).await.expect("the client leaves a relay that makes no sense");
}

/// Takes clients for ever, says `words` to each, and waits for it to leave.
async fn say_to_all(relay: Scripted, words: Vec<u8>) {
    loop {
        let mut session = relay.accept().await;
        session.write(&[relay.welcome(&session), words.clone()].concat()).await;
        hung_up(&mut session).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_relays_are_left_with_a_reason_for_one_that_works() {
    let devnet = Devnet::start(DevnetConfig { policy: Policy::allow_all(), ..DevnetConfig::default() }).await.unwrap();
    let noise = garbage(&[vec![0; 40]], 3, 1).concat();
    let (noisy, vast, flooding) = (Scripted::start().await, Scripted::start().await, Scripted::start().await);
    let nodes = [&noisy, &vast, &flooding].map(|relay| serde_json::to_value(relay.node(RELAY_REGION)).unwrap());
    // Only the victim's map has them.
    devnet.edit_first_maps(move |_, map: &mut Value| {
        let name = map["Node"]["Name"].as_str().unwrap_or_default();
        if name.starts_with("victim")
            && let Some(known) = map["DERPMap"]["Regions"][RELAY_REGION.to_string()]["Nodes"].as_array_mut()
        {
            known.splice(0..0, nodes.clone());
        }
    });
    // The first says nothing that means anything, the second announces four gigabytes.
    let first = tokio::spawn(say_to_all(noisy, [&[0x05, 0, 0, 0, 7][..], &noise].concat()));
    let second = tokio::spawn(say_to_all(vast, vec![0x05, 0xff, 0xff, 0xff, 0xff]));
    // The third lets it in, and means it, in a way.
    let third = tokio::spawn(async move {
        let mut session = flooding.accept().await;
        session.write(&flooding.welcome(&session)).await;
        session
    });

    let good = join(&devnet, "good", COORDINATOR_TAG, false).await;
    let mut victim = Nixtail::up(&devnet.url(), &key(&devnet, BUILDER_TAG), "victim", &["--no-direct"]);
    let netmap = netmap_with(&good, "victim").await;
    let peer = netmap.peers.values().find(|peer| peer.short_name() == "victim").unwrap();
    let known = Victim { node: peer.key, disco: peer.disco_key };

    let session = timeout(PATIENCE, third).await.expect("the victim goes on to the next relay").unwrap();
    let (process, log_before) = (victim.id(), victim.log().len());
    let before = Usage::of(process);
    let frames = frames(&datagrams(&Sender::new(1), &Sender::new(2), &known), good.node_key());
    let (mut reading, mut writing) = tokio::io::split(session.stream);
    // What it answers is taken, as a relay would: pongs, mostly.
    let read_all = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&read_all);
    let answers = tokio::spawn(async move {
        let (mut decoder, mut buffer) = (Decoder::new(), vec![0; 64 << 10]);
        while let Ok(length @ 1..) = reading.read(&mut buffer).await {
            decoder.unread().extend_from_slice(&buffer[..length]);
            while let Some(frame) = decoder.next_frame().unwrap() {
                seen.fetch_or(frame == Frame::Pong(LAST), Ordering::Relaxed);
            }
        }
    });
    let flood = async {
        for chunk in frames.iter().cycle().take(FLOOD).collect::<Vec<_>>().chunks(100) {
            let bytes: Vec<u8> = chunk.iter().flat_map(|frame| frame.iter().copied()).collect();
            writing.write_all(&bytes).await.unwrap();
        }
        // Until the victim has read it all; it doesn't answer each of too many pings.
        let mut last = Vec::new();
        Frame::Ping(LAST).write(&mut last).unwrap();
        while !read_all.load(Ordering::Relaxed) {
            writing.write_all(&last).await.unwrap();
            writing.flush().await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, flood).await.expect("the victim reads what a relay sends");
    let status = victim.status();
    assert_eq!(status["self"]["name"], "victim");
    let cost = Usage::of(process).report_since(&before, "frames of a hostile relay", FLOOD as u64);
    assert!(cost.each < EACH && cost.grown < GROWTH, "{cost:?}");
    let log = victim.log();
    let written = log.len() - log_before;
    assert!(written < 64 << 10, "{written} bytes of log:\n{}", &log[log.len() - 4096..]);
    let news = log.lines().filter(|line| line.contains("the relay has something to say")).count();
    assert!((1..=4).contains(&news), "{news} times");

    // Gone: now there is only the good one, which the others lead to.
    answers.abort();
    assert!(answers.await.is_err(), "the victim hung up by itself");
    drop(writing);
    let pong = async {
        loop {
            match good.ping("victim", PingKind::Tsmp, Duration::from_secs(5)).await {
                Ok(pong) => return pong,
                Err(error) => println!("not yet: {error}"),
            }
        }
    };
    timeout(PATIENCE, pong).await.expect("the victim is reached through the relay that works");
    eventually("packets through the good relay", || devnet.relay_stats().packets > 0).await;
    let log = victim.log();
    for reason in ["broke the DERP protocol", "more than the 1048576 allowed", "is lost and dialled again"] {
        assert!(log.contains(reason), "not told: {reason}\n{log}");
    }
    assert!(!log.contains("panicked"), "{log}");
    first.abort();
    second.abort();
    good.leave(LEAVE_DEADLINE).await.unwrap();
    assert!(victim.end(rustix::process::Signal::TERM).success());
}
