//! `nixtail netcheck`: what the network lets through, and which relay is near.

use std::net::SocketAddr;

use nixtail_proto::proxy::Proxies;
use serde::Serialize;

use super::join::DEFAULT_LOGIN_SERVER;
use super::relay_map::{self, RelayMap};
use super::socket::SocketArgs;
use super::{print, print_json};
use crate::local::SCHEMA;
use crate::net::survey::{Silence, Surveyed, SurveyedRegion, survey};
use crate::report::table::{Column, Table};
use crate::report::terminal::Terminal;
use crate::report::words::round_trip;
use crate::report::{Exit, Failure};

/// Show what the network lets through: UDP, IPv4, IPv6, the kind of NAT, the relays and how far they are. Joins nothing.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Print JSON; its keys are stable under one `schema` number.
    #[arg(long)]
    json: bool,
    /// The DERP map to go by, in JSON [default: the running agent's, else the login server's for everybody].
    #[arg(long, value_name = "FILE|URL")]
    derp_map: Option<String>,
    /// The control server.
    #[arg(long, env = "TS_CONTROL_URL", value_name = "URL", default_value = DEFAULT_LOGIN_SERVER, value_parser = super::join::login_server)]
    login_server: String,
    #[command(flatten)]
    socket: SocketArgs,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Printed<'a> {
    schema: u32,
    /// Where the DERP map comes from.
    derp_map: &'a str,
    #[serde(flatten)]
    surveyed: &'a Surveyed,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let client = args.socket.client()?;
    let proxies = Proxies::read(|name| std::env::var(name).ok());
    let runtime = super::runtime()?;
    let looked = runtime.block_on(async {
        let map = relay_map::find(args.derp_map.as_deref(), &client, &args.login_server, &proxies).await?;
        let surveyed = survey(&map.regions, &proxies).await;
        Ok::<_, Failure>((map, surveyed))
    });
    // A name that doesn't resolve may be waited for still; nobody needs it.
    runtime.shutdown_background();
    let (RelayMap { source, .. }, surveyed) = looked?;
    if args.json {
        print_json(&Printed { schema: SCHEMA, derp_map: &source, surveyed: &surveyed })?;
    } else {
        for line in lines(&source, &surveyed, &Terminal::of(std::io::stdout())) {
            print(&line)?;
        }
    }
    if surveyed.is_usable() {
        return Ok(());
    }
    Err(Failure::new(Exit::Unavailable, "neither UDP nor any relay gets through from here: no peer can be reached")
        .next("let TCP 443 to the relays out, and UDP if possible; behind an HTTP proxy set HTTPS_PROXY"))
}

fn lines(source: &str, surveyed: &Surveyed, terminal: &Terminal) -> Vec<String> {
    let row = |name: &str, words: &str| format!("{name:<9}{words}");
    let family = |seen: Option<SocketAddr>, silence: Option<Silence>| match (seen, silence) {
        (Some(seen), _) => format!("works; others see this machine as {seen}"),
        (None, Some(Silence::Unasked)) => "not asked: no relay has such an address".to_owned(),
        (None, Some(Silence::NoAddress)) => "no: this machine has no such address".to_owned(),
        (None, _) => "no answer".to_owned(),
    };
    let nearest = surveyed.nearest_region().map_or_else(
        || "unknown: none answered".to_owned(),
        |region| {
            format!("{} ({})", title(region), region.udp_ms.or(region.relay_ms).map_or_else(String::new, round_trip))
        },
    );
    let mut lines = vec![
        row("UDP", if surveyed.udp { "works" } else { "no answer: peers are reached through relays only" }),
        row("IPv4", &family(surveyed.ipv4, surveyed.ipv4_silence)),
        row("IPv6", &family(surveyed.ipv6, surveyed.ipv6_silence)),
        row("NAT", nat(surveyed)),
        row("proxy", surveyed.proxy.as_deref().unwrap_or("none")),
        row("nearest", &nearest),
        row("by", &format!("the DERP map of {source}")),
        String::new(),
    ];
    lines.extend(table(surveyed).lines(terminal));
    lines
}

fn nat(surveyed: &Surveyed) -> &'static str {
    match surveyed.mapping_varies {
        Some(true) => "another port for each destination: direct only to peers that anybody may reach",
        Some(false) => "none, or the same address for every destination: direct paths come about",
        None if surveyed.ipv4.is_some() => "unknown: it takes answers from two servers",
        None => "unknown",
    }
}

fn table(surveyed: &Surveyed) -> Table {
    let mut table = Table::new([
        Column::number("REGION", 1),
        Column::text("CODE", 0),
        Column::text("NAME", 2),
        Column::number("UDP", 0),
        Column::text("RELAY", 0),
    ]);
    // The nearest first, then those that only a relay leads to.
    let mut regions: Vec<_> = surveyed.regions.iter().collect();
    let order = |time: Option<f64>| time.unwrap_or(f64::INFINITY);
    regions.sort_by(|a, b| {
        order(a.udp_ms).total_cmp(&order(b.udp_ms)).then(order(a.relay_ms).total_cmp(&order(b.relay_ms)))
    });
    for region in regions {
        let udp = region.udp_ms.map_or_else(|| "-".to_owned(), round_trip);
        let relay = match (region.relay_ms, &region.relay_error) {
            (Some(time), _) => format!("reached, {}", round_trip(time)),
            (None, Some(_)) => "not reached".to_owned(),
            (None, None) => "not tried".to_owned(),
        };
        table.row([
            region.id.to_string().into(),
            region.code.as_str().into(),
            region.name.as_str().into(),
            udp.into(),
            relay.into(),
        ]);
        if let Some(error) = &region.relay_error {
            table.note(error.as_str());
        }
    }
    table
}

/// What a region is called, whatever its map says of it.
fn title(region: &SurveyedRegion) -> String {
    let words = [&region.name, &region.code].into_iter().find(|name| !name.is_empty());
    words.map_or_else(|| format!("region {}", region.id), |name| format!("{name}, region {}", region.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(id: u16, udp_ms: Option<f64>, relay: Option<Result<f64, &str>>) -> SurveyedRegion {
        let (relay_ms, relay_error) = match relay {
            Some(Ok(time)) => (Some(time), None),
            Some(Err(error)) => (None, Some(error.to_owned())),
            None => (None, None),
        };
        SurveyedRegion { id, code: format!("r{id}"), name: String::new(), udp_ms, relay_ms, relay_error }
    }

    #[test]
    fn the_nearest_is_first_and_what_is_wrong_stands_below_its_region() {
        let surveyed = Surveyed {
            udp: true,
            ipv4: Some("192.0.2.1:7".parse().unwrap()),
            ipv4_silence: None,
            ipv6: None,
            ipv6_silence: Some(Silence::NoAddress),
            mapping_varies: Some(false),
            nearest: Some(2),
            proxy: None,
            regions: vec![
                region(1, None, Some(Err("no way"))),
                region(2, Some(8.0), Some(Ok(9.0))),
                region(3, Some(80.0), None),
                region(4, None, Some(Ok(20.0))),
            ],
        };
        let lines = lines("a test", &surveyed, &Terminal::NONE);
        assert!(lines.contains(&"IPv4     works; others see this machine as 192.0.2.1:7".to_owned()), "{lines:?}");
        assert!(lines.contains(&"IPv6     no: this machine has no such address".to_owned()), "{lines:?}");
        assert!(lines.contains(&"nearest  r2, region 2 (8.0 ms)".to_owned()), "{lines:?}");
        let codes: Vec<_> = lines[9..].iter().filter_map(|line| line.split_whitespace().nth(1)).collect();
        assert_eq!(codes, ["r2", "r3", "r4", "r1", "way"], "{lines:?}");
    }

    #[test]
    fn a_relay_alone_is_enough_to_reach_peers() {
        let mut surveyed = Surveyed {
            udp: false,
            ipv4: None,
            ipv4_silence: Some(Silence::NoAnswer),
            ipv6: None,
            ipv6_silence: Some(Silence::Unasked),
            mapping_varies: None,
            nearest: None,
            proxy: None,
            regions: vec![region(1, None, Some(Err("no way")))],
        };
        assert!(!surveyed.is_usable());
        surveyed.regions.push(region(2, None, Some(Ok(9.0))));
        assert!(surveyed.is_usable());
    }
}
