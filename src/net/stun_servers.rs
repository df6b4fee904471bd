//! The addresses of the DERP map's STUN servers.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::future::join_all;
use nixtail_proto::netmap::DerpRegions;
use nixtail_proto::tailcfg::{DerpNode, RegionId};

/// STUN's own port, where the map has 0.
const DEFAULT_PORT: u16 = 3478;
/// How long names may take: netcheck goes on with those that were found.
const RESOLVE_TIME: Duration = Duration::from_secs(5);
/// Servers asked in each region: one may be down.
const NODES_PER_REGION: usize = 2;

/// Finds the STUN servers of each region: the addresses that the map gives, else those that its names resolve to.
pub(crate) async fn resolve(regions: &DerpRegions) -> Vec<(RegionId, SocketAddr)> {
    let nodes = regions.iter().flat_map(|(region, derp)| {
        derp.nodes.iter().filter_map(|node| port(node).map(|port| (*region, node, port))).take(NODES_PER_REGION)
    });
    let found = join_all(nodes.map(|(region, node, port)| async move {
        let addresses = addresses(node, port).await;
        addresses.into_iter().map(move |address| (region, address)).collect::<Vec<_>>()
    }));
    found.await.into_iter().flatten().collect()
}

/// The port of a node's STUN server; `None` where it has none.
fn port(node: &DerpNode) -> Option<u16> {
    match node.stun_port {
        0 => Some(DEFAULT_PORT),
        port => u16::try_from(port).ok(),
    }
}

async fn addresses(node: &DerpNode, port: u16) -> Vec<SocketAddr> {
    if let Ok(address) = node.stun_test_ip.parse::<IpAddr>() {
        return vec![SocketAddr::new(address, port)];
    }
    let given: Vec<_> = [&node.ipv4, &node.ipv6].into_iter().filter_map(|text| text.parse::<IpAddr>().ok()).collect();
    if !given.is_empty() {
        return given.into_iter().map(|address| SocketAddr::new(address, port)).collect();
    }
    let looked_up = tokio::time::timeout(RESOLVE_TIME, tokio::net::lookup_host((node.host_name.as_str(), port))).await;
    match looked_up {
        Ok(Ok(addresses)) => one_of_each_family(addresses),
        Ok(Err(error)) => {
            tracing::debug!(host = node.host_name, %error, "a STUN server's name doesn't resolve");
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}

fn one_of_each_family(addresses: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let addresses: Vec<_> = addresses.collect();
    let first = |v4: bool| addresses.iter().find(|address| address.is_ipv4() == v4).copied();
    first(true).into_iter().chain(first(false)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use nixtail_proto::tailcfg::DerpRegion;

    use super::*;

    fn node(host: &str, ipv4: &str, stun_port: i32) -> DerpNode {
        DerpNode { host_name: host.to_owned(), ipv4: ipv4.to_owned(), stun_port, ..DerpNode::default() }
    }

    #[tokio::test]
    async fn given_addresses_win_over_names_and_negative_ports_mean_none() {
        let region = |nodes| DerpRegion { nodes, ..DerpRegion::default() };
        let regions: DerpRegions = BTreeMap::from([
            (1, region(vec![node("nowhere.invalid", "192.0.2.1", 0), node("x.invalid", "192.0.2.2", -1)])),
            (2, region(vec![node("localhost", "", 4000)])),
            (3, region(vec![node("nowhere.invalid", "", 1), node("a", "192.0.2.9", 70_000)])),
        ]);
        let found = resolve(&regions).await;
        assert!(found.contains(&(1, "192.0.2.1:3478".parse().unwrap())), "{found:?}");
        assert!(
            found.iter().any(|(region, at)| *region == 2 && at.port() == 4000 && at.ip().is_loopback()),
            "{found:?}"
        );
        assert!(found.iter().all(|(region, _)| *region != 3), "{found:?}");
        assert_eq!(found.iter().filter(|(region, _)| *region == 1).count(), 1);
    }
}
