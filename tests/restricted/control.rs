//! The control servers and relays of these tests, at the router's addresses.

use std::fs;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nixtail_devnet::{AuthKeyOptions, Config, Devnet, Policy};
use tokio::runtime::Runtime;

use crate::lab::headscale::{self, ALLOW_ALL, Headscale, KeyTerms};
use crate::lab::peers;
use crate::lab::relay::{self, Relay};
use crate::node::{Exchange, Exchanged, Node, Orders};
use crate::world::{Link, Machine, World};

/// A devnet, and what it is served by.
pub(crate) struct DevnetAtRouter {
    pub(crate) devnet: Devnet,
    _runtime: Runtime,
    key: String,
}

/// headscale and derper on TCP 443, in a machine each, by both families.
pub(crate) struct HeadscaleOn443 {
    pub(crate) headscale: Headscale,
    /// The file with headscale's certificate, which nodes are to trust.
    pub(crate) certificate: String,
    pub(crate) control: Machine,
    pub(crate) relay: Machine,
}

/// The name of headscale's machine.
const CONTROL_NAME: &str = "control.test";

impl DevnetAtRouter {
    pub(crate) fn start(listen: impl Into<IpAddr>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let config = Config { listen: listen.into(), force: true, policy: Policy::allow_all(), ..Config::default() };
        let devnet = runtime.block_on(Devnet::start(config)).unwrap();
        let options = AuthKeyOptions { reusable: true, ephemeral: true, ..AuthKeyOptions::default() };
        let key = devnet.add_auth_key(options).unwrap().expose().to_owned();
        Self { devnet, _runtime: runtime, key }
    }

    /// Orders for a node that waits for others.
    pub(crate) fn orders(&self, name: &str) -> Orders {
        let (login_server, key) = (self.devnet.url(), self.key.clone());
        Orders { login_server, key, name: name.to_owned(), direct: true, exchange: None }
    }

    /// Key for the nodes of whatever program.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }
}

impl HeadscaleOn443 {
    /// `None` when a program is missing.
    pub(crate) fn start(world: &World) -> Option<Self> {
        let [_, derper] = peers::require_all(["headscale", "derper"])?;
        let [control, relay] = ["control", "relay"].map(|name| world.machine(name, Link::USUAL));
        let v4 = |machine: &Machine| machine.v4.unwrap();
        world.set_hosts(&format!("{} {CONTROL_NAME}\n{} {CONTROL_NAME}\n", v4(&control), control.v6));
        let [certificate, key] = ["crt", "key"].map(|end| world.folder().join("control").with_extension(end));
        let made = rcgen::generate_simple_self_signed(vec![CONTROL_NAME.to_owned()]).unwrap();
        fs::write(&certificate, pem("CERTIFICATE", made.cert.der())).unwrap();
        fs::write(&key, pem("PRIVATE KEY", &made.signing_key.serialize_der())).unwrap();
        let (derp_port, stun_port, entrance) = (443, 3478, relay.entrance());
        let site = relay::Site { entrance, v4: v4(&relay), v6: Some(relay.v6), derp_port, stun_port };
        let derper = Relay::start_at(&derper, site);
        let site = headscale::Site {
            entrance: control.entrance(),
            url: format!("https://{CONTROL_NAME}"),
            listen: ":443".to_owned(),
            reached: format!("{}:443", v4(&control)),
            tls: Some((certificate.clone(), key)),
        };
        let headscale = Headscale::start_at(ALLOW_ALL, derper, &site)?;
        Some(Self { headscale, certificate: certificate.display().to_string(), control, relay })
    }

    /// Orders for a node that waits for others.
    pub(crate) fn orders(&self, name: &str) -> Orders {
        let key = self.headscale.preauth_key(KeyTerms { ephemeral: true, reusable: false, tags: &[] });
        let login_server = self.headscale.url().to_owned();
        Orders { login_server, key, name: name.to_owned(), direct: true, exchange: None }
    }
}

fn pem(kind: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: String = text.as_bytes().chunks(64).map(|line| format!("{}\n", String::from_utf8_lossy(line))).collect();
    format!("-----BEGIN {kind}-----\n{lines}-----END {kind}-----\n")
}

/// Lets a node `left` exchange bytes with one that waits, and leave.
pub(crate) fn exchange(
    world: &World,
    machine: &Machine,
    orders: Orders,
    bytes: usize,
    wait_for_direct: bool,
    more: &[(&str, &str)],
) -> Exchanged {
    let exchange = Exchange { peer: "right".to_owned(), bytes, wait_for_direct };
    Node::start(world, machine, &[], &Orders { exchange: Some(exchange), ..orders }, more).finish()
}
