//! The moments that a log should have: how a peer is reached from now on, and which relay is home. One line each, and none
//! per packet.

use std::collections::HashMap;
use std::sync::Arc;

use nixtail_proto::key::NodePublic;
use nixtail_proto::netmap::Netmap;
use nixtail_proto::node::Path;
use nixtail_proto::tailcfg::RegionId;

use crate::report::plain;

/// What was told last.
#[derive(Debug, Default)]
pub(super) struct Moments {
    netmap: Arc<Netmap>,
    /// Of peers that were talked to. Who leaves the netmap is forgotten.
    paths: HashMap<NodePublic, Path>,
    home: Option<RegionId>,
}

impl Moments {
    /// Takes a new netmap, which tells the peers' names.
    pub(super) fn handle_netmap(&mut self, netmap: &Arc<Netmap>) {
        self.netmap = Arc::clone(netmap);
        self.paths.retain(|peer, _| netmap.peer_by_key(peer).is_some());
    }

    /// Tells that a peer is reached otherwise than before.
    pub(super) fn handle_path(&mut self, peer: NodePublic, path: Path) {
        let before = self.paths.insert(peer, path).unwrap_or_default();
        let name = self.netmap.peer_by_key(&peer).map_or_else(|| peer.to_string(), |node| plain(node.short_name()));
        tracing::info!("{name}: {}", words(before, path));
    }

    /// Tells that another region is home.
    pub(super) fn handle_home(&mut self, home: RegionId) {
        match self.home.replace(home) {
            Some(before) if before != home => tracing::info!("home is DERP region {home} now, before it was {before}"),
            Some(_) => {}
            None => tracing::info!("home is DERP region {home}"),
        }
    }
}

fn words(before: Path, now: Path) -> String {
    match (before, now) {
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
        ] {
            assert_eq!(words(before, now), said);
        }
    }
}
