//! Processes that may do little: those of a container without privileges, and such whose sockets have small buffers.

use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::Command;

use crate::control::DevnetAtRouter;
use crate::lab::nixtail::program;
use crate::lab::process::run;
use crate::lab::{PATIENCE, peers};
use crate::node::{Exchange, Exchanged, Node, Orders};
use crate::seccomp;
use crate::world::{Link, Machine, SERVICE_V4, World, run_in_world};

/// Enough to fill every queue on the way many times.
const AMOUNT: usize = 16 << 20;
/// A user that this machine has no name for, as in a container.
const USER: u32 = 2001;
/// What a kernel gives each socket unless somebody asks for more, with what it counts beside the bytes themselves.
const SMALL: u64 = 256 << 10;

/// A container: the machine's files, none of which can be written but for those of one folder, which is `/tmp`; a user without
/// a name or a privilege, or a way to any; no device but the harmless ones; a default container's filter of system calls.
pub(crate) struct Container {
    words: Vec<String>,
    /// Its `/tmp`, which is the test's, too.
    pub(crate) folder: PathBuf,
}

impl Container {
    /// `None` when there is no bubblewrap.
    pub(crate) fn new(world: &World, name: &str) -> Option<Self> {
        let bwrap = peers::require_on_path("bwrap")?.display().to_string();
        let folder = world.folder().join(format!("container-{name}"));
        fs::create_dir(&folder).unwrap();
        let mut words = with_filter(world, "container", &seccomp::of_a_container());
        let user = USER.to_string();
        if is_of_all_users() {
            chown(&folder, Some(USER), Some(USER)).unwrap();
            words.extend(["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups"].map(str::to_owned));
        }
        let at = folder.display().to_string();
        words.extend([bwrap.as_str(), "--unshare-user", "--uid", &user, "--gid", &user].map(str::to_owned));
        words.extend(["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--cap-drop", "ALL"].map(str::to_owned));
        words.extend(
            ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--bind", &at, "/tmp"].map(str::to_owned),
        );
        // Where these programs lie below /tmp, that has just been covered.
        for program in [std::env::current_exe().unwrap(), program()] {
            let program = program.display().to_string();
            words.extend(["--ro-bind".to_owned(), program.clone(), program]);
        }
        words.extend(["--chdir", "/tmp", "--die-with-parent", "--seccomp", "9", "--"].map(str::to_owned));
        Some(Self { words, folder })
    }

    /// Words to put before those of a program.
    pub(crate) fn words(&self) -> &[String] {
        &self.words
    }

    /// Proves that it is what it is said to be.
    pub(crate) fn assert_confined(&self, machine: &Machine) {
        let script = r#"
            fail() { echo "it may: $*"; exit 1; }
            [ "$(id -u)" != 0 ] || fail be root
            for set in CapInh CapPrm CapEff CapAmb; do grep -q "^$set:.0*$" /proc/self/status || fail have capabilities; done
            grep -q '^NoNewPrivs:.1$' /proc/self/status || fail gain privileges
            grep -q '^Seccomp:.2$' /proc/self/status || fail call all
            ! touch /usr/x /var/x /etc/x "$PWD/../x" 2>/dev/null || fail write
            touch /tmp/x || { echo "it can't write /tmp"; exit 1; }
            [ ! -e /dev/net/tun ] || fail have a TUN device
            ! unshare --user true 2>/dev/null || fail make user namespaces
            ! ip link add x type dummy 2>/dev/null || fail change the network
        "#;
        let words = [machine.entrance(), self.words.clone(), ["bash", "-c", script].map(str::to_owned).into()].concat();
        let output = run(Command::new(&words[0]).args(&words[1..]), PATIENCE);
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(output.status.success(), "{said}");
    }
}

/// Whether the user namespace that we are in has all users: not the one that an ordinary user made.
pub(crate) fn is_of_all_users() -> bool {
    fs::read_to_string("/proc/self/uid_map").unwrap().split_whitespace().nth(2) == Some("4294967295")
}

/// Words that give what follows a filter as its descriptor 9.
fn with_filter(world: &World, name: &str, filter: &[u8]) -> Vec<String> {
    let file = world.folder().join(format!("{name}.bpf"));
    fs::write(&file, filter).unwrap();
    ["bash", "-c", "exec 9<\"$0\"; exec \"$@\"", file.to_str().unwrap()].map(str::to_owned).into()
}

#[test]
fn in_a_container_without_privileges_bytes_go_directly_and_over_the_relay() {
    run_in_world(|world| {
        let control = DevnetAtRouter::start(SERVICE_V4);
        let machines = ["left", "right"].map(|name| world.machine(name, Link::USUAL));
        let [Some(near), Some(far)] = ["left", "right"].map(|name| Container::new(world, name)) else { return };
        let [left, right] = &machines;
        near.assert_confined(left);
        let mut waiting = Node::start(world, right, far.words(), &control.orders("right"), &[]);
        waiting.wait_until_ready();
        let exchanged = exchange(world, left, near.words(), control.orders("left"), true);
        assert!(exchanged.is_direct(), "{exchanged:?}");
        let orders = Orders { direct: false, ..control.orders("left-2") };
        let exchanged = exchange(world, left, near.words(), orders, false);
        assert!(exchanged.is_relayed(), "{exchanged:?}");
    });
}

#[test]
fn socket_buffers_of_200_kib_carry_bytes_directly_and_over_the_relay() {
    run_in_world(|world| {
        let Some(bwrap) = peers::require_on_path("bwrap") else { return };
        let control = DevnetAtRouter::start(SERVICE_V4);
        let machines = ["left", "right"].map(|name| world.machine(name, Link::USUAL));
        let [left, right] = &machines;
        for machine in &machines {
            machine.shell("for way in tcp_rmem tcp_wmem; do echo '4096 131072 204800' >/proc/sys/net/ipv4/$way; done");
        }
        let mut words = with_filter(world, "buffers", &seccomp::without_larger_buffers());
        words.extend([bwrap.to_str().unwrap(), "--dev-bind", "/", "/", "--seccomp", "9", "--"].map(str::to_owned));
        let mut waiting = Node::start(world, right, &words, &control.orders("right"), &[]);
        waiting.wait_until_ready();
        let buffers = udp_receive_buffers(right);
        assert!(!buffers.is_empty() && buffers.iter().all(|bytes| *bytes <= SMALL), "{buffers:?}");

        let exchanged = exchange(world, left, &words, control.orders("left"), true);
        assert!(exchanged.is_direct(), "{exchanged:?}");
        let orders = Orders { direct: false, ..control.orders("left-2") };
        let exchanged = exchange(world, left, &words, orders, false);
        assert!(exchanged.is_relayed(), "{exchanged:?}");
        for machine in &machines {
            let lost = machine.shell("awk '/^Udp: [0-9]/ { print $6 }' /proc/net/snmp");
            eprintln!("figure: {} datagrams found no room in {}'s buffer", lost.trim(), machine.name());
        }
    });
}

/// The sizes of all UDP receive buffers in a machine.
fn udp_receive_buffers(machine: &Machine) -> Vec<u64> {
    let said = machine.shell("ss --udp --all --numeric --memory --no-header");
    said.split([',', '(']).filter_map(|word| word.strip_prefix("rb")?.parse().ok()).collect()
}

fn exchange(world: &World, machine: &Machine, wrap: &[String], orders: Orders, wait_for_direct: bool) -> Exchanged {
    let exchange = Exchange { peer: "right".to_owned(), bytes: AMOUNT, wait_for_direct };
    Node::start(world, machine, wrap, &Orders { exchange: Some(exchange), ..orders }, &[]).finish()
}
