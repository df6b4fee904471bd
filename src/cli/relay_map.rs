//! Which DERP map a look at the network goes by.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::time::Duration;

use nixtail_proto::netmap::DerpRegions;
use nixtail_proto::proxy::Proxies;
use nixtail_proto::tailcfg::DerpMap;
use reqwest::Url;

use crate::local::Client;
use crate::net::http::{HttpClient, Limits, Redirects};
use crate::report::{Exit, Failure, plain};

/// The agent answers from memory.
const AGENT_DEADLINE: Duration = Duration::from_secs(5);
/// Where Tailscale's control server has its own relays for everybody; headscale has nothing there.
const PUBLIC_PATH: &str = "/derpmap/default";
/// How long a map may take to come, and how long it may be, as in Go.
const LIMITS: Limits = Limits { deadline: Duration::from_secs(8), body: 1 << 20 };
/// Redirects followed on the way to it.
const MAX_REDIRECTS: usize = 3;
/// What to do where there is no map.
const NEXT: &str = "start an agent, whose map is taken then, or name a map in JSON with --derp-map FILE or URL";

/// A DERP map.
pub(super) struct RelayMap {
    pub(super) regions: DerpRegions,
    /// Where it comes from, for people.
    pub(super) source: String,
}

/// The map that was asked for, else the running agent's, else the one that the login server has for everybody.
pub(super) async fn find(
    asked: Option<&str>,
    client: &Client,
    login_server: &str,
    proxies: &Proxies,
) -> Result<RelayMap, Failure> {
    match asked {
        Some(place) if place.starts_with("http://") || place.starts_with("https://") => download(place, proxies).await,
        Some(path) => read_file(path),
        None => match of_agent(client.clone()).await {
            Err(failure) if failure.exit == Exit::Unavailable => {
                download(&format!("{}{PUBLIC_PATH}", login_server.trim_end_matches('/')), proxies).await
            }
            found => found,
        },
    }
}

async fn of_agent(client: Client) -> Result<RelayMap, Failure> {
    let asked = tokio::task::spawn_blocking(move || client.get::<DerpMap>("/derp-map", AGENT_DEADLINE));
    let map = asked.await.map_err(|error| Failure::new(Exit::General, error))??;
    usable(map, "the running agent".to_owned())
}

fn read_file(path: &str) -> Result<RelayMap, Failure> {
    let unread = |error: &dyn std::fmt::Display| {
        Failure::new(Exit::Configuration, format!("the DERP map {} can't be read: {error}", plain(path))).next(NEXT)
    };
    let mut text = Vec::new();
    let limit = u64::try_from(LIMITS.body).unwrap_or(u64::MAX);
    File::open(path).and_then(|file| file.take(limit).read_to_end(&mut text)).map_err(|error| unread(&error))?;
    usable(serde_json::from_slice(&text).map_err(|error| unread(&error))?, format!("the file {}", plain(path)))
}

async fn download(place: &str, proxies: &Proxies) -> Result<RelayMap, Failure> {
    let shown = plain(place);
    let failed = |exit, why: &dyn std::fmt::Display| {
        Failure::new(exit, format!("there is no DERP map at {shown}: {why}")).next(NEXT)
    };
    let url: Url = place.parse().map_err(|error| failed(Exit::Configuration, &error))?;
    let answer = async {
        let http = HttpClient::new(&url, Redirects::Followed(MAX_REDIRECTS), proxies)?;
        http.send(http.get(url.clone()), LIMITS).await
    };
    let answer = answer.await.map_err(|error| failed(Exit::Unavailable, &error))?;
    if !answer.is_success() {
        return Err(failed(Exit::Unavailable, &format!("it answered HTTP {}", answer.status)));
    }
    let map = serde_json::from_slice(&answer.body).map_err(|error| failed(Exit::Unavailable, &error))?;
    usable(map, shown.clone())
}

/// A map with regions in it.
fn usable(map: DerpMap, source: String) -> Result<RelayMap, Failure> {
    let regions: BTreeMap<_, _> =
        map.regions.unwrap_or_default().into_iter().filter_map(|(id, region)| Some((id, region?))).collect();
    if regions.is_empty() {
        let message = format!("the DERP map of {source} names no region, so that there is nothing to ask");
        return Err(Failure::new(Exit::Configuration, message).next("name another with --derp-map FILE or URL"));
    }
    Ok(RelayMap { regions, source })
}
