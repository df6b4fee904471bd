//! Who is measured, on which links, and what: all that a run does, as data.

use std::time::Duration;

use serde::Serialize;

use crate::link::Conditions;

/// Two ends, the first of which dials and sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Peer {
    Nixtail,
    Tsnet,
    Userspace,
    Tun,
    Wireguard,
    OpenSsh,
    Kernel,
    NixtailToTun,
    TsnetToTun,
    TunToNixtail,
    TunToTsnet,
    BareDerp,
}

/// What stands at one end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Node {
    Nixtail,
    Tsnet,
    Userspace,
    Tun,
    Wireguard,
    OpenSsh,
    Kernel,
    BareDerp,
}

impl Peer {
    pub(super) const ALL: [Self; 12] = [
        Self::Nixtail,
        Self::Tsnet,
        Self::Userspace,
        Self::Tun,
        Self::Wireguard,
        Self::OpenSsh,
        Self::Kernel,
        Self::NixtailToTun,
        Self::TsnetToTun,
        Self::TunToNixtail,
        Self::TunToTsnet,
        Self::BareDerp,
    ];

    /// As the JSON and `--only` have it.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Nixtail => "nixtail",
            Self::Tsnet => "tsnet",
            Self::Userspace => "userspace",
            Self::Tun => "tun",
            Self::Wireguard => "wireguard",
            Self::OpenSsh => "open-ssh",
            Self::Kernel => "kernel",
            Self::NixtailToTun => "nixtail-to-tun",
            Self::TsnetToTun => "tsnet-to-tun",
            Self::TunToNixtail => "tun-to-nixtail",
            Self::TunToTsnet => "tun-to-tsnet",
            Self::BareDerp => "bare-derp",
        }
    }

    /// As people have it.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Nixtail => "nixtail",
            Self::Tsnet => "tsnet",
            Self::Userspace => "tailscaled, userspace",
            Self::Tun => "tailscaled, TUN",
            Self::Wireguard => "wireguard-go, TUN",
            Self::OpenSsh => "OpenSSH, kernel TCP",
            Self::Kernel => "kernel TCP, no tunnel",
            Self::NixtailToTun => "nixtail → tailscaled, TUN",
            Self::TsnetToTun => "tsnet → tailscaled, TUN",
            Self::TunToNixtail => "tailscaled, TUN → nixtail",
            Self::TunToTsnet => "tailscaled, TUN → tsnet",
            Self::BareDerp => "bare DERP clients",
        }
    }

    /// The end that dials, and the other one.
    pub(super) fn nodes(self) -> [Node; 2] {
        match self {
            Self::Nixtail => [Node::Nixtail; 2],
            Self::Tsnet => [Node::Tsnet; 2],
            Self::Userspace => [Node::Userspace; 2],
            Self::Tun => [Node::Tun; 2],
            Self::Wireguard => [Node::Wireguard; 2],
            Self::OpenSsh => [Node::OpenSsh; 2],
            Self::Kernel => [Node::Kernel; 2],
            Self::NixtailToTun => [Node::Nixtail, Node::Tun],
            Self::TsnetToTun => [Node::Tsnet, Node::Tun],
            Self::TunToNixtail => [Node::Tun, Node::Nixtail],
            Self::TunToTsnet => [Node::Tun, Node::Tsnet],
            Self::BareDerp => [Node::BareDerp; 2],
        }
    }
}

/// A figure of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Quantity {
    One,
    Eight,
    Both,
    SenderCpu,
    ReceiverCpu,
    SendingMemory,
    RestingMemory,
    IdleP50,
    IdleP99,
    LoadedP50,
    LoadedP99,
    Requests,
    Pipelined,
    Connect,
}

impl Quantity {
    /// Groups that make a table each.
    pub(super) const GROUPS: [(&'static str, &'static [Self]); 3] = [
        ("TCP streams, Mbit/s that arrive", &[Self::One, Self::Eight, Self::Both]),
        (
            "Cost of one stream: processor seconds for 10⁹ bytes, MiB of memory (the larger side's)",
            &[Self::SenderCpu, Self::ReceiverCpu, Self::SendingMemory, Self::RestingMemory],
        ),
        (
            "Requests of 64 bytes and their answers: milliseconds, and how many in a second",
            &[
                Self::IdleP50,
                Self::IdleP99,
                Self::LoadedP50,
                Self::LoadedP99,
                Self::Requests,
                Self::Pipelined,
                Self::Connect,
            ],
        ),
    ];

    /// As people have it.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::One => "one stream",
            Self::Eight => "eight streams",
            Self::Both => "one each way at once",
            Self::SenderCpu => "sender's s/GB",
            Self::ReceiverCpu => "receiver's s/GB",
            Self::SendingMemory => "memory while sending",
            Self::RestingMemory => "memory 3 s after",
            Self::IdleP50 => "idle, p50 ms",
            Self::IdleP99 => "idle, p99 ms",
            Self::LoadedP50 => "under load, p50 ms",
            Self::LoadedP99 => "under load, p99 ms",
            Self::Requests => "one at a time, 1/s",
            Self::Pipelined => "64 at a time, 1/s",
            Self::Connect => "dial to first byte, ms",
        }
    }

    /// Whether more of it is better.
    pub(super) fn more_is_better(self) -> bool {
        matches!(self, Self::One | Self::Eight | Self::Both | Self::Requests | Self::Pipelined)
    }
}

/// What is done with a pair at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Measure {
    /// So many streams one way.
    Streams(usize),
    /// One stream each way.
    Both,
    /// Requests with pauses, alone.
    Idle,
    /// Requests with pauses, beside a stream.
    Loaded,
    /// Requests without pauses, so many under way.
    Requests(usize),
    /// Dials.
    Connect,
    /// Nothing, for three seconds, and then a look at the memory of all.
    Rest,
}

impl Measure {
    /// As `--only` and the progress have it.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Streams(1) => "one",
            Self::Streams(_) => "eight",
            Self::Both => "both",
            Self::Idle => "idle",
            Self::Loaded => "loaded",
            Self::Requests(1) => "requests",
            Self::Requests(_) => "pipelined",
            Self::Connect => "connect",
            Self::Rest => "rest",
        }
    }
}

/// A link, and what is measured on it.
#[derive(Debug, Clone, Copy)]
pub(super) struct LinkPlan {
    pub(super) key: &'static str,
    pub(super) title: &'static str,
    /// `None` is the kernel's own pair of devices, or its loopback.
    pub(super) conditions: Option<Conditions>,
    /// Whether nodes meet through a relay alone.
    pub(super) relayed: bool,
    /// What goes by before a stream is measured: slow start, paths that are found.
    pub(super) warm_up: Duration,
    /// How long a stream is measured.
    pub(super) length: Duration,
    pub(super) rows: &'static [(Measure, &'static [Peer])],
}

pub(super) const CLEAN: &str = "clean";
pub(super) const FAR: &str = "20ms";
pub(super) const LATE: &str = "66ms-late";
pub(super) const LOSSY: &str = "20ms-lossy";
pub(super) const GIGABIT: &str = "gigabit";
pub(super) const DERP: &str = "derp";
pub(super) const LOOPBACK: &str = "loopback";

/// Requests that are under way at a time where they are many.
pub(super) const DEPTH: usize = 64;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// The links of a run in namespaces, in its order.
pub(super) const LINKS: [LinkPlan; 6] = [
    LinkPlan {
        key: CLEAN,
        title: "clean link (veth)",
        conditions: None,
        relayed: false,
        warm_up: ms(300),
        length: ms(2_000),
        rows: &[
            (
                Measure::Streams(1),
                &[
                    Peer::Nixtail,
                    Peer::Tsnet,
                    Peer::Userspace,
                    Peer::Tun,
                    Peer::Wireguard,
                    Peer::OpenSsh,
                    Peer::Kernel,
                    Peer::NixtailToTun,
                    Peer::TsnetToTun,
                    Peer::TunToNixtail,
                    Peer::TunToTsnet,
                ],
            ),
            (
                Measure::Streams(8),
                &[Peer::Nixtail, Peer::Tsnet, Peer::Userspace, Peer::Tun, Peer::Wireguard, Peer::Kernel],
            ),
            (Measure::Both, &[Peer::Nixtail, Peer::Tsnet, Peer::Tun]),
            (Measure::Loaded, &[Peer::Nixtail, Peer::Tsnet, Peer::Userspace, Peer::Tun, Peer::Wireguard, Peer::Kernel]),
            (Measure::Idle, &[Peer::Nixtail, Peer::Tsnet, Peer::Tun, Peer::Kernel]),
            (Measure::Requests(1), &[Peer::Nixtail, Peer::Tsnet, Peer::Tun, Peer::Kernel]),
            (Measure::Requests(DEPTH), &[Peer::Nixtail, Peer::Tsnet, Peer::Tun, Peer::Kernel]),
            (Measure::Connect, &[Peer::Nixtail, Peer::Tsnet, Peer::Userspace, Peer::Tun, Peer::OpenSsh, Peer::Kernel]),
            (Measure::Rest, &[Peer::Nixtail, Peer::Tsnet, Peer::Userspace, Peer::Tun, Peer::Wireguard]),
        ],
    },
    LinkPlan {
        key: FAR,
        title: "20 ms, 1 Gbit/s",
        conditions: Some(Conditions { delay: ms(10), ..Conditions::GIGABIT }),
        relayed: false,
        warm_up: ms(1_000),
        length: ms(3_000),
        rows: &[
            (Measure::Streams(1), &[Peer::Nixtail, Peer::Tsnet, Peer::Tun, Peer::Kernel]),
            (Measure::Streams(8), &[Peer::Nixtail, Peer::Tsnet, Peer::Tun]),
        ],
    },
    LinkPlan {
        key: LATE,
        title: "66 ms, 1 Gbit/s, 0.1 % of packets 2 ms late, 0.003 % lost",
        conditions: Some(Conditions {
            delay: ms(33),
            loss: 0.000_03,
            late: 0.001,
            late_by: ms(2),
            ..Conditions::GIGABIT
        }),
        relayed: false,
        warm_up: ms(1_000),
        length: ms(4_000),
        rows: &[(
            Measure::Streams(1),
            &[Peer::Nixtail, Peer::Tsnet, Peer::Tun, Peer::Wireguard, Peer::OpenSsh, Peer::Kernel],
        )],
    },
    LinkPlan {
        key: LOSSY,
        title: "20 ms, 1 Gbit/s, 0.1 % of packets lost",
        conditions: Some(Conditions { delay: ms(10), loss: 0.001, ..Conditions::GIGABIT }),
        relayed: false,
        warm_up: ms(1_000),
        length: ms(4_000),
        rows: &[(Measure::Streams(1), &[Peer::Nixtail, Peer::Tsnet, Peer::Tun, Peer::Kernel])],
    },
    LinkPlan {
        key: GIGABIT,
        title: "1 Gbit/s",
        conditions: Some(Conditions::GIGABIT),
        relayed: false,
        warm_up: ms(500),
        length: ms(2_000),
        rows: &[(Measure::Streams(1), &[Peer::Nixtail, Peer::Tsnet, Peer::Tun, Peer::Kernel])],
    },
    LinkPlan {
        key: DERP,
        title: "through a relay (Tailscale's derper) alone",
        conditions: None,
        relayed: true,
        warm_up: ms(500),
        length: ms(3_000),
        rows: &[(Measure::Streams(1), &[Peer::Nixtail, Peer::Tsnet, Peer::Tun, Peer::BareDerp])],
    },
];

/// Nobody there who needs a device.
const ON_LOOPBACK: &[Peer] = &[Peer::Nixtail, Peer::Tsnet, Peer::Userspace, Peer::Kernel];

/// What can be measured without root.
pub(super) const WITHOUT_ROOT: LinkPlan = LinkPlan {
    key: LOOPBACK,
    title: "this machine's loopback",
    conditions: None,
    relayed: false,
    warm_up: ms(300),
    length: ms(2_000),
    rows: &[
        (Measure::Streams(1), ON_LOOPBACK),
        (Measure::Streams(8), ON_LOOPBACK),
        (Measure::Both, ON_LOOPBACK),
        (Measure::Loaded, ON_LOOPBACK),
        (Measure::Idle, ON_LOOPBACK),
        (Measure::Requests(1), ON_LOOPBACK),
        (Measure::Requests(DEPTH), ON_LOOPBACK),
        (Measure::Connect, ON_LOOPBACK),
        (Measure::Rest, &[Peer::Nixtail, Peer::Tsnet, Peer::Userspace]),
    ],
};

/// The order in which `count` peers are measured in a round: it turns, and turns round, so that neither a busy moment of this
/// machine nor what the one before left running hits always the same.
pub(super) fn order(count: usize, round: u8) -> impl Iterator<Item = usize> {
    (0..count).map(move |turn| {
        let turn = if round.is_multiple_of(2) { turn } else { count - 1 - turn };
        (turn + usize::from(round / 2)) % count
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn everybody_has_a_turn_and_nobody_always_the_first() {
        for count in 1..12 {
            let rounds = u8::try_from(2 * count).unwrap();
            let mut first = BTreeSet::new();
            for round in 0..rounds {
                let order: Vec<usize> = order(count, round).collect();
                assert_eq!(order.iter().copied().collect::<BTreeSet<_>>().len(), count);
                first.extend(order.first().copied());
            }
            assert_eq!(first.len(), count, "of {count}");
        }
    }

    #[test]
    fn keys_tell_all_apart() {
        let peers: BTreeSet<&str> = Peer::ALL.iter().map(|peer| peer.key()).collect();
        assert_eq!(peers.len(), Peer::ALL.len());
        for link in LINKS.iter().chain([&WITHOUT_ROOT]) {
            let rows: BTreeSet<&str> = link.rows.iter().map(|(measure, _)| measure.key()).collect();
            assert_eq!(rows.len(), link.rows.len(), "{}", link.key);
        }
    }

    #[test]
    fn a_run_of_five_rounds_takes_less_than_twenty_minutes() {
        // What comes on top of it for each, at the most: ends that open and close, a link that empties.
        let (joining, settling) = (15.0, 0.35);
        let mut seconds = 0.0;
        for link in &LINKS {
            seconds += joining;
            for (measure, peers) in link.rows {
                let each = match measure {
                    Measure::Streams(_) | Measure::Both | Measure::Loaded => link.warm_up + link.length,
                    Measure::Idle | Measure::Requests(_) => link.length / 2,
                    Measure::Connect => ms(200),
                    Measure::Rest => continue,
                };
                seconds += 5.0 * peers.len() as f64 * (each.as_secs_f64() + settling);
            }
            seconds += if link.key == CLEAN { 5.0 * 3.0 } else { 0.0 };
        }
        assert!(seconds < 1_140.0, "{seconds} s");
    }
}
