//! What is done with each packet besides: telling what it is, reading its headers, the filter; and pings.

use std::net::IpAddr;

use divan::{Bencher, black_box};
use nixtail_proto::disco::{self, Message, SharedKey, TransactionId};
use nixtail_proto::filter::{Filter, Verdict, compile};
use nixtail_proto::key::{DiscoPrivate, NodePublic};
use nixtail_proto::packet::{Packet, build, protocol, tcp};
use nixtail_proto::stun;
use nixtail_proto::tailcfg::{FilterRule, NetPortRange, PortRange};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use crate::{PAYLOAD, SEALED};

/// Rules in the filter; the last one is that which lets the packet in.
const RULES: u16 = 100;
const FROM: &str = "100.64.0.1";
const TO: &str = "100.64.0.2";

/// Whether a datagram is STUN, disco, of a peer relay, or else WireGuard's.
#[divan::bench]
fn classify(bencher: Bencher<'_, '_>) {
    let mut datagram = [0x5a; SEALED];
    datagram[..4].copy_from_slice(&4_u32.to_le_bytes());
    bencher.bench(|| {
        let datagram = black_box(&datagram[..]);
        assert!(!(stun::is_stun(datagram) || disco::is_disco(datagram) || disco::is_peer_relayed(datagram)));
    });
}

#[divan::bench]
fn parse(bencher: Bencher<'_, '_>) {
    let packet = packet(tcp::ACK, PAYLOAD);
    bencher.bench(|| Packet::parse(black_box(&packet)).is_ok());
}

/// The filter, and reading the headers for it: a segment in mid-stream needs no rule.
#[divan::bench]
fn filter_segment(bencher: Bencher<'_, '_>) {
    filter(bencher, &packet(tcp::ACK, PAYLOAD));
}

#[divan::bench(sample_count = 1000)]
fn filter_first_segment(bencher: Bencher<'_, '_>) {
    filter(bencher, &packet(tcp::SYN, 0));
}

fn filter(bencher: Bencher<'_, '_>, packet: &[u8]) {
    let rules: Vec<FilterRule> = (0..RULES).rev().map(rule).collect();
    let (rules, errors) = compile(&rules);
    assert!(errors.is_empty(), "{errors:?}");
    let mut filter = Filter::new(vec![TO.parse().unwrap()]);
    filter.set_rules(rules);
    bencher.bench_local(|| assert_eq!(filter.check_inbound(black_box(packet), |_| false), Verdict::Accept));
}

/// Lets 100.64.`number`.1 in to port 22.
fn rule(number: u16) -> FilterRule {
    let port = NetPortRange { ip: TO.to_owned(), ports: PortRange { first: 22, last: 22 }, ..NetPortRange::default() };
    FilterRule { src_ips: vec![format!("100.64.{number}.1")], dst_ports: vec![port], ..FilterRule::default() }
}

fn packet(flags: u8, length: usize) -> Vec<u8> {
    let (from, to): (IpAddr, IpAddr) = (FROM.parse().unwrap(), TO.parse().unwrap());
    let mut segment = vec![0; 20 + length];
    segment[..4].copy_from_slice(&[0x9c, 0x40, 0, 22]);
    // RFC 9293 §3.1: the header's length in words, the flags.
    segment[12..14].copy_from_slice(&[5 << 4, flags]);
    build::ip(from, to, protocol::TCP, &segment).unwrap()
}

/// Seal a ping and open it.
#[divan::bench(sample_count = 1000)]
fn disco_ping(bencher: Bencher<'_, '_>) {
    let mut rng = StdRng::seed_from_u64(1);
    let (ours, theirs) = (DiscoPrivate::generate(&mut rng), DiscoPrivate::generate(&mut rng));
    let (seals, opens) = (SharedKey::new(&ours, &theirs.public()), SharedKey::new(&theirs, &ours.public()));
    let node_key = Some(NodePublic::from_bytes([7; 32]));
    let message = Message::Ping { txid: TransactionId::generate(&mut rng), node_key, padding: 0 };
    let mut packet = vec![0; disco::sealed_len(&message)];
    bencher.bench_local(|| {
        seals.seal(&message, &mut rng, &mut packet).unwrap();
        assert_eq!(opens.open(black_box(&packet)).as_ref(), Ok(&message));
    });
}
