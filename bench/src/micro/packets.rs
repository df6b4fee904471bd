//! What each packet, or each ping, costs.

use std::error::Error;
use std::hint::black_box;
use std::net::IpAddr;

use nixtail_proto::disco::{self, Message, SharedKey, TransactionId};
use nixtail_proto::filter::{Filter, Verdict, compile};
use nixtail_proto::key::{DiscoPrivate, NodePublic};
use nixtail_proto::packet::{build, protocol, tcp};
use nixtail_proto::tailcfg::{FilterRule, NetPortRange, PortRange};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::Size;
use super::measure::{Row, per_call};

/// Rules in the filter; the last one is that which lets the packet in.
const RULES: u16 = 100;
/// Bytes of a segment's payload at the tunnel's MTU of 1,280.
const PAYLOAD: usize = 1240;

pub(crate) fn measure(size: Size) -> Result<Vec<Row>, Box<dyn Error>> {
    let mut rows = filter(size)?;
    rows.push(disco(size)?);
    Ok(rows)
}

fn filter(size: Size) -> Result<Vec<Row>, Box<dyn Error>> {
    let (from, to): (IpAddr, IpAddr) = ("100.64.0.1".parse()?, "100.64.0.2".parse()?);
    let rules: Vec<FilterRule> = (0..RULES).rev().map(|number| rule(number, to)).collect();
    let (rules, errors) = compile(&rules);
    if !errors.is_empty() {
        return Err("the filter's rules can't be read".into());
    }
    let mut filter = Filter::new(vec![to]);
    filter.set_rules(rules);
    let mut row = |what: &str, flags, length| {
        let packet = packet(from, to, flags, length).ok_or("no such packet")?;
        let what = format!("filter: {what}, {RULES} rules");
        per_call(what, size.packets, || filter.check_inbound(black_box(&packet), |_| false) == Verdict::Accept)
    };
    Ok(vec![row("a segment of 1,280 bytes", tcp::ACK, PAYLOAD)?, row("a first segment", tcp::SYN, 0)?])
}

/// Lets 100.64.`number`.1 in to port 22.
fn rule(number: u16, to: IpAddr) -> FilterRule {
    let port = NetPortRange { ip: to.to_string(), ports: PortRange { first: 22, last: 22 }, ..NetPortRange::default() };
    FilterRule { src_ips: vec![format!("100.64.{number}.1")], dst_ports: vec![port], ..FilterRule::default() }
}

fn packet(from: IpAddr, to: IpAddr, flags: u8, length: usize) -> Option<Vec<u8>> {
    let mut segment = vec![0; 20 + length];
    segment.get_mut(..4)?.copy_from_slice(&[0x9c, 0x40, 0, 22]);
    // RFC 9293 §3.1: the header's length in words, the flags.
    segment.get_mut(12..14)?.copy_from_slice(&[5 << 4, flags]);
    build::ip(from, to, protocol::TCP, &segment)
}

fn disco(size: Size) -> Result<Row, Box<dyn Error>> {
    let mut rng = StdRng::seed_from_u64(1);
    let (ours, theirs) = (DiscoPrivate::generate(&mut rng), DiscoPrivate::generate(&mut rng));
    let (seals, opens) = (SharedKey::new(&ours, &theirs.public()), SharedKey::new(&theirs, &ours.public()));
    let node_key = Some(NodePublic::from_bytes([7; 32]));
    let message = Message::Ping { txid: TransactionId::generate(&mut rng), node_key, padding: 0 };
    let mut packet = vec![0; disco::sealed_len(&message)];
    per_call("disco: seal a ping and open it".to_owned(), size.seals, || {
        let sealed = seals.seal(&message, &mut rng, &mut packet).is_ok();
        sealed && opens.open(black_box(&packet)).as_ref() == Ok(&message)
    })
}
