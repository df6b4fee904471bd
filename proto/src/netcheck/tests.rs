#![allow(clippy::disallowed_methods, reason = "virtual time has to begin somewhere")]

use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::relay_times::FIRST_ANSWER_TIMEOUT;
use super::*;
use crate::tailcfg::DerpNode;

const MS: Duration = Duration::from_millis(1);
const US_SEEN: &str = "198.51.100.7:41641";

fn region(id: RegionId) -> DerpRegion {
    let node = DerpNode { region_id: id, host_name: format!("{id}.example"), ..DerpNode::default() };
    DerpRegion { region_id: id, nodes: vec![node], ..DerpRegion::default() }
}

fn map(ids: impl IntoIterator<Item = RegionId>) -> BTreeMap<RegionId, DerpRegion> {
    ids.into_iter().map(|id| (id, region(id))).collect()
}

fn server(id: RegionId) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, u8::try_from(id).unwrap()], 3478))
}

/// A node among STUN servers that answer after a time of their own, or never.
struct World {
    now: Instant,
    rng: StdRng,
    netcheck: Netcheck,
    latencies: BTreeMap<SocketAddr, Duration>,
    seen_as: BTreeMap<SocketAddr, SocketAddr>,
    flying: BTreeMap<(Instant, u32), (SocketAddr, Vec<u8>)>,
    sent: u32,
    events: Vec<(Instant, Event)>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let netcheck = Netcheck::new(&mut rng);
        Self {
            now: Instant::now(),
            rng,
            netcheck,
            latencies: BTreeMap::new(),
            seen_as: BTreeMap::new(),
            flying: BTreeMap::new(),
            sent: 0,
            events: Vec::new(),
        }
    }

    /// Regions 1… with these latencies in milliseconds; 0 never answers.
    fn with(latencies: &[u32]) -> Self {
        let mut world = Self::new(7);
        world.set(latencies);
        let ids = || (1..).take(latencies.len());
        world.netcheck.handle_derp_map(world.now, &map(ids()), &BTreeMap::new(), &mut world.rng);
        let servers: Vec<_> = ids().map(|id| (id, server(id))).collect();
        world.netcheck.handle_servers(world.now, &servers, &mut world.rng);
        world
    }

    fn set(&mut self, latencies: &[u32]) {
        let answers = (1..).zip(latencies).filter(|(_, ms)| **ms > 0);
        self.latencies = answers.map(|(id, ms)| (server(id), MS * *ms)).collect();
    }

    /// Lets `duration` pass. Returns how many requests were sent.
    fn run(&mut self, duration: Duration) -> u32 {
        let (end, before) = (self.now + duration, self.sent);
        loop {
            while let Some((to, request)) = self.netcheck.poll_transmit() {
                self.sent += 1;
                let txid = stun::parse_request(&request).unwrap();
                let seen_as = self.seen_as.get(&to).copied().unwrap_or_else(|| US_SEEN.parse().unwrap());
                if let Some(latency) = self.latencies.get(&to) {
                    self.flying.insert((self.now + *latency, self.sent), (to, stun::response(txid, seen_as)));
                }
            }
            while let Some(event) = self.netcheck.poll_event() {
                self.events.push((self.now, event));
            }
            let arrival = self.flying.keys().next().map(|(at, _)| *at);
            let timeout = self.netcheck.poll_timeout();
            let Some(next) = arrival.into_iter().chain(timeout).min().filter(|next| *next <= end) else {
                self.now = end;
                return self.sent - before;
            };
            self.now = self.now.max(next);
            if arrival == Some(next) {
                let (_, (from, datagram)) = self.flying.pop_first().unwrap();
                self.netcheck.handle_response(self.now, from, &datagram, &mut self.rng);
            } else {
                self.netcheck.handle_timeout(self.now, &mut self.rng);
            }
        }
    }

    fn home(&self) -> Option<RegionId> {
        self.netcheck.report().home
    }

    fn homes(&self) -> Vec<RegionId> {
        let home = |(_, event): &(Instant, Event)| if let Event::Home(id) = event { Some(*id) } else { None };
        self.events.iter().filter_map(home).collect()
    }
}

#[test]
fn the_nearest_region_is_home() {
    let mut world = World::with(&[80, 20, 50]);
    let start = world.now;
    world.run(Duration::from_secs(2));
    assert_eq!(world.homes(), [2]);
    let report = world.netcheck.report();
    assert_eq!((report.udp, report.ipv4, report.ipv6), (Some(true), true, false));
    assert_eq!(report.mapping_varies, Some(false));
    assert_eq!(report.latencies.get(&2), Some(&(20 * MS)));
    let (at, _) = world.events.iter().find(|(_, event)| matches!(event, Event::Home(_))).unwrap();
    assert!(*at - start <= 70 * MS, "{:?}", *at - start);
    let endpoints = Event::Endpoints(vec![US_SEEN.parse().unwrap()]);
    assert!(world.events.contains(&(start + 20 * MS, endpoints)), "told at the first answer: {:?}", world.events);
}

#[test]
fn a_dead_region_stalls_nothing() {
    let mut world = World::with(&[10, 0]);
    let start = world.now;
    world.run(Duration::from_secs(2));
    let (at, _) = world.events.iter().find(|(_, event)| *event == Event::Home(1)).unwrap();
    assert!(*at - start <= 100 * MS, "{:?}", *at - start);
}

#[test]
fn the_only_region_is_home_at_once() {
    let mut world = World::new(1);
    world.netcheck.handle_derp_map(world.now, &map([900]), &BTreeMap::new(), &mut world.rng);
    assert_eq!(world.netcheck.poll_event(), Some(Event::Home(900)));
}

#[test]
fn without_any_answer_a_region_is_chosen_and_kept() {
    let mut homes = BTreeMap::new();
    for seed in 0..40 {
        let mut world = World::new(seed);
        world.netcheck.handle_derp_map(world.now, &map(1..=3), &BTreeMap::new(), &mut world.rng);
        assert_eq!(world.run(NO_ANSWER_TIMEOUT + FIRST_ANSWER_TIMEOUT - MS), 0);
        assert_eq!(world.home(), None);
        world.run(MS);
        let home = world.home().unwrap();
        world.run(Duration::from_secs(120));
        assert_eq!(world.homes(), [home], "kept while nothing is known");
        assert_eq!(world.netcheck.report().udp, Some(false));
        *homes.entry(home).or_insert(0) += 1;
    }
    assert_eq!(homes.len(), 3, "not the same for all: {homes:?}");
}

#[test]
fn the_first_answer_corrects_a_guess() {
    let mut world = World::with(&[0, 0, 0]);
    world.run(NO_ANSWER_TIMEOUT + FIRST_ANSWER_TIMEOUT);
    let guess = world.home().unwrap();
    let other = guess % 3 + 1;
    let mut latencies = [0; 3];
    latencies[usize::from(other) - 1] = 40;
    world.set(&latencies);
    world.run(Duration::from_secs(30));
    assert_eq!(world.homes(), [guess, other]);
}

#[test]
fn an_answer_after_the_round_counts_too() {
    let mut world = World::with(&[1200, 1400]);
    world.run(Duration::from_millis(1100));
    assert_eq!((world.netcheck.report().udp, world.home()), (Some(false), None));
    world.run(Duration::from_millis(100));
    assert_eq!(world.home(), Some(1));
    assert_eq!(world.netcheck.report().udp, Some(true));
}

#[test]
fn home_does_not_move_for_little() {
    for (latencies, moves) in [([20, 12], false), ([60, 45], false), ([60, 30], true), ([14, 1], true), ([9, 1], false)]
    {
        let mut world = World::with(&[latencies[0], latencies[0] + 30]);
        world.netcheck.set_active(world.now, true, &mut world.rng);
        world.run(Duration::from_secs(2));
        assert_eq!(world.home(), Some(1));
        world.set(&latencies);
        world.run(Duration::from_secs(60));
        assert_eq!(world.home(), Some(if moves { 2 } else { 1 }), "{latencies:?}");
    }
}

#[test]
fn a_home_that_falls_silent_is_left_after_two_rounds() {
    let mut world = World::with(&[10, 40]);
    world.netcheck.set_active(world.now, true, &mut world.rng);
    world.run(Duration::from_secs(2));
    world.set(&[0, 40]);
    world.run(MAX_INTERVAL);
    assert_eq!(world.home(), Some(1));
    world.run(MAX_INTERVAL);
    assert_eq!(world.home(), Some(2));
}

#[test]
fn control_may_weigh_regions_and_rule_them_out() {
    let mut world = World::new(7);
    world.set(&[20, 30, 1, 1]);
    let mut regions = map(1..=4);
    regions.get_mut(&3).unwrap().no_measure_no_home = true;
    regions.get_mut(&4).unwrap().avoid = true;
    let scores = BTreeMap::from([(1, 3.0), (2, f64::NAN)]);
    world.netcheck.handle_derp_map(world.now, &regions, &scores, &mut world.rng);
    world.netcheck.handle_servers(world.now, &[1, 2, 3, 4].map(|id| (id, server(id))), &mut world.rng);
    assert_eq!(world.run(Duration::from_millis(90)), 2, "one request each, to two of them");
    assert_eq!(world.home(), Some(2));
    // Home's region is taken away.
    regions.remove(&2);
    world.netcheck.handle_derp_map(world.now, &regions, &scores, &mut world.rng);
    world.run(Duration::from_secs(1));
    assert_eq!(world.homes(), [2, 1]);
}

#[test]
fn rounds_repeat_while_active_and_then_stop() {
    let mut world = World::with(&[10, 20]);
    world.run(Duration::from_secs(2));
    assert_eq!(world.run(Duration::from_secs(300)), 0, "idle");
    assert!(!world.netcheck.endpoints_fresh(world.now));
    world.netcheck.set_active(world.now, true, &mut world.rng);
    assert_eq!(world.run(Duration::from_secs(1)), 2, "stale endpoints are asked for at once");
    assert!(world.netcheck.endpoints_fresh(world.now));
    let sent = world.run(Duration::from_secs(260));
    assert!((18..=28).contains(&sent), "{sent}");
    world.netcheck.set_active(world.now, false, &mut world.rng);
    assert_eq!(world.run(Duration::from_secs(300)), 0);
}

#[test]
fn most_rounds_ask_the_nearest_only() {
    let mut world = World::with(&[10, 20, 30, 40, 50, 60, 70, 80]);
    world.netcheck.set_active(world.now, true, &mut world.rng);
    world.run(Duration::from_secs(2));
    assert_eq!(world.home(), Some(1));
    assert_eq!(world.run(MAX_INTERVAL), 3);
}

#[test]
fn lost_requests_are_repeated() {
    let mut world = World::with(&[0, 0]);
    assert_eq!(world.run(Duration::from_secs(1)), 6, "three to each");
}

#[test]
fn a_nat_that_varies_is_told_apart() {
    let mut world = World::with(&[10, 20, 25]);
    world.seen_as.insert(server(2), "198.51.100.7:5555".parse().unwrap());
    world.run(Duration::from_secs(1));
    assert_eq!(world.netcheck.report().mapping_varies, Some(true));
}

#[test]
fn old_endpoints_are_dropped() {
    let mut world = World::with(&[10]);
    world.netcheck.set_active(world.now, true, &mut world.rng);
    world.run(Duration::from_secs(1));
    let moved: SocketAddr = "203.0.113.9:1".parse().unwrap();
    world.seen_as.insert(server(1), moved);
    world.run(Duration::from_secs(80));
    assert_eq!(world.netcheck.told_endpoints, [moved]);
}

#[test]
fn both_families_are_asked() {
    let mut world = World::with(&[10]);
    let six: SocketAddr = "[2001:db8::1]:3478".parse().unwrap();
    let seen: SocketAddr = "[2001:db8::7]:41641".parse().unwrap();
    world.latencies.insert(six, 5 * MS);
    world.seen_as.insert(six, seen);
    world.netcheck.handle_servers(world.now, &[(1, server(1)), (1, six)], &mut world.rng);
    world.run(Duration::from_secs(1));
    assert_eq!(world.netcheck.told_endpoints.len(), 2);
    assert!(world.netcheck.told_endpoints.contains(&seen));
}

#[test]
fn answers_that_nobody_asked_for_are_refused() {
    let mut world = World::with(&[10]);
    let (to, request) = world.netcheck.poll_transmit().unwrap();
    let txid = stun::parse_request(&request).unwrap();
    let seen = US_SEEN.parse().unwrap();
    let good = stun::response(txid, seen);
    let mut handle =
        |from: SocketAddr, datagram: &[u8]| world.netcheck.handle_response(world.now, from, datagram, &mut world.rng);
    assert!(!handle(to, &stun::response(stun::TransactionId([1; 12]), seen)), "another transaction");
    assert!(!handle(server(9), &good), "another server");
    assert!(!handle(to, &request));
    assert!(!handle(to, b"junk"));
    let mapped_form = SocketAddr::new(std::net::Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped().into(), to.port());
    assert!(handle(mapped_form, &good), "as a dual-stack socket says it");
    assert!(!handle(to, &good), "a second time");
}

#[test]
fn without_a_region_that_can_be_home_there_is_nothing_to_wait_for() {
    let mut world = World::with(&[10]);
    world.netcheck.set_active(world.now, true, &mut world.rng);
    world.run(2 * NO_ANSWER_TIMEOUT);
    assert!(world.netcheck.poll_timeout().is_some());
    let avoided = BTreeMap::from([(1, DerpRegion { avoid: true, ..region(1) })]);
    world.netcheck.handle_derp_map(world.now, &avoided, &BTreeMap::new(), &mut world.rng);
    // A time that has passed must not stay due, or its owner would be woken again and again.
    for _ in 0..5 {
        world.now += MAX_INTERVAL;
        world.netcheck.handle_timeout(world.now, &mut world.rng);
        assert_eq!(world.netcheck.poll_timeout().filter(|due| *due <= world.now), None);
    }
    world.netcheck.set_active(world.now, false, &mut world.rng);
    world.netcheck.set_active(world.now, true, &mut world.rng);
    assert_eq!(world.netcheck.poll_timeout(), None);
    // The next region is asked at once, and rounds repeat.
    world.netcheck.handle_derp_map(world.now, &map([1]), &BTreeMap::new(), &mut world.rng);
    assert!(world.run(2 * MAX_INTERVAL) >= 2);
    assert_eq!(world.home(), Some(1));
}

#[test]
fn a_home_whose_relays_hold_no_connection_is_left_for_five_minutes() {
    let mut world = World::with(&[10, 80]);
    world.netcheck.set_active(world.now, true, &mut world.rng);
    world.run(Duration::from_secs(60));
    assert_eq!(world.homes(), [1]);
    world.netcheck.handle_failing_relay(world.now, 1);
    world.run(Duration::from_secs(290));
    assert_eq!(world.homes(), [1, 2]);
    world.run(Duration::from_secs(60));
    assert_eq!(world.homes(), [1, 2, 1], "it is tried again");
    // Where all fail, there is a home all the same.
    world.netcheck.handle_failing_relay(world.now, 1);
    world.netcheck.handle_failing_relay(world.now, 2);
    assert!(world.home().is_some());
}

#[test]
fn where_the_network_is_gone_home_stays() {
    let mut world = World::with(&[10, 80]);
    world.run(Duration::from_secs(5));
    world.set(&[0, 0]);
    world.run(Duration::from_secs(5));
    // The loss of the relay has it looked at again.
    world.netcheck.handle_lost_relay(world.now, &mut world.rng);
    world.run(Duration::from_secs(2));
    assert_eq!(world.netcheck.report().udp, Some(false));
    world.netcheck.handle_failing_relay(world.now, 1);
    world.run(Duration::from_secs(60));
    assert_eq!(world.homes(), [1]);
    // For so long that nothing is known of it any more.
    for _ in 0..150 {
        world.netcheck.handle_lost_relay(world.now, &mut world.rng);
        world.netcheck.handle_failing_relay(world.now, 1);
        world.run(Duration::from_secs(4));
        world.measure(&[(1, 0), (2, 0)]);
    }
    assert_eq!(world.homes(), [1]);
}

impl World {
    /// The regions whose relays were to be measured, each time.
    fn measured<'a>(&'a self) -> Vec<&'a [RegionId]> {
        let asked = |event: &'a Event| if let Event::MeasureRelays(ids) = event { Some(ids.as_slice()) } else { None };
        self.events.iter().filter_map(|(_, event)| asked(event)).collect()
    }

    /// The relays' round trips in milliseconds; 0 can't be reached.
    fn measure(&mut self, times: &[(RegionId, u32)]) {
        for (region, time) in times {
            let time = Some(MS * *time).filter(|time| !time.is_zero());
            self.netcheck.handle_relay_time(self.now, *region, time);
        }
    }
}

#[test]
fn without_udp_the_nearest_relay_over_tcp_is_home() {
    let mut world = World::with(&[0, 0, 0]);
    world.run(NO_ANSWER_TIMEOUT);
    assert_eq!((world.measured(), world.home()), (vec![&[1, 2, 3][..]], None));
    world.run(100 * MS);
    world.measure(&[(2, 30)]);
    assert_eq!(world.home(), None, "another one may be as near");
    world.run(50 * MS);
    assert_eq!(world.home(), Some(2));
    // The last answers: one is nearer by little.
    world.measure(&[(3, 25), (1, 0)]);
    world.run(Duration::from_secs(200));
    assert_eq!((world.homes(), world.measured().len()), (vec![2], 1), "asked once in five minutes");
    // UDP is let through, and tells better.
    world.set(&[0, 90, 40]);
    world.run(MAX_INTERVAL);
    assert_eq!(world.homes(), [2, 3]);
}

#[test]
fn a_relay_that_is_far_nearer_takes_over_when_the_last_answer_is_there() {
    let mut world = World::with(&[0, 0]);
    world.run(NO_ANSWER_TIMEOUT);
    world.measure(&[(1, 80)]);
    world.run(80 * MS);
    assert_eq!(world.home(), Some(1));
    world.measure(&[(2, 10)]);
    world.run(MS);
    assert_eq!(world.homes(), [1, 2]);
    world.measure(&[(1, 1), (7, 1)]);
    assert_eq!(world.home(), Some(2), "an answer that nobody asked for");
}

#[test]
fn a_later_measurement_moves_home_by_nothing_but_what_home_answers() {
    let mut world = World::with(&[0, 0]);
    world.run(NO_ANSWER_TIMEOUT);
    world.measure(&[(1, 10), (2, 50)]);
    world.run(FULL_INTERVAL + 2 * MAX_INTERVAL);
    assert_eq!((world.homes(), world.measured().len()), (vec![1], 2));
    // Home's turn comes last.
    world.measure(&[(2, 50)]);
    world.run(Duration::from_secs(5));
    world.measure(&[(1, 10)]);
    world.run(Duration::from_secs(5));
    assert_eq!(world.homes(), [1]);
}

#[test]
fn without_udp_a_home_whose_relays_hold_no_connection_is_left_if_another_one_answers() {
    let mut world = World::with(&[0, 0]);
    world.run(NO_ANSWER_TIMEOUT);
    world.measure(&[(1, 10), (2, 50)]);
    world.run(Duration::from_secs(100));
    // That answer is old: it is asked for again, and the next failure finds it.
    world.netcheck.handle_failing_relay(world.now, 1);
    world.netcheck.handle_failing_relay(world.now, 1);
    world.run(MS);
    assert_eq!((world.homes(), world.measured().len()), (vec![1], 2));
    world.measure(&[(1, 10), (2, 50)]);
    world.netcheck.handle_failing_relay(world.now, 1);
    world.run(MS);
    assert_eq!(world.homes(), [1, 2]);
}

#[test]
fn one_silent_round_measures_nothing_and_two_do() {
    let mut world = World::with(&[10, 40]);
    world.netcheck.set_active(world.now, true, &mut world.rng);
    world.run(Duration::from_secs(2));
    world.set(&[0, 0]);
    world.run(MAX_INTERVAL);
    assert_eq!(world.measured().len(), 0);
    world.run(MAX_INTERVAL);
    assert_eq!((world.measured().len(), world.home()), (1, Some(1)));
    // Home's relay is out of reach by TCP as well.
    world.measure(&[(1, 0), (2, 50)]);
    world.run(MS);
    assert_eq!(world.home(), Some(2));
}

#[test]
fn while_control_cannot_be_told_home_stays() {
    let mut world = World::with(&[10, 40]);
    world.netcheck.set_active(world.now, true, &mut world.rng);
    world.run(Duration::from_secs(2));
    world.netcheck.handle_control(world.now, false);
    world.set(&[0, 40]);
    world.run(4 * MAX_INTERVAL);
    assert_eq!(world.home(), Some(1), "peers would look for us there");
    world.netcheck.handle_control(world.now, true);
    world.run(MS);
    assert_eq!(world.homes(), [1, 2]);

    // Without a home, any is better than none.
    let mut world = World::new(7);
    world.netcheck.handle_control(world.now, false);
    world.netcheck.handle_derp_map(world.now, &map([4]), &BTreeMap::new(), &mut world.rng);
    assert_eq!(world.home(), Some(4));
}

#[test]
fn a_home_whose_relay_still_speaks_is_kept_without_its_stun_server() {
    let mut world = World::with(&[10, 40]);
    world.netcheck.set_active(world.now, true, &mut world.rng);
    world.run(Duration::from_secs(2));
    world.set(&[0, 40]);
    for _ in 0..60 {
        world.netcheck.handle_relay_heard(world.now, 1);
        world.run(Duration::from_secs(2));
    }
    assert_eq!(world.home(), Some(1));
    world.run(2 * MAX_INTERVAL);
    assert_eq!(world.home(), Some(2));
}

#[test]
fn the_slower_family_is_told_when_it_answers() {
    let mut world = World::new(7);
    let v6 = SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 3478));
    world.set(&[10]);
    world.latencies.insert(v6, 30 * MS);
    world.seen_as.insert(v6, "[2001:db8::7]:41641".parse().unwrap());
    world.netcheck.handle_derp_map(world.now, &map([1]), &BTreeMap::new(), &mut world.rng);
    world.netcheck.handle_servers(world.now, &[(1, server(1)), (1, v6)], &mut world.rng);
    world.run(15 * MS);
    assert_eq!((world.netcheck.report().ipv4, world.netcheck.report().ipv6), (true, false));
    let reports = world.events.iter().filter(|(_, event)| *event == Event::Report).count();
    world.run(20 * MS);
    assert_eq!((world.netcheck.report().ipv4, world.netcheck.report().ipv6), (true, true));
    assert_eq!(world.events.iter().filter(|(_, event)| *event == Event::Report).count(), reports + 1);
}
