//! Which of two addresses that answer is the better one (`betterAddr` in magicsock's `endpoint.go`).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

const LOOPBACK_POINTS: u128 = 50;
const LINK_LOCAL_POINTS: u128 = 30;
const PRIVATE_POINTS: u128 = 20;
const IPV6_POINTS: u128 = 10;
/// Being faster by so many percent, and nothing else, is no reason to move.
const SAME_WITHIN: u128 = 1;

/// Whether to leave `current` for `new`. Being nearer counts in points, being faster in percent, rounded up.
pub(super) fn is_better(new: (SocketAddr, Duration), current: (SocketAddr, Duration)) -> bool {
    if new.0 == current.0 {
        return false;
    }
    let (new_latency, current_latency) = (new.1.as_nanos(), current.1.as_nanos());
    let (faster, slower) = (new_latency.min(current_latency), new_latency.max(current_latency));
    let percent = 100 - (faster * 100).checked_div(slower).unwrap_or(100);
    let (mut new_points, mut current_points) = (points(new.0), points(current.0));
    match new_latency > current_latency {
        true => current_points += percent,
        false => new_points += percent,
    }
    let hardly = new_points <= SAME_WITHIN && current_points == 0;
    !hardly && new_points > current_points
}

fn points(address: SocketAddr) -> u128 {
    let place = match address.ip() {
        ip if ip.is_loopback() => LOOPBACK_POINTS,
        IpAddr::V4(ip) if ip.is_link_local() => LINK_LOCAL_POINTS,
        IpAddr::V6(ip) if ip.is_unicast_link_local() => LINK_LOCAL_POINTS,
        IpAddr::V4(ip) if ip.is_private() => PRIVATE_POINTS,
        IpAddr::V6(ip) if ip.is_unique_local() => PRIVATE_POINTS,
        _ => 0,
    };
    place + if address.is_ipv6() { IPV6_POINTS } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn better(new: (&str, u64), current: (&str, u64)) -> bool {
        let parse = |(address, millis): (&str, u64)| (address.parse().unwrap(), Duration::from_millis(millis));
        is_better(parse(new), parse(current))
    }

    const PUBLIC: &str = "1.2.3.4:555";
    const OTHER: &str = "5.6.7.8:999";
    const PUBLIC_V6: &str = "[2001::5]:123";
    const PRIVATE: &str = "10.0.0.2:123";

    /// The table of `wgengine/magicsock/magicsock_test.go` TestBetterAddr, without what has an MTU or a peer relay.
    #[test]
    fn the_preference_is_that_of_go() {
        let unique_local = "[fd89:1a8a:8888:9999:aaaa:bbbb:cccc:dddd]:555";
        let link_local = "[fe80::ce8:474a:a27e:113b]:555";
        for (new, current, wanted) in [
            ((PUBLIC, 5), (OTHER, 10), true),
            ((PUBLIC, 5), (PUBLIC, 10), false),
            ((PUBLIC, 100), (OTHER, 100), false),
            ((PUBLIC, 100), (OTHER, 101), false),
            ((PUBLIC, 100), (OTHER, 103), true),
            ((PUBLIC, 0), (OTHER, 0), false),
            ((PRIVATE, 100), (PUBLIC, 91), true),
            ((PUBLIC, 91), (PRIVATE, 100), false),
            ((PRIVATE, 100), (PUBLIC, 30), false),
            ((PUBLIC, 30), (PRIVATE, 100), true),
            ((PUBLIC_V6, 100), (PUBLIC, 91), true),
            ((PUBLIC, 91), (PUBLIC_V6, 100), false),
            ((PUBLIC_V6, 100), (PUBLIC, 30), false),
            ((PUBLIC, 30), (PUBLIC_V6, 100), true),
            (("192.168.0.1:555", 100), (PUBLIC_V6, 101), true),
            ((PUBLIC_V6, 101), ("192.168.0.1:555", 100), false),
            ((link_local, 101), (unique_local, 100), true),
            ((link_local, 101), ("[::1]:555", 100), false),
        ] {
            assert_eq!(better(new, current), wanted, "{new:?} instead of {current:?}");
            assert!(!wanted || !better(current, new), "{new:?} and {current:?} are each better than the other");
        }
    }
}
