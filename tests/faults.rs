//! Faults in mid-build, with real parts: control, the relay, the link, one end, the clock fail while Nix copies and builds, and while
//! a stream carries bytes that are each looked at. Machines are namespaces on a switch (`lab::network`); only root can make them.
//! What follows from each fault stands in docs/faults.md.
#![allow(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

#[path = "faults/clock.rs"]
mod clock;
mod lab;
#[path = "nix/nix_at_hand.rs"]
#[allow(dead_code, reason = "these tests have a derivation of their own")]
mod nix_at_hand;
#[path = "faults/stage.rs"]
mod stage;
#[path = "faults/stream.rs"]
mod stream;

use std::thread::sleep;
use std::time::{Duration, Instant};

use clock::Clock;
use lab::network::Namespace;
use lab::nixtail::Nixtail;
use lab::{PATIENCE, wait_for};
use nixtail_devnet::{AuthKeyOptions, Config as DevnetConfig, Devnet, Policy};
use nixtail_proto::tailcfg::Timestamp;
use rustix::process::{Pid, Signal, kill_process};
use stage::Stage;
use stream::{End, PacedStream};

/// How long work may take beyond its time and that of the fault, on a machine that is busy with other tests.
const LATE: Duration = Duration::from_secs(60);

/// For how long a fault lasts in `make test`.
const SHORT: Duration = Duration::from_secs(4);

/// By how much a clock is set, in seconds.
const DAY: i64 = 86_400;

/// What each end must survive (design §4.6).
const FREEZE: Duration = Duration::from_secs(30);

#[test]
fn control_is_down_for_ten_seconds() {
    control_is_down(Duration::from_secs(10));
}

#[test]
#[ignore = "make test-long: two minutes without control"]
fn control_is_down_for_two_minutes() {
    control_is_down(Duration::from_secs(120));
}

/// Nothing that runs takes notice, and what begins meanwhile goes well, too: both ends know each other. Nor do they need the relay, where
/// they meet without it.
fn control_is_down(time: Duration) {
    let Some(mut stage) = Stage::start(true) else { return };
    let stream = PacedStream::begin(&stage);
    let _builder = stage.builder(&[]);
    let coordinator = stage.coordinator(&[]);
    stream.wait_for_moves();
    let mut build = coordinator.begin("begun-before", 2);
    build.wait_for_copy();
    let begun = Instant::now();
    stage.headscale.kill();
    build.ends_well(LATE);
    coordinator.wait_for_path("direct");
    stage.headscale.relay.kill();
    coordinator.builds("begun-meanwhile");
    assert_eq!(coordinator.process.status()["state"], "control-lost");
    sleep(time.saturating_sub(begun.elapsed()));
    stream.wait_for_moves();
    stage.headscale.relay.restart();
    stage.headscale.restart();
    wait_for("both to be back with control", 3 * PATIENCE, || {
        let online = |name| stage.headscale.node(name).is_some_and(|node| node.online);
        let back = coordinator.process.status()["state"] == "running" && online("builder") && online("coordinator");
        back.then_some(())
    });
    stream.ends_well(LATE);
    coordinator.builds("begun-afterwards");
}

/// Two nodes that meet through the relay alone lose what is on its way there, and find each other on it again.
#[test]
fn the_relay_is_killed_and_restarted() {
    let Some(mut stage) = Stage::start(false) else { return };
    let stream = PacedStream::begin(&stage);
    let _builder = stage.builder(&[]);
    let coordinator = stage.coordinator(&[]);
    stream.wait_for_moves();
    let mut build = coordinator.begin("relayed", 0);
    build.wait_for_copy();
    coordinator.wait_for_path("derp");
    stage.headscale.relay.kill();
    sleep(Duration::from_secs(2));
    stage.headscale.relay.restart();
    build.ends_well(LATE);
    stream.ends_well(LATE);
}

#[test]
fn the_link_is_cut_for_a_moment() {
    the_link_is_cut(SHORT, true);
}

#[test]
#[ignore = "make test-long: a link cut for 20 s"]
fn the_link_is_cut_for_twenty_seconds() {
    the_link_is_cut(Duration::from_secs(20), true);
}

#[test]
#[ignore = "make test-long: a link cut for 20 s"]
fn the_link_is_cut_for_twenty_seconds_between_nodes_that_meet_on_the_relay() {
    the_link_is_cut(Duration::from_secs(20), false);
}

/// A cable that carries nothing, not even the word that it does not.
fn the_link_is_cut(time: Duration, direct: bool) {
    let Some(stage) = Stage::start(direct) else { return };
    let stream = PacedStream::begin(&stage);
    let _builder = stage.builder(&[]);
    let coordinator = stage.coordinator(&[]);
    stream.wait_for_moves();
    let mut build = coordinator.begin("cut-off", 0);
    build.wait_for_copy();
    coordinator.wait_for_path(if direct { "direct" } else { "derp" });
    stage.right.cut();
    sleep(time);
    stage.right.mend();
    let mended = Instant::now();
    stream.wait_for_moves();
    eprintln!("figure: bytes move {:.1} s after the link is back", mended.elapsed().as_secs_f64());
    build.ends_well(LATE);
    stream.ends_well(LATE);
}

/// Who is killed and comes back is the node that it was: the build ends with words, and the next one goes well.
#[test]
fn each_end_is_restarted() {
    let Some(stage) = Stage::start(true) else { return };
    let mut builder = stage.builder(&[]);
    let mut coordinator = stage.coordinator(&[]);
    let mut build = coordinator.begin("with-its-builder", 600);
    build.wait_for_work();
    let killed = Instant::now();
    builder.end(Signal::KILL);
    let _builder = stage.builder(&[]);
    let (well, said) = build.ends(LATE);
    eprintln!("figure: Nix ends {:.1} s after its builder was killed: {said}", killed.elapsed().as_secs_f64());
    let words = "the connection to it broke: connection reset by the peer; what it was building is lost";
    assert!(!well && said.contains(words), "{said}");
    coordinator.wait_for_builder();
    eprintln!("figure: the builder is listed again {:.1} s after it was killed", killed.elapsed().as_secs_f64());
    coordinator.builds("with-its-successor");

    let mut build = coordinator.begin("with-its-coordinator", 600);
    build.wait_for_work();
    let killed = Instant::now();
    coordinator.process.signal(Signal::KILL);
    let (well, said) = build.ends(LATE);
    eprintln!("figure: Nix ends {:.1} s after its coordinator was killed: {said}", killed.elapsed().as_secs_f64());
    assert!(!well && said.contains("error: "), "{said}");
    coordinator.process.wait();
    let coordinator = stage.coordinator(&[]);
    eprintln!("figure: the coordinator is ready again {:.1} s after it was killed", killed.elapsed().as_secs_f64());
    coordinator.builds("with-another-coordinator");
}

/// An hour back at both ends in mid-copy; then the builder is restarted, an hour further back, and control, which makes each end look at
/// its clock again.
#[test]
fn the_clock_is_set_back() {
    let Some(mut stage) = Stage::start(true) else { return };
    let Some(clock) = Clock::new(stage.folder()) else { return };
    let mut builder = stage.builder(&clock.environment());
    let coordinator = stage.coordinator(&clock.environment());
    let mut build = coordinator.begin("begun-before", 0);
    build.wait_for_copy();
    clock.set(-3600);
    build.ends_well(LATE);
    coordinator.builds("begun-afterwards");

    builder.end(Signal::KILL);
    clock.set(-7200);
    let builder = stage.builder(&clock.environment());
    stage.headscale.kill();
    stage.headscale.restart();
    coordinator.wait_for_builder();
    coordinator.builds("restarted");
    drop(builder);
}

#[test]
#[ignore = "make test-long: a freeze of 30 s"]
fn the_builder_is_frozen_for_thirty_seconds() {
    one_end_is_frozen(End::Listens);
}

#[test]
#[ignore = "make test-long: a freeze of 30 s"]
fn the_coordinator_is_frozen_for_thirty_seconds() {
    one_end_is_frozen(End::Dials);
}

/// Design §4.6: a freeze of 30 s survives.
fn one_end_is_frozen(which: End) {
    let Some(stage) = Stage::start(true) else { return };
    let stream = PacedStream::begin(&stage);
    let builder = stage.builder(&[]);
    let coordinator = stage.coordinator(&[]);
    stream.wait_for_moves();
    let mut build = coordinator.begin("frozen", 0);
    build.wait_for_copy();
    let agent = match which {
        End::Listens => builder.id(),
        End::Dials => coordinator.process.id(),
    };
    let agent = Pid::from_raw(i32::try_from(agent).unwrap()).unwrap();
    let signal = |signal| {
        kill_process(agent, signal).unwrap();
        stream.signal(which, signal);
    };
    signal(Signal::STOP);
    sleep(FREEZE);
    signal(Signal::CONT);
    let thawed = Instant::now();
    stream.wait_for_moves();
    eprintln!("figure: bytes move {:.1} s after the thaw", thawed.elapsed().as_secs_f64());
    build.ends_well(LATE);
    stream.ends_well(LATE);
}

/// Keys end by control's clock, whatever becomes of ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_clock_that_is_set_ends_no_key() {
    let folder = tempfile::tempdir().unwrap();
    let Some(clock) = Clock::new(folder.path()) else { return };
    let devnet = Devnet::start(DevnetConfig { policy: Policy::allow_all(), ..DevnetConfig::default() }).await.unwrap();
    let key = devnet.add_auth_key(AuthKeyOptions { reusable: true, ..AuthKeyOptions::default() }).unwrap();
    let network = Namespace::default();
    let start = |name, environment: &[_]| {
        tokio::task::block_in_place(|| {
            Nixtail::start_on(network, "up", &devnet.url(), key.expose(), name, &[], environment)
        })
    };
    let mut node = start("set", &clock.environment());
    let _other = start("other", &[]);
    let end_in = |seconds| Timestamp::from_unix(devnet.time().unix() + seconds);
    for (shift, keys_end) in [(DAY, end_in(3600)), (-DAY, end_in(3601)), (0, end_in(3602))] {
        clock.set(shift);
        for known in devnet.nodes() {
            devnet.set_key_expiry(known.id, keys_end).unwrap();
        }
        tokio::task::block_in_place(|| {
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(1) {
                assert!(node.cli(&["ping", "-c", "1", "other"]).status.success(), "{shift}: {}", node.log());
                sleep(Duration::from_millis(100));
            }
        });
    }
    assert!(tokio::task::block_in_place(|| node.end(Signal::TERM)).success());
    devnet.shutdown().await;
}
