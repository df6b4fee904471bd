//! Control's filter rules, made ready for matching (tailscale/tailscale `wgengine/filter/tailcfg.go` and `match.go`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use thiserror::Error;

use crate::packet::protocol;
use crate::tailcfg::{FilterRule, PortRange};

/// What a rule without protocols is about.
const DEFAULT_PROTOCOLS: [u8; 4] = [protocol::TCP, protocol::UDP, protocol::ICMP_V4, protocol::ICMP_V6];
/// As much of a rule's text as an error repeats.
const SHOWN: usize = 100;

/// What is wrong with a rule: control's fault. What it was about stays forbidden.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RuleError {
    /// Prefix lengths beside the addresses, as in 2020.
    #[error("a filter rule in a form that is no longer used (SrcBits or Bits)")]
    Relic,
    /// Not an address, network, range or `*`.
    #[error("{0:?} in a filter rule is no address")]
    Address(String),
    /// A network with host bits, or a range that runs backwards.
    #[error("{0:?} in a filter rule is no network or range")]
    Range(String),
    /// A capability where only addresses may stand.
    #[error("a capability as a filter rule's destination")]
    CapabilityDestination,
}

/// Who may send what to which of our addresses and ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    protocols: Vec<u8>,
    sources: AddressSet,
    source_capabilities: Vec<String>,
    destinations: Vec<(AddressRange, PortRange)>,
}

/// Makes rules ready for matching. What can't be read is left out, which allows less, and comes back as an error.
pub fn compile(rules: &[FilterRule]) -> (Vec<Rule>, Vec<RuleError>) {
    let mut errors = Vec::new();
    let compiled = rules.iter().filter_map(|rule| compile_one(rule, &mut errors)).collect();
    (compiled, errors)
}

fn compile_one(rule: &FilterRule, errors: &mut Vec<RuleError>) -> Option<Rule> {
    if !rule.src_bits.is_empty() || rule.dst_ports.iter().any(|range| range.bits.is_some()) {
        errors.push(RuleError::Relic);
        return None;
    }
    let protocols = if rule.ip_proto.is_empty() {
        DEFAULT_PROTOCOLS.to_vec()
    } else {
        rule.ip_proto.iter().filter_map(|number| u8::try_from(*number).ok()).collect()
    };
    let mut sources = Vec::new();
    let mut source_capabilities = Vec::new();
    for text in &rule.src_ips {
        match text.strip_prefix("cap:") {
            Some(capability) => source_capabilities.push(capability.to_owned()),
            None => match parse_ranges(text) {
                Ok(ranges) => sources.extend(ranges),
                Err(error) => errors.push(error),
            },
        }
    }
    let mut destinations = Vec::new();
    for destination in &rule.dst_ports {
        if destination.ip.starts_with("cap:") {
            errors.push(RuleError::CapabilityDestination);
            continue;
        }
        match parse_ranges(&destination.ip) {
            Ok(ranges) => destinations.extend(ranges.into_iter().map(|range| (range, destination.ports))),
            Err(error) => errors.push(error),
        }
    }
    // A rule that only grants application capabilities lets no packet through.
    if destinations.is_empty() || (sources.is_empty() && source_capabilities.is_empty()) {
        return None;
    }
    Some(Rule { protocols, sources: AddressSet::new(sources), source_capabilities, destinations })
}

impl Rule {
    /// Whether it allows a packet to a port.
    pub(super) fn allows(
        &self,
        number: u8,
        from: IpAddr,
        to: IpAddr,
        port: u16,
        has_capability: impl Fn(&str) -> bool,
    ) -> bool {
        self.protocols.contains(&number)
            && self
                .destinations
                .iter()
                .any(|(range, ports)| range.contains(to) && (ports.first..=ports.last).contains(&port))
            && self.is_from(from, has_capability)
    }

    /// Whether it lets `from` begin a TCP connection to this address and port of ours. For who has a rule at hand and no
    /// packet: what a connection that was let in would meet today.
    #[must_use]
    pub fn allows_connection(
        &self,
        from: IpAddr,
        to: IpAddr,
        port: u16,
        has_capability: impl Fn(&str) -> bool,
    ) -> bool {
        self.allows(protocol::TCP, from, to, port, has_capability)
    }

    /// Whether it allows anything at all between the two.
    pub(super) fn connects(&self, from: IpAddr, to: IpAddr, has_capability: impl Fn(&str) -> bool) -> bool {
        self.destinations.iter().any(|(range, _)| range.contains(to)) && self.is_from(from, has_capability)
    }

    /// Whether it allows a protocol of which we know no ports: only if all are open.
    pub(super) fn allows_portless(&self, number: u8, from: IpAddr, to: IpAddr) -> bool {
        let all = PortRange { first: 0, last: u16::MAX };
        self.protocols.contains(&number)
            && self.sources.contains(from)
            && self.destinations.iter().any(|(range, ports)| *ports == all && range.contains(to))
    }

    fn is_from(&self, from: IpAddr, has_capability: impl Fn(&str) -> bool) -> bool {
        self.sources.contains(from) || self.source_capabilities.iter().any(|capability| has_capability(capability))
    }
}

/// Addresses of one family from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AddressRange {
    pub(super) first: IpAddr,
    pub(super) last: IpAddr,
}

impl AddressRange {
    fn contains(&self, address: IpAddr) -> bool {
        // All IPv4 addresses order before all IPv6 ones, and both ends are of one family.
        self.first <= address && address <= self.last
    }
}

/// Ranges in order, none overlapping the next: a search takes logarithmic time, since a rule may name thousands.
#[derive(Debug, Clone, PartialEq, Eq)]
struct AddressSet(Vec<AddressRange>);

impl AddressSet {
    fn new(mut ranges: Vec<AddressRange>) -> Self {
        ranges.sort_unstable();
        ranges.dedup_by(|next, kept| {
            let overlaps = next.first <= kept.last;
            if overlaps {
                kept.last = kept.last.max(next.last);
            }
            overlaps
        });
        Self(ranges)
    }

    fn contains(&self, address: IpAddr) -> bool {
        let after = self.0.partition_point(|range| range.first <= address);
        let before = after.checked_sub(1).and_then(|at| self.0.get(at));
        before.is_some_and(|range| range.contains(address))
    }
}

/// Reads an address, a network, a range `a-b`, or `*`.
pub(super) fn parse_ranges(text: &str) -> Result<Vec<AddressRange>, RuleError> {
    let shown = || text.chars().filter(|c| !c.is_control()).take(SHOWN).collect::<String>();
    let address = |text: &str| text.parse::<IpAddr>().map_err(|_| RuleError::Address(shown()));
    if text == "*" {
        return Ok(vec![
            AddressRange { first: Ipv4Addr::UNSPECIFIED.into(), last: Ipv4Addr::BROADCAST.into() },
            AddressRange { first: Ipv6Addr::UNSPECIFIED.into(), last: Ipv6Addr::from(u128::MAX).into() },
        ]);
    }
    if text.contains('/') {
        let network: IpNet = text.parse().map_err(|_| RuleError::Address(shown()))?;
        if network.trunc() != network {
            return Err(RuleError::Range(shown()));
        }
        return Ok(vec![AddressRange { first: network.network(), last: network.broadcast() }]);
    }
    if let Some((first, last)) = text.split_once('-') {
        let (first, last) = (address(first)?, address(last)?);
        if first.is_ipv4() != last.is_ipv4() || first > last {
            return Err(RuleError::Range(shown()));
        }
        return Ok(vec![AddressRange { first, last }]);
    }
    let one = address(text)?;
    Ok(vec![AddressRange { first: one, last: one }])
}
