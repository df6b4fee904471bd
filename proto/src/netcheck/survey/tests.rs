#![allow(clippy::disallowed_methods, reason = "virtual time has to begin somewhere")]

use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::*;
use crate::tailcfg::DerpNode;

const MS: Duration = Duration::from_millis(1);

fn server(id: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, id], 3478))
}

fn server_v6(id: u16) -> SocketAddr {
    SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, id], 3478))
}

fn regions(ids: impl IntoIterator<Item = RegionId>) -> BTreeMap<RegionId, DerpRegion> {
    let node = DerpNode { host_name: "relay.example".to_owned(), ..DerpNode::default() };
    ids.into_iter()
        .map(|id| (id, DerpRegion { region_id: id, nodes: vec![node.clone()], ..DerpRegion::default() }))
        .collect()
}

/// A region's server, and after how long it answers with which address of ours.
type Server<'a> = (RegionId, SocketAddr, Option<(Duration, &'a str)>);

/// Runs a survey of servers that each answer after so long, seeing us as that; those without an answer are silent.
/// Gives what it found and how long it took.
fn survey(servers: &[Server<'_>]) -> (Findings, Duration) {
    let mut rng = StdRng::seed_from_u64(7);
    let start = Instant::now();
    let asked: Vec<_> = servers.iter().map(|(id, server, _)| (*id, *server)).collect();
    let mut survey = Survey::new(start, &asked, &mut rng);
    let (mut now, mut flying, mut sent) = (start, BTreeMap::new(), 0);
    loop {
        while let Some((to, request)) = survey.poll_transmit() {
            sent += 1;
            let txid = stun::parse_request(&request).unwrap();
            let answer = servers.iter().find(|(_, server, _)| *server == to).and_then(|(_, _, answer)| *answer);
            if let Some((latency, seen_as)) = answer {
                flying.insert((now + latency, sent), (to, stun::response(txid, seen_as.parse().unwrap())));
            }
        }
        let Some(timeout) = survey.poll_timeout() else { return (survey.findings(), now - start) };
        let arrival = flying.keys().next().map(|(at, _)| *at).filter(|at| *at <= timeout);
        now = arrival.unwrap_or(timeout);
        if arrival.is_some() {
            let (_, (from, datagram)) = flying.pop_first().unwrap();
            assert!(survey.handle_response(now, from, &datagram));
        } else {
            survey.handle_timeout(now, &mut rng);
        }
        assert!(sent <= 3 * servers.len(), "a storm of requests");
    }
}

#[test]
fn every_region_is_waited_for_and_not_longer() {
    let seen = Some("198.51.100.7:1");
    let at = |ms: u32| seen.map(|seen| (MS * ms, seen));
    let (found, took) = survey(&[(1, server(1), at(5)), (2, server(2), at(90)), (3, server(3), at(280))]);
    assert_eq!(found.latencies, BTreeMap::from([(1, 5 * MS), (2, 90 * MS), (3, 280 * MS)]));
    assert_eq!((found.udp(), found.mapping_varies, took), (true, Some(false), 280 * MS));
    assert_eq!((found.ipv4, found.ipv6), (Some("198.51.100.7:1".parse().unwrap()), None));
}

#[test]
fn a_region_that_is_silent_ends_it_late_and_is_to_be_tried_over_tcp() {
    let (found, took) = survey(&[(1, server(1), Some((5 * MS, "198.51.100.7:1"))), (2, server(2), None)]);
    assert_eq!(took, super::super::round::PATIENCE);
    assert_eq!(found.nearest(&regions([1, 2]), &BTreeMap::new()), Some(1));
    assert_eq!(found.relays_to_try(&regions([1, 2])), [1, 2]);
    assert_eq!(found.mapping_varies, None, "one server says nothing of that");
}

#[test]
fn a_family_that_is_silent_is_not_waited_for_long() {
    let v4 = Some((20 * MS, "198.51.100.7:1"));
    let (found, took) = survey(&[(1, server(1), v4), (1, server_v6(1), None)]);
    assert!(took < 500 * MS, "{took:?}");
    assert_eq!((found.ipv4.is_some(), found.ipv6), (true, None));
    let v6 = Some((100 * MS, "[2001:db8::7]:9"));
    let (found, _) = survey(&[(1, server(1), v4), (1, server_v6(1), v6)]);
    assert_eq!(found.ipv6, Some("[2001:db8::7]:9".parse().unwrap()));
}

#[test]
fn a_nat_that_varies_is_found() {
    let (found, _) =
        survey(&[(1, server(1), Some((MS, "198.51.100.7:1"))), (2, server(2), Some((MS, "198.51.100.7:2")))]);
    assert_eq!(found.mapping_varies, Some(true));
}

#[test]
fn without_udp_the_nearest_region_is_the_one_whose_relay_answers_first() {
    let (found, _) = survey(&[(1, server(1), None), (2, server(2), None)]);
    assert!(!found.udp());
    assert_eq!(found.relays_to_try(&regions([1, 2])), [1, 2]);
    assert_eq!(found.nearest(&regions([1, 2]), &BTreeMap::from([(1, 30 * MS), (2, 9 * MS)])), Some(2));
    assert_eq!(found.nearest(&regions([1, 2]), &BTreeMap::new()), None);
}

#[test]
fn a_region_that_is_to_be_avoided_is_measured_and_never_the_nearest() {
    let (found, _) =
        survey(&[(1, server(1), Some((MS, "192.0.2.99:1"))), (2, server(2), Some((9 * MS, "192.0.2.99:1")))]);
    let mut regions = regions([1, 2]);
    regions.get_mut(&1).unwrap().no_measure_no_home = true;
    assert_eq!(found.nearest(&regions, &BTreeMap::new()), Some(2));
    assert_eq!(found.latencies.len(), 2);
}

#[test]
fn without_servers_it_is_over_at_once() {
    assert_eq!(survey(&[]), (Findings::default(), Duration::ZERO));
}

#[test]
fn answers_to_nobody_are_no_findings() {
    let mut rng = StdRng::seed_from_u64(1);
    let now = Instant::now();
    let mut survey = Survey::new(now, &[(1, server(1))], &mut rng);
    let (_, request) = survey.poll_transmit().unwrap();
    let answer = stun::response(stun::parse_request(&request).unwrap(), "192.0.2.99:1".parse().unwrap());
    assert!(!survey.handle_response(now, server(2), &answer), "from another place");
    assert!(!survey.handle_response(now, server(1), &answer[..20]), "cut off");
    assert!(survey.handle_response(now, server(1), &answer));
    assert!(!survey.handle_response(now, server(1), &answer), "twice");
}
