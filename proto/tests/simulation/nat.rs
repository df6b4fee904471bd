//! What stands between a site and the internet (the terms are those of RFC 4787).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand::RngExt as _;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

/// Kinds of NATs and firewalls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum NatKind {
    /// None: addresses are public, and everything comes in.
    Open,
    /// Addresses are public, and what comes in must answer something.
    Firewall,
    /// One mapping for all destinations; through it, everything comes in ("full cone").
    AnyMayAnswer,
    /// One mapping for all destinations; in comes what is from an address that was sent to.
    AddressMayAnswer,
    /// One mapping for all destinations, with the port that is used inside if it is free; in comes what is from an address
    /// and port that was sent to. Linux with masquerading.
    PortPreserving,
    /// A mapping with a random port for each destination; in comes what is from there ("symmetric").
    RandomPorts,
}

impl NatKind {
    fn translates(self) -> bool {
        !matches!(self, Self::Open | Self::Firewall)
    }

    /// What a pair has shown that talks directly, one of them behind this.
    pub(crate) fn landmark(self) -> &'static str {
        match self {
            Self::Open => "direct without a NAT",
            Self::Firewall => "direct through a firewall",
            Self::AnyMayAnswer => "direct behind a NAT through which any may answer",
            Self::AddressMayAnswer => "direct behind a NAT through which addresses may answer",
            Self::PortPreserving => "direct behind a NAT that preserves ports",
            Self::RandomPorts => "direct behind a NAT with random ports",
        }
    }

    /// Whether two sites behind these can send each other datagrams, once each has asked the other to.
    pub(crate) fn goes_direct_with(self, other: Self) -> bool {
        use NatKind::{Firewall, PortPreserving, RandomPorts};
        // Who answers to known ports alone never hears from a random one.
        let strict = |kind| matches!(kind, Firewall | PortPreserving | RandomPorts);
        !(self == RandomPorts && strict(other) || other == RandomPorts && strict(self))
    }
}

#[derive(Debug)]
struct Mapping {
    inside: SocketAddr,
    /// Where it leads to, if it is for one destination.
    only: Option<SocketAddr>,
    port: u16,
    /// Where packets went, and when the last one did.
    sent_to: BTreeMap<SocketAddr, Instant>,
}

/// One NAT with its table.
#[derive(Debug)]
pub(crate) struct Nat {
    pub(crate) kind: NatKind,
    /// Its address outside; of no meaning where it doesn't translate.
    pub(crate) public: IpAddr,
    /// For how long after the last packet out answers come in.
    pub(crate) lifetime: Duration,
    mappings: Vec<Mapping>,
}

impl Nat {
    pub(crate) fn new(kind: NatKind, public: IpAddr, lifetime: Duration) -> Self {
        Self { kind, public, lifetime, mappings: Vec::new() }
    }

    /// Loses its state, as a restart of a router does.
    pub(crate) fn flush(&mut self) {
        self.mappings.clear();
    }

    /// A packet goes out. Answers where it seems to come from, outside.
    pub(crate) fn outbound(
        &mut self,
        now: Instant,
        inside: SocketAddr,
        to: SocketAddr,
        rng: &mut StdRng,
    ) -> SocketAddr {
        if self.kind == NatKind::Open {
            return inside;
        }
        self.expire(now);
        let only = (self.kind == NatKind::RandomPorts).then_some(to);
        let known = self.mappings.iter().position(|mapping| mapping.inside == inside && mapping.only == only);
        let index = known.unwrap_or_else(|| {
            let port = self.new_port(inside, rng);
            self.mappings.push(Mapping { inside, only, port, sent_to: BTreeMap::new() });
            self.mappings.len() - 1
        });
        let mapping = &mut self.mappings[index];
        mapping.sent_to.insert(to, now);
        if self.kind.translates() { SocketAddr::new(self.public, mapping.port) } else { inside }
    }

    /// A packet comes from outside. Answers whom it is for, if it may come in.
    pub(crate) fn inbound(&mut self, now: Instant, from: SocketAddr, to: SocketAddr) -> Option<SocketAddr> {
        if self.kind == NatKind::Open {
            return Some(to);
        }
        self.expire(now);
        let is_for = |mapping: &&Mapping| match self.kind.translates() {
            true => to.ip() == self.public && mapping.port == to.port(),
            false => mapping.inside == to,
        };
        let mapping = self.mappings.iter().find(is_for)?;
        let may_answer = match self.kind {
            NatKind::Open | NatKind::AnyMayAnswer => true,
            NatKind::AddressMayAnswer => mapping.sent_to.keys().any(|sent_to| sent_to.ip() == from.ip()),
            NatKind::Firewall | NatKind::PortPreserving | NatKind::RandomPorts => mapping.sent_to.contains_key(&from),
        };
        may_answer.then_some(mapping.inside)
    }

    fn expire(&mut self, now: Instant) {
        let lifetime = self.lifetime;
        for mapping in &mut self.mappings {
            mapping.sent_to.retain(|_, sent| now.saturating_duration_since(*sent) < lifetime);
        }
        self.mappings.retain(|mapping| !mapping.sent_to.is_empty());
    }

    fn new_port(&self, inside: SocketAddr, rng: &mut StdRng) -> u16 {
        let is_free = |port: u16| self.mappings.iter().all(|mapping| mapping.port != port);
        if matches!(self.kind, NatKind::PortPreserving | NatKind::Firewall) && is_free(inside.port()) {
            return inside.port();
        }
        loop {
            let port = rng.random_range(1024..=u16::MAX);
            if is_free(port) {
                return port;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    /// The table of pairs, by datagrams instead of by rule: both know the other's address as a third party sees it, both send,
    /// and each answers where it was heard from.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "virtual time needs an origin")]
    fn pairs_go_direct_as_the_table_says() {
        use NatKind::{AddressMayAnswer, AnyMayAnswer, Firewall, Open, PortPreserving, RandomPorts};
        let kinds = [Open, Firewall, AnyMayAnswer, AddressMayAnswer, PortPreserving, RandomPorts];
        let (now, stun) = (Instant::now(), SocketAddr::from(([203, 0, 113, 1], 3478)));
        let mut rng = StdRng::seed_from_u64(1);
        for (one, other) in kinds.iter().flat_map(|one| kinds.iter().map(move |other| (*one, *other))) {
            let make = |kind: NatKind, number: u8| {
                let public = IpAddr::from([198, 18, 0, number]);
                let inside = if kind.translates() { [10, 0, number, 1].into() } else { public };
                (Nat::new(kind, public, Duration::from_secs(30)), SocketAddr::new(inside, 41641))
            };
            let mut ends = [make(one, 1), make(other, 2)];
            let seen = ends.each_mut().map(|(nat, inside)| nat.outbound(now, *inside, stun, &mut rng));
            let mut targets = [vec![seen[1]], vec![seen[0]]];
            let mut heard = [false, false];
            for round in 0..6 {
                let from = round % 2;
                for to in targets[from].clone() {
                    let (nat, inside) = &mut ends[from];
                    let outside = nat.outbound(now, *inside, to, &mut rng);
                    let (nat, inside) = &mut ends[1 - from];
                    if nat.inbound(now, outside, to) == Some(*inside) {
                        heard[1 - from] = true;
                        targets[1 - from].push(outside);
                    }
                }
            }
            assert_eq!(heard == [true, true], one.goes_direct_with(other), "{one:?} and {other:?}: {heard:?}");
        }
    }
}
