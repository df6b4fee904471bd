//! The control servers that starts are measured against: nixtail's devnet, and headscale with Tailscale's own relay.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::stage::Machine;
use crate::stage::place::Place;
use crate::stage::process::{Running, run_command, word};

/// How long a server may take to serve.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a command of headscale may take.
const COMMAND_DEADLINE: Duration = Duration::from_secs(30);
/// Where headscale and its relay serve, in a namespace of their own.
const PORT: u16 = 8080;
const RELAY_PORT: u16 = 3340;
const STUN_PORT: u16 = 3478;

/// A control server. Dropping it ends it.
pub(crate) struct Control {
    pub(crate) url: String,
    /// A key that admits any number of nodes.
    pub(crate) key: String,
    /// Its only relay, as a DERP map has it, where that is Tailscale's own.
    pub(crate) region: Option<serde_json::Value>,
    _running: Vec<Running>,
}

impl Control {
    /// The devnet, at that address of the place, with so many made-up nodes in it.
    pub(crate) fn devnet(
        programs: &Path,
        place: Place<'_>,
        address: &str,
        crowd: usize,
    ) -> Result<Self, Box<dyn Error>> {
        let program = programs.join("nixtail").display().to_string();
        let crowd = crowd.to_string();
        let line = ["devnet", "--listen", address, "--force", "--allow-all", "--crowd", &crowd];
        let mut devnet = place.start("devnet", place.command(&program, &line))?;
        let ready = devnet.wait_until_ready(PATIENCE)?;
        let (url, key) = (word(&ready, "TS_CONTROL_URL")?, word(&ready, "TS_AUTHKEY")?);
        Ok(Self { url, key, region: None, _running: vec![devnet] })
    }

    /// headscale and a relay, at that address of the machine, for ephemeral nodes.
    pub(crate) fn headscale(folder: &Path, machine: &Machine, address: &str) -> Result<Self, Box<dyn Error>> {
        let program = |name: &str| folder.join("bin").join(name).display().to_string();
        let file = |name: &str| machine.path(name).display().to_string();
        let relay = format!(
            "-a {address}:{RELAY_PORT} -hostname={address} -certmode=manual -certdir={} -c {} -http-port=-1 -stun-port={STUN_PORT}",
            file("certificates"),
            file("derper.key"),
        );
        let mut relay = machine
            .start_inside("derper", machine.command(&program("derper"), &relay.split(' ').collect::<Vec<_>>()))?;
        let pin = relay.wait_for("its certificate's pin", PATIENCE, |log| {
            let (_, rest) = log.split_once("\"CertName\":\"")?;
            Some(rest.split_once('"')?.0.to_owned())
        })?;
        fs::write(file("derp.yaml"), derp_map(address, &pin))?;
        fs::write(file("headscale.yaml"), configuration(address, &file))?;
        let configuration = file("headscale.yaml");
        let serve = machine.command(&program("headscale"), &["serve", "--config", &configuration]);
        let mut headscale = machine.start_inside("headscale", serve)?;
        let socket = machine.path("headscale.sock");
        headscale.wait_for("it listens", PATIENCE, |_| socket.exists().then_some(()))?;
        let command = |arguments: &[&str]| {
            let arguments = [&["--config", &configuration], arguments].concat();
            run_command(machine.command(&program("headscale"), &arguments), COMMAND_DEADLINE)
        };
        command(&["users", "create", "bench"])?;
        let key = command(&["preauthkeys", "create", "--user", "1", "--reusable", "--ephemeral", "--output", "json"])?;
        let key: serde_json::Value = serde_json::from_str(&key)?;
        let key = key.get("key").and_then(|key| key.as_str()).ok_or("headscale made no key")?.to_owned();
        let url = format!("http://{address}:{PORT}");
        Ok(Self { url, key, region: Some(region(address, &pin)), _running: vec![headscale, relay] })
    }
}

fn derp_map(address: &str, pin: &str) -> String {
    format!(
        "regions:\n  900:\n    regionid: 900\n    regioncode: bench\n    regionname: Bench\n    nodes:\n      \
         - name: bench1\n        regionid: 900\n        hostname: {address}\n        certname: \"{pin}\"\n        \
         ipv4: {address}\n        ipv6: none\n        stunport: {STUN_PORT}\n        derpport: {RELAY_PORT}\n"
    )
}

/// The same, as a client of the relay alone has it.
fn region(address: &str, pin: &str) -> serde_json::Value {
    serde_json::json!({
        "RegionID": 900, "RegionCode": "bench", "RegionName": "Bench",
        "Nodes": [{
            "Name": "bench1", "RegionID": 900, "HostName": address, "CertName": pin, "IPv4": address, "IPv6": "none",
            "STUNPort": STUN_PORT, "DERPPort": RELAY_PORT,
        }],
    })
}

fn configuration(address: &str, file: &impl Fn(&str) -> String) -> String {
    let (noise, database, socket, map) =
        (file("noise.key"), file("headscale.sqlite"), file("headscale.sock"), file("derp.yaml"));
    format!(
        r#"
server_url: http://{address}:{PORT}
listen_addr: {address}:{PORT}
metrics_listen_addr: 127.0.0.1:0
grpc_listen_addr: 127.0.0.1:0
noise:
  private_key_path: {noise}
prefixes:
  v4: 100.64.0.0/10
  v6: fd7a:115c:a1e0::/48
derp:
  urls: []
  paths: [{map}]
  auto_update_enabled: false
disable_check_updates: true
ephemeral_node_inactivity_timeout: 120s
database:
  type: sqlite
  sqlite:
    path: {database}
dns:
  magic_dns: true
  base_domain: bench.test
  override_local_dns: false
unix_socket: {socket}
unix_socket_permission: "0700"
"#
    )
}
