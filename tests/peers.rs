//! The test lab itself: real peers find each other, so that what fails elsewhere is ours.

mod lab;

use lab::headscale::{ALLOW_ALL, Headscale, KeyTerms};
use lab::tailscaled::{Paths, Tailscaled};
use lab::{PATIENCE, wait_for};

const REUSABLE: KeyTerms<'_> = KeyTerms { ephemeral: true, reusable: true, tags: &[] };

#[test]
fn two_tailscaleds_on_headscale_ping_each_other_directly() {
    let Some(headscale) = Headscale::start(ALLOW_ALL) else {
        return;
    };
    let key = headscale.preauth_key(REUSABLE);
    let Some(left) = Tailscaled::start(headscale.url(), &key, "left") else {
        return;
    };
    let Some(right) = Tailscaled::start(headscale.url(), &key, "right") else {
        return;
    };
    let address = left.wait_for_peer("right");
    assert_eq!(address, right.ip());
    let pongs = left.ping_until_direct(&address);
    assert!(pongs.lines().last().is_some_and(|line| line.contains("pong") && !line.contains("DERP")), "{pongs}");
    for kind in ["--icmp", "--tsmp"] {
        let pong = left.ping_once(&address, kind);
        assert!(pong.contains("pong"), "{kind}: {pong}");
    }

    assert!(headscale.node("left").is_some_and(|node| node.online));
    left.logout();
    wait_for("the ephemeral node to vanish", PATIENCE, || headscale.node("left").is_none().then_some(()));
}

#[test]
fn tailscaled_by_derp_alone_is_reached_by_derp() {
    let Some(headscale) = Headscale::start(ALLOW_ALL) else {
        return;
    };
    let key = headscale.preauth_key(REUSABLE);
    let Some(left) = Tailscaled::start(headscale.url(), &key, "left") else {
        return;
    };
    let Some(_right) = Tailscaled::start_with(headscale.url(), &key, "right", Paths::DerpOnly) else {
        return;
    };
    let address = left.wait_for_peer("right");
    let pong = left.ping_once(&address, "");
    assert!(pong.contains("via DERP(lab)"), "{pong}");
}
