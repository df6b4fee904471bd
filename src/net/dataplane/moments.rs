//! The moments that a log should have: how a peer is reached from now on, which relay is home, and whether relays are there.
//! One line each, and none per packet; what flaps is told less often ([`Told`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use nixtail_proto::key::NodePublic;
use nixtail_proto::netmap::Netmap;
use nixtail_proto::node::Path;
use nixtail_proto::tailcfg::RegionId;

use crate::report::plain;
use crate::report::told::{Change, MOMENT, Told};

/// What was told last.
#[derive(Debug, Default)]
pub(super) struct Moments {
    netmap: Arc<Netmap>,
    /// Of peers that were talked to. Who leaves the netmap is forgotten.
    paths: HashMap<NodePublic, Told<Path>>,
    home: Told<RegionId>,
    /// Of regions that were dialled. What leaves the DERP map is forgotten.
    relays: HashMap<RegionId, Told<Relay>>,
}

/// Whether a region's relay is there.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Relay {
    Connected,
    /// Why it isn't.
    Lost(String),
}

impl Moments {
    /// Takes a new netmap, which tells the peers' names and the regions' codes.
    pub(super) fn handle_netmap(&mut self, netmap: &Arc<Netmap>) {
        self.netmap = Arc::clone(netmap);
        self.paths.retain(|peer, _| netmap.peer_by_key(peer).is_some());
        self.relays.retain(|region, _| netmap.derp_map.contains_key(region));
    }

    /// A peer is reached otherwise than before.
    pub(super) fn handle_path(&mut self, now: Instant, peer: NodePublic, path: Path) {
        if let Some(change) = self.paths.entry(peer).or_default().set(now, path) {
            tell_path(&self.netmap, &peer, &change);
        }
    }

    /// Another region is home.
    pub(super) fn handle_home(&mut self, now: Instant, home: RegionId) {
        if let Some(change) = self.home.set(now, home) {
            tell_home(&self.netmap, &change);
        }
    }

    /// A relay that was dialled took us.
    pub(super) fn handle_relay_connected(&mut self, now: Instant, region: RegionId) {
        self.handle_relay(now, region, Relay::Connected);
    }

    /// A relay is lost, or didn't take us.
    pub(super) fn handle_relay_lost(&mut self, now: Instant, region: RegionId, reason: String) {
        self.handle_relay(now, region, Relay::Lost(reason));
    }

    fn handle_relay(&mut self, now: Instant, region: RegionId, relay: Relay) {
        if let Some(change) = self.relays.entry(region).or_default().set(now, relay) {
            tell_relay(&self.netmap, region, &change);
        }
    }

    /// Tells what had to wait. To be called every few seconds.
    pub(super) fn sweep(&mut self, now: Instant) {
        for (peer, told) in &mut self.paths {
            if let Some(change) = told.poll(now) {
                tell_path(&self.netmap, peer, &change);
            }
        }
        if let Some(change) = self.home.poll(now) {
            tell_home(&self.netmap, &change);
        }
        for (region, told) in &mut self.relays {
            if let Some(change) = told.poll(now) {
                tell_relay(&self.netmap, *region, &change);
            }
        }
    }
}

fn tell_path(netmap: &Netmap, peer: &NodePublic, change: &Change<Path>) {
    let name = netmap.peer_by_key(peer).map_or_else(|| peer.to_string(), |node| plain(node.short_name()));
    let words = path_words(change.before.unwrap_or_default(), change.state);
    tracing::info!(target: MOMENT, "{name}: {words}{}", change.more());
}

fn tell_home(netmap: &Netmap, change: &Change<RegionId>) {
    let (home, more) = (region(netmap, change.state), change.more());
    match change.before {
        Some(before) if before == change.state => tracing::info!(target: MOMENT, "home is {home} again{more}"),
        Some(before) => tracing::info!(target: MOMENT, "home is {home} now, before it was {before}{more}"),
        None => tracing::info!(target: MOMENT, "home is {home}{more}"),
    }
}

fn tell_relay(netmap: &Netmap, id: RegionId, change: &Change<Relay>) {
    let (region, more) = (region(netmap, id), change.more());
    match (&change.before, &change.state) {
        (None, Relay::Connected) => tracing::info!(target: MOMENT, "the relay of {region} is connected{more}"),
        (Some(_), Relay::Connected) => tracing::info!(target: MOMENT, "the relay of {region} is connected again{more}"),
        (Some(Relay::Connected), Relay::Lost(why)) => {
            tracing::warn!(target: MOMENT, "the relay of {region} is lost and dialled again: {why}{more}");
        }
        (_, Relay::Lost(why)) => {
            tracing::warn!(target: MOMENT, "the relay of {region} can't be had and is tried again: {why}{more}");
        }
    }
}

/// A region by its number and what its map calls it.
fn region(netmap: &Netmap, id: RegionId) -> String {
    let code = netmap.derp_map.get(&id).map(|region| plain(&region.region_code)).filter(|code| !code.is_empty());
    code.map_or_else(|| format!("DERP region {id}"), |code| format!("DERP region {id} ({code})"))
}

fn path_words(before: Path, now: Path) -> String {
    match (before, now) {
        (Path::Direct(before), Path::Direct(now)) if before == now => format!("still direct by {now}"),
        (Path::Derp(before), Path::Derp(now)) if before == now => format!("still by DERP region {now}"),
        (Path::Direct(before), Path::Direct(now)) => format!("direct by {now}, before by {before}"),
        (Path::Derp(region), Path::Direct(now)) => format!("direct by {now}, before by DERP region {region}"),
        (Path::None, Path::Direct(now)) => format!("direct by {now}"),
        (Path::Direct(before), Path::Derp(region)) => {
            format!("by DERP region {region}: the direct path by {before} no longer answers")
        }
        (Path::Derp(before), Path::Derp(region)) => format!("by DERP region {region}, before by {before}"),
        (Path::None, Path::Derp(region)) => format!("by DERP region {region}"),
        (Path::None, Path::None) => "no path".to_owned(),
        (Path::Direct(before), Path::None) => format!("no path any more, before direct by {before}"),
        (Path::Derp(before), Path::None) => format!("no path any more, before by DERP region {before}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_says_what_was_before() {
        let direct = Path::Direct("192.0.2.1:7".parse().unwrap());
        for (before, now, said) in [
            (Path::None, Path::Derp(4), "by DERP region 4"),
            (Path::Derp(4), direct, "direct by 192.0.2.1:7, before by DERP region 4"),
            (direct, Path::Derp(4), "by DERP region 4: the direct path by 192.0.2.1:7 no longer answers"),
            (direct, Path::None, "no path any more, before direct by 192.0.2.1:7"),
            (direct, direct, "still direct by 192.0.2.1:7"),
        ] {
            assert_eq!(path_words(before, now), said);
        }
    }
}
