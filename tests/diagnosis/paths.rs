//! What people see of paths: pings, the status of each peer, and the log.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::lab::{self, PATIENCE, wait_for};
use super::tailnet::Tailnet;

/// How long the changes of paths may take; they take about twenty seconds.
const LONGEST: Duration = Duration::from_secs(180);

#[test]
fn a_path_that_changes_is_told_by_ping_status_and_log() {
    let Some(_) = lab::peers::require_on_path("nft") else { return };
    let Some(_) = lab::peers::require_on_path("ip") else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    command
        .args(["-rn", "--kill-child", "--fork", "bash", "tests/diagnosis/path_changes.sh"])
        .arg(lab::nixtail::program())
        .arg(folder.path())
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = lab::process::run(&mut command, LONGEST);
    let said = format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("path changes: all told"), "{said}");
}

#[test]
fn ping_status_and_the_log_tell_how_a_peer_is_reached() {
    let tailnet = Tailnet::start();
    let (left, right) = (tailnet.up("left", &[]), tailnet.up("right", &[]));
    left.wait_for_peer("right");
    let pongs = left.cli_ok(&["ping", "right", "--until-direct"]);
    assert!(pongs.lines().last().is_some_and(|line| line.contains(" via ") && !line.contains("DERP")), "{pongs}");
    let answers = left.cli_ok(&["ping", "right", "-c", "2", "--json"]);
    let answers: Vec<Value> = answers.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(
        answers.len() == 2 && answers.iter().zip(1..).all(|(answer, number)| answer["number"] == number),
        "{answers:?}"
    );
    for answer in &answers {
        assert!(answer["latency_ms"].is_f64() && answer["path"]["kind"] == "direct", "{answer}");
        assert_eq!((&answer["schema"], &answer["name"]), (&1.into(), &"right".into()), "{answer}");
    }
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
    let lost = "the relay of DERP region 900 (devnet) is lost";
    wait_for("the relay to be lost", PATIENCE, || (told(lost) > 0).then_some(()));
    tailnet.devnet().switch_relay(true);
    let back = "the relay of DERP region 900 (devnet) is connected again";
    wait_for("the relay to be back", PATIENCE, || (told(back) > 0).then_some(()));
    assert_eq!((told(lost), told(back)), (1, 1), "{}", left.log());
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

    // One that is silent, and nobody.
    right.signal(rustix::process::Signal::STOP);
    let silent = left.cli(&["ping", "right", "-c", "2", "--timeout", "0.5"]);
    right.signal(rustix::process::Signal::CONT);
    let said = String::from_utf8_lossy(&silent.stderr);
    assert_eq!(silent.status.code(), Some(124), "{said}");
    assert!(said.matches("no answer from right within 0.5 s").count() >= 2 && said.contains("offline"), "{said}");
    let unknown = left.cli(&["ping", "nobody"]);
    let said = String::from_utf8_lossy(&unknown.stderr);
    assert_eq!((unknown.status.code(), said.matches("nixtail status").count()), (Some(69), 1), "{said}");
    drop(right);
}
