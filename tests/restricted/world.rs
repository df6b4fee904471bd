//! A network of a test's own: the test is its router, and each machine a network namespace behind a link of its own.
//!
//! A test runs itself again as the first process of user, mount, pid and network namespaces. Whatever ends it, all of them end
//! with it; nothing outside is touched, and no root is needed for most of it.

use std::any::type_name;
use std::cell::Cell;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::geteuid;
use tempfile::TempDir;

use crate::lab::process::{Process, run, run_ok};
use crate::lab::{PATIENCE, peers, wait_for};
use crate::node;

/// What a process of this test program is: nothing set for the test itself.
pub(crate) const ROLE: &str = "NIXTAIL_TEST_ROLE";
/// How long a test may take; each takes seconds.
const LIMIT: Duration = Duration::from_secs(240);
/// The port of the echoes: one at the router, and one in each machine that [`Machine::echo`] was called for.
pub(crate) const ECHO: u16 = 7;

/// The addresses of what everybody is to reach, at the router itself.
pub(crate) const SERVICE_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub(crate) const SERVICE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1);
/// Lets links of IPv6 work at once, instead of after a second of looking whether somebody else has their addresses.
const NO_DAD: &str = "for which in all default; do echo 0 >/proc/sys/net/ipv6/conf/$which/accept_dad; done";

/// The router.
pub(crate) struct World {
    machines: Cell<u8>,
    folder: TempDir,
    _echo: Process,
}

/// A machine: a network namespace with one link, to the router.
pub(crate) struct Machine {
    name: String,
    holder: Process,
    pub(crate) v4: Option<Ipv4Addr>,
    pub(crate) v6: Ipv6Addr,
}

/// What a machine's link is like.
#[derive(Clone, Copy)]
pub(crate) struct Link {
    pub(crate) has_v4: bool,
    pub(crate) mtu: u16,
}

impl Link {
    pub(crate) const USUAL: Self = Self { has_v4: true, mtu: 1500 };
}

/// Runs `body` in a world of its own. Skips the test, by name, where no namespaces can be made.
pub(crate) fn run_in_world<F: FnOnce(&World)>(body: F) {
    match std::env::var(ROLE).as_deref() {
        Ok("world") => body(&World::make()),
        Ok("node") => node::run(),
        Ok("echo") => node::echo(),
        _ => enter(type_name::<F>()),
    }
}

/// Runs this test again, in namespaces.
fn enter(closure: &str) {
    let name = test_name(closure);
    for program in ["ip", "nft", "nsenter"] {
        if peers::require_system_program(program).is_none() {
            return;
        }
    }
    let unshare = || {
        let mut command = Command::new("unshare");
        if !geteuid().is_root() {
            command.arg("--map-root-user");
        }
        command.args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command
    };
    if !run(unshare().arg("true"), PATIENCE).status.success() {
        peers::skip("namespaces, which this machine doesn't let us make");
        return;
    }
    let mut command = unshare();
    command.arg(std::env::current_exe().unwrap()).args(test_arguments(name)).env(ROLE, "world");
    // Who isn't root mostly lacks these two.
    command.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap()));
    let output = run(&mut command, LIMIT);
    let said = format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // The figures, where one asks for them; and why it was skipped, where it was.
    eprintln!("{said}");
    assert!(output.status.success() && said.contains("1 passed"), "{name} failed in its namespaces");
    said.lines().filter(|line| line.starts_with("skipped: ")).for_each(peers::say);
}

/// The name of the test that a closure of it was written in: the thread's name says it only where the harness makes threads.
fn test_name(closure: &str) -> &str {
    let name = closure.strip_suffix("::{{closure}}").unwrap_or(closure);
    name.split_once("::").map_or(name, |(_crate, name)| name)
}

/// How one test of this program is run alone.
pub(crate) fn test_arguments(name: &str) -> [&str; 4] {
    [name, "--exact", "--include-ignored", "--nocapture"]
}

/// Starts this test program in another role, by way of `entrance`, with `environment` and nothing else in its environment.
pub(crate) fn start_in_role(
    role: &str,
    name: &str,
    entrance: &[String],
    environment: &[(&str, String)],
    log: &Path,
) -> Process {
    // Whatever the test: the role is looked at first.
    let test = std::env::args().nth(1).unwrap();
    let program = std::env::current_exe().unwrap().display().to_string();
    let words: Vec<String> =
        entrance.iter().cloned().chain([program]).chain(test_arguments(&test).map(str::to_owned)).collect();
    let environment = environment.iter().map(|(name, value)| (*name, value.as_str())).chain([(ROLE, role)]);
    Process::start(name, Path::new(&words[0]), &words[1..], environment, log)
}

fn start_echo(log: &Path, entrance: &[String], addresses: &[IpAddr]) -> Process {
    let addresses = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let echo = start_in_role("echo", "echo", entrance, &[(node::ECHO_ADDRESSES, addresses)], log);
    wait_for("an echo", PATIENCE, || echo.log().contains(node::ECHOES).then_some(()));
    echo
}

impl World {
    fn make() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Others than root are to find what lies in it.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        shell(NO_DAD);
        shell(&format!(
            "ip link set lo up\nip addr add {SERVICE_V4}/32 dev lo\nip addr add {SERVICE_V6}/128 dev lo nodad"
        ));
        let echo = start_echo(&folder.path().join("echo.log"), &[], &[SERVICE_V4.into(), SERVICE_V6.into()]);
        Self { machines: Cell::new(0), folder, _echo: echo }
    }

    /// A folder that everybody may read.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A machine behind a link.
    pub(crate) fn machine(&self, name: &str, link: Link) -> Machine {
        let number = self.machines.get() + 1;
        self.machines.set(number);
        let args = ["--net", "--", "sleep", "infinity"];
        let log = self.folder.path().join(format!("{name}.log"));
        let holder = Process::start(name, Path::new("unshare"), args, [], &log);
        let namespace = |id: u32| fs::read_link(format!("/proc/{id}/ns/net")).ok();
        let own = namespace(std::process::id());
        wait_for("a network namespace", PATIENCE, || {
            let theirs = namespace(holder.id());
            // Not before unshare has done its part.
            let sleeps = fs::read_to_string(format!("/proc/{}/comm", holder.id())).unwrap_or_default() == "sleep\n";
            (sleeps && theirs.is_some() && theirs != own).then_some(())
        });
        let at = |last: u8| Ipv4Addr::new(192, 0, 2, number * 16 + last);
        let v6_at = |last: u16| Ipv6Addr::new(0x2001, 0xdb8, number.into(), 0, 0, 0, 0, last);
        let (mtu, id) = (link.mtu, holder.id());
        let mut near = format!(
            "ip link add {name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {id}\nip link set {name} up\n\
             ip addr add {}/64 dev {name} nodad\n",
            v6_at(1)
        );
        let mut far = format!(
            "ip link set lo up\nip link set eth0 up\nip addr add {}/64 dev eth0 nodad\nip route add default via {}\n",
            v6_at(2),
            v6_at(1)
        );
        if link.has_v4 {
            near += &format!("ip addr add {}/28 dev {name}\n", at(1));
            far += &format!("ip addr add {}/28 dev eth0\nip route add default via {}\n", at(2), at(1));
        } else {
            far += "ip addr del 127.0.0.1/8 dev lo\n";
        }
        let machine = Machine { name: name.to_owned(), holder, v4: link.has_v4.then(|| at(2)), v6: v6_at(2) };
        machine.shell(NO_DAD);
        shell(&near);
        machine.shell(&far);
        machine
    }

    /// What the router lets through and takes itself, as rules of nftables for every packet that isn't its own; nothing but
    /// these. What none of them decides passes.
    pub(crate) fn set_rules(&self, rules: &str) {
        let file = self.folder.path().join("rules");
        let text = format!(
            "flush ruleset\ntable inet wall {{\n chain ruled {{\n{rules}\n }}\n\
             chain crossing {{ type filter hook forward priority 0; jump ruled; }}\n\
             chain arriving {{ type filter hook input priority 0; iif lo accept; jump ruled; }}\n\
             chain leaving {{ type filter hook output priority 0; oif lo accept; jump ruled; }}\n}}\n"
        );
        fs::write(&file, text).unwrap();
        run_ok(Command::new("nft").arg("-f").arg(&file), PATIENCE);
    }

    /// Gives names to addresses, for all that is started from now on.
    pub(crate) fn set_hosts(&self, lines: &str) {
        let file = self.folder.path().join("hosts");
        fs::write(&file, format!("127.0.0.1 localhost\n::1 localhost\n{lines}")).unwrap();
        run_ok(Command::new("mount").arg("--bind").arg(&file).arg("/etc/hosts"), PATIENCE);
    }
}

impl Machine {
    /// Words to put before those of a command that is to run in it.
    pub(crate) fn entrance(&self) -> Vec<String> {
        vec!["nsenter".to_owned(), format!("--net=/proc/{}/ns/net", self.holder.id()), "--".to_owned()]
    }

    /// The process that keeps it.
    pub(crate) fn id(&self) -> u32 {
        self.holder.id()
    }

    /// Its name, which is that of its link, too.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs a script in it, as root there; must succeed.
    pub(crate) fn shell(&self, script: &str) -> String {
        run_ok(&mut self.command(&["bash", "-euc", script]), PATIENCE)
    }

    /// Lets it send back what comes to port [`ECHO`].
    pub(crate) fn echo(&self, world: &World) -> Process {
        let addresses: Vec<IpAddr> = self.v4.map(IpAddr::from).into_iter().chain([self.v6.into()]).collect();
        start_echo(&world.folder().join(format!("{}-echo.log", self.name)), &self.entrance(), &addresses)
    }

    /// Whether a datagram gets to an echo, and back.
    pub(crate) fn has_udp(&self, to: impl Into<IpAddr>) -> bool {
        let to = to.into();
        let script =
            format!("exec 3<>/dev/udp/{to}/{ECHO}; printf x >&3; read -r -t 0.5 -N 1 answer <&3; [ \"$answer\" = x ]");
        // Three times: one alone may be lost, or late, on a machine that is busy.
        (0..3).any(|_| self.succeeds(&script))
    }

    /// Whether a TCP connection to somewhere comes about.
    pub(crate) fn has_tcp(&self, to: impl Into<IpAddr>, port: u16) -> bool {
        self.succeeds(&format!("exec 3<>/dev/tcp/{}/{port}", to.into()))
    }

    fn succeeds(&self, script: &str) -> bool {
        run(&mut self.command(&["timeout", "2", "bash", "-c", script]), PATIENCE).status.success()
    }

    fn command(&self, words: &[&str]) -> Command {
        let entrance = self.entrance();
        let mut command = Command::new(&entrance[0]);
        command.args(&entrance[1..]).args(words);
        command
    }
}

/// Runs a script at the router; must succeed.
pub(crate) fn shell(script: &str) -> String {
    run_ok(Command::new("bash").args(["-euc", script]), PATIENCE)
}
