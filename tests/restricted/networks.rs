//! Networks that let little through.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::control::{DevnetAtRouter, HeadscaleOn443, exchange};
use crate::lab::PATIENCE;
use crate::lab::peers;
use crate::lab::process::Process;
use crate::lab::wait_for;
use crate::node::Node;
use crate::world::{ECHO, Link, SERVICE_V4, SERVICE_V6, World, run_in_world};

/// Enough to fill every queue on the way many times.
const AMOUNT: usize = 4 << 20;
/// Drops all datagrams.
pub(crate) const NO_UDP: &str = "meta l4proto udp drop";

/// A real HTTP proxy at the router.
pub(crate) struct Proxy {
    _process: Process,
    log: PathBuf,
}

impl Proxy {
    /// What the router lets through then, in silence.
    pub(crate) const RULES: &str = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept\n  \
                                    tcp dport 3128 accept\n  tcp sport 3128 accept\n  drop";

    /// `None` when there is no tinyproxy.
    pub(crate) fn start(world: &World) -> Option<Self> {
        let tinyproxy = peers::require_on_path("tinyproxy")?;
        let [configuration, log] = ["conf", "log"].map(|end| world.folder().join("tinyproxy").with_extension(end));
        let text =
            format!("Port 3128\nListen {SERVICE_V4}\nTimeout 600\nLogFile \"{}\"\nLogLevel Info\n", log.display());
        fs::write(&configuration, text).unwrap();
        let args = ["-d", "-c", configuration.to_str().unwrap()];
        let process = Process::start("tinyproxy", &tinyproxy, args, [], &world.folder().join("proxy.log"));
        let proxy = Self { _process: process, log };
        wait_for("tinyproxy", PATIENCE, || proxy.log().contains("Starting main loop").then_some(()));
        Some(proxy)
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How many connections it was asked for.
    pub(crate) fn count_connects(&self) -> usize {
        self.log().lines().filter(|line| line.contains("CONNECT ")).count()
    }
}

#[test]
fn without_udp_bytes_go_over_the_relay() {
    run_in_world(|world| {
        let control = DevnetAtRouter::start(SERVICE_V4);
        let [left, right] = ["left", "right"].map(|name| world.machine(name, Link::USUAL));
        let _echo = right.echo(world);
        let far = right.v4.unwrap();
        assert!(left.has_udp(far) && left.has_udp(right.v6) && left.has_udp(SERVICE_V4), "the probe sees UDP");
        world.set_rules(NO_UDP);
        assert!(!left.has_udp(far) && !left.has_udp(right.v6) && !left.has_udp(SERVICE_V4), "there is UDP");
        assert!(left.has_tcp(far, ECHO) && left.has_tcp(SERVICE_V4, ECHO), "there is no TCP");

        let mut waiting = Node::start(world, &right, &[], &control.orders("right"), &[]);
        waiting.wait_until_ready();
        let exchanged = exchange(world, &left, control.orders("left"), AMOUNT, false, &[]);
        assert!(exchanged.is_relayed(), "{exchanged:?}");
        assert!(control.devnet.relay_stats().bytes > 2 * AMOUNT as u64, "the relay has passed it on");
        // Local ones: a peer in the same network may reach them all the same.
        assert!(!exchanged.endpoints.is_empty(), "{exchanged:?}");
        waiting.end();
    });
}

#[test]
fn with_tcp_443_alone_control_and_relay_are_reached() {
    run_in_world(|world| {
        let Some(control) = HeadscaleOn443::start(world) else { return };
        let [left, right] = ["left", "right"].map(|name| world.machine(name, Link::USUAL));
        let (echo, relays_echo) = (right.echo(world), control.relay.echo(world));
        let [at_control, at_relay] = [&control.control, &control.relay].map(|machine| machine.v4.unwrap());
        assert!(left.has_tcp(right.v4.unwrap(), ECHO) && left.has_udp(at_relay), "the probes see what there is");
        // Silence, as most firewalls have it: who waits for a refusal waits for ever.
        world.set_rules(
            "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept\n  tcp dport 443 accept\n  tcp sport 443 accept\n  drop",
        );
        assert!(!left.has_tcp(right.v4.unwrap(), ECHO) && !left.has_udp(at_relay), "more passes than 443");
        assert!(left.has_tcp(at_control, 443) && left.has_tcp(at_relay, 443), "443 doesn't pass");
        drop((echo, relays_echo));

        let trust = [("SSL_CERT_FILE", control.certificate.as_str())];
        let mut waiting = Node::start(world, &right, &[], &control.orders("right"), &trust);
        waiting.wait_until_ready();
        let exchanged = exchange(world, &left, control.orders("left"), AMOUNT, false, &trust);
        assert!(exchanged.is_relayed(), "{exchanged:?}");
        waiting.end();
    });
}

#[test]
fn with_an_http_proxy_alone_all_goes_through_it() {
    run_in_world(|world| {
        let Some(proxy) = Proxy::start(world) else { return };
        let control = DevnetAtRouter::start(SERVICE_V4);
        let [left, right] = ["left", "right"].map(|name| world.machine(name, Link::USUAL));
        let host_and_port = control.devnet.url().split_once("//").unwrap().1.to_owned();
        let port: u16 = host_and_port.rsplit_once(':').unwrap().1.parse().unwrap();
        assert!(left.has_tcp(SERVICE_V4, port) && left.has_udp(SERVICE_V4), "the probes see what there is");
        world.set_rules(Proxy::RULES);
        assert!(!left.has_tcp(SERVICE_V4, port) && !left.has_udp(SERVICE_V4), "more passes than the proxy");

        let url = format!("http://{SERVICE_V4}:3128");
        let environment = [("ALL_PROXY", url.as_str())];
        let mut waiting = Node::start(world, &right, &[], &control.orders("right"), &environment);
        waiting.wait_until_ready();
        let exchanged = exchange(world, &left, control.orders("left"), AMOUNT, false, &environment);
        assert!(exchanged.is_relayed(), "{exchanged:?}");
        // Control and the relay, by two nodes each.
        assert!(proxy.count_connects() >= 4, "{}", proxy.log());
        waiting.end();
    });
}

#[test]
fn without_ipv4_bytes_go_directly_and_over_the_relay() {
    run_in_world(|world| {
        let Some(control) = HeadscaleOn443::start(world) else { return };
        let link = Link { has_v4: false, ..Link::USUAL };
        let [left, right] = ["left", "right"].map(|name| world.machine(name, link));
        let _echo = right.echo(world);
        assert!(left.has_udp(right.v6) && left.has_tcp(control.control.v6, 443), "there is IPv6");
        assert!(!left.has_tcp(control.control.v4.unwrap(), 443) && !left.has_tcp([127, 0, 0, 1], 443), "there is IPv4");

        let trust = [("SSL_CERT_FILE", control.certificate.as_str())];
        let mut waiting = Node::start(world, &right, &[], &control.orders("right"), &trust);
        waiting.wait_until_ready();
        let exchanged = exchange(world, &left, control.orders("left"), AMOUNT, true, &trust);
        assert!(exchanged.is_direct(), "{exchanged:?}");
        world.set_rules(NO_UDP);
        let exchanged = exchange(world, &left, control.orders("left-2"), AMOUNT, false, &trust);
        assert!(exchanged.is_relayed(), "{exchanged:?}");
        assert!(!exchanged.endpoints.is_empty() && exchanged.endpoints.iter().all(SocketAddr::is_ipv6));
        waiting.end();
    });
}

#[test]
fn without_ipv4_a_devnet_serves_as_well() {
    run_in_world(|world| {
        let control = DevnetAtRouter::start(SERVICE_V6);
        let link = Link { has_v4: false, ..Link::USUAL };
        let [left, right] = ["left", "right"].map(|name| world.machine(name, link));
        let mut waiting = Node::start(world, &right, &[], &control.orders("right"), &[]);
        waiting.wait_until_ready();
        let exchanged = exchange(world, &left, control.orders("left"), AMOUNT, true, &[]);
        assert!(exchanged.is_direct(), "{exchanged:?}");
        waiting.end();
    });
}
