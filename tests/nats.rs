//! NATs: two nodes behind routers of each kind, a transfer between them whose every byte is looked at, and what routers do to it.
#![allow(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

#[path = "nats/end.rs"]
mod end;
mod lab;
#[path = "nats/pair.rs"]
mod pair;

use lab::sites::{FORWARDED_PORT, Nat, Side, Site};
use pair::Pair;

const OPEN: Site = Site { nat: Nat::Open, wall: false };
/// What most people sit behind.
const EASY: Site = Site { nat: Nat::Easy, wall: true };
const HARD: Site = Site { nat: Nat::Hard, wall: true };
const FORWARD: Site = Site { nat: Nat::Forward, wall: true };

/// So much more than all queues on the way hold that it was sent later.
const AMOUNT: u64 = 3 << 20;

/// Not a test: the process at either end of a pair, which the tests start in another network.
#[test]
fn process_at_an_end() {
    end::run();
}

#[test]
fn bytes_go_by_the_relay_at_once_and_move_to_the_direct_path_without_a_loss() {
    let Some(pair) = Pair::start_apart(EASY, EASY) else { return };
    pair.moves(AMOUNT);
    assert!(!pair.is_direct(Side::Left) && !pair.is_direct(Side::Right), "{:?}", pair.states());
    pair.sites.join().unwrap();
    pair.wait_until_direct();
    pair.moves(AMOUNT);
    pair.finish();
}

#[test]
fn a_hard_nat_reaches_a_public_address_directly_from_either_end() {
    for (left, right) in [(HARD, OPEN), (OPEN, HARD)] {
        let Some(pair) = Pair::start(left, right) else { return };
        pair.wait_until_direct();
        pair.moves(AMOUNT);
        pair.finish();
    }
}

#[test]
fn a_port_that_somebody_opened_in_a_hard_nat_is_found() {
    let Some(pair) = Pair::start(EASY, FORWARD) else { return };
    pair.wait_until_direct();
    assert_eq!(pair.address_used(Side::Left).unwrap().port(), FORWARDED_PORT);
    pair.moves(AMOUNT);
    pair.finish();
}

#[test]
fn two_hard_nats_keep_to_the_relay() {
    let Some(pair) = Pair::start(HARD, HARD) else { return };
    pair.moves(2 * AMOUNT);
    assert!(!pair.is_direct(Side::Left) && !pair.is_direct(Side::Right), "{:?}", pair.states());
    pair.finish();
}

/// As when both routers are restarted.
#[test]
fn a_transfer_survives_routers_that_forget_it() {
    let Some(pair) = Pair::start(EASY, EASY) else { return };
    pair.wait_until_direct();
    pair.sites.flush(Side::Left).unwrap();
    pair.sites.flush(Side::Right).unwrap();
    pair.moves(AMOUNT);
    pair.wait_until_direct();
    pair.finish();
}

/// Its port is another one from then on, and the other end must find it.
#[test]
fn a_transfer_survives_a_hard_nat_that_forgets_it() {
    let Some(pair) = Pair::start(HARD, OPEN) else { return };
    pair.wait_until_direct();
    let before = pair.address_used(Side::Right).unwrap();
    pair.sites.flush(Side::Left).unwrap();
    pair.moves(AMOUNT);
    let after = pair.wait_until_address_used(Side::Right, |address| address != before);
    assert_eq!(after.ip(), before.ip());
    pair.finish();
}

#[test]
fn a_transfer_survives_another_public_address() {
    let Some(pair) = Pair::start(EASY, EASY) else { return };
    pair.wait_until_direct();
    let before = pair.address_used(Side::Right).unwrap();
    pair.sites.change_address(Side::Left).unwrap();
    pair.moves(AMOUNT);
    pair.wait_until_address_used(Side::Right, |address| address.ip() != before.ip());
    pair.wait_until_direct();
    pair.moves(AMOUNT);
    pair.finish();
}

/// Without NAT it is the machine's own address that changes under the agent.
#[test]
#[ignore = "make test-long: as the one before, for a machine with a public address"]
fn a_transfer_survives_another_address_of_its_own() {
    let Some(pair) = Pair::start(OPEN, EASY) else { return };
    pair.wait_until_direct();
    let before = pair.address_used(Side::Right).unwrap();
    pair.sites.change_address(Side::Left).unwrap();
    pair.moves(AMOUNT);
    pair.wait_until_address_used(Side::Right, |address| address.ip() != before.ip());
    pair.wait_until_direct();
    pair.finish();
}

/// Every kind of site against every other, in both orders: who begins makes a difference to routers.
#[test]
#[ignore = "make test-long: 49 pairs"]
fn every_pair_that_can_meet_directly_does() {
    pair::try_all(AMOUNT);
}
