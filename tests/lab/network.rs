//! Machines with a network each: namespaces that hang by a cable on one switch, where control and relays are. Cables can be cut, and
//! be slow. Only root can make them.

use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::geteuid;

use super::headscale::{self, Headscale};
use super::process::{Process, run, run_ok};
use super::relay::{self, Relay};
use super::{PATIENCE, peers, wait_for};

/// The network that a process is started in: the test's own, unless it is a [`Switch`]'s or a [`Machine`]'s.
#[derive(Clone, Copy, Debug, Default)]
pub struct Namespace(Option<u32>);

impl Namespace {
    /// The words before a command line that start it there; none in the test's own network.
    pub fn entrance(self) -> Vec<String> {
        let enter = |pid| ["nsenter".to_owned(), format!("--net=/proc/{pid}/ns/net"), "--".to_owned()].to_vec();
        self.0.map(enter).unwrap_or_default()
    }

    /// A command to be run there.
    pub fn command(self, program: impl AsRef<OsStr>) -> Command {
        let entrance = self.entrance();
        let Some((first, more)) = entrance.split_first() else { return Command::new(program) };
        let mut command = Command::new(first);
        command.args(more).arg(program);
        command
    }

    fn run(self, words: &str) {
        let mut words = words.split(' ');
        let mut command = self.command(words.next().expect("a program"));
        run_ok(command.args(words), PATIENCE);
    }
}

/// Whether somebody takes a TCP connection at `address`, as seen from where these words lead, or from here.
pub fn answers(entrance: &[String], address: &str) -> bool {
    let inside = entrance.split_first().is_some_and(|(first, more)| {
        let (host, port) = address.rsplit_once(':').expect("an address and a port");
        let look = format!(": </dev/tcp/{host}/{port}");
        run(Command::new(first).args(more).args(["bash", "-c", &look]), PATIENCE).status.success()
    });
    let here = |address: SocketAddr| TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok();
    inside || address.parse().is_ok_and(here)
}

/// A network without a way out. Dropped, it goes with all devices in it, and so do their other ends.
struct Holder {
    process: Process,
}

impl Holder {
    fn start(name: &str, folder: &Path) -> Self {
        let log = folder.join(format!("{name}.log"));
        let mut process = Process::start(name, Path::new("unshare"), ["--net", "sleep", "infinity"], [], &log);
        let command_line = format!("/proc/{}/cmdline", process.id());
        wait_for("a network of its own", PATIENCE, || {
            assert!(process.ended().is_none(), "the network {name} could not be made:\n{}", process.log());
            fs::read(&command_line).ok()?.starts_with(b"sleep").then_some(())
        });
        let holder = Self { process };
        holder.namespace().run("ip link set lo up");
        holder
    }

    fn namespace(&self) -> Namespace {
        Namespace(Some(self.process.id()))
    }
}

/// Where all cables end. It has the address [`Switch::ADDRESS`], and servers may run there.
///
/// Declare it before its machines.
pub struct Switch {
    holder: Holder,
    cables: u8,
}

impl Switch {
    /// Its address for machines.
    pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

    /// Starts one that writes into `folder`. `None`, and the test is skipped by name, without root.
    pub fn start(folder: &Path) -> Option<Self> {
        if !geteuid().is_root() {
            peers::skip("root, for networks of its own");
            return None;
        }
        let holder = Holder::start("switch", folder);
        let namespace = holder.namespace();
        namespace.run("ip link add name switch type bridge");
        namespace.run(&format!("ip address add {}/24 dev switch", Self::ADDRESS));
        namespace.run("ip link set switch up");
        Some(Self { holder, cables: 0 })
    }

    /// Where its servers run.
    pub fn namespace(&self) -> Namespace {
        self.holder.namespace()
    }

    /// Starts a control server with `policy` and a relay there. `None` when a program is missing; see [`peers::require`].
    pub fn headscale(&self, policy: &str) -> Option<Headscale> {
        let derper = peers::require("derper")?;
        let entrance = self.namespace().entrance();
        let (v4, derp_port, stun_port) = (Self::ADDRESS, 3340, 3478);
        let place = relay::Site { entrance: entrance.clone(), v4, v6: None, derp_port, stun_port };
        let relay = Relay::start_at(&derper, place);
        let listen = format!("{v4}:8080");
        let (url, reached) = (format!("http://{listen}"), listen.clone());
        Headscale::start_at(policy, relay, &headscale::Site { entrance, url, listen, reached, tls: None })
    }

    /// Plugs a new machine in. `rate` is what its cable carries to it, as `tc` writes it (`40mbit`).
    pub fn machine(&mut self, name: &str, rate: &str, folder: &Path) -> Machine {
        self.cables += 1;
        let [a, b, c, _] = Self::ADDRESS.octets();
        let address = Ipv4Addr::new(a, b, c, self.cables + 1);
        let cable = format!("cable{}", self.cables);
        let holder = Holder::start(name, folder);
        let (switch, own, pid) = (self.namespace(), holder.namespace(), holder.process.id());
        switch.run(&format!("ip link add name {cable} type veth peer name wire netns {pid}"));
        own.run(&format!("ip address add {address}/24 dev wire"));
        own.run("ip link set wire up");
        // Room for more than the windows of a few streams: slow, and nothing is lost.
        switch.run(&format!("tc qdisc add dev {cable} root tbf rate {rate} burst 128kb limit 8mb"));
        switch.run(&format!("ip link set {cable} master switch up"));
        Machine { holder, switch, cable, address }
    }
}

/// A machine on the switch.
pub struct Machine {
    holder: Holder,
    switch: Namespace,
    cable: String,
    /// Its address on the switch.
    pub address: Ipv4Addr,
}

impl Machine {
    /// Where its programs run.
    pub fn namespace(&self) -> Namespace {
        self.holder.namespace()
    }

    /// Pulls its cable: nothing gets in or out, and nobody says so.
    pub fn cut(&self) {
        self.switch.run(&format!("ip link set {} down", self.cable));
    }

    /// Plugs it in again.
    pub fn mend(&self) {
        self.switch.run(&format!("ip link set {} up", self.cable));
    }
}
