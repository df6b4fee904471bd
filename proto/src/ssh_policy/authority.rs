//! What one netmap says about logins: its SSH policy, asked about one of its own nodes.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Decision, PrincipalFacts, Rejection, evaluate, named_users};
use crate::filter::{Rule, compile};
use crate::key::NodePublic;
use crate::netmap::{Netmap, Peer};

/// Judges by one netmap. Make a new one for each: it holds the packet filter ready for matching.
#[derive(Debug, Clone)]
pub struct Authority {
    netmap: Arc<Netmap>,
    filter: Vec<Rule>,
}

/// Who asks: where a stream comes from, as the tunnel has proved it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    /// The node key of the WireGuard session that the stream came through.
    pub node_key: NodePublic,
    /// The stream's source, inside the tunnel.
    pub source: SocketAddr,
    /// The port of ours that it came to.
    pub port: u16,
}

impl Authority {
    /// The judge by this netmap.
    #[must_use]
    pub fn new(netmap: Arc<Netmap>) -> Self {
        // What can't be read allows nothing; the dataplane reports it.
        let (filter, _) = compile(netmap.filter_rules.as_deref().map_or(&[], Vec::as_slice));
        Self { netmap, filter }
    }

    /// Whether this is the judge by that very netmap.
    #[must_use]
    pub fn is_by(&self, netmap: &Arc<Netmap>) -> bool {
        Arc::ptr_eq(&self.netmap, netmap)
    }

    /// May `asker` log in as `wanted_user` at `now_unix` (Unix seconds of our own clock)? The packet filter is asked
    /// again, since it lets connections go on that it would no longer let begin.
    #[must_use]
    pub fn decide(&self, asker: &Asker, wanted_user: &str, now_unix: i64) -> Decision {
        let node = match self.node(asker) {
            Ok(node) => node,
            Err(rejection) => return Decision::Reject(rejection),
        };
        let policy = self.netmap.ssh_policy.as_deref();
        match evaluate(policy, &self.facts(node), wanted_user, self.control_time(now_unix)) {
            Decision::Accept(mut acceptance) => {
                let ours = |theirs: i64| theirs.saturating_sub(self.netmap.clock_offset);
                acceptance.expires = acceptance.expires.map(ours);
                Decision::Accept(acceptance)
            }
            rejected => rejected,
        }
    }

    /// The users that rules about `asker` name: whoever isn't let in as one of them isn't let in at all, `*` standing
    /// for all those that aren't named.
    #[must_use]
    pub fn named_users(&self, asker: &Asker, now_unix: i64) -> BTreeSet<&str> {
        let node = self.node(asker).ok();
        let policy = self.netmap.ssh_policy.as_deref();
        let now = self.control_time(now_unix);
        node.zip(policy).map(|(node, policy)| named_users(policy, &self.facts(node), now)).unwrap_or_default()
    }

    /// Rules expire by control's clock, as in Go.
    fn control_time(&self, now_unix: i64) -> i64 {
        now_unix.saturating_add(self.netmap.clock_offset)
    }

    fn facts(&self, node: &Peer) -> PrincipalFacts {
        let owner = self.netmap.users.get(&node.user).filter(|_| node.tags.is_empty());
        PrincipalFacts {
            stable_id: node.stable_id.clone(),
            addresses: node.addresses.iter().map(|network| network.addr()).collect(),
            login_name: owner.map(|user| user.login_name.clone()),
        }
    }

    /// The node that asks, if it is still the one it was when its connection began.
    fn node(&self, asker: &Asker) -> Result<&Peer, Rejection> {
        let node = self.netmap.peer_by_key(&asker.node_key).ok_or(Rejection::UnknownNode)?;
        let from = asker.source.ip();
        if !node.addresses.iter().any(|network| network.addr() == from) {
            return Err(Rejection::Renumbered(from));
        }
        if !self.may_connect(node, from, asker.port) {
            return Err(Rejection::Filtered);
        }
        Ok(node)
    }

    fn may_connect(&self, node: &Peer, from: IpAddr, port: u16) -> bool {
        let has_capability = |capability: &str| node.cap_map.contains_key(capability);
        let ours = || self.netmap.addresses().filter(|address| address.is_ipv4() == from.is_ipv4());
        self.filter.iter().any(|rule| ours().any(|to| rule.allows_connection(from, to, port, has_capability)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::netmap::NetmapState;
    use crate::ssh_policy::Acceptance;
    use crate::tailcfg::{MapResponse, Timestamp};

    fn key(number: u8) -> NodePublic {
        NodePublic::from_bytes([number; 32])
    }

    fn node(number: u8, address: &str, more: serde_json::Value) -> serde_json::Value {
        let mut node = json!({
            "ID": number, "StableID": format!("n{number}"), "Name": format!("n{number}.example.ts.net."),
            "Key": key(number), "User": number, "Addresses": [format!("{address}/32"), format!("fd7a::{number}/128")],
        });
        node.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        node
    }

    fn everything() -> serde_json::Value {
        json!({
            "Node": node(1, "100.64.0.1", json!({})),
            "Peers": [node(2, "100.64.0.2", json!({}))],
            "UserProfiles": [{"ID": 2, "LoginName": "alice@example.com"}],
            "PacketFilter": [{"SrcIPs": ["100.64.0.2", "fd7a::2"], "DstPorts": [{"IP": "*", "Ports": {"First": 22, "Last": 22}}]}],
            "SSHPolicy": {"rules": [{"principals": [{"userLogin": "alice@example.com"}], "sshUsers": {"builder": "="},
                "action": {"accept": true}}]},
            "Domain": "example.ts.net",
        })
    }

    /// The authority by a netmap in which `change` was made.
    fn authority(change: serde_json::Value) -> Authority {
        let mut response = everything();
        response.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let mut state = NetmapState::default();
        let clock = Timestamp::from_unix(1_000);
        state.handle_response(serde_json::from_value::<MapResponse>(response).unwrap(), clock);
        Authority::new(Arc::new(state.netmap(clock).unwrap()))
    }

    fn asker() -> Asker {
        Asker { node_key: key(2), source: "100.64.0.2:40000".parse().unwrap(), port: 22 }
    }

    fn rejection(change: serde_json::Value, asker: Asker) -> Option<Rejection> {
        match authority(change).decide(&asker, "builder", 1_000) {
            Decision::Accept(Acceptance { local_user, .. }) => {
                assert_eq!(local_user, "builder");
                None
            }
            Decision::Reject(rejection) => Some(rejection),
        }
    }

    #[test]
    fn the_node_behind_the_key_is_judged_as_the_netmap_has_it_now() {
        let same = asker();
        let unchanged = json!({});
        assert_eq!(rejection(unchanged.clone(), same), None);
        let over_ipv6 = Asker { source: "[fd7a::2]:40000".parse().unwrap(), ..same };
        assert_eq!(rejection(unchanged.clone(), over_ipv6), None);

        assert_eq!(rejection(json!({"Peers": []}), same), Some(Rejection::UnknownNode));
        let other = Asker { node_key: key(3), ..same };
        assert_eq!(rejection(unchanged, other), Some(Rejection::UnknownNode));
        let expired = node(2, "100.64.0.2", json!({"KeyExpiry": "1970-01-01T00:00:10Z"}));
        assert_eq!(rejection(json!({"Peers": [expired]}), same), Some(Rejection::UnknownNode));
        let renumbered = node(2, "100.64.0.9", json!({}));
        assert_eq!(
            rejection(json!({"Peers": [renumbered]}), same),
            Some(Rejection::Renumbered("100.64.0.2".parse().unwrap()))
        );
        // A tagged node is nobody's any more.
        let tagged = node(2, "100.64.0.2", json!({"Tags": ["tag:ci"]}));
        assert_eq!(rejection(json!({"Peers": [tagged]}), same), Some(Rejection::NoRule));
        let sold = node(2, "100.64.0.2", json!({"User": 7}));
        assert_eq!(rejection(json!({"Peers": [sold]}), same), Some(Rejection::NoRule));
        assert_eq!(rejection(json!({"SSHPolicy": null}), same), Some(Rejection::NoPolicy));
    }

    #[test]
    fn lost_filter_access_is_a_rejection() {
        let same = asker();
        let only = |from: &str, port: u16| json!({"PacketFilter": [{"SrcIPs": [from], "DstPorts": [{"IP": "*", "Ports": {"First": port, "Last": port}}]}]});
        assert_eq!(rejection(only("*", 22), same), None);
        assert_eq!(rejection(only("*", 443), same), Some(Rejection::Filtered));
        assert_eq!(rejection(only("100.64.0.3", 22), same), Some(Rejection::Filtered));
        assert_eq!(rejection(json!({"PacketFilter": []}), same), Some(Rejection::Filtered));
        let by_capability = only("cap:builds", 22);
        assert_eq!(rejection(by_capability.clone(), same), Some(Rejection::Filtered));
        let mut capable = by_capability;
        capable["Peers"] = json!([node(2, "100.64.0.2", json!({"CapMap": {"builds": null}}))]);
        assert_eq!(rejection(capable, same), None);
        // To another address of ours, or by another protocol, isn't to this port.
        let elsewhere = json!({"PacketFilter": [
            {"SrcIPs": ["*"], "DstPorts": [{"IP": "100.64.0.7", "Ports": {"First": 0, "Last": 65535}}]},
            {"SrcIPs": ["*"], "IPProto": [17], "DstPorts": [{"IP": "*", "Ports": {"First": 0, "Last": 65535}}]}]});
        assert_eq!(rejection(elsewhere, same), Some(Rejection::Filtered));
    }

    #[test]
    fn rules_expire_by_control_s_clock() {
        // Control is an hour ahead of the clock that the netmap was made with.
        let ahead = |expires: &str| {
            let mut policy = everything()["SSHPolicy"].clone();
            policy["rules"][0]["ruleExpires"] = json!(expires);
            json!({"SSHPolicy": policy, "ControlTime": "1970-01-01T01:16:40Z"})
        };
        assert_eq!(rejection(ahead("1970-01-01T01:00:00Z"), asker()), Some(Rejection::NoRule));
        let Decision::Accept(acceptance) = authority(ahead("1970-01-01T01:16:50Z")).decide(&asker(), "builder", 1_000)
        else {
            panic!("refused");
        };
        assert_eq!(acceptance.expires, Some(1_010), "told in our own time");
    }

    #[test]
    fn it_knows_its_netmap_and_whom_rules_name() {
        let one = authority(json!({}));
        let other = authority(json!({}));
        assert!(one.is_by(&Arc::clone(&one.netmap)) && !one.is_by(&other.netmap));
        assert_eq!(one.named_users(&asker(), 1_000), BTreeSet::from(["builder"]));
        assert!(one.named_users(&Asker { node_key: key(3), ..asker() }, 1_000).is_empty());
        assert!(authority(json!({"SSHPolicy": null})).named_users(&asker(), 1_000).is_empty());
    }
}
