//! Underlays that carry less at once than a packet of ours is long.

use crate::control::{DevnetAtRouter, exchange};
use crate::node::{Node, Orders};
use crate::world::{Link, Machine, SERVICE_V4, SERVICE_V6, World, run_in_world, shell};

/// Thousands of packets of full size.
const AMOUNT: usize = 32 << 20;
/// Enough where only the way there is another.
const LESS: usize = AMOUNT / 4;
/// The least that IPv6 allows; a full packet of ours is 1340 or 1360 bytes on the wire.
const NARROW: Link = Link { mtu: 1280, has_v4: true };

#[test]
fn an_mtu_of_1280_carries_full_packets_directly_and_over_the_relay() {
    run_in_world(|world| {
        let control = DevnetAtRouter::start(SERVICE_V4);
        let [left, right] = ["left", "right"].map(|name| world.machine(name, NARROW));
        let mut waiting = Node::start(world, &right, &[], &control.orders("right"), &[]);
        waiting.wait_until_ready();
        both_ways(world, &control, &left, AMOUNT);
        assert!(fragmented(Some(&left)) > packets(AMOUNT) && fragmented(Some(&right)) > packets(AMOUNT));
        waiting.end();
    });
}

#[test]
fn an_mtu_of_1280_in_mid_path_carries_full_packets_over_ipv4() {
    run_in_world(|world| {
        let control = DevnetAtRouter::start(SERVICE_V4);
        let (left, right) = (world.machine("left", Link::USUAL), world.machine("right", NARROW));
        world.set_rules("meta nfproto ipv6 meta l4proto udp drop");
        let mut waiting = Node::start(world, &right, &[], &control.orders("right"), &[]);
        waiting.wait_until_ready();
        both_ways(world, &control, &left, LESS);
        assert!(fragmented(None) > packets(LESS) && fragmented(Some(&right)) > packets(LESS));
        waiting.end();
    });
}

#[test]
fn an_mtu_of_1280_in_mid_path_carries_full_packets_over_ipv6() {
    run_in_world(|world| {
        let control = DevnetAtRouter::start(SERVICE_V6);
        let wide = Link { has_v4: false, ..Link::USUAL };
        let (left, right) = (world.machine("left", wide), world.machine("right", Link { has_v4: false, ..NARROW }));
        let mut waiting = Node::start(world, &right, &[], &control.orders("right"), &[]);
        waiting.wait_until_ready();
        let exchanged = exchange(world, &left, control.orders("left"), LESS, true, &[]);
        assert!(exchanged.is_direct(), "{exchanged:?}");
        // A router never cuts these: it says how long they may be.
        assert!(fragmented(Some(&left)) > packets(LESS) && fragmented(Some(&right)) > packets(LESS));
        waiting.end();
    });
}

/// What firewalls do that drop fragments, and routers whose words about a packet that is too long get lost.
#[test]
fn where_only_short_datagrams_pass_the_relay_carries_full_packets() {
    run_in_world(|world| {
        let control = DevnetAtRouter::start(SERVICE_V4);
        let [left, right] = ["left", "right"].map(|name| world.machine(name, Link::USUAL));
        let _echo = right.echo(world);
        world.set_rules("meta l4proto udp meta length > 1300 drop");
        assert!(left.has_udp(right.v4.unwrap()) && left.has_udp(right.v6), "short ones pass");
        let mut waiting = Node::start(world, &right, &[], &control.orders("right"), &[]);
        waiting.wait_until_ready();
        let exchanged = exchange(world, &left, control.orders("left"), LESS, false, &[]);
        assert!(exchanged.is_relayed(), "{exchanged:?}");
        waiting.end();
    });
}

/// Lets a node exchange bytes directly, and another one over the relay.
fn both_ways(world: &World, control: &DevnetAtRouter, left: &Machine, bytes: usize) {
    let exchanged = exchange(world, left, control.orders("left"), bytes, true, &[]);
    assert!(exchanged.is_direct(), "{exchanged:?}");
    let orders = Orders { direct: false, ..control.orders("left-2") };
    let exchanged = exchange(world, left, orders, bytes, false, &[]);
    assert!(exchanged.is_relayed(), "{exchanged:?}");
}

/// At least so many full packets carry that one way, and are cut where the underlay is narrow.
fn packets(bytes: usize) -> u64 {
    bytes as u64 / 1300
}

/// How many packets the kernel has cut into fragments: in a machine, or at the router.
fn fragmented(machine: Option<&Machine>) -> u64 {
    let read = "cat /proc/net/snmp; grep Ip6FragCreates /proc/net/snmp6";
    let said = machine.map_or_else(|| shell(read), |machine| machine.shell(read));
    let mut tables = said.lines().filter_map(|line| line.strip_prefix("Ip: "));
    let (names, values) = (tables.next().unwrap().split(' '), tables.next().unwrap().split(' '));
    let v4 = names.zip(values).find(|(name, _)| *name == "FragCreates").unwrap().1;
    let v6 = said.lines().find_map(|line| line.strip_prefix("Ip6FragCreates")).unwrap();
    v4.trim().parse::<u64>().unwrap() + v6.trim().parse::<u64>().unwrap()
}
