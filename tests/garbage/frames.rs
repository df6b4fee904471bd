//! Real frames, and garbage made of them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nixtail_proto::disco::{self, Message, PeerRelay};
use nixtail_proto::key::{DiscoPrivate, DiscoPublic, NodePrivate, NodePublic};
use nixtail_proto::stun;
use nixtail_proto::tunnel::handshake::Identity;
use nixtail_proto::tunnel::session::Session;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

/// Longer than any datagram on a usual network.
const LONGEST: usize = 2000;

/// Whose door it is, as everybody on the tailnet knows it.
pub(crate) struct Victim {
    pub(crate) node: NodePublic,
    pub(crate) disco: DiscoPublic,
}

/// A node with keys, in the victim's netmap or not.
pub(crate) struct Sender {
    pub(crate) node: NodePrivate,
    pub(crate) disco: DiscoPrivate,
}

impl Sender {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        Self { node: NodePrivate::generate(&mut rng), disco: DiscoPrivate::generate(&mut rng) }
    }

    /// Initiations of handshakes with the victim, each good for one: only who is in its netmap could tell.
    pub(crate) fn initiations(&self, victim: &Victim, count: usize) -> Vec<Vec<u8>> {
        let mut session = Session::new(&Identity::new(&self.node), &victim.node, 7);
        let mut now = Instant::now();
        session.renew(now);
        let next = || {
            let mut buffer = [0; 256];
            now += Duration::from_secs(10);
            session.poll_transmit(now, &mut buffer).map(|length| buffer[..length].to_vec())
        };
        std::iter::from_fn(next).take(count).collect()
    }

    /// One disco message of each kind, properly sealed.
    pub(crate) fn disco_packets(&self, victim: &Victim) -> Vec<Vec<u8>> {
        let mut rng = StdRng::seed_from_u64(7);
        let address: SocketAddr = ([203, 0, 113, 9], 41_641).into();
        let txid = disco::TransactionId::generate(&mut rng);
        let messages = [
            Message::Ping { txid, node_key: Some(self.node.public()), padding: 0 },
            Message::Ping { txid, node_key: Some(self.node.public()), padding: 1200 },
            Message::Ping { txid, node_key: None, padding: 0 },
            Message::Pong { txid, observed: address },
            Message::CallMeMaybe { endpoints: vec![address; disco::MAX_ENDPOINTS] },
            Message::PeerRelay(PeerRelay::Allocate { clients: [self.disco.public(), victim.disco], generation: 1 }),
            Message::PeerRelay(PeerRelay::Later { kind: 7, version: 9 }),
        ];
        let sealed = messages.iter().map(|message| {
            let mut packet = Vec::new();
            disco::seal(message, &self.disco, &victim.disco, &mut rng, &mut packet).unwrap();
            packet
        });
        sealed.collect()
    }
}

/// What really goes over UDP between nodes, and with STUN servers.
pub(crate) fn datagrams(known: &Sender, stranger: &Sender, victim: &Victim) -> Vec<Vec<u8>> {
    let txid = stun::TransactionId::generate(&mut StdRng::seed_from_u64(9));
    let wireguard = |kind: u8, length: usize| [&[kind, 0, 0, 0][..], &vec![0x5a; length - 4]].concat();
    let behind_geneve = |protocol: u8, inner: &[u8]| [&[0, 0, 0x7a, protocol, 0, 0, 9, 0], inner].concat();
    let mut real = vec![
        stun::request(txid),
        stun::response(txid, ([203, 0, 113, 9], 1).into()),
        wireguard(2, 92),
        wireguard(3, 64),
        wireguard(4, 32),
        wireguard(4, 1312),
    ];
    for sender in [known, stranger] {
        real.extend(sender.initiations(victim, 2));
        real.extend(sender.disco_packets(victim));
    }
    real.push(behind_geneve(0x11, &known.disco_packets(victim)[0]));
    real.push(behind_geneve(0x12, &wireguard(4, 200)));
    real
}

/// `count` pieces of garbage: out of nothing, and out of what is `real`: whole, cut, changed in some bits, or two in one.
pub(crate) fn garbage(real: &[Vec<u8>], seed: u8, count: usize) -> Vec<Vec<u8>> {
    let one = || select(real.to_vec());
    let cut = (one(), any::<Index>()).prop_map(|(mut frame, at)| {
        frame.truncate(at.index(frame.len() + 1));
        frame
    });
    let changed = (one(), vec((any::<Index>(), 0..8_u32), 1..6)).prop_map(|(mut frame, bits)| {
        for (at, bit) in bits {
            let at = at.index(frame.len());
            frame[at] ^= 1 << bit;
        }
        frame
    });
    let joined = (one(), one()).prop_map(|(first, second)| [first, second].concat());
    // What is first of a frame, with anything behind it.
    let begun = (one(), 1..60_usize, vec(any::<u8>(), 0..LONGEST)).prop_map(|(mut frame, keep, rest)| {
        frame.truncate(keep);
        frame.extend(rest);
        frame
    });
    let strategy = prop_oneof![
        2 => vec(any::<u8>(), 0..LONGEST),
        1 => one(),
        3 => cut,
        4 => changed,
        1 => joined,
        2 => begun,
    ];
    let strategy = strategy.prop_map(|mut frame| {
        frame.truncate(LONGEST);
        frame
    });
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    (0..count).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect()
}
