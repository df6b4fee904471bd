//! What people see of paths: pings, the status of each peer, and the log.

use super::lab::{PATIENCE, wait_for};
use super::tailnet::Tailnet;

#[test]
fn ping_status_and_the_log_tell_how_a_peer_is_reached() {
    let tailnet = Tailnet::start();
    let (left, right) = (tailnet.up("left", &[]), tailnet.up("right", &[]));
    left.wait_for_peer("right");
    let pongs = left.cli_ok(&["ping", "right", "--until-direct"]);
    assert!(pongs.lines().last().is_some_and(|line| line.contains(" via ") && !line.contains("DERP")), "{pongs}");
    // Through the tunnel, so that there are keys.
    left.cli_ok(&["ping", "right", "--tsmp", "-c", "1"]);
    let line = wait_for("the peer's line", PATIENCE, || {
        let said = left.cli_ok(&["status"]);
        said.lines().find(|line| line.contains("right") && line.contains("handshake")).map(str::to_owned)
    });
    for words in [" ms", "sent ", "received ", " ago"] {
        assert!(line.contains(words), "{line}");
    }
    let status = left.status();
    let peer = &status["peers"][0];
    assert_eq!(peer["path"]["kind"], "direct", "{status:#}");
    for key in ["rtt_ms", "bytes_sent", "bytes_received", "last_handshake_s"] {
        assert!(peer[key].is_number(), "{key}: {status:#}");
    }
    assert_eq!(status["relays"], serde_json::json!([nixtail_devnet::RELAY_REGION]));
    assert!(status["key_ends_in_s"].is_null() && status["clock_offset_s"] == 0, "{status:#}");

    let told = |words: &str| left.log().lines().filter(|line| line.contains(words)).count();
    assert_eq!(told("home is DERP region 900"), 1, "{}", left.log());
    assert!((1..=3).contains(&told("right: direct by ")), "{}", left.log());
    assert!(told("right: ") <= 6, "a line per packet: {}", left.log());

    tailnet.devnet().switch_relay(false);
    wait_for("the relay to be lost", PATIENCE, || (told("relay lost") > 0).then_some(()));
    let before = told("relay connected");
    tailnet.devnet().switch_relay(true);
    wait_for("the relay to be back", PATIENCE, || (told("relay connected") > before).then_some(()));
    tailnet.devnet().disconnect_all_streams();
    wait_for("control to be lost", PATIENCE, || (told("control is lost") > 0).then_some(()));
    wait_for("control to be back", PATIENCE, || (told("control is back") > 0).then_some(()));
    drop(right);
}

#[test]
fn a_path_that_stays_is_not_called_a_change() {
    let tailnet = Tailnet::start();
    let left = tailnet.up("left", &[]);
    let right = tailnet.up("right", &["--no-direct"]);
    left.wait_for_peer("right");
    let pongs = left.cli_ok(&["ping", "right", "-c", "2"]);
    assert!(pongs.lines().count() == 2 && pongs.lines().all(|line| line.contains("via DERP region 900")), "{pongs}");
    drop(right);
}
