//! The README's commands for restricted runners, as written: each part in a machine that is restricted so.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::confined::{Container, is_of_all_users};
use crate::control::DevnetAtRouter;
use crate::lab::nixnode::{NixNode, NixVersion, User};
use crate::lab::nixtail::program;
use crate::lab::peers;
use crate::lab::process::run;
use crate::networks::{NO_UDP, Proxy};
use crate::world::{Link, SERVICE_V4, World, run_in_world};

/// How long one part may take; a builder takes some three seconds, a build the same.
const PATIENCE: Duration = Duration::from_secs(90);
/// The name of the proxy in the README.
const PROXY_NAME: &str = "proxy.example";
/// A single-user Nix that asks nobody for what it could substitute.
const SINGLE_USER: &str = "build-users-group =\nsubstituters =\n";

/// One block of the README: what is for both machines, the builder, and the coordinator.
struct Commands {
    builder: String,
    coordinator: String,
}

impl Commands {
    /// Takes a shown file out of the README itself.
    fn of(file: &str) -> Self {
        let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
        let (_, shown) = readme.split_once(&format!("<!-- the file docs/restricted/{file} -->\n```")).unwrap();
        let block = shown.split_once('\n').unwrap().1.split_once("\n```").unwrap().0;
        let [mut both, mut builder, mut coordinator] = [const { String::new() }; 3];
        let mut part = None;
        for line in block.lines() {
            part = match line {
                _ if line.starts_with("# On both") => Some(&mut both),
                _ if line.starts_with("# On the builder") => Some(&mut builder),
                _ if line.starts_with("# On the coordinator") => Some(&mut coordinator),
                _ => part,
            };
            let part = part.as_mut().unwrap_or_else(|| panic!("{file} begins with {line:?}"));
            part.push_str(line);
            part.push('\n');
        }
        Self { builder: both.clone() + &builder, coordinator: both + &coordinator }
    }
}

/// The other file that the commands need.
fn expression() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/restricted/hello.nix")).unwrap()
}

/// Two machines with a Nix of alice's each, and what the README has said before these commands: keys, and where control is.
struct Pair {
    builder: NixNode,
    coordinator: NixNode,
    control: String,
}

impl Pair {
    fn start(world: &World, control: &DevnetAtRouter) -> Option<Self> {
        if !is_of_all_users() {
            peers::skip("root, for machines with users of their own");
            return None;
        }
        let root = NixVersion::Own.require()?;
        let [builder, coordinator] = ["builder", "coordinator"].map(|name| {
            let machine = world.machine(name, Link::USUAL);
            let node = NixNode::start_in_network_of(machine.id(), world.folder(), name, &root, SINGLE_USER);
            node.write(User::Alice, format!("/home/alice/{name}.key"), control.key());
            fs::set_permissions(node.path(format!("/home/alice/{name}.key")), fs::Permissions::from_mode(0o600))
                .unwrap();
            node.write(User::Alice, "/home/alice/hello.nix", &expression());
            // The node keeps the machine's network.
            node
        });
        Some(Self { builder, coordinator, control: control.devnet.url() })
    }

    /// Runs a part in a machine; returns what came out of it.
    fn run(&self, node: &NixNode, part: &str) -> String {
        let environment = [("TS_CONTROL_URL", self.control.as_str())];
        output(&mut node.command(User::Alice, ["sh", "-euc", part], &environment))
    }

    /// Runs all, and sees that the builder has built it.
    fn build(&self, commands: &Commands) {
        self.run(&self.builder, &commands.builder);
        let path = self.run(&self.coordinator, &commands.coordinator);
        let built = self.coordinator.path(format!("/home/alice/store{}", path.trim()));
        assert_built(&built);
    }
}

fn assert_built(file: &Path) {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    assert_eq!(text, "built by sh\n");
}

/// Runs a command to its end; it must succeed.
fn output(command: &mut Command) -> String {
    let output = run(command, PATIENCE);
    let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    eprintln!("{stderr}");
    assert!(output.status.success(), "{:?}: {stdout}", output.status);
    stdout
}

#[test]
fn a_build_over_the_relay_alone_as_the_readme_has_it() {
    run_in_world(|world| {
        let control = DevnetAtRouter::start(SERVICE_V4);
        let Some(pair) = Pair::start(world, &control) else { return };
        world.set_rules(NO_UDP);
        pair.build(&Commands::of("relay.sh"));
        assert!(control.devnet.relay_stats().bytes > 100_000, "{:?}", control.devnet.relay_stats());
    });
}

#[test]
fn a_build_through_an_http_proxy_as_the_readme_has_it() {
    run_in_world(|world| {
        let control = DevnetAtRouter::start(SERVICE_V4);
        world.set_hosts(&format!("{SERVICE_V4} {PROXY_NAME}\n"));
        let Some(proxy) = Proxy::start(world) else { return };
        let Some(pair) = Pair::start(world, &control) else { return };
        world.set_rules(Proxy::RULES);
        pair.build(&Commands::of("proxy.sh"));
        assert!(proxy.count_connects() >= 4);
        assert!(control.devnet.relay_stats().bytes > 100_000, "{:?}", control.devnet.relay_stats());
    });
}

#[test]
fn a_build_by_a_user_without_any_privilege_as_the_readme_has_it() {
    run_in_world(|world| {
        if peers::require_on_path("nix-build").is_none() {
            return;
        }
        let control = DevnetAtRouter::start(SERVICE_V4);
        let commands = Commands::of("container.sh");
        let parts = [("builder", &commands.builder), ("coordinator", &commands.coordinator)];
        let mut results = Vec::new();
        for (name, part) in parts {
            let machine = world.machine(name, Link::USUAL);
            let Some(container) = Container::new(world, name) else { return };
            container.assert_confined(&machine);
            let key = container.folder.join(format!("{name}.key"));
            fs::write(&key, control.key()).unwrap();
            fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
            let owner = fs::metadata(&container.folder).unwrap().uid();
            chown(&key, Some(owner), Some(owner)).unwrap();
            fs::write(container.folder.join("hello.nix"), expression()).unwrap();
            // There is no internet here, and Nix would ask it for a cache again and again.
            fs::create_dir_all(container.folder.join(".config/nix")).unwrap();
            fs::write(container.folder.join(".config/nix/nix.conf"), "substituters =\n").unwrap();
            let path = std::env::var("PATH").unwrap();
            let environment = [
                "env".to_owned(),
                "-i".to_owned(),
                format!("PATH={}:{path}", program().parent().unwrap().display()),
                format!("TS_CONTROL_URL={}", control.devnet.url()),
                "LANG=C.UTF-8".to_owned(),
            ];
            // A container ends with its first process: this one's does when the agent that it left behind has ended.
            let script = "sh -euc \"$0\"; while [ -S builder.sock ]; do sleep 0.1; done";
            let shell = ["sh", "-euc", script, part].map(str::to_owned);
            let words = [&machine.entrance(), container.words(), &environment, &shell].concat();
            let mut command = Command::new(&words[0]);
            command.args(&words[1..]);
            results.push((container.folder.clone(), command, machine));
        }
        let [(_, builder, _), (folder, coordinator, _)] = &mut results[..] else { unreachable!() };
        let path = std::thread::scope(|scope| {
            let builder = scope.spawn(|| output(builder));
            let path = output(coordinator);
            builder.join().unwrap();
            path
        });
        // Its /tmp is a folder of ours.
        let built: PathBuf = folder.join(path.trim().strip_prefix("/tmp/").unwrap());
        assert_built(&built);
    });
}
