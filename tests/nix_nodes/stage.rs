//! A tailnet under headscale, and the two roles in nodes of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::lab::headscale::{Headscale, KeyTerms, USER};
use crate::lab::nixnode::{NixNode, NodeProcess, Root, User};
use crate::lab::process::run;
use crate::lab::{PATIENCE, peers, wait_for};
use crate::nix_at_hand::{DERIVATIONS, TOP, derivations};

const BUILDER: &str = "tag:nix-ci-builder";
const COORDINATOR: &str = "tag:nix-ci-coordinator";

/// How long a role may take from its start to its ready line, with a probe build between.
const READY: Duration = Duration::from_secs(120);
/// How long a build of `top` may take on a machine that is busy with other tests; it needs about three seconds.
pub(crate) const BUILD: Duration = Duration::from_secs(120);

/// A single-user Nix that asks nobody for what it could substitute.
pub(crate) const SINGLE_USER: &str = "build-users-group =\nsubstituters =\n";

/// A multi-user Nix; add who is trusted beside root.
pub(crate) const MULTI_USER: &str = "build-users-group = nixbld\nsubstituters =\n";

/// A tailnet with the README's policy, and a folder for its nodes.
///
/// Declare it before its nodes: they are to end before it does.
pub(crate) struct Stage {
    pub(crate) headscale: Headscale,
    busybox: PathBuf,
    folder: TempDir,
}

impl Stage {
    /// `None` when a program is missing.
    pub(crate) fn start() -> Option<Self> {
        let busybox = peers::require_on_path("busybox")?;
        peers::require_on_path("ssh")?;
        let headscale = Headscale::start(&readme_policy())?;
        Some(Self { headscale, busybox, folder: tempfile::tempdir().unwrap() })
    }

    /// A node on `root` with `nix_conf`, and the derivations in every user's home.
    pub(crate) fn node(&self, name: &str, root: &Root, nix_conf: &str) -> NixNode {
        NixNode::start(self.folder.path(), name, root, nix_conf)
    }

    /// A key for one node with one tag.
    fn key(&self, tag: &str) -> String {
        self.headscale.preauth_key(KeyTerms { ephemeral: true, reusable: false, tags: &[tag] })
    }

    /// `nixtail builder` in `node` as `user`, ready to be claimed.
    pub(crate) fn builder(&self, node: &NixNode, user: User, name: &str, more: &[&str]) -> NodeProcess {
        self.builder_in(node, user, name, more, &[])
    }

    /// As [`Self::builder`], with more in its environment.
    pub(crate) fn builder_in(
        &self,
        node: &NixNode,
        user: User,
        name: &str,
        more: &[&str],
        environment: &[(&str, &str)],
    ) -> NodeProcess {
        let mut builder = self.unready_builder(node, user, name, more, environment);
        builder.wait_for_line("ready ", READY);
        builder
    }

    /// As [`Self::builder_in`], but it may fail.
    pub(crate) fn unready_builder(
        &self,
        node: &NixNode,
        user: User,
        name: &str,
        more: &[&str],
        environment: &[(&str, &str)],
    ) -> NodeProcess {
        let words = ["nixtail", "builder", "-vv", "--login-server", self.headscale.url(), "--hostname", name];
        let key = self.key(BUILDER);
        let environment = [environment, &[("TS_AUTHKEY", key.as_str())]].concat();
        node.start_process(user, words.into_iter().chain(more.iter().copied()), &environment)
    }

    /// `nixtail coordinator` in `node` as `user`, with every one of `builders` proved.
    pub(crate) fn coordinator<'n>(
        &self,
        node: &'n NixNode,
        user: User,
        builders: &[&str],
        more: &[&str],
    ) -> Coordinator<'n> {
        self.coordinator_in(node, user, builders, more, &[])
    }

    /// As [`Self::coordinator`], with more in its environment and in that of those who use it.
    pub(crate) fn coordinator_in<'n>(
        &self,
        node: &'n NixNode,
        user: User,
        builders: &[&str],
        more: &[&str],
        environment: &[(&'n str, &'n str)],
    ) -> Coordinator<'n> {
        let builders = builders.join(" ");
        let args = [&["--builders", &builders], more].concat();
        let mut process = self.start_coordinator(node, user, &args, environment);
        let ready = process.wait_for_line("ready ", READY);
        let env = ready.split_once("tell Nix with: . ").map(|(_, env)| env.to_owned());
        Coordinator { process, node, client: user, env, environment: environment.to_vec() }
    }

    /// `nixtail coordinator` with `args`, which may fail.
    pub(crate) fn start_coordinator(
        &self,
        node: &NixNode,
        user: User,
        args: &[&str],
        environment: &[(&str, &str)],
    ) -> NodeProcess {
        let words = ["nixtail", "coordinator", "-vv", "--login-server", self.headscale.url()];
        let words = words.into_iter().chain(["--hostname", "coordinator"]).chain(args.iter().copied());
        let key = self.key(COORDINATOR);
        node.start_process(user, words, &[environment, &[("TS_AUTHKEY", key.as_str())]].concat())
    }

    /// Writes the expression of these tests into the user's home, new to every store by `salt`.
    pub(crate) fn write_derivations(&self, node: &NixNode, user: User, salt: &str) {
        let tools = self.write_tools(node, user);
        node.write(user, user.home().join("default.nix"), &derivations(&tools, salt));
    }

    /// Writes a folder with a busybox into the user's home; returns it as the node sees it.
    pub(crate) fn write_tools(&self, node: &NixNode, user: User) -> PathBuf {
        let tools = user.home().join("tools");
        fs::create_dir_all(node.path(&tools)).unwrap();
        fs::copy(&self.busybox, node.path(tools.join("busybox"))).unwrap();
        tools
    }
}

/// The policy that the README names for headscale, with the lab's user as the owner of its tags, and for builders that
/// coordinators reach under the names of these tests' users.
fn readme_policy() -> String {
    let policy = include_str!("../../docs/policy-headscale.json").replace("ci@", &format!("{USER}@"));
    policy.replace("\"nix\"", "\"autogroup:nonroot\", \"root\"")
}

/// A coordinator whose builders are ready.
pub(crate) struct Coordinator<'n> {
    pub(crate) process: NodeProcess,
    node: &'n NixNode,
    /// Who uses Nix; the coordinator's own user unless another is put here.
    pub(crate) client: User,
    /// What a shell reads to tell its Nix of the builders; `None` in system mode.
    env: Option<String>,
    environment: Vec<(&'n str, &'n str)>,
}

/// What a command said, and what came of it.
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Coordinator<'_> {
    /// A command as a user types it who did as the ready line says.
    pub(crate) fn command<'a>(&'a self, words: impl IntoIterator<Item = &'a str>) -> Command {
        self.node.command(self.client, self.words(words), &self.environment)
    }

    /// As [`Self::command`], as a process that goes on beside the test.
    pub(crate) fn start<'a>(&'a self, words: impl IntoIterator<Item = &'a str>) -> NodeProcess {
        self.node.start_process(self.client, self.words(words), &self.environment)
    }

    fn words<'a>(&'a self, words: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
        let told = self.env.as_deref().into_iter().flat_map(|env| ["sh", "-c", ". \"$0\" && exec \"$@\"", env]);
        told.chain(words).collect()
    }

    /// `nix-build` of one attribute of the derivations, by builders alone.
    pub(crate) fn build(&self, attribute: &str, more: &[&str]) -> Said {
        let words = ["nix-build", "--no-out-link", "--max-jobs", "0", "-A", attribute];
        Said::of(run(&mut self.command(words.into_iter().chain(more.iter().copied())), BUILD))
    }

    /// Builds `top` and sees that builders did all of it, and did it right; `store` is where the user's Nix keeps its paths,
    /// if that isn't `/`.
    pub(crate) fn builds_top(&self, more: &[&str], store: &str) {
        let built = self.build("top", more);
        assert_eq!(built.code, Some(0), "{}", built.stderr);
        assert_eq!(built.count_sent(), DERIVATIONS, "{}", built.stderr);
        let output = Path::new(store).join(built.stdout.trim().trim_start_matches('/'));
        assert_eq!(fs::read_to_string(self.node.path(output)).unwrap(), TOP);
    }

    /// The first column of the machines file: how Nix reaches each builder.
    pub(crate) fn store_uris(&self) -> Vec<String> {
        let file = match &self.env {
            Some(env) => Path::new(env).with_file_name("machines"),
            None => PathBuf::from("/etc/nix/machines"),
        };
        let lines = self.node.run_ok(self.client, ["cat", &file.display().to_string()]);
        lines.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
    }

    /// Ends it, and with it its builders.
    pub(crate) fn end(&mut self) {
        let status = self.process.end(Signal::TERM);
        assert!(status.success(), "{status}:\n{}", self.process.log());
    }
}

impl Said {
    pub(crate) fn of(Output { status, stdout, stderr }: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
    }

    /// How many derivations Nix sent to a builder, by its own word.
    pub(crate) fn count_sent(&self) -> usize {
        self.stderr.lines().filter(|line| line.trim().starts_with("building '") && line.contains(".drv' on '")).count()
    }
}

/// Fails the test if a slot or an upload lock of a builder is still held in `current_load`, a folder of Nix'.
pub(crate) fn assert_no_lock_is_held(current_load: &Path) {
    let locks: Vec<PathBuf> = fs::read_dir(current_load)
        .unwrap_or_else(|error| panic!("{}: {error}", current_load.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(!locks.is_empty(), "Nix never took a slot in {}", current_load.display());
    for lock in locks {
        // Nix lets a lock go when its hook ends, which may be a moment after the build.
        wait_for(&format!("nobody to hold {}", lock.display()), PATIENCE, || {
            run(Command::new("flock").arg("--nonblock").arg(&lock).arg("true"), PATIENCE).status.success().then_some(())
        });
    }
}
