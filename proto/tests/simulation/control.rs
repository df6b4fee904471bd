//! Control: a list of records, and netmaps made of them. By hand ([`World::publish`]), or by itself: hosts report their
//! addresses and home, and everybody is told, a little later.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use nixtail_proto::key::{DiscoPublic, NodePublic};
use nixtail_proto::netmap::{DerpRegions, Netmap};
use nixtail_proto::node::Event;
use nixtail_proto::tailcfg::{self, FilterRule};
use rand::RngExt as _;

use crate::world::{Happening, REGION, World};

pub(crate) struct Control {
    /// Whether it does what control does by itself.
    pub(crate) automatic: bool,
    pub(crate) up: bool,
    /// From a host to control, or back.
    pub(crate) delay: Duration,
    pub(crate) derp_map: Arc<DerpRegions>,
    all_allowed: Arc<Vec<FilterRule>>,
}

impl Control {
    pub(crate) fn new() -> Self {
        let regions = BTreeMap::from([(REGION, World::region(REGION))]);
        Self {
            automatic: false,
            up: true,
            delay: Duration::from_millis(50),
            derp_map: Arc::new(regions),
            all_allowed: Arc::new(rules(&["*".to_owned()])),
        }
    }
}

impl World {
    /// Gives every host the netmap as it is now.
    pub(crate) fn publish(&mut self) {
        for host in 0..self.hosts.len() {
            self.publish_to(host, |_| true);
        }
    }

    /// Gives a host a netmap with the peers that it may know.
    pub(crate) fn publish_to(&mut self, host: usize, knows: impl Fn(usize) -> bool) {
        let peers = (0..self.hosts.len()).filter(|peer| *peer != host && knows(*peer));
        let peers = peers.map(|peer| Arc::new(self.hosts[peer].record.clone()));
        let peers = peers.chain((0..self.absent).map(|number| Arc::new(absent_peer(number))));
        let peers = peers.map(|peer| (peer.id, peer)).collect();
        let netmap = Netmap {
            self_node: Arc::new(self.hosts[host].record.clone()),
            peers,
            derp_map: Arc::clone(&self.control.derp_map),
            filter_rules: Some(self.rules_of(host)),
            ..Netmap::default()
        };
        self.hosts[host].node.handle_netmap(self.now, &netmap);
        self.pump();
    }

    fn rules_of(&self, host: usize) -> Arc<Vec<FilterRule>> {
        if self.denied.is_empty() {
            return Arc::clone(&self.control.all_allowed);
        }
        let allowed = (0..self.hosts.len()).filter(|from| !self.denied.contains(&(*from, host)));
        let addresses = |from: usize| self.hosts[from].record.addresses.iter().map(|net| net.addr().to_string());
        Arc::new(rules(&allowed.flat_map(addresses).collect::<Vec<_>>()))
    }

    /// Takes what a host says to control, if control does things by itself.
    pub(crate) fn handle_report(&mut self, host: usize, event: &Event) {
        let one = &mut self.hosts[host];
        match event {
            Event::Endpoints(endpoints) => one.endpoints = endpoints.iter().map(|(endpoint, _)| *endpoint).collect(),
            Event::NetInfo(info) => one.home = info.preferred_derp,
            _ => return,
        }
        self.report_soon(host);
    }

    fn report_soon(&mut self, host: usize) {
        if self.control.automatic && !std::mem::replace(&mut self.hosts[host].control.report_under_way, true) {
            let at = self.control_delay();
            self.happen(at, Happening::Report { host });
        }
    }

    pub(crate) fn handle_report_arrived(&mut self, host: usize) {
        let reaches = self.reaches_control(host);
        let one = &mut self.hosts[host];
        one.control.report_under_way = false;
        one.control.unreported = !reaches;
        if reaches && (one.record.endpoints != one.endpoints || one.record.home_derp != one.home) {
            one.record.endpoints.clone_from(&one.endpoints);
            one.record.home_derp = one.home;
            self.handle_record_changed(host);
        }
    }

    /// A host's record is another: everybody is told.
    pub(crate) fn handle_record_changed(&mut self, host: usize) {
        let one = &mut self.hosts[host];
        one.control.version += 1;
        one.control.published = Some(Arc::new(one.record.clone()));
        for host in 0..self.hosts.len() {
            self.netmap_soon(host);
        }
    }

    fn netmap_soon(&mut self, host: usize) {
        if self.control.automatic && !std::mem::replace(&mut self.hosts[host].control.netmap_under_way, true) {
            let at = self.control_delay();
            self.happen(at, Happening::Netmap { host });
        }
    }

    fn control_delay(&mut self) -> std::time::Instant {
        self.now + self.control.delay.mul_f64(self.rng.random_range(1.0..4.0))
    }

    /// Gives a host the newest netmap.
    pub(crate) fn handle_netmap_arrived(&mut self, host: usize) {
        let reaches = self.reaches_control(host);
        self.hosts[host].control.netmap_under_way = false;
        self.hosts[host].control.outdated = !reaches;
        let Some(own) = self.hosts[host].control.published.clone().filter(|_| reaches) else { return };
        let others = self.hosts.iter().enumerate().filter(|(other, _)| *other != host);
        let peers = others.filter_map(|(_, one)| one.control.published.clone()).map(|peer| (peer.id, peer));
        let netmap = Netmap {
            self_node: own,
            peers: peers.collect(),
            derp_map: Arc::clone(&self.control.derp_map),
            filter_rules: Some(self.rules_of(host)),
            ..Netmap::default()
        };
        self.note_new_disco_keys(host);
        self.hosts[host].control.seen = self.hosts.iter().map(|one| one.control.version).collect();
        self.hosts[host].node.handle_netmap(self.now, &netmap);
    }

    /// Which peers have restarted since the host's last netmap.
    fn note_new_disco_keys(&mut self, host: usize) {
        let records: Vec<_> = self.hosts.iter().map(|one| one.control.published.clone()).collect();
        let before = std::mem::replace(&mut self.hosts[host].control.known, records.clone());
        for (peer, pair) in before.iter().zip(&records).enumerate() {
            if let (Some(before), Some(after)) = pair
                && before.key == after.key
                && before.disco_key != after.disco_key
                && peer != host
            {
                self.note_new_disco_key(host, peer);
            }
        }
    }

    /// Something may reach control again that didn't before.
    pub(crate) fn handle_control_reachable(&mut self) {
        for host in 0..self.hosts.len() {
            if self.hosts[host].control.unreported {
                self.report_soon(host);
            }
            if self.hosts[host].control.outdated {
                self.netmap_soon(host);
            }
        }
    }

    fn reaches_control(&self, host: usize) -> bool {
        self.control.up && self.reaches_internet(host) && !self.hosts[host].frozen
    }
}

fn rules(sources: &[String]) -> Vec<FilterRule> {
    let rules = serde_json::json!([{
        "SrcIPs": sources,
        "DstPorts": [{ "IP": "*", "Ports": { "First": 0, "Last": 65535 } }],
    }]);
    serde_json::from_value(rules).unwrap()
}

fn absent_peer(number: u32) -> tailcfg::Node {
    let [_, a, b, c] = number.to_be_bytes();
    let mut key = [0xee; 32];
    key[..4].copy_from_slice(&number.to_be_bytes());
    tailcfg::Node {
        id: 1000 + i64::from(number),
        key: NodePublic::from_bytes(key),
        disco_key: DiscoPublic::from_bytes(key),
        addresses: vec![format!("100.{}.{b}.{c}/32", 65 + a).parse().unwrap()],
        endpoints: vec![([10, a, b, c], 41641).into()],
        home_derp: REGION,
        ..tailcfg::Node::default()
    }
}
