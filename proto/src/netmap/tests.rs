//! The tables are those of `control/controlclient/map_test.go`, as JSON.

use serde_json::{Value, json};

use super::*;
use crate::key::DiscoPublic;
use crate::tailcfg::{MapResponse, Timestamp};

const CLOCK: Timestamp = Timestamp::from_unix(1_700_000_000);

fn key(n: u8) -> NodePublic {
    NodePublic::from_bytes([n; 32])
}

fn with(messages: &[Value]) -> Netmap {
    let mut state = NetmapState::default();
    for message in messages {
        let response: MapResponse = serde_json::from_value(message.clone()).unwrap();
        state.handle_response(response, CLOCK);
    }
    state.netmap(CLOCK).unwrap()
}

fn node(id: i64, name: &str) -> Value {
    json!({"ID": id, "Name": name, "Key": key(u8::try_from(id).unwrap() + 1)})
}

/// What a peer has after a message, of the fields that a test sets.
fn peers_after(before: &[Value], message: Value) -> Vec<Peer> {
    let first = json!({"Node": {"ID": 99, "Key": key(99)}, "PeersChanged": before});
    with(&[first, message]).peers.values().cloned().collect()
}

#[test]
fn peers_change_as_in_go() {
    let foo_bar = [node(1, "foo"), node(2, "bar")];
    let patched = |id: i64, name: &str, fields: Value| {
        let mut node = node(id, name);
        node.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        node
    };
    let cases: &[(&str, &[Value], Value, Vec<Value>)] = &[
        ("full_peers", &[], json!({"Peers": foo_bar}), foo_bar.to_vec()),
        ("full_peers_ignores_deltas", &[], json!({"Peers": foo_bar, "PeersRemoved": [2]}), foo_bar.to_vec()),
        (
            "add_and_update",
            &foo_bar,
            json!({"PeersChanged": [node(0, "zero"), node(2, "bar2"), node(3, "three")]}),
            vec![node(0, "zero"), node(1, "foo"), node(2, "bar2"), node(3, "three")],
        ),
        ("remove", &foo_bar, json!({"PeersRemoved": [1, 3, 4]}), vec![node(2, "bar")]),
        (
            "add_and_remove",
            &foo_bar,
            json!({"PeersChanged": [node(1, "foo2")], "PeersRemoved": [2]}),
            vec![node(1, "foo2")],
        ),
        ("unchanged", &foo_bar, json!({}), foo_bar.to_vec()),
        ("null_and_empty_peers_say_nothing", &foo_bar, json!({"Peers": [], "PeersChanged": null}), foo_bar.to_vec()),
        (
            "online_change",
            &foo_bar,
            json!({"OnlineChange": {"1": true, "404": true}}),
            vec![patched(1, "foo", json!({"Online": true})), node(2, "bar")],
        ),
        (
            "online_change_offline",
            &foo_bar,
            json!({"OnlineChange": {"1": false, "2": true}}),
            vec![patched(1, "foo", json!({"Online": false})), patched(2, "bar", json!({"Online": true}))],
        ),
        (
            "peer_seen_at",
            &[patched(1, "foo", json!({"LastSeen": "1970-01-01T00:01:51Z"})), node(2, "bar")],
            json!({"PeerSeenChange": {"1": false, "2": true}}),
            vec![node(1, "foo"), patched(2, "bar", json!({"LastSeen": CLOCK.to_string()}))],
        ),
        (
            "ep_change_derp",
            &[patched(1, "foo", json!({"HomeDERP": 3}))],
            json!({"PeersChangedPatch": [{"NodeID": 1, "DERPRegion": 4}]}),
            vec![patched(1, "foo", json!({"HomeDERP": 4}))],
        ),
        (
            "ep_change_udp_2",
            &[patched(1, "foo", json!({"HomeDERP": 3, "Endpoints": ["1.2.3.4:111"]}))],
            json!({"PeersChangedPatch": [{"NodeID": 1, "Endpoints": ["1.2.3.4:56"]}]}),
            vec![patched(1, "foo", json!({"HomeDERP": 3, "Endpoints": ["1.2.3.4:56"]}))],
        ),
        (
            "change_key",
            &[node(1, "foo")],
            json!({"PeersChangedPatch": [{"NodeID": 1, "Key": key(65)}]}),
            vec![patched(1, "foo", json!({"Key": key(65)}))],
        ),
        (
            "change_key_signature",
            &[node(1, "foo")],
            json!({"PeersChangedPatch": [{"NodeID": 1, "KeySignature": "AwQ="}]}),
            vec![patched(1, "foo", json!({"KeySignature": "AwQ="}))],
        ),
        (
            "change_disco_key",
            &[node(1, "foo")],
            json!({"PeersChangedPatch": [{"NodeID": 1, "DiscoKey": DiscoPublic::from_bytes([65; 32])}]}),
            vec![patched(1, "foo", json!({"DiscoKey": DiscoPublic::from_bytes([65; 32])}))],
        ),
        (
            "change_several",
            &[node(1, "foo")],
            json!({"PeersChangedPatch": [null, {"NodeID": 404, "Cap": 3},
                {"NodeID": 1, "Online": true, "LastSeen": "1970-01-01T00:02:03Z", "KeyExpiry": "2099-01-01T00:00:00Z",
                 "Cap": 113, "CapMap": {"c": null}}]}),
            vec![patched(
                1,
                "foo",
                json!({"Online": true, "LastSeen": "1970-01-01T00:02:03Z", "KeyExpiry": "2099-01-01T00:00:00Z",
                       "Cap": 113, "CapMap": {"c": null}}),
            )],
        ),
    ];
    for (name, before, message, want) in cases {
        assert_eq!(peers_after(before, message.clone()), peers_after(want, json!({})), "{name}");
    }
}

fn rule(source: &str) -> Value {
    json!({"SrcIPs": [source], "DstPorts": [{"IP": "10.2.3.4", "Ports": {"First": 22, "Last": 22}}]})
}

fn sources(netmap: &Netmap) -> Option<Vec<String>> {
    netmap.filter_rules.as_ref().map(|rules| rules.iter().flat_map(|rule| rule.src_ips.clone()).collect())
}

#[test]
fn filter_chunks_as_in_go() {
    let me = json!({"Node": {"ID": 1}});
    let both =
        json!({"Node": {"ID": 1}, "PacketFilter": [rule("10.0.0.1")], "PacketFilters": {"pf-b": [rule("10.0.0.2")]}});
    let cleared = json!({"PacketFilters": {"*": null, "pf-b": [rule("10.0.0.2")]}});
    let added = json!({"PacketFilters": {"pf-a": [rule("10.0.0.1")]}});
    let is = |messages: &[&Value], want: Option<&[&str]>| {
        let messages: Vec<_> = messages.iter().map(|message| (*message).clone()).collect();
        assert_eq!(
            sources(&with(&messages)).as_deref(),
            want.map(|w| w.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()).as_deref()
        );
    };
    is(&[&me], None);
    is(&[&both], Some(&["10.0.0.1", "10.0.0.2"]));
    is(&[&both, &json!({"PacketFilter": null, "PacketFilters": null})], Some(&["10.0.0.1", "10.0.0.2"]));
    is(&[&both, &cleared], Some(&["10.0.0.2"]));
    is(&[&both, &cleared, &added], Some(&["10.0.0.1", "10.0.0.2"]));
    is(&[&both, &json!({"PacketFilters": {"base": null}})], Some(&["10.0.0.2"]));
    is(&[&both, &json!({"PacketFilter": []})], Some(&["10.0.0.2"]));
    is(&[&both, &json!({"PacketFilters": {"*": null}})], Some(&[]));
}

#[test]
fn a_filter_that_admits_unsigned_peers_admits_nobody() {
    for (source, admits) in [
        ("100.64.0.2", true),
        ("100.64.0.0/10", true),
        ("100.64.0.1-100.64.0.9", true),
        ("*", true),
        ("nonsense", true),
        ("100.64.0.3", false),
        ("fd7a::/16", false),
        ("cap:x", false),
    ] {
        let netmap = with(&[json!({"Node": {"ID": 1}, "PacketFilter": [rule(source)],
            "Peers": [{"ID": 2, "Key": key(2), "Addresses": ["100.64.0.2/32"], "AllowedIPs": ["0.0.0.0/0"], "UnsignedPeerAPIOnly": true}]})]);
        assert_eq!(sources(&netmap).unwrap().is_empty(), admits, "{source}");
        assert_eq!(
            netmap.peers.get(&2).unwrap().allowed_ips(),
            &netmap.peers.get(&2).unwrap().addresses[..],
            "routes are cut"
        );
    }
}

#[test]
fn the_derp_map_merges() {
    let first = json!({"Node": {"ID": 1}, "DERPMap": {"Regions": {"1": {"RegionCode": "a"}, "2": null},
        "HomeParams": {"RegionScore": {"1": 0.5}}}});
    let kept = with(&[first.clone(), json!({}), json!({"DERPMap": {"Regions": null, "HomeParams": {}}})]);
    assert_eq!(kept.derp_map.keys().copied().collect::<Vec<_>>(), [1]);
    assert_eq!((kept.derp_map[&1].region_id, kept.region_scores[&1]), (1, 0.5));
    let replaced = with(&[first, json!({"DERPMap": {"Regions": {"7": {}}, "HomeParams": {"RegionScore": {}}}})]);
    assert_eq!(replaced.derp_map.keys().copied().collect::<Vec<_>>(), [7]);
    assert!(replaced.region_scores.is_empty());
}

#[test]
fn what_is_absent_stays() {
    let first = json!({"Node": {"ID": 1, "Name": "me.net."}, "Domain": "foo.com", "DNSConfig": {"Domains": ["foo"]},
        "SSHPolicy": {"rules": [null]}, "Health": ["sick"], "UserProfiles": [{"ID": 5, "LoginName": "a@b"}]});
    let netmap = with(&[first, json!({"UserProfiles": [{"ID": 6}]})]);
    assert_eq!((netmap.domain.as_str(), netmap.tailnet_suffix()), ("foo.com", "net"));
    assert_eq!(netmap.dns.domains, ["foo"]);
    assert_eq!(netmap.ssh_policy.as_ref().map(|policy| policy.rules.len()), Some(1));
    assert_eq!((netmap.health.len(), netmap.users.len()), (1, 2));
    let cleared = with(&[
        json!({"Node": {"ID": 1}, "SSHPolicy": {"rules": [null]}, "Health": ["sick"]}),
        json!({"SSHPolicy": {"rules": null}, "Health": []}),
    ]);
    assert_eq!(cleared.ssh_policy.as_ref().map(|policy| policy.rules.len()), Some(0));
    assert!(cleared.health.is_empty());
}

#[test]
fn nodes_are_normalised() {
    let netmap = with(&[json!({"Node": {"ID": 1, "Capabilities": ["old"], "CapMap": {"new": [1]}},
        "Peers": [
            {"ID": 2, "Key": key(2), "Addresses": ["100.64.0.2/32"], "AllowedIPs": null, "DERP": "127.3.3.40:7"},
            {"ID": 3, "Key": key(3), "Addresses": ["100.64.0.3/32"], "AllowedIPs": [], "HomeDERP": 2, "DERP": "127.3.3.40:7"}]})]);
    assert_eq!(netmap.self_node.cap_map.len(), 2);
    assert_eq!(netmap.peers.get(&2).unwrap().allowed_ips().len(), 1);
    assert_eq!(netmap.peers.get(&3).unwrap().allowed_ips().len(), 0);
    assert_eq!((netmap.peers.get(&2).unwrap().home_derp, netmap.peers.get(&3).unwrap().home_derp), (7, 2));
    assert!(netmap.peer_by_address("100.64.0.3".parse().unwrap()).is_some());
    assert_eq!(netmap.peer_by_key(&key(2)).map(|peer| peer.id), Some(2));
}

#[test]
fn peers_that_must_not_be_used_are_apart() {
    let peers = json!([
        {"ID": 2, "Key": key(2), "KeyExpiry": "2001-01-01T00:00:00Z"}, {"ID": 3, "Key": key(3), "Expired": true},
        {"ID": 4, "Key": key(4), "IsWireGuardOnly": true}, {"ID": 5, "Key": key(5)}, {"ID": 6, "Key": key(1)}]);
    let me = json!({"ID": 1, "Key": key(1)});
    let ids = |netmap: &Netmap| netmap.peers.keys().copied().collect::<Vec<_>>();
    let netmap = with(&[json!({"Node": me, "Peers": peers})]);
    assert_eq!(ids(&netmap), [5]);
    assert_eq!(
        netmap.refused.values().map(|(_, why)| *why).collect::<Vec<_>>(),
        [Refusal::Expired, Refusal::Expired, Refusal::WireGuardOnly]
    );
    let corrected = with(&[json!({"Node": me, "Peers": peers, "ControlTime": "2000-01-01T00:00:00Z"})]);
    assert_eq!(ids(&corrected), [2, 5], "by control's clock");

    let locked = json!({"Node": me, "Peers": peers, "TKAInfo": {"Head": "x"}});
    let netmap = with(std::slice::from_ref(&locked));
    assert!(netmap.is_locked() && netmap.peers.is_empty());
    assert!(netmap.refused.values().all(|(_, why)| *why == Refusal::TailnetLock));
    assert_eq!(ids(&with(&[locked, json!({"TKAInfo": {"Disabled": true}})])), [5]);
}

#[test]
fn what_control_finds_wrong_changes_by_name() {
    let me = json!({"Node": {"ID": 1}, "Health": ["old words"]});
    let message = |title: &str, severity: &str| json!({"Title": title, "Text": "Do it.", "Severity": severity});
    let named =
        json!({"DisplayMessages": {"b": message("Second", "low"), "a": message("First", "high"), "c": {"Text": "x"}}});
    let action = json!({"DisplayMessages": {"a": null, "b": {"Title": "Second", "Text": "Do it.", "Severity": "strange",
        "PrimaryAction": {"URL": "https://example.com/x", "Label": "There"}}}});
    let cleared = json!({"DisplayMessages": {"*": null}});
    let is = |messages: &[&Value], want: &[&str]| {
        let messages: Vec<_> = messages.iter().map(|message| (*message).clone()).collect();
        assert_eq!(with(&messages).health, want);
    };
    is(&[&me, &json!({"Health": null})], &["old words"]);
    is(&[&me, &json!({"Health": []})], &[]);
    is(&[&me, &named], &["First: Do it.", "Second: Do it.", "x"]);
    is(&[&me, &named, &json!({"DisplayMessages": null})], &["First: Do it.", "Second: Do it.", "x"]);
    is(&[&me, &named, &action], &["Second: Do it. (There: https://example.com/x)", "x"]);
    is(&[&me, &named, &cleared], &["old words"]);
    let many: serde_json::Map<_, _> = (0..1000).map(|n| (n.to_string(), message(&"y".repeat(5000), "low"))).collect();
    let health = with(&[me, json!({"DisplayMessages": many})]).health;
    assert!(health.len() <= 64 && health.iter().all(|line| line.len() <= 1000));
}

#[test]
fn peers_are_found_by_what_they_have_now() {
    let me = json!({"ID": 1, "Key": key(1)});
    let peer = |id: u8, name: &str, more: Value| {
        let mut peer =
            json!({"ID": id, "Name": format!("{name}.x."), "Key": key(id), "Addresses": [format!("100.64.0.{id}/32")]});
        peer.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        peer
    };
    let first = json!({"Node": me, "Peers": [peer(2, "Two", json!({"Tags": ["tag:a", "tag:b"]})), peer(3, "three", json!({}))]});
    let find = |netmap: &Netmap, name: &str, tag: &str, n: u8| {
        let of = |peers: Vec<&Peer>| peers.iter().map(|peer| peer.id).collect::<Vec<_>>();
        let address = format!("100.64.0.{n}").parse().unwrap();
        (
            of(netmap.peers.called(name).collect()),
            of(netmap.peers.tagged(tag).collect()),
            of(netmap.peers.by_key(&key(n)).into_iter().collect()),
            of(netmap.peers.by_address(address).into_iter().collect()),
        )
    };
    let before = with(std::slice::from_ref(&first));
    assert_eq!(find(&before, "two.x", "tag:b", 2), (vec![2], vec![2], vec![2], vec![2]));
    let changed =
        peer(2, "other", json!({"Tags": ["tag:b"], "Key": key(9), "Addresses": ["100.64.0.9/32", "10.0.0.0/8"]}));
    let after = with(&[first.clone(), json!({"PeersChanged": [changed]})]);
    assert_eq!(find(&after, "two.x", "tag:a", 2), (vec![], vec![], vec![], vec![]));
    assert_eq!(find(&after, "other.x", "tag:b", 9), (vec![2], vec![2], vec![2], vec![2]));
    assert!(after.peer_by_address("10.0.0.0".parse().unwrap()).is_none(), "a network is nobody's own address");
    let gone = with(&[first, json!({"PeersRemoved": [2]})]);
    assert_eq!(find(&gone, "two.x", "tag:a", 2), (vec![], vec![], vec![], vec![]));
}

/// Messages at random, of few peers: so that all kinds of changes meet.
fn some_message() -> impl proptest::strategy::Strategy<Value = Value> {
    use proptest::prelude::*;
    let ids = || prop::collection::vec(2_u8..8, 0..4);
    let some_node = (2_u8..8, 2_u8..8, 0_u8..4, any::<bool>(), prop::option::of(0_i64..4)).prop_map(|(id, k, kind, online, ends)| {
        let ends = ends.map_or_else(|| Timestamp::default().to_string(), |n| Timestamp::from_unix(CLOCK.unix() + n * 50).to_string());
        json!({"ID": id, "Name": format!("n{k}.x."), "Key": key(k), "Addresses": [format!("100.64.0.{k}/32")], "Online": online,
            "KeyExpiry": ends, "Expired": kind == 1, "IsWireGuardOnly": kind == 2, "UnsignedPeerAPIOnly": kind == 3})
    });
    let patch = (2_u8..8, prop::option::of(1_u8..8), any::<bool>())
        .prop_map(|(id, k, online)| json!({"NodeID": id, "Online": online, "Key": k.map(key)}));
    let nodes = || prop::collection::vec(some_node.clone(), 0..5);
    let rules = prop::option::of(prop::collection::vec((2_u8..8).prop_map(|n| rule(&format!("100.64.0.{n}"))), 0..2));
    let rare = (
        prop::option::weighted(0.1, any::<bool>()),
        prop::option::weighted(0.1, 1_u8..8),
        prop::option::weighted(0.1, 0_i64..400),
    );
    (nodes(), nodes(), ids(), prop::collection::vec(patch, 0..3), rules, 0_u8..8, rare).prop_map(
        |(all, changed, removed, patches, rules, whole, (lock, own, ahead))| {
            let mut message = json!({"PeersChanged": changed, "PeersRemoved": removed, "PeersChangedPatch": patches, "PacketFilter": rules});
            if whole == 0 {
                message["Peers"] = json!(all);
            }
            if let Some(disabled) = lock {
                message["TKAInfo"] = json!({"Head": "x", "Disabled": disabled});
            }
            if let Some(own) = own {
                message["Node"] = json!({"ID": 1, "Key": key(own)});
            }
            if let Some(ahead) = ahead {
                message["ControlTime"] = json!(Timestamp::from_unix(CLOCK.unix() + ahead).to_string());
            }
            message
        },
    )
}

proptest::proptest! {
    /// What was changed bit by bit is what the same facts make at once.
    #[test]
    fn changes_bit_by_bit_lead_where_the_whole_does(
        messages in proptest::collection::vec((some_message(), 0_i64..60), 1..12),
    ) {
        let mut state = NetmapState::default();
        let mut clock = CLOCK;
        let mut last = Netmap::default();
        let first: MapResponse = serde_json::from_value(json!({"Node": {"ID": 1, "Key": key(1)}})).unwrap();
        state.handle_response(first, clock);
        for (message, passed) in messages {
            clock = Timestamp::from_unix(clock.unix() + passed);
            state.handle_response(serde_json::from_value(message).unwrap(), clock);
            let netmap = state.netmap(clock).unwrap();

            let refused = netmap.refused.values().map(|(peer, _)| peer);
            let all: Vec<_> = netmap.peers.values().chain(refused).map(|peer| (**peer).clone()).collect();
            let whole = MapResponse {
                node: Some((*netmap.self_node).clone()),
                peers: all,
                tka_info: netmap.tailnet_lock.clone(),
                control_time: Some(Timestamp::from_unix(clock.unix() + netmap.clock_offset)),
                ..MapResponse::default()
            };
            let mut anew = NetmapState::default();
            anew.handle_response(whole, clock);
            let anew = anew.netmap(clock).unwrap();
            proptest::prop_assert_eq!(&netmap.peers, &anew.peers);
            proptest::prop_assert_eq!(&netmap.refused, &anew.refused);
            for n in 1..9 {
                let expected = netmap.peers.values().find(|peer| peer.key == key(n));
                proptest::prop_assert_eq!(netmap.peer_by_key(&key(n)), expected);
            }
            let unsigned: Vec<_> = all_unsigned(&netmap).collect();
            if !unsigned.is_empty() && let Some(rules) = &netmap.filter_rules {
                let admits = |rule: &FilterRule| unsigned.iter().any(|address| rule.src_ips.contains(address));
                proptest::prop_assert!(!rules.iter().any(admits));
            }

            let changes = Changes::between(&last, &netmap);
            for peer in netmap.peers.values() {
                let known = last.peers.get(&peer.id);
                proptest::prop_assert_eq!(changes.added.contains(&peer.id), known.is_none());
                let is_changed = known.is_some_and(|known| known != peer);
                proptest::prop_assert_eq!(changes.changed.iter().any(|change| change.id == peer.id), is_changed);
            }
            for peer in last.peers.values() {
                proptest::prop_assert_eq!(changes.removed_keys.contains(&peer.key), netmap.peer_by_key(&peer.key).is_none());
            }
            last = netmap;
        }
    }
}

fn all_unsigned(netmap: &Netmap) -> impl Iterator<Item = String> {
    let refused = netmap.refused.values().map(|(peer, _)| peer);
    let unsigned = netmap.peers.values().chain(refused).filter(|peer| peer.unsigned_peer_api_only);
    unsigned.flat_map(|peer| peer.addresses.iter().map(|net| net.addr().to_string())).collect::<Vec<_>>().into_iter()
}

#[test]
fn a_stream_must_begin_with_our_node() {
    let mut state = NetmapState::default();
    state.handle_response(MapResponse { keep_alive: true, ..MapResponse::default() }, CLOCK);
    assert_eq!(state.netmap(CLOCK).err(), Some(NetmapError::NoSelfNode));
}

#[test]
fn changes_name_what_changed() {
    let before = with(&[json!({"Node": {"ID": 1}, "Peers": [node(2, "a"), node(3, "b"), node(4, "c"), node(5, "d")]})]);
    let after = with(&[json!({"Node": {"ID": 1}, "PacketFilter": [], "SSHPolicy": {}, "Peers": [
        node(2, "a"), {"ID": 3, "Name": "b", "Key": key(77)}, {"ID": 4, "Name": "c", "Key": key(5), "HomeDERP": 3},
        node(6, "e"), {"ID": 7, "Name": "d", "Key": key(6)}]})]);
    let changes = Changes::between(&before, &after);
    assert_eq!(
        changes,
        Changes {
            filter: true,
            ssh_policy: true,
            added: vec![6, 7],
            removed_keys: vec![key(4)],
            changed: vec![
                PeerChanges { id: 3, key: true, ..PeerChanges::default() },
                PeerChanges { id: 4, home_region: true, ..PeerChanges::default() }
            ],
            ..Changes::default()
        }
    );
    assert!(Changes::between(&after, &after).is_empty());
}
