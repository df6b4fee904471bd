//! `nixtail netcheck` where all is well, without UDP, without relays, and without anything.

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
