//! What the network lets through: names, UDP, relays, by way of which proxy.

use std::net::IpAddr;
use std::time::Duration;

use nixtail_proto::proxy::{Proxies, ProxyError};
use reqwest::Url;

use super::check::Check;
use crate::cli::relay_map;
use crate::local::Client;
use crate::net::http::find_proxy;
use crate::net::survey::{Surveyed, survey};
use crate::report::{Exit, Failure};

/// How long a name may take; the resolver itself may try for half a minute.
const LOOK_UP_DEADLINE: Duration = Duration::from_secs(5);
/// How long the look at relays may take: less than the doctor's whole time.
const SURVEY_DEADLINE: Duration = Duration::from_secs(11);

/// The proxy that leads to the login server, and its name's address.
pub(super) async fn way_to_control(login_server: &str, proxies: &Proxies) -> Vec<Check> {
    // What isn't a URL is told by who asks the server.
    let Ok(url) = login_server.parse::<Url>() else { return Vec::new() };
    let proxy = find_proxy(proxies, &url);
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let dns = match &proxy {
        Ok(None) => names(&host, url.port_or_known_default().unwrap_or_default()).await,
        Ok(Some(_)) => Check::ok("dns", "not needed for the login server: the proxy looks names up"),
        Err(_) => Check::ok("dns", "not looked at: the proxy can't be used"),
    };
    let proxy = match proxy {
        Ok(None) => Check::ok("proxy", "none leads to the login server"),
        Ok(Some(proxy)) => Check::ok("proxy", format!("{proxy} leads to the login server")),
        Err(error @ ProxyError { .. }) => Check::failed("proxy", &Failure::new(Exit::Configuration, error)),
    };
    vec![proxy, dns]
}

async fn names(host: &str, port: u16) -> Check {
    if host.parse::<IpAddr>().is_ok() {
        return Check::ok("dns", "not needed: the login server is an address");
    }
    let next = "check /etc/resolv.conf and the network; behind an HTTP proxy set HTTPS_PROXY";
    match tokio::time::timeout(LOOK_UP_DEADLINE, tokio::net::lookup_host((host, port))).await {
        Ok(Ok(addresses)) => Check::ok("dns", format!("{host} has {} addresses", addresses.count())),
        Ok(Err(error)) => Check::problem("dns", Exit::Unavailable, format!("{host} doesn't resolve: {error}"), next),
        Err(_) => {
            let found = format!("no answer about {host} within {} s", LOOK_UP_DEADLINE.as_secs());
            Check::problem("dns", Exit::Unavailable, found, next)
        }
    }
}

/// UDP and the relays.
pub(super) async fn relays(client: &Client, login_server: &str, proxies: &Proxies) -> Vec<Check> {
    let looked = tokio::time::timeout(SURVEY_DEADLINE, async {
        let map = relay_map::find(None, client, login_server, proxies).await?;
        Ok::<_, Failure>(survey(&map.regions, proxies).await)
    });
    match looked.await {
        Ok(Ok(surveyed)) => vec![udp(&surveyed), relay(&surveyed)],
        // Without an agent there may be no map, as with headscale: no fault of this machine's.
        Ok(Err(failure)) => vec![Check::failed("relay", &failure).softened()],
        Err(_) => vec![Check::problem(
            "relay",
            Exit::Unavailable,
            format!("the look at the relays took longer than {} s", SURVEY_DEADLINE.as_secs()),
            "`nixtail netcheck` takes the time it needs",
        )],
    }
}

fn udp(surveyed: &Surveyed) -> Check {
    let seen: Vec<_> = [surveyed.ipv4, surveyed.ipv6].into_iter().flatten().map(|seen| seen.to_string()).collect();
    match (surveyed.udp, surveyed.mapping_varies) {
        (true, Some(true)) => Check::warning(
            "udp",
            format!("works, as {}; the NAT gives each destination another address", seen.join(" and ")),
            "direct paths come about only to peers that anybody may reach, and with an opened port and --port; others go through a relay",
        ),
        (true, _) => Check::ok("udp", format!("works; others see this machine as {}", seen.join(" and "))),
        (false, _) => Check::warning(
            "udp",
            "no answer: peers are reached through relays only, which is slower",
            "let UDP out, if this network is yours",
        ),
    }
}

fn relay(surveyed: &Surveyed) -> Check {
    let reached = surveyed.regions.iter().filter(|region| region.relay_ms.is_some()).count();
    let unreached = surveyed.regions.iter().find_map(|region| Some((region, region.relay_error.as_deref()?)));
    let next = "let TCP 443 to the relays out; behind an HTTP proxy set HTTPS_PROXY; `nixtail netcheck` shows each";
    match (surveyed.nearest_region(), unreached) {
        (Some(nearest), _) if nearest.relay_ms.is_some() => {
            Check::ok("relay", format!("the nearest one is reached, DERP region {}", nearest.id))
        }
        (_, Some((region, error))) if reached > 0 => {
            Check::warning("relay", format!("DERP region {} isn't reached: {error}", region.id), next)
        }
        (_, Some((region, error))) => {
            let found = format!("none is reached; DERP region {}: {error}", region.id);
            Check::problem("relay", Exit::Unavailable, found, next)
        }
        (_, None) => Check::problem("relay", Exit::Unavailable, "none is reached", next),
    }
}
