use super::*;

#[test]
fn go_nulls_are_empty() {
    let node: Node = serde_json::from_str(
        r#"{"ID":9007199254740993,"StableID":"n1","Name":"a.tail.net.","Addresses":null,"AllowedIPs":null,"Endpoints":null,
            "Hostinfo":null,"Tags":null,"CapMap":null,"KeyExpiry":"0001-01-01T00:00:00Z","Unknown":{"x":[1]}}"#,
    )
    .unwrap();
    assert_eq!(node.id, 9_007_199_254_740_993);
    assert!(node.addresses.is_empty() && node.allowed_ips.is_none() && node.key_expiry.is_zero());
    assert_eq!((node.dns_name(), node.short_name()), ("a.tail.net", "a"));
}

#[test]
fn home_region_from_either_field() {
    let of = |text: &str| serde_json::from_str::<Node>(text).unwrap().home_region();
    assert_eq!(of(r#"{"DERP":"127.3.3.40:5"}"#), Some(5));
    assert_eq!(of(r#"{"DERP":"127.3.3.40:5","HomeDERP":7}"#), Some(7));
    assert_eq!(of(r#"{"DERP":"127.3.3.40:0"}"#), None);
    assert_eq!(of(r#"{"DERP":"10.0.0.1:3"}"#), None);
}

#[test]
fn what_a_peer_says_of_itself_cannot_spoil_a_netmap() {
    let peer = |region: &str| {
        format!(
            r#"{{"ID":1,"HomeDERP":{region},"Endpoints":["192.0.2.1:2","[fe80::1%eth0]:1","","[2001:db8::1]:3"],
                "Hostinfo":{{"NetInfo":{{"PreferredDERP":{region}}}}}}}"#
        )
    };
    let endpoints = ["192.0.2.1:2", "[2001:db8::1]:3"].map(|text| text.parse().unwrap());
    for (said, region) in [("7", 7), ("65535", 65535), ("65536", 0), ("-1", 0), ("null", 0), ("9223372036854775807", 0)]
    {
        let node: Node = serde_json::from_str(&peer(said)).unwrap();
        assert_eq!((node.home_derp, node.hostinfo.net_info.unwrap().preferred_derp), (region, region), "{said}");
        assert_eq!(node.endpoints, endpoints);
        let change = format!(r#"{{"NodeID":1,"DERPRegion":{said},"Endpoints":["x","192.0.2.1:2"]}}"#);
        let change: PeerChange = serde_json::from_str(&change).unwrap();
        assert_eq!((change.derp_region, change.endpoints.as_deref()), (region, Some(&endpoints[..1])));
    }
    let change: PeerChange = serde_json::from_str(r#"{"NodeID":1,"Endpoints":null}"#).unwrap();
    assert_eq!((change.derp_region, change.endpoints), (0, None));
}

#[test]
fn filters_tell_absent_null_and_empty_apart() {
    let of = |text: &str| serde_json::from_str::<MapResponse>(text).unwrap();
    assert_eq!(of("{}").packet_filter, None);
    assert_eq!(of(r#"{"PacketFilter":null}"#).packet_filter, None);
    assert_eq!(of(r#"{"PacketFilter":[]}"#).packet_filter, Some(vec![]));
    let named = of(r#"{"PacketFilters":{"*":null,"a":[]}}"#).packet_filters.unwrap();
    assert_eq!(named.get("*"), Some(&None));
    assert_eq!(named.get("a"), Some(&Some(vec![])));
}

#[test]
fn map_keys_are_decimal_strings() {
    let map: MapResponse = serde_json::from_str(
        r#"{"OnlineChange":{"7":true},"DERPMap":{"Regions":{"900":{"RegionID":900,"Nodes":null},"901":null}}}"#,
    )
    .unwrap();
    assert_eq!(map.online_change.get(&7), Some(&true));
    let regions = map.derp_map.unwrap().regions.unwrap();
    assert!(regions[&900].is_some() && regions[&901].is_none());
}

#[test]
fn requests_carry_go_names() {
    let request = RegisterRequest {
        version: CAPABILITY_VERSION,
        auth: Some(RegisterAuth { auth_key: crate::secret::Secret::new("tskey-auth-x".to_owned()) }),
        hostinfo: Hostinfo {
            ssh_host_keys: vec!["ssh-ed25519 AAAA".to_owned()],
            os: "linux".to_owned(),
            ..Default::default()
        },
        ..Default::default()
    };
    let json = serde_json::to_value(&request).unwrap();
    assert_eq!(json["Auth"]["AuthKey"], "tskey-auth-x");
    assert_eq!(json["Hostinfo"]["sshHostKeys"][0], "ssh-ed25519 AAAA");
    assert_eq!(json["Hostinfo"]["OS"], "linux");
    assert_eq!(json["OldNodeKey"], format!("nodekey:{}", "0".repeat(64)));
    assert!(!format!("{request:?}").contains("tskey"));
}

#[test]
fn ssh_policy_has_lower_case_names() {
    let policy: SshPolicy = serde_json::from_str(
        r#"{"rules":[null,{"principals":[{"nodeIP":"100.64.0.1"}],"sshUsers":{"*":"="},"action":{"accept":true,"sessionDuration":5}}]}"#,
    )
    .unwrap();
    let rule = policy.rules[1].as_ref().unwrap();
    assert_eq!(rule.principals[0].as_ref().unwrap().node_ip, "100.64.0.1");
    assert_eq!(rule.action.as_ref().unwrap().session_duration, 5);
}

#[test]
fn the_capability_version_promises_no_more_than_what_is_there() {
    // 111 and 112 (`HomeDERP`, `AllowedIPs` left out) are understood. From 120 on, peers would allocate relays for us,
    // and control would leave out what those need who can't use them.
    assert!((113..120).contains(&CAPABILITY_VERSION));
}
