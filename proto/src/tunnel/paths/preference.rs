//! Which of two addresses that answer is the better one (`betterAddr` in magicsock's `endpoint.go`).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

const LOOPBACK_POINTS: u128 = 50;
const LINK_LOCAL_POINTS: u128 = 30;
const PRIVATE_POINTS: u128 = 20;
const IPV6_POINTS: u128 = 10;
/// Latencies within so many percent of each other don't count as a reason to move.
const SAME_WITHIN: u128 = 1;

/// Whether to leave `current` for `new`. Being nearer counts in points, being faster in percent.
pub(super) fn is_better(new: (SocketAddr, Duration), current: (SocketAddr, Duration)) -> bool {
    let (new_latency, current_latency) = (new.1.as_micros(), current.1.as_micros());
    let slower = new_latency.max(current_latency);
    let (mut new_points, mut current_points) = (points(new.0), points(current.0));
    let difference = new_latency.abs_diff(current_latency) * 100;
    let percent = difference.checked_div(slower).unwrap_or(0);
    let moved = new_points != current_points || percent > SAME_WITHIN;
    if new_latency < current_latency {
        new_points += percent;
    } else {
        current_points += percent;
    }
    moved && new_points > current_points
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

    #[test]
    fn faster_is_better_but_not_by_a_hair() {
        assert!(better(("192.0.2.1:1", 10), ("192.0.2.2:1", 20)));
        assert!(!better(("192.0.2.1:1", 20), ("192.0.2.2:1", 10)));
        assert!(!better(("192.0.2.1:1", 100), ("192.0.2.2:1", 101)));
        assert!(!better(("192.0.2.1:1", 0), ("192.0.2.2:1", 0)));
    }

    #[test]
    fn nearer_is_better_unless_much_slower() {
        assert!(better(("10.0.0.1:1", 10), ("192.0.2.2:1", 10)));
        assert!(better(("[2001:db8::1]:1", 10), ("192.0.2.2:1", 10)));
        assert!(better(("127.0.0.1:1", 10), ("10.0.0.1:1", 10)));
        assert!(!better(("10.0.0.1:1", 20), ("192.0.2.2:1", 10)));
    }
}
