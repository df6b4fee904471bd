//! The cases of tailscale/tailscale `wgengine/filter/filter_test.go`, as data, and what we add to them.

use std::net::IpAddr;

use proptest::prelude::*;

use super::rule::parse_ranges;
use super::*;
use crate::packet::build;
use crate::tailcfg::{CapGrant, FilterRule, NetPortRange, PortRange};

const ALLOWED: u8 = 116;
const DENIED: u8 = 127;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// `sources`, `destinations` as `ADDRESS PORTS`, protocols.
fn rule(sources: &[&str], destinations: &[&str], ip_proto: &[i64]) -> FilterRule {
    let destination = |text: &&str| {
        let (ip, ports) = text.split_once(' ').unwrap();
        let (first, last) = match ports.split_once('-') {
            _ if ports == "*" => (0, 65535),
            Some((first, last)) => (first.parse().unwrap(), last.parse().unwrap()),
            None => (ports.parse().unwrap(), ports.parse().unwrap()),
        };
        NetPortRange { ip: ip.to_owned(), bits: None, ports: PortRange { first, last } }
    };
    FilterRule {
        src_ips: sources.iter().map(|text| (*text).to_owned()).collect(),
        dst_ports: destinations.iter().map(destination).collect(),
        ip_proto: ip_proto.to_vec(),
        ..FilterRule::default()
    }
}

fn filter() -> Filter {
    let v4_all = "0.0.0.0/0";
    let rules = [
        rule(&["8.1.1.1", "8.2.2.2"], &["1.2.3.4 22", "5.6.7.8 23-24"], &[]),
        rule(&["9.1.1.1", "9.2.2.2"], &["1.2.3.4 22", "5.6.7.8 23-24"], &[132]),
        rule(&["8.1.1.1", "8.2.2.2"], &["5.6.7.8 27-28"], &[]),
        rule(&["2.2.2.2"], &["8.1.1.1 22"], &[]),
        rule(&[v4_all], &["100.122.98.50 *"], &[]),
        rule(&[v4_all], &["0.0.0.0/0 443"], &[]),
        rule(&["153.1.1.1", "153.1.1.2", "153.3.3.3"], &["1.2.3.4 999"], &[]),
        rule(&["::1", "::2"], &["2001::1 22", "2001::2 22"], &[]),
        rule(&["::/0"], &["::/0 443"], &[]),
        rule(&[v4_all], &["0.0.0.0/0 *"], &[i64::from(ALLOWED)]),
        rule(&["::/0"], &["::/0 *"], &[i64::from(ALLOWED)]),
        rule(&["cap:cap-hit-1234-ssh"], &["1.2.3.4 22"], &[]),
    ];
    let (rules, errors) = compile(&rules);
    assert_eq!(errors, []);
    let ours = [
        "100.122.98.50",
        "1.2.3.4",
        "5.6.7.8",
        "102.102.102.102",
        "119.119.119.119",
        "8.1.34.51",
        "2001::1",
        "2001::2",
    ]
    .map(ip);
    let mut filter = Filter::new(ours.to_vec());
    filter.set_rules(rules);
    filter
}

fn packet(protocol: u8, from: &str, to: &str, ports: (u16, u16)) -> Vec<u8> {
    packet_with_flags(protocol, from, to, ports, tcp::SYN)
}

fn packet_with_flags(protocol: u8, from: &str, to: &str, ports: (u16, u16), flags: u8) -> Vec<u8> {
    let mut body = vec![0; 24];
    body[0..2].copy_from_slice(&ports.0.to_be_bytes());
    body[2..4].copy_from_slice(&ports.1.to_be_bytes());
    match protocol {
        protocol::TCP => body[12..14].copy_from_slice(&[0x60, flags]),
        protocol::ICMP_V4 => body[0] = 8,
        protocol::ICMP_V6 => body[0] = 128,
        _ => {}
    }
    build::ip(ip(from), ip(to), protocol, &body).unwrap()
}

#[test]
fn gos_table() {
    const TCP: u8 = protocol::TCP;
    const SCTP: u8 = protocol::SCTP;
    #[rustfmt::skip]
    let cases: &[(bool, u8, &str, &str, u16, u16)] = &[
        (true, TCP, "8.1.1.1", "1.2.3.4", 999, 22),
        (true, 1, "8.1.1.1", "1.2.3.4", 0, 0),
        (false, TCP, "8.1.1.1", "1.2.3.4", 0, 0),
        (true, TCP, "8.1.1.1", "1.2.3.4", 0, 22),
        (false, TCP, "8.1.1.1", "1.2.3.4", 0, 21),
        (true, TCP, "8.2.2.2", "1.2.3.4", 0, 22),
        (false, TCP, "8.2.2.2", "1.2.3.4", 0, 23),
        (false, TCP, "8.3.3.3", "1.2.3.4", 0, 22),
        (true, TCP, "8.1.1.1", "5.6.7.8", 0, 23),
        (true, TCP, "8.1.1.1", "5.6.7.8", 0, 24),
        (false, TCP, "8.1.1.3", "5.6.7.8", 0, 24),
        (false, TCP, "8.1.1.1", "5.6.7.8", 0, 22),
        (true, TCP, "17.34.51.68", "8.1.34.51", 0, 443),
        (false, TCP, "17.34.51.68", "8.1.34.51", 0, 444),
        (true, TCP, "17.34.51.68", "100.122.98.50", 0, 999),
        (true, TCP, "17.34.51.68", "100.122.98.50", 0, 0),
        (true, TCP, "::1", "2001::1", 0, 22),
        (true, 58, "::1", "2001::1", 0, 0),
        (true, TCP, "::2", "2001::1", 0, 22),
        (true, TCP, "::2", "2001::2", 0, 22),
        (false, TCP, "::1", "2001::1", 0, 23),
        (false, TCP, "::1", "2001::3", 0, 22),
        (false, TCP, "::3", "2001::1", 0, 22),
        (true, TCP, "::1", "2001::1", 0, 443),
        (false, TCP, "::1", "2001::1", 0, 444),
        // Rules allow these, but the destination isn't ours.
        (false, TCP, "8.1.1.1", "16.32.48.64", 0, 443),
        (false, TCP, "1::", "2602::1", 0, 443),
        // A protocol that the rule doesn't name, and one that it does.
        (false, SCTP, "8.1.1.1", "1.2.3.4", 999, 22),
        (true, SCTP, "9.1.1.1", "1.2.3.4", 999, 22),
        // Protocols without ports: only if all ports are allowed.
        (true, ALLOWED, "1.2.3.4", "5.6.7.8", 0, 0),
        (true, ALLOWED, "2001::1", "2001::2", 0, 0),
        (false, DENIED, "1.2.3.4", "5.6.7.8", 0, 0),
        (false, DENIED, "2001::1", "2001::2", 0, 0),
    ];
    for (index, (accept, number, from, to, source, destination)) in cases.iter().copied().enumerate() {
        let mut filter = filter();
        let mut check = |number: u8| {
            let bytes = packet(number, from, to, (source, destination));
            filter.check_inbound(&bytes, |_| false) == Verdict::Accept
        };
        assert_eq!(check(number), accept, "case {index}");
        if number == TCP {
            assert_eq!(check(protocol::UDP), accept, "case {index} as UDP");
        }
    }
}

#[test]
fn a_node_capability_grants_access() {
    let mut filter = filter();
    let bytes = packet(protocol::TCP, "10.0.0.1", "1.2.3.4", (30_000, 22));
    assert_eq!(filter.check_inbound(&bytes, |name| name == "cap-hit-1234-ssh"), Verdict::Accept);
    assert_eq!(filter.check_inbound(&bytes, |name| name == "another"), Verdict::Drop(DropReason::NoRule));
    filter.set_rules(compile(&[rule(&["cap:x"], &["1.2.3.4 22"], &[])]).0);
    let ping = |to| packet(protocol::ICMP_V4, "10.0.0.1", to, (0, 0));
    assert_eq!(filter.check_inbound(&ping("1.2.3.4"), |_| true), Verdict::Accept);
    assert_eq!(filter.check_inbound(&ping("1.2.3.4"), |_| false), Verdict::Drop(DropReason::NoRule));
    let ping = ping("5.6.7.8");
    assert_eq!(filter.check_inbound(&ping, |_| true), Verdict::Drop(DropReason::NoRule), "it is about 1.2.3.4 only");
}

#[test]
fn an_application_capability_opens_no_port() {
    let granted = |dst_ports| FilterRule {
        dst_ports,
        cap_grant: vec![CapGrant {
            dsts: vec!["1.2.3.4/32".to_owned()],
            cap_map: [("example.com/cap/nix".to_owned(), None)].into(),
        }],
        ..rule(&["*"], &[], &[])
    };
    let syn = packet(protocol::TCP, "10.0.0.1", "1.2.3.4", (30_000, 22));
    let ping = packet(protocol::ICMP_V4, "10.0.0.1", "1.2.3.4", (0, 0));
    let mut filter = filter();
    // By itself, and beside a port of another address of ours.
    for rule in [granted(Vec::new()), granted(rule(&[], &["5.6.7.8 22"], &[]).dst_ports)] {
        let (rules, errors) = compile(&[rule]);
        assert_eq!(errors, []);
        filter.set_rules(rules);
        for bytes in [&syn, &ping] {
            assert_eq!(filter.check_inbound(bytes, |_| true), Verdict::Drop(DropReason::NoRule));
        }
    }
}

#[test]
fn without_rules_only_answers_come_in() {
    let mut filter = Filter::new(vec![ip("1.2.3.4")]);
    let mut accepts = |bytes: &[u8]| filter.check_inbound(bytes, |_| true) == Verdict::Accept;
    let tcp = |flags| packet_with_flags(protocol::TCP, "8.1.1.1", "1.2.3.4", (22, 5000), flags);
    assert!(!accepts(&tcp(tcp::SYN)));
    assert!(!accepts(&tcp(tcp::SYN | tcp::FIN)));
    assert!(accepts(&tcp(tcp::SYN | tcp::ACK)));
    assert!(accepts(&tcp(tcp::ACK)));
    assert!(accepts(&tcp(tcp::RST)));
    assert!(!accepts(&packet(protocol::UDP, "8.1.1.1", "1.2.3.4", (1, 2))));
    assert!(accepts(&packet(protocol::TSMP, "8.1.1.1", "1.2.3.4", (1, 2))));
    for (kind, accept) in [(0, true), (3, true), (11, true), (12, true), (8, false), (13, false)] {
        let mut body = vec![0; 8];
        body[0] = kind;
        let bytes = build::ip(ip("8.1.1.1"), ip("1.2.3.4"), 1, &body).unwrap();
        assert_eq!(accepts(&bytes), accept, "ICMP type {kind}");
    }
}

#[test]
fn answers_to_our_datagrams_come_in_until_512_others_were_sent() {
    let pairs = [("119.119.119.119", "102.102.102.102"), ("2001::2", "2001::1")];
    for (theirs, ours) in pairs {
        let mut filter = filter();
        let incoming = packet(protocol::UDP, theirs, ours, (4242, 4343));
        let outgoing = packet(protocol::UDP, ours, theirs, (4343, 4242));
        assert_eq!(filter.check_inbound(&incoming, |_| false), Verdict::Drop(DropReason::NoRule));
        filter.note_outbound(&Packet::parse(&outgoing).unwrap());
        assert_eq!(filter.check_inbound(&incoming, |_| false), Verdict::Accept);
        filter.set_rules(Vec::new());
        assert_eq!(filter.check_inbound(&incoming, |_| false), Verdict::Accept);
        for port in 1..=u16::try_from(flows::MAX_FLOWS).unwrap() {
            let other = packet(protocol::UDP, ours, theirs, (9999, port));
            filter.note_outbound(&Packet::parse(&other).unwrap());
        }
        assert_eq!(filter.check_inbound(&incoming, |_| false), Verdict::Drop(DropReason::NoRule));
    }
}

#[test]
fn what_is_dropped_before_any_rule() {
    let everything = rule(&["*"], &["* *"], &[]);
    let mut filter =
        Filter::new(["1.2.3.4", "224.0.0.1", "169.254.169.254", "169.254.1.1", "fe80::1"].map(ip).to_vec());
    filter.set_rules(compile(&[everything]).0);
    let mut check = |bytes: &[u8]| filter.check_inbound(bytes, |_| false);
    let tcp = |to: &str| {
        let from = if to.contains(':') { "2001::9" } else { "8.1.1.1" };
        packet(protocol::TCP, from, to, (1, 2))
    };
    assert_eq!(check(&[]), Verdict::Accept, "keepalive");
    assert_eq!(check(b"short"), Verdict::Drop(DropReason::TooShort));
    assert_eq!(check(&[0xff; 40]), Verdict::Drop(DropReason::Malformed(ParseError::NotIp)));
    assert_eq!(check(&tcp("1.2.3.4")), Verdict::Accept);
    assert_eq!(check(&tcp("1.2.3.4")[..30]), Verdict::Drop(DropReason::Malformed(ParseError::Truncated)));
    assert_eq!(check(&tcp("224.0.0.1")), Verdict::Drop(DropReason::Multicast));
    assert_eq!(check(&tcp("169.254.1.1")), Verdict::Drop(DropReason::LinkLocal));
    assert_eq!(check(&tcp("169.254.169.254")), Verdict::Accept);
    assert_eq!(check(&tcp("fe80::1")), Verdict::Drop(DropReason::LinkLocal));
    assert_eq!(check(&tcp("1.2.3.5")), Verdict::Drop(DropReason::NotOurs));
    let unknown = packet(0, "8.1.1.1", "1.2.3.4", (0, 0));
    assert_eq!(check(&unknown), Verdict::Drop(DropReason::Malformed(ParseError::UnknownProtocol)));
}

#[test]
fn fragments_pass_only_where_they_cannot_hide_a_header() {
    let mut filter = Filter::new(["1.2.3.4", "2001::1"].map(ip).to_vec());
    let refused = Verdict::Drop(DropReason::Malformed(ParseError::UnknownProtocol));
    let mut bytes = packet(protocol::TCP, "8.1.1.1", "1.2.3.4", (1, 2));
    for (offset, verdict) in [(1, refused), (9, refused), (10, Verdict::Accept), (0x1fff, Verdict::Accept)] {
        bytes[6..8].copy_from_slice(&u16::to_be_bytes(offset));
        assert_eq!(filter.check_inbound(&bytes, |_| false), verdict, "offset {offset}");
    }
    // A first fragment that ends within the TCP header.
    let short = build::ip(ip("8.1.1.1"), ip("1.2.3.4"), protocol::TCP, &[0; 16]).unwrap();
    assert_eq!(filter.check_inbound(&short, |_| false), refused);

    // IPv6: first and later fragments of a datagram to port 443 (the packets of Go's test).
    let body = |offset: [u8; 2]| {
        let mut body = vec![17, 0, offset[0], offset[1], 0xde, 0xad, 0xbe, 0xef];
        body.extend_from_slice(&[4, 210, 1, 187, 0, 16, 0, 0]);
        build::ip(ip("2001::5"), ip("2001::1"), 44, &body).unwrap()
    };
    assert_eq!(filter.check_inbound(&body([0x05, 0xc8]), |_| false), Verdict::Accept);
    assert_eq!(filter.check_inbound(&body([0, 1]), |_| false), Verdict::Drop(DropReason::NoRule));
    assert_eq!(filter.check_inbound(&body([0, 8]), |_| false), refused);
    filter.set_rules(compile(&[rule(&["::/0"], &["::/0 443"], &[])]).0);
    assert_eq!(filter.check_inbound(&body([0, 1]), |_| false), Verdict::Accept);
}

#[test]
fn gos_address_forms() {
    let range = |text: &str| {
        let ranges = parse_ranges(text)?;
        let texts = ranges.iter().map(|range| format!("{}-{}", range.first, range.last));
        Ok(texts.collect::<Vec<_>>().join(" "))
    };
    let max6 = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    let good = [
        ("8.8.8.8", "8.8.8.8-8.8.8.8"),
        ("1::2", "1::2-1::2"),
        ("8.8.8.0/24", "8.8.8.0-8.8.8.255"),
        ("1.0.0.0-1.255.255.255", "1.0.0.0-1.255.255.255"),
        ("1.0.0.0-2.1.2.3", "1.0.0.0-2.1.2.3"),
        ("2eff::1-2eff::0800", "2eff::1-2eff::800"),
    ];
    for (text, expected) in good {
        assert_eq!(range(text), Ok(expected.to_owned()));
    }
    assert_eq!(range("*"), Ok(format!("0.0.0.0-255.255.255.255 ::-{max6}")));
    let text = |text: &str| text.to_owned();
    assert_eq!(range("8.8.8.8/24"), Err(RuleError::Range(text("8.8.8.8/24"))));
    assert_eq!(range("1.0.0.2-1.0.0.1"), Err(RuleError::Range(text("1.0.0.2-1.0.0.1"))));
    assert_eq!(range("1.0.0.2-2::"), Err(RuleError::Range(text("1.0.0.2-2::"))));
    assert_eq!(range("8.8.8.8/33"), Err(RuleError::Address(text("8.8.8.8/33"))));
    assert_eq!(range("host\n"), Err(RuleError::Address(text("host"))));
    assert_eq!(range(""), Err(RuleError::Address(text(""))));
    assert_eq!(range("a-b-c"), Err(RuleError::Address(text("a-b-c"))));
}

#[test]
fn a_rule_that_cannot_be_read_allows_nothing_and_spoils_no_other() {
    let mut relic = rule(&["*"], &["* *"], &[]);
    relic.src_bits = vec![8];
    let rules = [
        relic,
        rule(&["nonsense", "8.1.1.1"], &["cap:x 22", "1.2.3.4 22"], &[]),
        rule(&["*"], &["* *"], &[-1, 256]),
        FilterRule { src_ips: vec!["*".to_owned()], ..FilterRule::default() },
    ];
    let (rules, errors) = compile(&rules);
    assert_eq!(errors, [RuleError::Relic, RuleError::Address("nonsense".to_owned()), RuleError::CapabilityDestination]);
    let mut filter = Filter::new(vec![ip("1.2.3.4")]);
    filter.set_rules(rules);
    let mut accepts = |from: &str, port: u16| {
        let bytes = packet(protocol::TCP, from, "1.2.3.4", (1, port));
        filter.check_inbound(&bytes, |_| false) == Verdict::Accept
    };
    assert!(accepts("8.1.1.1", 22));
    assert!(!accepts("8.1.1.1", 23));
    assert!(!accepts("8.1.1.2", 22));
}

#[test]
fn many_sources_overlapping_or_not() {
    let texts: Vec<String> = (0..2000u32)
        .map(|n| format!("10.{}.{}.0/24", n / 200, (n % 200)))
        .chain(["10.0.0.0/16".to_owned(), "10.0.5.7".to_owned(), "fd00::/8".to_owned()])
        .collect();
    let sources: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut filter = Filter::new(vec![ip("1.2.3.4"), ip("2001::1")]);
    filter.set_rules(compile(&[rule(&sources, &["* 22"], &[])]).0);
    let mut accepts = |from: &str| {
        let to = if from.contains(':') { "2001::1" } else { "1.2.3.4" };
        filter.check_inbound(&packet(6, from, to, (1, 22)), |_| false) == Verdict::Accept
    };
    assert!(accepts("10.0.255.1") && accepts("10.9.199.255") && accepts("10.5.0.0") && accepts("fd12::1"));
    assert!(!accepts("10.9.200.0") && !accepts("9.255.255.255") && !accepts("11.0.0.0") && !accepts("fe00::1"));
}

#[test]
fn a_refused_syn_is_answered_with_what_go_reads() {
    for (from, to) in [("8.1.1.1", "1.2.3.4"), ("2001::9", "2001::1")] {
        let syn = packet(protocol::TCP, from, to, (50_000, 22));
        let answer = rejection(&syn).unwrap();
        let answer = Packet::parse(&answer).unwrap();
        assert_eq!(answer.payload, [b'!', 6, b'A', 0xc3, 0x50, 0, 22]);
        assert_eq!((answer.source, answer.destination), (ip(to), ip(from)));
        let Some(tsmp::Message::Rejected(read)) = tsmp::parse(&answer) else {
            panic!("not a rejection");
        };
        assert_eq!(read.source, (ip(from), 50_000).into());
        assert_eq!(read.destination, (ip(to), 22).into());
        assert_eq!((read.reason, read.maybe_broken), (RejectReason::Acl, false));
    }
    assert_eq!(rejection(&packet_with_flags(6, "8.1.1.1", "1.2.3.4", (1, 2), tcp::ACK)), None);
    assert_eq!(rejection(&packet(protocol::UDP, "8.1.1.1", "1.2.3.4", (1, 2))), None);
}

proptest! {
    #[test]
    fn no_packet_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), version in 0..3u8) {
        if let Some(first) = bytes.first_mut() {
            *first = [0x40 | (*first & 0xf), 0x60, *first][usize::from(version)];
        }
        let mut filter = filter();
        let _ = filter.check_inbound(&bytes, |_| true);
        let _ = rejection(&bytes);
        if let Ok(packet) = Packet::parse(&bytes) {
            filter.note_outbound(&packet);
            let _ = (tsmp::parse(&packet), icmp::reply(&packet), icmp::as_reply(&packet), tcp::reset_for(&packet));
        }
    }

    #[test]
    fn no_rule_text_panics(text in "[-0-9a-f:./*c]{0,40}|\\PC{0,20}") {
        let _ = parse_ranges(&text);
    }
}
