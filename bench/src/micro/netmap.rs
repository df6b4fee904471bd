//! What a netmap of a large tailnet costs.

use std::error::Error;
use std::fmt::Write as _;
use std::hint::black_box;

use nixtail_proto::control::MapSession;
use nixtail_proto::tailcfg::Timestamp;

use super::Size;
use super::measure::{Row, per_call};

const PEERS: u32 = 1000;
const CLOCK: Timestamp = Timestamp::from_unix(1_800_000_000);

pub(crate) fn measure(size: Size) -> Result<Vec<Row>, Box<dyn Error>> {
    let whole = whole()?;
    let mut known = MapSession::default();
    known.handle_message(CLOCK, whole.as_bytes())?;
    let mut is_online = true;
    Ok(vec![
        per_call(format!("netmap: the first message, {PEERS} peers"), size.netmaps, || {
            let mut session = MapSession::default();
            let read = session.handle_message(CLOCK, black_box(whole.as_bytes())).is_ok();
            read && session.netmap().is_some_and(|netmap| netmap.peers.len() == PEERS as usize)
        })?,
        per_call(format!("netmap: one peer of {PEERS} goes or comes"), size.netmaps, || {
            is_online = !is_online;
            let change = format!(r#"{{"OnlineChange":{{"500":{is_online}}}}}"#);
            known.handle_message(CLOCK, change.as_bytes()).is_ok_and(|message| message.changes.is_some())
        })?,
    ])
}

/// What control would say first.
fn whole() -> Result<String, std::fmt::Error> {
    let mut json = format!(r#"{{"Domain":"example.com","Node":{},"Peers":["#, node(PEERS + 1)?);
    for number in 1..=PEERS {
        let comma = if number == 1 { "" } else { "," };
        write!(json, "{comma}{}", node(number)?)?;
    }
    json.push_str("]}");
    Ok(json)
}

fn node(number: u32) -> Result<String, std::fmt::Error> {
    let [_, _, high, low] = number.to_be_bytes();
    let mut json = String::new();
    write!(json, r#"{{"ID":{number},"StableID":"n{number}","Name":"host{number}.example.ts.net.","User":1,"#)?;
    for (name, kind) in [("Key", "nodekey"), ("Machine", "mkey"), ("DiscoKey", "discokey")] {
        write!(json, r#""{name}":"{kind}:{number:064x}","#)?;
    }
    let addresses = format!(r#"["100.64.{high}.{low}/32","fd7a:115c:a1e0::{number:x}/128"]"#);
    write!(json, r#""Addresses":{addresses},"AllowedIPs":{addresses},"#)?;
    write!(json, r#""Endpoints":["192.0.2.{low}:41641","198.51.100.{low}:41641"],"HomeDERP":1,"Cap":113,"#)?;
    write!(json, r#""Hostinfo":{{"OS":"linux","Hostname":"host{number}","Services":[]}},"#)?;
    json.push_str(r#""KeyExpiry":"0001-01-01T00:00:00Z","MachineAuthorized":true,"Online":true}"#);
    Ok(json)
}
