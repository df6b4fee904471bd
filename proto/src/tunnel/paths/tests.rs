use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::*;

struct Probe {
    paths: Paths,
    now: Instant,
    rng: StdRng,
}

const FAR: &str = "192.0.2.1:1";
const NEAR: &str = "10.0.0.1:2";

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

impl Probe {
    #[expect(clippy::disallowed_methods, reason = "virtual time needs an origin")]
    fn new() -> Self {
        let mut paths = Paths::new(true);
        paths.set_region(Some(7));
        Self { paths, now: Instant::now(), rng: StdRng::seed_from_u64(1) }
    }

    fn pass(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
        self.paths.handle_timeout(self.now, &mut self.rng);
    }

    fn send(&mut self) {
        self.paths.handle_sent(self.now, &mut self.rng);
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.paths.poll_output()).collect()
    }

    fn pinged(&mut self) -> Vec<(Via, TransactionId)> {
        let outputs = self.outputs();
        outputs
            .into_iter()
            .filter_map(|one| if let Output::Ping { to, txid } = one { Some((to, txid)) } else { None })
            .collect()
    }

    fn answer(&mut self, to: &str, after: u64) {
        let pings = self.pinged();
        let (via, txid) = *pings.iter().find(|(via, _)| *via == Via::Udp(at(to))).expect("it was pinged");
        self.pass(after);
        assert!(self.paths.handle_pong(self.now, via, txid).is_some());
    }

    fn route(&self) -> (Option<SocketAddr>, Option<RegionId>) {
        let route = self.paths.route(self.now);
        (route.udp, route.derp)
    }
}

#[test]
fn first_derp_then_direct_then_both_then_derp_again() {
    let mut probe = Probe::new();
    probe.paths.handle_endpoints(&[at(FAR)]);
    assert_eq!(probe.route(), (None, Some(7)));
    probe.send();
    probe.answer(FAR, 20);
    assert_eq!(probe.route(), (Some(at(FAR)), None));
    assert_eq!(probe.paths.path(probe.now), Some(Via::Udp(at(FAR))));
    probe.pass(6500);
    assert_eq!(probe.route(), (Some(at(FAR)), Some(7)));
    // The heartbeat that went out just now is lost.
    probe.pass(4999);
    assert_eq!(probe.route(), (Some(at(FAR)), Some(7)));
    probe.pass(1);
    assert_eq!(probe.route(), (None, Some(7)));
    probe.paths.set_region(None);
    assert_eq!(probe.route(), (Some(at(FAR)), None), "without a relay the old address is all there is");
}

#[test]
fn pings_go_first_and_call_me_maybe_after_them() {
    let mut probe = Probe::new();
    probe.paths.handle_endpoints(&[at(FAR), at(NEAR)]);
    probe.send();
    let outputs = probe.outputs();
    assert_eq!(outputs.len(), 3);
    assert_eq!(outputs[2], Output::CallMeMaybe { region: 7 });
    probe.send();
    probe.pass(3000);
    assert_eq!(probe.outputs(), [], "no address more than once in 5 s");
    probe.pass(2000);
    probe.send();
    assert_eq!(probe.outputs().len(), 3);
}

#[test]
fn heartbeats_keep_the_path_while_packets_go_and_end_45_s_after() {
    let mut probe = Probe::new();
    probe.paths.handle_endpoints(&[at(FAR)]);
    probe.send();
    probe.answer(FAR, 1);
    let mut heartbeats = 0;
    while let Some(due) = probe.paths.poll_timeout() {
        let wait = due.saturating_duration_since(probe.now);
        probe.pass(u64::try_from(wait.as_millis()).unwrap());
        for (via, txid) in probe.pinged() {
            heartbeats += 1;
            assert!(probe.paths.handle_pong(probe.now, via, txid).is_some());
            assert_eq!(probe.route(), (Some(at(FAR)), None));
        }
        assert!(heartbeats < 100, "they never end");
    }
    assert_eq!(heartbeats, 14);
}

#[test]
fn a_better_address_is_moved_to_and_a_worse_is_not() {
    let mut probe = Probe::new();
    probe.paths.handle_endpoints(&[at(FAR), at(NEAR)]);
    probe.send();
    let pings = probe.pinged();
    let txid = |address: &str| pings.iter().find(|(via, _)| *via == Via::Udp(at(address))).unwrap().1;
    probe.pass(20);
    probe.paths.handle_pong(probe.now, Via::Udp(at(FAR)), txid(FAR)).unwrap();
    assert_eq!(probe.route().0, Some(at(FAR)));
    probe.pass(1);
    probe.paths.handle_pong(probe.now, Via::Udp(at(NEAR)), txid(NEAR)).unwrap();
    assert_eq!(probe.route().0, Some(at(NEAR)), "nearly as fast, and private");
    // Within the next minute nothing else is tried; after it, it is.
    probe.send();
    assert!(probe.pinged().is_empty());
}

#[test]
fn a_trusted_path_is_improved_upon_each_minute() {
    let mut probe = Probe::new();
    probe.paths.handle_endpoints(&[at(FAR)]);
    probe.send();
    probe.answer(FAR, 20);
    probe.paths.handle_endpoints(&[at(FAR), at(NEAR)]);
    let mut tried = None;
    for tick in 1..=70_u64 {
        probe.pass(1000);
        probe.send();
        for (via, txid) in probe.pinged() {
            if via == Via::Udp(at(NEAR)) {
                tried.get_or_insert(tick);
            } else {
                probe.now += Duration::from_millis(20);
                probe.paths.handle_pong(probe.now, via, txid);
            }
        }
    }
    assert!(tried.is_some_and(|tick| (55..=61).contains(&tick)), "{tried:?}");
}

#[test]
fn a_ping_is_answered_where_it_came_from_and_returned() {
    let mut probe = Probe::new();
    let txid = TransactionId([9; 12]);
    probe.paths.handle_ping(probe.now, Via::Derp(3), txid, &mut probe.rng);
    assert_eq!(probe.outputs(), [Output::Pong { to: Via::Derp(3), txid }]);
    let from = Via::Udp(at(NEAR));
    probe.paths.handle_ping(probe.now, from, txid, &mut probe.rng);
    let outputs = probe.outputs();
    assert_eq!(outputs[0], Output::Pong { to: from, txid });
    assert!(matches!(outputs[1], Output::Ping { to, .. } if to == from));
    probe.paths.handle_ping(probe.now, from, txid, &mut probe.rng);
    assert_eq!(probe.outputs().len(), 1, "not asked back twice in 5 s");
}

#[test]
fn call_me_maybe_pings_at_once_whatever_was_pinged_before() {
    let mut probe = Probe::new();
    probe.paths.handle_endpoints(&[at(FAR)]);
    probe.send();
    probe.outputs();
    let endpoints = [at(FAR), at("[fe80::1]:5"), at(NEAR), at("0.0.0.0:1"), at("192.0.2.9:0")];
    probe.paths.handle_call_me_maybe(probe.now, &endpoints, &mut probe.rng);
    let pinged: Vec<Via> = probe.pinged().into_iter().map(|(via, _)| via).collect();
    assert_eq!(pinged, [Via::Udp(at(NEAR)), Via::Udp(at(FAR))]);
}

#[test]
fn a_call_that_puts_right_the_one_before_is_heeded_at_once() {
    let mut probe = Probe::new();
    probe.paths.handle_call_me_maybe(probe.now, &[at(NEAR)], &mut probe.rng);
    probe.pinged();
    probe.now += Duration::from_millis(10);
    probe.paths.handle_call_me_maybe(probe.now, &[at(NEAR), at(FAR)], &mut probe.rng);
    let pinged: Vec<Via> = probe.pinged().into_iter().map(|(via, _)| via).collect();
    assert_eq!(pinged, [Via::Udp(at(FAR))], "what is new in it");
}

#[test]
fn a_flood_of_call_me_maybe_is_heeded_a_hundred_times_a_second() {
    let mut probe = Probe::new();
    let mut pings = 0;
    for n in 0..10_000_u16 {
        let endpoint = SocketAddr::new([203, 0, 113, 1].into(), 1 + n % 100);
        probe.paths.handle_call_me_maybe(probe.now, &[endpoint], &mut probe.rng);
        pings += probe.pinged().len();
        probe.now += Duration::from_micros(100);
    }
    // A second of it: each call names one address, and what was called before and isn't any more is forgotten. Twenty calls are heeded,
    // with four corrections each.
    assert!((20..=105).contains(&pings), "{pings}");
    assert!(probe.paths.candidates.len() <= MAX_CANDIDATES);
}

#[test]
fn a_lost_heartbeat_ends_the_use_of_an_untrusted_path_and_its_answer_begins_it_again() {
    let mut probe = Probe::new();
    probe.paths.handle_endpoints(&[at(FAR)]);
    probe.send();
    probe.answer(FAR, 20);
    let mut given_up = None;
    for tick in 1..=300_u64 {
        probe.pass(100);
        probe.send();
        if probe.route() == (None, Some(7)) {
            given_up.get_or_insert(tick * 100);
        } else {
            assert_eq!(given_up, None, "used again without an answer");
        }
    }
    // Heartbeats at 3 and 6 s; trusted for 6.5 s; the first one is lost for good at 8.
    assert!(given_up.is_some_and(|after| (7900..=8200).contains(&after)), "{given_up:?}");
    let pings = probe.pinged();
    let (via, txid) = *pings.last().expect("it is still tried");
    probe.pass(30);
    probe.paths.handle_pong(probe.now, via, txid).unwrap();
    assert_eq!(probe.route(), (Some(at(FAR)), None));
}

#[test]
fn addresses_that_nobody_vouches_for_are_dropped_after_45_s() {
    let mut probe = Probe::new();
    probe.paths.handle_endpoints(&[at(FAR)]);
    let heard = "203.0.113.9:9";
    probe.paths.handle_ping(probe.now, Via::Udp(at(heard)), TransactionId([1; 12]), &mut probe.rng);
    probe.paths.handle_call_me_maybe(probe.now, &[at(NEAR)], &mut probe.rng);
    let known = |probe: &Probe| probe.paths.candidates.keys().copied().collect::<Vec<_>>();
    assert_eq!(known(&probe), [at(NEAR), at(FAR), at(heard)]);
    probe.pass(45_001);
    probe.send();
    assert_eq!(known(&probe), [at(NEAR), at(FAR)], "what was called stays until the next call");
    probe.paths.handle_call_me_maybe(probe.now, &[], &mut probe.rng);
    assert_eq!(known(&probe), [at(FAR)]);
}

#[test]
fn an_answer_from_an_address_that_is_no_longer_the_peers_counts_for_nothing() {
    let mut probe = Probe::new();
    probe.paths.handle_endpoints(&[at(FAR)]);
    probe.send();
    let (via, txid) = probe.pinged()[0];
    probe.paths.handle_endpoints(&[at(NEAR)]);
    probe.paths.handle_pong(probe.now, via, txid);
    assert_eq!(probe.route(), (None, Some(7)));
}

#[test]
fn a_change_of_the_network_puts_paths_in_doubt_until_they_answer() {
    let mut probe = Probe::new();
    probe.paths.handle_endpoints(&[at(FAR), at(NEAR)]);
    probe.send();
    probe.answer(FAR, 20);
    probe.outputs();
    probe.paths.handle_network_change(probe.now, &mut probe.rng);
    assert_eq!(probe.route(), (Some(at(FAR)), Some(7)), "both ways, so that nothing is lost");
    let outputs = probe.outputs();
    assert_eq!(outputs.iter().filter(|output| matches!(output, Output::Ping { .. })).count(), 2);
    assert!(outputs.contains(&Output::CallMeMaybe { region: 7 }));
    let answered = outputs.iter().find_map(|output| match output {
        Output::Ping { to, txid } if *to == Via::Udp(at(NEAR)) => Some((*to, *txid)),
        _ => None,
    });
    let (via, txid) = answered.unwrap();
    probe.pass(30);
    probe.paths.handle_pong(probe.now, via, txid).unwrap();
    assert_eq!(probe.route(), (Some(at(NEAR)), None), "worse than the other one was, but it answers");

    // Nobody sends anything: nothing is asked, either.
    let mut idle = Probe::new();
    idle.paths.handle_endpoints(&[at(FAR)]);
    idle.paths.handle_network_change(idle.now, &mut idle.rng);
    assert_eq!(idle.outputs(), []);
}

#[test]
fn an_address_that_the_system_cannot_reach_is_left_at_once() {
    let mut probe = Probe::new();
    probe.paths.handle_endpoints(&[at(FAR)]);
    probe.send();
    probe.answer(FAR, 20);
    assert!(!probe.paths.handle_unreachable(at(NEAR)));
    assert_eq!(probe.route(), (Some(at(FAR)), None));
    assert!(probe.paths.handle_unreachable(at(FAR)));
    assert_eq!(probe.route(), (None, Some(7)));
}

#[test]
fn new_endpoints_of_ours_are_told_again_to_who_was_told_the_old_ones_just_now() {
    let mut probe = Probe::new();
    probe.paths.handle_endpoints(&[at(FAR)]);
    probe.paths.handle_own_endpoints(probe.now);
    assert_eq!(probe.outputs(), [], "it wasn't told anything yet");
    probe.send();
    let pings = probe.outputs();
    probe.pass(30);
    probe.paths.handle_own_endpoints(probe.now);
    assert_eq!(probe.outputs(), [Output::CallMeMaybe { region: 7 }]);
    let Output::Ping { to, txid } = pings[0] else { panic!("{pings:?}") };
    probe.paths.handle_pong(probe.now, to, txid).unwrap();
    probe.paths.handle_own_endpoints(probe.now);
    assert_eq!(probe.outputs(), [], "it needs them no more");
}

/// Each timer of path discovery, beside magicsock's (`wgengine/magicsock/magicsock.go` and `derp.go`, `net/netcheck/netcheck.go`
/// of 1.102.5). Where ours is another one, it says why.
#[test]
fn timers_are_those_of_go() {
    use crate::{netcheck, relay};
    let seconds = Duration::from_secs;
    for (name, ours, theirs) in [
        ("heartbeatInterval", HEARTBEAT_EVERY, seconds(3)),
        ("trustUDPAddrDuration", TRUST_FOR, Duration::from_millis(6500)),
        ("sessionActiveTimeout", ACTIVE_FOR, seconds(45)),
        ("upgradeUDPDirectInterval", UPGRADE_EVERY, seconds(60)),
        ("goodEnoughLatency", GOOD_ENOUGH, Duration::from_millis(5)),
        ("pingTimeoutDuration", PING_TIMEOUT, seconds(5)),
        // While packets wait for a first path, pings are closer: RETRY_AFTER in `tunnel`.
        ("discoPingInterval", PING_INTERVAL, seconds(5)),
        ("endpointsFreshEnoughDuration", netcheck::ENDPOINTS_FRESH, seconds(27)),
        ("periodic ReSTUN, least", netcheck::MIN_INTERVAL, seconds(20)),
        ("periodic ReSTUN, most", netcheck::MAX_INTERVAL, seconds(26)),
        ("derpInactiveCleanupTime", relay::IDLE_TIMEOUT, seconds(60)),
        ("DERP reconnect backoff, most", relay::MAX_BACKOFF, seconds(5)),
        ("DERP read timeout", crate::derp::READ_TIMEOUT, seconds(120)),
    ] {
        assert_eq!(ours, theirs, "{name}");
    }
}

#[test]
fn answers_that_are_late_unknown_or_by_another_way_count_for_nothing() {
    let mut probe = Probe::new();
    probe.paths.handle_endpoints(&[at(FAR)]);
    probe.send();
    let (via, txid) = probe.pinged()[0];
    assert_eq!(probe.paths.handle_pong(probe.now, via, TransactionId([0; 12])), None);
    assert_eq!(probe.paths.handle_pong(probe.now, Via::Derp(7), txid), None);
    probe.now += Duration::from_millis(5001);
    assert_eq!(probe.paths.handle_pong(probe.now, via, txid), None);
    assert_eq!(probe.route(), (None, Some(7)));
}

#[test]
fn addresses_are_bounded_and_control_s_are_kept() {
    let mut probe = Probe::new();
    probe.paths.handle_endpoints(&[at(FAR)]);
    for port in 1..=1000 {
        let from = Via::Udp(SocketAddr::new([203, 0, 113, 1].into(), port));
        probe.paths.handle_ping(probe.now, from, TransactionId([1; 12]), &mut probe.rng);
    }
    assert_eq!(probe.paths.candidates.len(), MAX_CANDIDATES);
    assert!(probe.paths.candidates.contains_key(&at(FAR)));
    assert!(probe.paths.pings.len() <= MAX_PINGS && probe.paths.outputs.len() <= MAX_OUTPUTS);
}

#[test]
fn a_path_that_nobody_uses_is_not_lost_and_one_that_dies_in_use_is() {
    let mut probe = Probe::new();
    probe.paths.handle_endpoints(&[at(FAR)]);
    probe.send();
    probe.answer(FAR, 20);
    let mut told = None;
    let mut tell = |probe: &Probe| {
        let path = probe.paths.path_told(probe.now, told);
        std::mem::replace(&mut told, path) != path
    };
    assert!(tell(&probe));
    // Nothing is sent for ten minutes: the address is trusted no more, and yet nothing is known against it.
    for _ in 0..600 {
        probe.pass(1000);
        for (via, txid) in probe.pinged() {
            probe.paths.handle_pong(probe.now, via, txid);
        }
        assert!(!tell(&probe));
    }
    assert_eq!(probe.route(), (Some(at(FAR)), Some(7)), "both ways, until one answers");
    assert_eq!(probe.paths.round_trip(Via::Udp(at(FAR))), Some(Duration::ZERO), "as last measured");
    // It is used again and answers.
    probe.send();
    assert!(!tell(&probe), "it has had no time to answer");
    probe.answer(FAR, 30);
    assert!(!tell(&probe));
    // It dies while it is used.
    let mut changes = 0;
    for _ in 0..20 {
        probe.send();
        probe.pass(1000);
        probe.outputs();
        changes += usize::from(tell(&probe));
    }
    assert_eq!((changes, told), (1, Some(Via::Derp(7))));
}

#[test]
fn with_udp_switched_off_nothing_goes_there() {
    let mut probe = Probe::new();
    probe.paths.direct = false;
    probe.paths.handle_endpoints(&[at(FAR)]);
    probe.send();
    probe.paths.handle_call_me_maybe(probe.now, &[at(NEAR)], &mut probe.rng);
    assert_eq!(probe.outputs(), []);
    assert_eq!(probe.paths.poll_timeout(), None);
    probe.paths.probe(probe.now, &mut probe.rng);
    assert!(matches!(probe.outputs()[..], [Output::Ping { to: Via::Derp(7), .. }]));
}

/// The first of two that ping each other through their NATs meets a closed one. When the second's ping comes, both are open.
#[test]
fn who_is_pinged_where_it_was_not_heard_pings_back_at_once() {
    let mut probe = Probe::new();
    probe.paths.handle_endpoints(&[at(FAR)]);
    probe.send();
    assert_eq!(probe.pinged().len(), 1);
    let pinged_after = |probe: &mut Probe, millis: u64| {
        probe.pass(millis);
        let txid = TransactionId::generate(&mut probe.rng);
        probe.paths.handle_ping(probe.now, Via::Udp(at(FAR)), txid, &mut probe.rng);
        let outputs = probe.outputs();
        assert!(outputs.contains(&Output::Pong { to: Via::Udp(at(FAR)), txid }));
        outputs.len() - 1
    };
    assert_eq!(pinged_after(&mut probe, 20), 1);
    // Once for each ping of ours, however often the peer asks.
    assert_eq!(pinged_after(&mut probe, 20), 0);
    assert_eq!(pinged_after(&mut probe, 20), 0);
}
