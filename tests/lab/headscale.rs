//! headscale 0.27.1: SQLite, its DERP map naming one [`Relay`]; plain HTTP on loopback, unless it is put at a [`Site`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use super::network::answers;
use super::process::{Process, run_ok};
use super::relay::Relay;
use super::{Lost, PATIENCE, free_tcp_port, peers, start_with_ports, wait_for};

/// The user that [`Headscale::start`] makes; policies may name it, as `lab@`.
pub const USER: &str = "lab";

/// A policy by which everyone may send anything to everyone, and nobody may log in by SSH.
pub const ALLOW_ALL: &str = r#"{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}"#;

/// A control server with its relay.
pub struct Headscale {
    process: Process,
    program: PathBuf,
    folder: TempDir,
    site: Site,
    user: u64,
    /// Where its nodes meet.
    pub relay: Relay,
}

/// Where a control server is.
#[derive(Clone, Debug)]
pub struct Site {
    /// Words before those of its program, which lead into another network namespace.
    pub entrance: Vec<String>,
    /// What nodes are told.
    pub url: String,
    /// The address and port that it listens on.
    pub listen: String,
    /// An address and port at which it can be reached from here, or from where it is.
    pub reached: String,
    /// Its certificate and key, where it speaks TLS.
    pub tls: Option<(PathBuf, PathBuf)>,
}

/// What [`Headscale::preauth_key`] gives a node to join with.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeyTerms<'a> {
    /// Its nodes vanish when they log out.
    pub ephemeral: bool,
    /// It admits more than one node.
    pub reusable: bool,
    /// Tags of its nodes, such as `tag:builder`.
    pub tags: &'a [&'a str],
}

/// A node as headscale tells it.
#[derive(Clone, Debug, Deserialize)]
pub struct Node {
    /// headscale's own number for it.
    pub id: u64,
    /// The name that it asked for.
    pub name: String,
    /// The name that it got.
    pub given_name: String,
    /// Its addresses in the tailnet.
    #[serde(default)]
    pub ip_addresses: Vec<String>,
    /// Whether its map stream is up. (Absent means no.)
    #[serde(default)]
    pub online: bool,
    /// Everything else.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, Value>,
}

impl Headscale {
    /// Starts a relay and a control server with `policy` (HuJSON). `None` when a program is missing; see [`peers::require`].
    pub fn start(policy: &str) -> Option<Self> {
        let [program, derper] = peers::require_all(["headscale", "derper"])?;
        let headscale = start_with_ports(|| {
            let listen = format!("127.0.0.1:{}", free_tcp_port());
            let url = format!("http://{listen}");
            let site = Site { entrance: Vec::new(), url, reached: listen.clone(), listen, tls: None };
            Self::try_start(&program, Relay::start(&derper), &site)
        });
        Some(headscale.with_policy(policy))
    }

    /// Starts a control server for `relay` at a place that is known to be free.
    pub fn start_at(policy: &str, relay: Relay, site: &Site) -> Option<Self> {
        let program = peers::require("headscale")?;
        let started = Self::try_start(&program, relay, site);
        Some(started.unwrap_or_else(|Lost(why)| panic!("headscale did not start: {why}")).with_policy(policy))
    }

    fn with_policy(mut self, policy: &str) -> Self {
        self.user = self.user(USER);
        self.set_policy(policy);
        self
    }

    fn try_start(program: &Path, relay: Relay, site: &Site) -> Result<Self, Lost> {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name).display().to_string();
        fs::write(at("derp.yaml"), relay.map_file()).expect("write the DERP map");
        fs::write(at("config.yaml"), config(&at, site)).expect("write the configuration");
        let process = Self::serve(program, folder.path(), site)?;
        Ok(Self { process, program: program.to_owned(), folder, site: site.clone(), user: 0, relay })
    }

    /// Starts the program with the configuration in `folder`, and waits until it listens.
    fn serve(program: &Path, folder: &Path, site: &Site) -> Result<Process, Lost> {
        let at = |name: &str| folder.join(name).display().to_string();
        let mut words = site.entrance.clone();
        words.extend([program.display().to_string(), "serve".to_owned(), "--config".to_owned(), at("config.yaml")]);
        let (log, home) = (folder.join("log"), at(""));
        let socket = folder.join("sock");
        // A killed one leaves it behind.
        let _ = fs::remove_file(&socket);
        let mut process =
            Process::start("headscale", Path::new(&words[0]), &words[1..], [("HOME", home.as_str())], &log);
        wait_for("headscale to listen", PATIENCE, || {
            if process.ended().is_some() {
                return Some(Err(Lost(process.log())));
            }
            let serves = socket.exists() && answers(&site.entrance, &site.reached);
            serves.then_some(Ok(()))
        })?;
        Ok(process)
    }

    /// Kills it: its connections break, and nothing listens any more.
    pub fn kill(&mut self) {
        self.process.signal(Signal::KILL);
        self.process.wait(PATIENCE);
    }

    /// Starts it anew where it was, after a [`Headscale::kill`], with all that it knew.
    pub fn restart(&mut self) {
        self.process = Self::serve(&self.program, self.folder.path(), &self.site).expect("control comes back");
    }

    /// What a node is told as its login server.
    pub fn url(&self) -> &str {
        &self.site.url
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Makes a user; returns its number.
    pub fn user(&self, name: &str) -> u64 {
        let made = self.json(&["users", "create", name]);
        made["id"].as_u64().expect("a user's number")
    }

    /// A key of the user [`USER`] to join with.
    pub fn preauth_key(&self, terms: KeyTerms<'_>) -> String {
        self.preauth_key_of(self.user, terms)
    }

    /// A key of the user with number `user`.
    pub fn preauth_key_of(&self, user: u64, terms: KeyTerms<'_>) -> String {
        let user = user.to_string();
        let tags = terms.tags.join(",");
        let mut args = vec!["preauthkeys", "create", "--user", &user];
        if terms.ephemeral {
            args.push("--ephemeral");
        }
        if terms.reusable {
            args.push("--reusable");
        }
        if !tags.is_empty() {
            args.extend(["--tags", &tags]);
        }
        let made = self.json(&args);
        made["key"].as_str().expect("a key").to_owned()
    }

    /// The nodes it knows now.
    pub fn nodes(&self) -> Vec<Node> {
        // No node at all is `null`.
        let listed = self.json(&["nodes", "list"]);
        serde_json::from_value::<Option<Vec<Node>>>(listed).expect("headscale's list of nodes").unwrap_or_default()
    }

    /// The node that asked for the name `name`, if there is one.
    pub fn node(&self, name: &str) -> Option<Node> {
        self.nodes().into_iter().find(|node| node.name == name)
    }

    /// Puts `policy` (HuJSON) in force.
    pub fn set_policy(&self, policy: &str) {
        let file = self.folder.path().join("policy.hujson");
        fs::write(&file, policy).expect("write the policy");
        self.cli(&["policy", "set", "--file", &file.display().to_string()]);
    }

    /// headscale's own command line, as JSON.
    pub fn json(&self, args: &[&str]) -> Value {
        let text = self.cli(&[args, &["--output", "json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
    }

    /// headscale's own command line. Fails the test when the command fails.
    pub fn cli(&self, args: &[&str]) -> String {
        let config = self.folder.path().join("config.yaml");
        run_ok(
            Command::new(&self.program).arg("--config").arg(config).args(args).env("HOME", self.folder.path()),
            PATIENCE,
        )
    }
}

fn config(at: &dyn Fn(&str) -> String, site: &Site) -> String {
    let (noise, database, socket, map) = (at("noise.key"), at("db.sqlite"), at("sock"), at("derp.yaml"));
    let Site { url, listen, tls, .. } = site;
    let tls = tls.as_ref().map_or_else(String::new, |(certificate, key)| {
        format!("tls_cert_path: {}\ntls_key_path: {}\n", certificate.display(), key.display())
    });
    format!(
        r#"
server_url: {url}
listen_addr: {listen}
{tls}metrics_listen_addr: 127.0.0.1:0
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
policy:
  mode: database
dns:
  magic_dns: true
  base_domain: lab.test
  override_local_dns: false
unix_socket: {socket}
unix_socket_permission: "0700"
"#
    )
}
