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
    probe.pass(60_000);
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
    assert_eq!(pinged, [Via::Udp(at(FAR)), Via::Udp(at(NEAR))]);
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
