//! A history: a network, who talks, and what happens to them. Made by proptest, kept as text.

use std::fmt;
use std::time::Duration;

use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use crate::nat::NatKind;

/// All of it. Whom a number means that is too large, is found by its remainder, so that each history makes sense.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct History {
    /// Of what isn't said here: jitter, ports, keys.
    pub(crate) seed: u64,
    /// Relays.
    pub(crate) regions: u16,
    /// Whether all sites have the same private network, as homes have.
    pub(crate) same_lan: bool,
    pub(crate) sites: Vec<SitePlan>,
    pub(crate) talks: Vec<Talk>,
    /// What happens, and how many milliseconds pass then.
    pub(crate) changes: Vec<(Change, u32)>,
}

/// How a site is at the beginning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SitePlan {
    pub(crate) hosts: u8,
    pub(crate) nat: NatKind,
    pub(crate) lifetime_s: u8,
    /// IPv6, and what guards it.
    pub(crate) v6: Option<NatKind>,
    pub(crate) udp: bool,
    pub(crate) weather: Weather,
    /// Milliseconds to each relay, beside all else.
    pub(crate) far: [u8; 3],
}

/// What the link between a site and the internet is like.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Weather {
    pub(crate) delay_ms: u8,
    pub(crate) jitter_ms: u8,
    pub(crate) lost_ppm: u32,
    pub(crate) burst_ms: u8,
    pub(crate) late_ppm: u32,
    pub(crate) twice_ppm: u32,
}

/// Two hosts of which the first one talks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Talk {
    pub(crate) from: u8,
    pub(crate) to: u8,
    pub(crate) begins_ms: u32,
    pub(crate) every_ms: u32,
    pub(crate) bytes: u32,
}

/// Something that happens. What lasts, lasts for so many seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) enum Change {
    /// Nothing at all.
    Calm,
    /// A NAT or firewall loses its state.
    Flush { site: u8 },
    /// A site gets another public address, or its hosts others where they have their own.
    Move { site: u8 },
    /// No UDP gets through to a site.
    Block { site: u8, for_s: u16 },
    /// A site is cut off.
    Cut { site: u8, for_s: u16 },
    /// No datagram gets from one site to another.
    Sever { site: u8, other: u8, for_s: u16 },
    /// The link of a site becomes another.
    Weather { site: u8, weather: Weather },
    /// A relay is farther or nearer from a site than before.
    Distance { site: u8, region: u16, ms: u8 },
    /// A relay is down.
    RelayDown { region: u16, politely: bool, for_s: u16 },
    /// Control is down.
    ControlDown { for_s: u16 },
    /// A process ends and begins again, with its key or a new one.
    Restart { host: u8, new_key: bool },
    /// A process is stopped.
    Freeze { host: u8, for_s: u16 },
    /// Nobody talks in a conversation.
    Pause { talk: u8, for_s: u16 },
}

impl History {
    pub(crate) fn hosts(&self) -> usize {
        self.sites.iter().map(|site| usize::from(site.hosts)).sum()
    }
}

impl fmt::Debug for History {
    /// As it is kept.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

impl Weather {
    pub(crate) fn link(&self) -> crate::link::Link {
        crate::link::Link {
            delay: Duration::from_millis(self.delay_ms.into()),
            jitter: Duration::from_millis(self.jitter_ms.into()),
            lost_ppm: self.lost_ppm,
            burst: Duration::from_millis(self.burst_ms.into()),
            late_ppm: self.late_ppm,
            twice_ppm: self.twice_ppm,
            dead_until: None,
        }
    }
}

/// Histories of all sizes, small ones mostly.
pub(crate) fn any_history() -> impl Strategy<Value = History> {
    let few = || prop_oneof![5 => Just(1_u8), 1 => Just(2_u8)];
    let sites = prop_oneof![
        24 => prop::collection::vec(site(few()), 2..4),
        8 => prop::collection::vec(site(few()), 3..9),
        1 => prop::collection::vec(site(1_u8..4), 9..27),
    ];
    let talks = prop::collection::vec(talk(), 1..6);
    let changes = prop::collection::vec((change(), wait()), 0..7);
    (any::<u64>(), 1_u16..4, any::<bool>(), sites, talks, changes).prop_map(
        |(seed, regions, same_lan, mut sites, talks, changes)| {
            // 40 hosts at most, one at each site at least.
            let mut spare = 40 - u8::try_from(sites.len()).unwrap_or(40);
            for site in &mut sites {
                site.hosts = site.hosts.min(spare + 1);
                spare -= site.hosts - 1;
            }
            History { seed, regions, same_lan, sites, talks, changes }
        },
    )
}

fn site(hosts: impl Strategy<Value = u8>) -> impl Strategy<Value = SitePlan> {
    use NatKind::{AddressMayAnswer, AnyMayAnswer, Firewall, Open, PortPreserving, RandomPorts};
    let nat = prop_oneof![
        2 => Just(Open),
        1 => Just(Firewall),
        1 => Just(AnyMayAnswer),
        1 => Just(AddressMayAnswer),
        2 => Just(PortPreserving),
        2 => Just(RandomPorts),
    ];
    let v6 = prop_oneof![4 => Just(None), 1 => Just(Some(Firewall)), 1 => Just(Some(Open))];
    let udp = prop_oneof![1 => Just(false), 9 => Just(true)];
    (hosts, nat, 30_u8..121, v6, udp, weather(), any::<[u8; 3]>()).prop_map(
        |(hosts, nat, lifetime_s, v6, udp, weather, far)| SitePlan {
            hosts,
            nat,
            lifetime_s,
            v6,
            udp,
            weather,
            far: far.map(|ms| ms / 4),
        },
    )
}

fn weather() -> impl Strategy<Value = Weather> {
    let fine = (0_u8..60, 0_u8..8, Just(0_u32), Just(0_u8), Just(0_u32), Just(0_u32));
    let bad = (0_u8..100, 0_u8..20, 0_u32..40_000, 0_u8..200, 0_u32..50_000, 0_u32..30_000);
    let parts = |(delay_ms, jitter_ms, lost_ppm, burst_ms, late_ppm, twice_ppm)| Weather {
        delay_ms,
        jitter_ms,
        lost_ppm,
        burst_ms,
        late_ppm,
        twice_ppm,
    };
    prop_oneof![2 => fine.prop_map(parts), 1 => bad.prop_map(parts)]
}

fn talk() -> impl Strategy<Value = Talk> {
    // Short messages often, or long ones seldom: packets are what a history costs.
    let message = prop_oneof![
        6 => (500_u32..3000, 1_u32..3000),
        1 => (2000_u32..3000, 3000_u32..60_000),
        2 => (3000_u32..40_000, 1_u32..6000),
    ];
    let begins_ms = prop_oneof![1 => Just(0_u32), 1 => 0_u32..1000, 2 => 1000_u32..60_000];
    (any::<u8>(), any::<u8>(), begins_ms, message).prop_map(|(from, to, begins_ms, (every_ms, bytes))| Talk {
        from,
        to,
        begins_ms,
        every_ms,
        bytes,
    })
}

fn wait() -> impl Strategy<Value = u32> {
    prop_oneof![1 => Just(0_u32), 2 => 0_u32..5000, 3 => 5000_u32..60_000, 1 => 60_000_u32..200_000]
}

fn change() -> impl Strategy<Value = Change> {
    let for_s = || prop_oneof![3 => 1_u16..20, 2 => 20_u16..120];
    prop_oneof![
        1 => Just(Change::Calm),
        2 => any::<u8>().prop_map(|site| Change::Flush { site }),
        2 => any::<u8>().prop_map(|site| Change::Move { site }),
        2 => (any::<u8>(), for_s()).prop_map(|(site, for_s)| Change::Block { site, for_s }),
        2 => (any::<u8>(), for_s()).prop_map(|(site, for_s)| Change::Cut { site, for_s }),
        2 => (any::<u8>(), any::<u8>(), for_s()).prop_map(|(site, other, for_s)| Change::Sever { site, other, for_s }),
        2 => (any::<u8>(), weather()).prop_map(|(site, weather)| Change::Weather { site, weather }),
        2 => (any::<u8>(), 0_u16..3, 0_u8..100)
            .prop_map(|(site, region, ms)| Change::Distance { site, region, ms }),
        2 => (0_u16..3, any::<bool>(), for_s())
            .prop_map(|(region, politely, for_s)| Change::RelayDown { region, politely, for_s }),
        1 => for_s().prop_map(|for_s| Change::ControlDown { for_s }),
        3 => (any::<u8>(), any::<bool>()).prop_map(|(host, new_key)| Change::Restart { host, new_key }),
        1 => (any::<u8>(), 1_u16..40).prop_map(|(host, for_s)| Change::Freeze { host, for_s }),
        2 => (any::<u8>(), 10_u16..120).prop_map(|(talk, for_s)| Change::Pause { talk, for_s }),
    ]
}
