#![allow(clippy::disallowed_methods, reason = "virtual time has to begin somewhere")]

use std::net::{IpAddr, Ipv4Addr};

use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::*;
use crate::tailcfg::DerpNode;

fn region(id: RegionId, host: &str) -> DerpRegion {
    let node = DerpNode { name: format!("{id}a"), region_id: id, host_name: host.to_owned(), ..DerpNode::default() };
    DerpRegion { region_id: id, nodes: vec![node], ..DerpRegion::default() }
}

fn map(regions: &[DerpRegion]) -> BTreeMap<RegionId, DerpRegion> {
    regions.iter().map(|region| (region.region_id, region.clone())).collect()
}

fn two_regions() -> BTreeMap<RegionId, DerpRegion> {
    map(&[region(1, "one.example"), region(2, "two.example")])
}

fn actions(relay: &mut Relay) -> Vec<Action> {
    std::iter::from_fn(|| relay.poll_action()).collect()
}

fn peer(n: u8) -> NodePublic {
    NodePublic::from_bytes([n; 32])
}

const DIAL_1: Action = Action::Dial { region: 1 };
const DIAL_2: Action = Action::Dial { region: 2 };
const CLOSE_1: Action = Action::Close { region: 1 };
const CLOSE_2: Action = Action::Close { region: 2 };
const SECOND: Duration = Duration::from_secs(1);

struct Fixture {
    now: Instant,
    rng: StdRng,
    relay: Relay,
}

/// Two regions, of which the first is home and connected.
fn at_home() -> Fixture {
    let now = Instant::now();
    let mut relay = Relay::new();
    relay.handle_derp_map(now, &two_regions());
    assert_eq!(actions(&mut relay), []);
    relay.handle_home(now, Some(1));
    assert_eq!(actions(&mut relay), [DIAL_1]);
    relay.handle_connected(now, 1);
    Fixture { now, rng: StdRng::seed_from_u64(1), relay }
}

#[test]
fn home_is_kept_for_ever() {
    let Fixture { now, mut relay, .. } = at_home();
    assert_eq!(relay.poll_timeout(), None);
    relay.handle_timeout(now + 3600 * SECOND);
    assert_eq!(actions(&mut relay), []);
    assert!(relay.is_connected(1));
}

#[test]
fn home_may_be_known_before_the_map() {
    let now = Instant::now();
    let mut relay = Relay::new();
    relay.handle_home(now, Some(1));
    assert_eq!(actions(&mut relay), []);
    relay.handle_derp_map(now, &two_regions());
    assert_eq!(actions(&mut relay), [DIAL_1]);
}

#[test]
fn others_are_dialled_on_demand_and_closed_when_idle() {
    let Fixture { now, mut relay, .. } = at_home();
    relay.handle_wanted(now, 2);
    relay.handle_wanted(now, 2);
    assert_eq!(actions(&mut relay), [DIAL_2]);
    relay.handle_connected(now, 2);
    relay.handle_wanted(now + 30 * SECOND, 2);
    assert_eq!(relay.poll_timeout(), Some(now + 90 * SECOND));
    relay.handle_timeout(now + 89 * SECOND);
    assert_eq!(actions(&mut relay), []);
    relay.handle_timeout(now + 90 * SECOND);
    assert_eq!(actions(&mut relay), [CLOSE_2]);
    assert_eq!(relay.poll_timeout(), None);
    relay.handle_wanted(now + 91 * SECOND, 2);
    assert_eq!(actions(&mut relay), [DIAL_2]);
}

#[test]
fn an_unknown_region_is_not_dialled() {
    let Fixture { now, mut relay, .. } = at_home();
    relay.handle_wanted(now, 99);
    assert_eq!(actions(&mut relay), []);
}

#[test]
fn a_region_without_relays_is_none() {
    let now = Instant::now();
    let mut relay = Relay::new();
    let mut stun_only = region(1, "one.example");
    stun_only.nodes[0].stun_only = true;
    relay.handle_derp_map(now, &map(&[stun_only]));
    relay.handle_home(now, Some(1));
    assert_eq!(actions(&mut relay), []);
}

#[test]
fn a_peer_is_answered_where_it_was_heard() {
    let Fixture { now, mut relay, mut rng } = at_home();
    assert_eq!(relay.route(now, &peer(7), 2), Some(2));
    relay.handle_heard(now, 1, peer(7));
    assert_eq!(relay.route(now, &peer(7), 2), Some(1));
    assert_eq!(relay.route(now, &peer(7), 0), Some(1));
    assert_eq!(relay.route(now, &peer(8), 2), Some(2));
    relay.handle_peer_gone(2, &peer(7));
    assert_eq!(relay.route(now, &peer(7), 2), Some(1));
    relay.handle_peer_gone(1, &peer(7));
    assert_eq!(relay.route(now, &peer(7), 2), Some(2));
    relay.handle_heard(now, 1, peer(7));
    relay.handle_disconnected(now, 1, &mut rng);
    assert_eq!(relay.route(now, &peer(7), 2), Some(2));
}

#[test]
fn a_lost_home_is_dialled_again_ever_more_slowly() {
    let Fixture { now, mut relay, mut rng } = at_home();
    let (mut now, mut pauses) = (now + 60 * SECOND, Vec::new());
    for _ in 0..8 {
        relay.handle_disconnected(now, 1, &mut rng);
        assert_eq!(actions(&mut relay), []);
        let until = relay.poll_timeout().unwrap();
        pauses.push(until - now);
        relay.handle_wanted(now, 1);
        assert_eq!(actions(&mut relay), [], "not before its time");
        relay.handle_timeout(until);
        assert_eq!(actions(&mut relay), [DIAL_1]);
        now = until;
    }
    for (n, pause) in pauses.iter().enumerate() {
        let longest = (FIRST_BACKOFF * (1 << n)).min(MAX_BACKOFF);
        assert!(*pause >= longest / 2 && *pause <= longest, "{n}: {pause:?}");
    }
    // One that is closed again at once was no success, one that lived was.
    relay.handle_connected(now, 1);
    relay.handle_disconnected(now + SECOND, 1, &mut rng);
    let until = relay.poll_timeout().unwrap();
    assert!(until - now > 2 * SECOND);
    relay.handle_timeout(until);
    relay.handle_connected(until, 1);
    relay.handle_disconnected(until + STABLE_AFTER, 1, &mut rng);
    assert!(relay.poll_timeout().unwrap() <= until + STABLE_AFTER + FIRST_BACKOFF);
}

#[test]
fn a_restarting_relay_says_when() {
    let Fixture { now, mut relay, mut rng } = at_home();
    relay.handle_restarting(now, 1, 2 * SECOND, Duration::ZERO);
    relay.handle_disconnected(now + SECOND, 1, &mut rng);
    assert_eq!(relay.poll_timeout(), Some(now + 2 * SECOND));
    relay.handle_timeout(now + 2 * SECOND);
    relay.handle_connected(now + 2 * SECOND, 1);
    relay.handle_restarting(now + 2 * SECOND, 1, 3600 * SECOND, 3600 * SECOND);
    relay.handle_disconnected(now + 2 * SECOND, 1, &mut rng);
    assert_eq!(relay.poll_timeout(), Some(now + 2 * SECOND + MAX_BACKOFF));
}

#[test]
fn a_restarting_relay_is_tried_for_as_long_as_it_asks_and_no_failure_counts() {
    let Fixture { now, mut relay, mut rng } = at_home();
    relay.handle_restarting(now, 1, SECOND, 5 * SECOND);
    relay.handle_disconnected(now, 1, &mut rng);
    let mut at = now + SECOND;
    assert_eq!(relay.poll_timeout(), Some(at));
    let mut attempts = 0;
    while at < now + 6 * SECOND {
        relay.handle_timeout(at);
        assert_eq!(actions(&mut relay), [DIAL_1]);
        attempts += 1;
        relay.handle_disconnected(at, 1, &mut rng);
        assert_eq!(relay.poll_timeout(), Some(at + RESTART_PAUSE));
        at += RESTART_PAUSE;
    }
    assert_eq!((attempts, relay.first_node(1)), (10, 0));
    relay.handle_timeout(at);
    relay.handle_disconnected(at, 1, &mut rng);
    assert_eq!(relay.first_node(1), 1, "now it is an outage");
    assert!(relay.poll_timeout().unwrap() <= at + FIRST_BACKOFF);
}

#[test]
fn a_route_that_grew_old_yields_to_a_home_that_is_connected() {
    let Fixture { now, mut relay, .. } = at_home();
    relay.handle_wanted(now, 2);
    relay.handle_connected(now, 2);
    relay.handle_heard(now, 2, peer(7));
    assert_eq!(relay.route(now + 59 * SECOND, &peer(7), 1), Some(2));
    assert_eq!(relay.route(now + 60 * SECOND, &peer(7), 1), Some(1));
    assert_eq!(relay.route(now + 60 * SECOND, &peer(7), 9), Some(2), "a home that isn't connected isn't better");
}

#[test]
fn each_failure_leads_to_the_next_relay_of_the_region_until_one_holds() {
    let Fixture { now, mut relay, mut rng } = at_home();
    assert_eq!((relay.first_node(1), relay.is_failing(1)), (0, false));
    let mut at = now;
    for failures in 1..=FAILING_AFTER {
        // It lets us in, and breaks the protocol soon after.
        relay.handle_disconnected(at + SECOND, 1, &mut rng);
        assert_eq!(relay.first_node(1), failures as usize);
        assert_eq!(relay.is_failing(1), failures == FAILING_AFTER);
        at = relay.poll_timeout().unwrap();
        relay.handle_timeout(at);
        relay.handle_connected(at, 1);
    }
    relay.handle_disconnected(at + STABLE_AFTER, 1, &mut rng);
    assert_eq!((relay.first_node(1), relay.is_failing(1)), (1, false), "the one that held is counted as lost anew");
}

#[test]
fn a_refused_client_knocks_again_within_seconds_and_for_ever() {
    let Fixture { now, mut relay, mut rng } = at_home();
    let mut at = now;
    for _ in 0..1000 {
        relay.handle_disconnected(at, 1, &mut rng);
        let until = relay.poll_timeout().unwrap();
        assert!(until - at <= MAX_BACKOFF);
        relay.handle_timeout(until);
        assert_eq!(actions(&mut relay), [DIAL_1]);
        at = until;
    }
}

#[test]
fn what_a_relay_says_of_itself_is_told_once_and_seldom() {
    let Fixture { now, mut relay, .. } = at_home();
    let told = |problem: &str| Action::Health { region: 1, problem: problem.to_owned() };
    relay.handle_health(now, 1, String::new());
    assert_eq!(actions(&mut relay), [], "well from the beginning");
    for n in 0..10_000 {
        relay.handle_health(now, 1, format!("problem {}", n % 3));
    }
    assert_eq!(actions(&mut relay), [told("problem 0")]);
    assert_eq!(relay.poll_timeout(), None, "it is the same again");
    relay.handle_health(now + SECOND, 1, String::new());
    assert_eq!(actions(&mut relay), []);
    assert_eq!(relay.poll_timeout(), Some(now + HEALTH_INTERVAL));
    relay.handle_timeout(now + HEALTH_INTERVAL);
    assert_eq!(actions(&mut relay), [told("")]);
    relay.handle_health(now + 3 * HEALTH_INTERVAL, 1, "duplicate".to_owned());
    assert_eq!(actions(&mut relay), [told("duplicate")]);
}

#[test]
fn the_health_of_a_lost_connection_is_no_news() {
    let Fixture { now, mut relay, mut rng } = at_home();
    relay.handle_health(now, 1, "duplicate".to_owned());
    assert_eq!(actions(&mut relay).len(), 1);
    relay.handle_disconnected(now + SECOND, 1, &mut rng);
    let at = relay.poll_timeout().unwrap();
    relay.handle_timeout(at);
    relay.handle_connected(at, 1);
    relay.handle_timeout(now + 20 * SECOND);
    assert_eq!(actions(&mut relay), [DIAL_1]);
    relay.handle_health(now + 20 * SECOND, 2, "nobody is there".to_owned());
    assert_eq!(actions(&mut relay), []);
}

#[test]
fn a_network_change_checks_what_is_connected_and_dials_what_waits() {
    let Fixture { now, mut relay, mut rng } = at_home();
    relay.handle_wanted(now, 2);
    relay.handle_connected(now, 2);
    for _ in 0..3 {
        relay.handle_disconnected(now, 2, &mut rng);
        relay.handle_timeout(now + 20 * SECOND);
    }
    relay.handle_disconnected(now + 20 * SECOND, 2, &mut rng);
    actions(&mut relay);
    relay.handle_network_change(now + 20 * SECOND);
    relay.handle_network_change(now + 20 * SECOND);
    assert_eq!(actions(&mut relay), [Action::Check { region: 1 }, DIAL_2]);
    // One that is closed meanwhile isn't asked.
    relay.handle_network_change(now + 20 * SECOND);
    relay.handle_derp_map(now, &map(&[region(2, "two.example")]));
    assert_eq!(actions(&mut relay), [CLOSE_1]);
}

/// Else a region that no relay of ours can be reached in would be home for ever on a machine whose routes never rest.
#[test]
fn a_change_of_routes_does_not_forget_failures() {
    let Fixture { now, mut relay, mut rng } = at_home();
    let mut at = now;
    for failures in 1..=FAILING_AFTER {
        relay.handle_disconnected(at, 1, &mut rng);
        assert_eq!(relay.is_failing(1), failures == FAILING_AFTER);
        at += 5 * SECOND;
        relay.handle_routes_changed(at);
        assert_eq!(actions(&mut relay), [DIAL_1], "at once");
    }
    relay.handle_disconnected(at, 1, &mut rng);
    relay.handle_network_change(at);
    assert!(!relay.is_failing(1), "another network may have a way");
}

#[test]
fn what_is_no_longer_needed_is_not_dialled_again() {
    let Fixture { now, mut relay, mut rng } = at_home();
    relay.handle_wanted(now, 2);
    relay.handle_connected(now, 2);
    actions(&mut relay);
    relay.handle_disconnected(now + 59 * SECOND + SECOND / 2, 2, &mut rng);
    relay.handle_timeout(now + 60 * SECOND);
    assert_eq!(actions(&mut relay), []);
    assert_eq!(relay.poll_timeout(), None);
}

#[test]
fn a_new_map_closes_and_redials() {
    let Fixture { now, mut relay, .. } = at_home();
    relay.handle_wanted(now, 2);
    relay.handle_connected(now, 2);
    relay.handle_heard(now, 2, peer(7));
    actions(&mut relay);
    relay.handle_derp_map(now, &two_regions());
    assert_eq!(actions(&mut relay), [], "the same map changes nothing");

    relay.handle_derp_map(now, &map(&[region(1, "moved.example"), region(2, "two.example")]));
    assert_eq!(actions(&mut relay), [CLOSE_1, DIAL_1]);
    assert_eq!(relay.region(1).unwrap().nodes[0].host_name, "moved.example");
    // Redefined again before anybody acted: one dial is enough.
    relay.handle_derp_map(now, &map(&[region(1, "again.example"), region(2, "two.example")]));
    assert_eq!(actions(&mut relay), [CLOSE_1, DIAL_1]);

    relay.handle_derp_map(now, &map(&[region(1, "again.example")]));
    assert_eq!(actions(&mut relay), [CLOSE_2]);
    assert_eq!(relay.route(now, &peer(7), 2), None);
    relay.handle_derp_map(now, &BTreeMap::new());
    assert_eq!(actions(&mut relay), [CLOSE_1]);
    assert_eq!(relay.poll_timeout(), None);
}

#[test]
fn a_dial_that_nobody_took_is_taken_back() {
    let now = Instant::now();
    let mut relay = Relay::new();
    relay.handle_derp_map(now, &two_regions());
    relay.handle_home(now, Some(1));
    relay.handle_derp_map(now, &map(&[region(2, "two.example")]));
    assert_eq!(actions(&mut relay), []);
}

#[test]
fn a_former_home_becomes_one_of_the_others() {
    let Fixture { now, mut relay, .. } = at_home();
    relay.handle_home(now, Some(2));
    assert_eq!(actions(&mut relay), [DIAL_2]);
    assert_eq!(relay.poll_timeout(), Some(now + IDLE_TIMEOUT));
    relay.handle_timeout(now + IDLE_TIMEOUT);
    assert_eq!(actions(&mut relay), [CLOSE_1]);
}

#[test]
fn late_reports_of_closed_connections_do_nothing() {
    let Fixture { now, mut relay, mut rng } = at_home();
    relay.handle_disconnected(now, 2, &mut rng);
    relay.handle_connected(now, 2);
    relay.handle_heard(now, 2, peer(1));
    relay.handle_disconnected(now, 99, &mut rng);
    assert!(!relay.is_connected(2));
    assert_ne!(relay.route(now, &peer(1), 1), Some(2));
    assert_eq!(actions(&mut relay), []);
}

#[test]
fn a_peer_whose_home_is_unknown_is_tried_at_ours_while_that_is_connected() {
    let Fixture { now, mut rng, mut relay } = at_home();
    assert_eq!(relay.route(now, &peer(7), 0), Some(1));
    assert_eq!(relay.route(now, &peer(7), 99), Some(1), "a region that isn't in the map");
    assert_eq!(relay.route(now, &peer(7), 2), Some(2));
    relay.handle_disconnected(now, 1, &mut rng);
    assert_eq!(relay.route(now, &peer(7), 0), None);
}

#[test]
fn routes_have_a_bound() {
    let Fixture { now, mut relay, .. } = at_home();
    for n in 0..MAX_ROUTES + 5 {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&n.to_be_bytes());
        relay.handle_heard(now, 1, NodePublic::from_bytes(key));
    }
    assert_eq!(relay.routes.len(), MAX_ROUTES);
}

#[test]
fn targets_are_what_the_map_says() {
    let known = |text: &str| Address::Known(text.parse::<IpAddr>().unwrap());
    let mut node = DerpNode { host_name: "x.example".to_owned(), ..DerpNode::default() };
    assert_eq!(Target::derp(&node), Some(Target { port: 443, ipv4: Address::Lookup, ipv6: Address::Lookup }));
    assert_eq!(Target::stun(&node).unwrap().port, 3478);
    node.ipv4 = "192.0.2.1".to_owned();
    node.ipv6 = "none".to_owned();
    (node.derp_port, node.stun_port) = (8443, -1);
    assert_eq!(Target::derp(&node), Some(Target { port: 8443, ipv4: known("192.0.2.1"), ipv6: Address::Off }));
    assert_eq!(Target::stun(&node), None);
    node.stun_port = 5;
    node.stun_test_ip = "127.0.0.1".to_owned();
    let localhost = Address::Known(IpAddr::V4(Ipv4Addr::LOCALHOST));
    assert_eq!(Target::stun(&node), Some(Target { port: 5, ipv4: localhost, ipv6: Address::Off }));
    node.ipv4 = "2001:db8::1".to_owned();
    assert_eq!(Target::derp(&node), None, "neither family");
    node.ipv6 = "2001:db8::1".to_owned();
    assert_eq!(Target::derp(&node), Some(Target { port: 8443, ipv4: Address::Off, ipv6: known("2001:db8::1") }));
    node.derp_port = 70_000;
    assert_eq!(Target::derp(&node), None);
}
