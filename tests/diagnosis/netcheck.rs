//! `nixtail netcheck` where all is well, without UDP, without relays, and without anything.

use std::net::{TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use nixtail_devnet::RELAY_REGION;

use super::tailnet::{Tailnet, json, run};

#[test]
fn netcheck_goes_by_the_running_agents_relays() {
    let tailnet = Tailnet::start();
    let agent = tailnet.up("looker", &[]);
    let report = json(&agent.cli(&["netcheck", "--json"]));
    assert_eq!((&report["schema"], &report["derp_map"]), (&1.into(), &"the running agent".into()), "{report}");
    assert_eq!((&report["udp"], &report["nearest"]), (&true.into(), &RELAY_REGION.into()), "{report}");
    assert!(report["ipv4"].as_str().is_some_and(|seen| seen.starts_with("127.0.0.1:")), "{report}");
    assert_eq!((&report["ipv6"], &report["mapping_varies"]), (&().into(), &().into()), "one server, of IPv4: {report}");
    assert_eq!((&report["ipv4_silence"], &report["ipv6_silence"]), (&().into(), &"unasked".into()), "{report}");
    let region = &report["regions"][0];
    assert_eq!((&region["id"], &region["code"]), (&RELAY_REGION.into(), &"devnet".into()));
    assert!(region["udp_ms"].as_f64().is_some_and(|time| time < 1000.0), "{report}");
    assert!(region["relay_ms"].is_f64() && region["relay_error"].is_null(), "{report}");

    let said = agent.cli_ok(&["netcheck"]);
    for words in ["UDP      works", "nearest  Devnet, region 900 (", "the DERP map of the running agent"] {
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn without_an_agent_netcheck_takes_the_login_servers_relays_or_those_that_are_given() {
    let mut tailnet = Tailnet::start();
    let url = format!("{}/derpmap/default", tailnet.devnet().url());
    let output = run(tailnet.without_agent(&["netcheck", "--json"]));
    let report = json(&output);
    assert_eq!((output.status.code(), &report["udp"]), (Some(0), &true.into()), "{report}");
    assert_eq!(report["derp_map"], url.as_str());

    let named = json(&run(tailnet.without_agent(&["netcheck", "--json", "--derp-map", &url])));
    assert_eq!(named["nearest"], RELAY_REGION);

    // One that leads nowhere.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("derp.json");
    let nowhere = r#"{"Regions": {"7": {"RegionID": 7, "RegionCode": "x", "Nodes": [
        {"Name": "7a", "HostName": "127.0.0.1", "IPv4": "127.0.0.1", "IPv6": "none", "DERPPort": 1, "STUNPort": 1}]}}}"#;
    std::fs::write(&file, nowhere).unwrap();
    let begun = Instant::now();
    let output = run(tailnet.without_agent(&["netcheck", "--json", "--derp-map", file.to_str().unwrap()]));
    let report = json(&output);
    assert_eq!((output.status.code(), &report["udp"], &report["nearest"]), (Some(69), &false.into(), &().into()));
    let error = report["regions"][0]["relay_error"].as_str().unwrap();
    assert!(error.contains("127.0.0.1") && error.contains("firewall"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());

    // Neither this nor that.
    let refused = run(tailnet.without_agent(&["netcheck", "--derp-map", "/nonexistent"]));
    assert_eq!(refused.status.code(), Some(78));
    std::fs::write(&file, "{}").unwrap();
    let empty = run(tailnet.without_agent(&["netcheck", "--derp-map", file.to_str().unwrap()]));
    assert_eq!(empty.status.code(), Some(78));
    let nobody = tailnet.without_agent(&["netcheck"]);
    tailnet.end();
    let output = run(nobody);
    assert_eq!(output.status.code(), Some(69));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--derp-map FILE or URL"), "{output:?}");
}

#[test]
fn where_udp_is_silent_the_relay_is_tried_by_tcp() {
    let tailnet = Tailnet::start();
    let agent = tailnet.up("looker", &[]);
    tailnet.devnet().switch_stun(false);
    let output = agent.cli(&["netcheck", "--json"]);
    let report = json(&output);
    assert_eq!(
        (output.status.code(), &report["udp"], &report["ipv4"]),
        (Some(0), &false.into(), &().into()),
        "{report}"
    );
    assert_eq!(report["nearest"], RELAY_REGION, "{report}");
    let region = &report["regions"][0];
    assert!(region["udp_ms"].is_null() && region["relay_ms"].is_f64(), "{report}");

    tailnet.devnet().switch_relay(false);
    let output = agent.cli(&["netcheck"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains("not reached") && said.contains("unknown: none answered"), "{said}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("let TCP 443 to the relays out"), "{output:?}");
}

#[test]
fn a_dead_region_and_a_family_that_is_a_black_hole_stall_nothing() {
    let tailnet = Tailnet::start();
    let mut map = tailnet.derp_map();
    // What goes to these vanishes: requests, and the first bytes on a connection that was taken.
    let (dead_stun, dead_relay) = (UdpSocket::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let alive = &mut map["Regions"][RELAY_REGION.to_string()]["Nodes"][0];
    let stun_port = u16::try_from(alive["STUNPort"].as_u64().unwrap()).unwrap();
    // A machine without IPv6 is a black hole of its own.
    let dead_family = UdpSocket::bind(("::1", stun_port));
    alive["IPv6"] = "::1".into();
    let node = |name: &str, address: &str| {
        serde_json::json!({"Name": name, "HostName": name, "IPv4": address, "IPv6": "none",
            "STUNPort": dead_stun.local_addr().unwrap().port(), "DERPPort": dead_relay.local_addr().unwrap().port()})
    };
    for (id, node) in [(7, node("127.0.0.1", "127.0.0.1")), (8, node("relay.invalid", ""))] {
        map["Regions"][id.to_string()] = serde_json::json!({"RegionID": id, "RegionCode": "dead", "Nodes": [node]});
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("derp.json");
    std::fs::write(&file, map.to_string()).unwrap();

    let begun = Instant::now();
    let output = run(tailnet.without_agent(&["netcheck", "--json", "--derp-map", file.to_str().unwrap()]));
    let took = begun.elapsed();
    let report = json(&output);
    assert_eq!((output.status.code(), &report["udp"], &report["nearest"]), (Some(0), &true.into(), &900.into()));
    assert!(report["ipv4"].is_string() && report["ipv6"].is_null(), "{report:#}");
    let region = |id: u64| report["regions"].as_array().unwrap().iter().find(|region| region["id"] == id).unwrap();
    assert!(region(900)["udp_ms"].is_f64() && region(900)["relay_ms"].is_f64(), "{report:#}");
    for id in [7, 8] {
        assert!(region(id)["udp_ms"].is_null() && region(id)["relay_error"].is_string(), "{report:#}");
    }
    assert!(region(8)["relay_error"].as_str().unwrap().contains("looking up"), "{report:#}");
    assert!(took < Duration::from_secs(40), "{took:?}");
    drop((dead_family, dead_stun, dead_relay));
}
