//! Whether a region's relay can be reached, for a person who asks. Everything on the way in but our name: a relay that
//! serves known nodes only lets the request through all the same.

use std::time::{Duration, Instant};

use nixtail_proto::proxy::Proxies;
use nixtail_proto::relay::Target;
use nixtail_proto::tailcfg::{DerpNode, DerpRegion};
use tokio::time::timeout;

use super::DerpFailure;
use super::dial::{EarlyGreeting, open, secure, upgrade};

/// How long it may take, over all relays of the region.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Connects to the region's relays in their order until one switches to DERP. Gives the round trip of that one question,
/// which came after TCP and TLS.
///
/// # Errors
/// Why the last of them didn't.
pub(crate) async fn probe(region: &DerpRegion, proxies: &Proxies) -> Result<Duration, DerpFailure> {
    let every = async {
        let mut failure = DerpFailure::NoRelay;
        for (node, target) in region.nodes.iter().filter_map(|node| Some((node, Target::derp(node)?))) {
            match probe_node(region, node, target, proxies).await {
                Ok(round_trip) => return Ok(round_trip),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    };
    timeout(PROBE_TIMEOUT, every).await.unwrap_or(Err(DerpFailure::TooSlow { step: "all that leads to a connection" }))
}

async fn probe_node(
    region: &DerpRegion,
    node: &DerpNode,
    target: Target,
    proxies: &Proxies,
) -> Result<Duration, DerpFailure> {
    let transport = open(node, target, proxies).await?;
    let mut stream = secure(node, transport).await?;
    let begun = Instant::now();
    upgrade(region, node, target.port, &EarlyGreeting::default(), &mut stream, &mut Vec::new()).await?;
    Ok(begun.elapsed())
}
