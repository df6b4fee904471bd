//! Real peers for the end-to-end tests: headscale, `derper`, `tailscaled`, each in its own folder, on free loopback ports.
//!
//! Use it with `mod lab;`. What is started here is stopped when the value is dropped: SIGTERM, a moment to end in, SIGKILL to
//! the whole process group; and the kernel kills it when the *thread* that started it dies, so start peers on the test's own thread.
//! When a test fails, each peer prints the end of its log.
#![allow(dead_code, unreachable_pub, reason = "each test binary takes the part it needs")]
#![allow(clippy::unwrap_in_result, reason = "what goes wrong here fails the test")]

pub mod headscale;
pub mod network;
pub mod nixnode;
pub mod nixtail;
pub mod peers;
pub mod process;
pub mod relay;
pub mod sites;
pub mod tailscaled;

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a peer may take to do what is asked of it, on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How often a condition is looked at again.
const GLANCE: Duration = Duration::from_millis(20);

/// Calls `look` until it gives a value. Fails the test after `patience`, naming `what` was waited for.
pub fn wait_for<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {patience:?} in vain for {what}");
        sleep(GLANCE);
    }
}

/// A TCP port of 127.0.0.1 that was free a moment ago. Who takes it must be ready to find it taken (see [`Lost`]).
pub fn free_tcp_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind a TCP port");
    listener.local_addr().expect("its address").port()
}

/// A UDP port of 127.0.0.1 that was free a moment ago.
pub fn free_udp_port() -> u16 {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind a UDP port");
    socket.local_addr().expect("its address").port()
}

/// A peer ended while it was starting: most likely another program took its port in between.
#[derive(Debug)]
pub struct Lost(pub String);

/// Starts a peer that needs ports, again with other ones when it lost them. Fails the test after the third time.
pub fn start_with_ports<T>(mut start: impl FnMut() -> Result<T, Lost>) -> T {
    let mut last = String::new();
    for _ in 0..3 {
        match start() {
            Ok(peer) => return peer,
            Err(Lost(why)) => last = why,
        }
    }
    panic!("a peer did not start: {last}");
}
