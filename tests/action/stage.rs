//! A devnet, an observer on it, and a machine that runs workflows.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::lab::nixnode::{NixNode, NixVersion, NodeProcess, Root, User};
use crate::lab::process::run_ok;
use crate::lab::{self, peers, wait_for};

/// What a workflow's third-party actions are here: repository, commit, folder of the stub.
const STUBS: [(&str, &str, &str); 3] = [
    ("wimpysworld/nothing-but-nix", "687c797a730352432950c707ab493fcc951818d7", "nothing-but-nix"),
    ("cachix/install-nix-action", "630ae543ea3a38a9a4166f03376c02c50f408342", "install-nix-action"),
    ("DeterminateSystems/magic-nix-cache-action", "565684385bcd71bad329742eefe8d12f2e765b39", "magic-nix-cache-action"),
];
/// The action, as the docs' workflows name it.
const ACTION: &str = "nixtail/nixtail@0000000000000000000000000000000000000000";
/// The runners that workflows ask for.
const RUNNERS: [&str; 6] =
    ["ubuntu-24.04", "ubuntu-24.04-arm", "ubuntu-slim", "macos-26-intel", "macos-26", "macos-15"];
const HOME: &str = "/home/alice";
/// How long a thing may take to happen that takes seconds.
const WAITING: Duration = Duration::from_secs(90);
/// Where the watcher writes. Jobs can't.
const WATCHED: &str = "/root/watched";

/// A tailnet of its own and a machine that runs jobs, both without any network.
pub(crate) struct Stage {
    observer: NodeProcess,
    _watcher: NodeProcess,
    _devnet: NodeProcess,
    node: NixNode,
    /// What the devnet has told: the keys to it.
    told: Value,
    root: Root,
    act: PathBuf,
    folder: TempDir,
}

/// How a workflow ended.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) log: String,
}

impl Stage {
    /// Starts all but a workflow. `None` when a program is missing, or nobody may make machines here.
    pub(crate) fn start() -> Option<Self> {
        let root = NixVersion::Own.require()?;
        let act = peers::require("act")?;
        for program in ["node", "git", "jq", "openssl", "busybox", "nix-daemon", "ip"] {
            peers::require_on_path(program)?;
        }
        let folder = tempfile::tempdir().expect("a folder");
        // For the daemon that one of the tests starts.
        let nix_conf = "experimental-features = nix-command flakes\ntrusted-users = root alice\nsubstituters =\n";
        let node = NixNode::start_alone(folder.path(), "runner", &root, nix_conf);
        prepare(&node, &act);
        node.write(User::Root, "/root/policy.json", &watched(&policy_of_the_documents()));
        let tags = "tag:nix-ci-builder tag:nix-ci-coordinator";
        let words = ["nixtail", "devnet", "--json", "--policy", "/root/policy.json", "--tags", tags];
        let devnet = node.start_process(User::Root, words, &[]);
        let told = wait_for("the devnet", lab::PATIENCE, || serde_json::from_str::<Value>(&devnet.log()).ok());
        let text = |key: &str| told[key].as_str().expect("a text");
        let (control, secret) = (text("login_server"), text("client_secret"));
        write_secret(&node, secret);

        let words = ["nixtail", "up", "--login-server", control, "--hostname", "observer", "--tags", "tag:observer"];
        let environment = [("TS_AUTHKEY", secret), ("CI", "true"), ("NIXTAIL_SOCKET", "/root/observer.sock")];
        let mut observer = node.start_process(User::Root, words, &environment);
        observer.wait_for_line("ready ", lab::PATIENCE);

        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/action/watch.js");
        fs::copy(script, node.path("/root/watch.js")).expect("copy a script");
        let cache = format!("{HOME}/.cache");
        let words = ["node", "/root/watch.js", "2001", WATCHED, "/tmp", &cache, &format!("{HOME}/report")];
        let watcher = node.start_process(User::Root, words, &[]);
        Some(Self { observer, _watcher: watcher, _devnet: devnet, node, told, root, act, folder })
    }

    /// One of the things that the devnet has told.
    pub(crate) fn told(&self, key: &str) -> &str {
        self.told[key].as_str().expect("a text")
    }

    /// Gives jobs what a job on GitHub has that may ask for identity tokens; act's arguments for it.
    pub(crate) fn let_jobs_ask_for_tokens(&self) -> Vec<String> {
        let file = format!("{HOME}/variables");
        let variable = |name: &str, key: &str| format!("ACTIONS_ID_TOKEN_REQUEST_{name}={}\n", self.told(key));
        let text = variable("URL", "id_token_request_url") + &variable("TOKEN", "id_token_request_token");
        self.node.write(User::Alice, &file, &text);
        let vars = ["BUILDER", "COORDINATOR"].map(|role| {
            let var = |name: &str, key: &str| format!("--var=TS_{role}_{name}={}", self.told(key));
            [var("CLIENT_ID", "client_id"), var("AUDIENCE", "audience")]
        });
        vars.into_iter().flatten().chain([format!("--env-file={file}")]).collect()
    }

    /// Starts root's `nix-daemon` on the machine.
    pub(crate) fn start_daemon(&self) -> NodeProcess {
        self.node.start_daemon()
    }

    /// One more machine of the kind, on the same network.
    pub(crate) fn another_machine(&self, name: &str) -> NixNode {
        let node = NixNode::start_beside(&self.node, self.folder.path(), name, &self.root, "substituters =\n");
        prepare(&node, &self.act);
        write_secret(&node, self.told("client_secret"));
        node
    }

    /// Starts a workflow of the repository's by hand.
    pub(crate) fn act(&self, workflow: &str, more: &[&str]) -> NodeProcess {
        self.act_on("workflow_dispatch", workflow, more)
    }

    /// Runs a workflow to its end for a pull request from somebody's fork, with what GitHub lets such a one have.
    pub(crate) fn run_for_fork(&self, workflow: &str, patience: Duration) -> Ended {
        let repository = |name: &str| json!({ "ref": "main", "repo": { "full_name": name } });
        let event =
            json!({ "pull_request": { "head": repository("stranger/fork"), "base": repository("owner/original") } });
        let file = format!("{HOME}/event.json");
        self.node.write(User::Alice, &file, &event.to_string());
        let mut act = self.act_on("pull_request", workflow, &["--eventpath", &file, "--secret-file", "/dev/null"]);
        self.finish(&mut act, patience)
    }

    /// Starts a workflow as an event does.
    fn act_on(&self, event: &str, workflow: &str, more: &[&str]) -> NodeProcess {
        let words = self.words(event, workflow, more);
        self.node.start_process(User::Alice, words.iter().map(String::as_str), &[("PATH", &format!("{HOME}/bin"))])
    }

    /// Starts one job of a workflow on a machine of its own, as in a container: no capability, and no way to one, no TUN, a store
    /// that belongs to the user.
    pub(crate) fn act_contained(&self, node: &NixNode, workflow: &str, job: &str) -> NodeProcess {
        node.run_ok(User::Root, ["chown", "2001:2001", "/nix"]);
        node.run_ok(User::Root, ["sh", "-c", "[ ! -e /dev/net ] || mount -t tmpfs tmpfs /dev/net"]);
        // Nix, too: who makes a container's image has put it there.
        node.run_ok(User::Root, ["sh", "-c", "ln -s /usr/bin/nix /usr/bin/nix-* /home/alice/bin/"]);
        let words = self.words("workflow_dispatch", workflow, &["-j", job]);
        let user =
            ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--reuid=2001", "--regid=2001"];
        let home = format!("HOME={HOME}");
        let environment = ["--clear-groups", "env", &home, "USER=alice", "PATH=/home/alice/bin"];
        let words = user.into_iter().chain(environment).chain(words.iter().map(String::as_str));
        node.start_process(User::Root, words, &[])
    }

    /// The command line of act.
    fn words(&self, event: &str, workflow: &str, more: &[&str]) -> Vec<String> {
        let mut words: Vec<String> =
            ["act", event, "-C", &format!("{HOME}/repository"), "-W"].map(str::to_owned).into();
        words.push(format!(".github/workflows/{workflow}"));
        // Without these two it asks which of its addresses others reach, and fails where there is none.
        words.extend(["--no-cache-server", "--artifact-server-addr", "127.0.0.1"].map(str::to_owned));
        words.extend(["--concurrent-jobs", "16", "--secret-file", &format!("{HOME}/secrets")].map(str::to_owned));
        words.extend(RUNNERS.map(|runner| format!("--platform={runner}=-self-hosted")));
        words.push(format!("--local-repository={ACTION}={HOME}/action"));
        words.extend(
            STUBS.map(|(name, commit, folder)| format!("--local-repository={name}@{commit}={HOME}/stubs/{folder}")),
        );
        let control = format!("TS_CONTROL_URL={}", self.told("login_server"));
        for variable in ["RUNNER_ENVIRONMENT=github-hosted", "GITHUB_RUN_ID=77", "REPORT=/home/alice/report", &control]
        {
            words.push(format!("--env={variable}"));
        }
        // act takes the last of two.
        if !more.iter().any(|word| word.starts_with("GITHUB_RUN_ATTEMPT=")) {
            words.push("--env=GITHUB_RUN_ATTEMPT=1".to_owned());
        }
        words.extend(more.iter().map(|word| (*word).to_owned()));
        words
    }

    /// Runs a workflow to its end.
    pub(crate) fn run(&self, workflow: &str, more: &[&str], patience: Duration) -> Ended {
        let mut act = self.act(workflow, more);
        self.finish(&mut act, patience)
    }

    /// Waits for a workflow's end.
    pub(crate) fn finish(&self, act: &mut NodeProcess, patience: Duration) -> Ended {
        let code = act.wait(patience).code();
        Ended { code, log: readable(&act.log()) }
    }

    /// Waits until a workflow has said this.
    pub(crate) fn wait_for_log(&self, act: &NodeProcess, words: &str) {
        let look = || act.log().contains(words).then_some(());
        wait_for(words, WAITING, || look().or_else(|| act.log().contains("Error: Job").then_some(())));
        assert!(look().is_some(), "no {words:?}: {}", readable(&act.log()));
    }

    /// Waits until the tailnet has so many nodes.
    pub(crate) fn wait_for_nodes(&self, count: usize) {
        wait_for("nodes", WAITING, || (self.nodes().len() == count).then_some(()));
    }

    /// Sends a signal to the launchers of one role: what a step's own process is to its runner.
    pub(crate) fn signal_launchers(&self, role: &str, signal: &str) {
        let script = "for p in $(pgrep -u 2001 -x node); do grep -zqx \"INPUT_ROLE=$1\" /proc/$p/environ && kill -$2 $p; done; true";
        self.node.run_ok(User::Root, ["bash", "-c", script, "signal", role, signal]);
    }

    /// Sends a signal to agents: all of one role, or as many as `count`.
    pub(crate) fn signal_agents(&self, role: &str, signal: &str, count: usize) {
        let script = "kill -$2 $(pgrep -u 2001 -f \"^[^ ]*/nixtail $1 \" | head -n $3)";
        self.node.run_ok(User::Root, ["bash", "-c", script, "signal", role, signal, &count.to_string()]);
    }

    /// Kills all that a runner is: act and the steps' processes, but not the agents.
    pub(crate) fn kill_runner(&self) {
        // What is started while others are killed is killed by the second round.
        let script = "for _ in 1 2; do pkill -KILL -u 2001 -x 'act|node|bash|sleep' || true; done";
        self.node.run_ok(User::Root, ["bash", "-c", script]);
    }

    /// Lets a step go on that waits for this.
    pub(crate) fn let_go(&self) {
        self.node.write(User::Alice, format!("{HOME}/report/go"), "");
    }

    /// Waits until the coordinator has so many builders ready.
    pub(crate) fn wait_for_builders(&self, count: usize) {
        let script = "socket=$(ls -d /home/alice/.cache/act/*/tmp/nixtail-*/sock.run); nixtail status --json --socket \"${socket%.run}\"";
        let look = || {
            let said = self.node.run_ok(User::Alice, ["bash", "-c", script]);
            let status: Value = serde_json::from_str(&said).expect("the coordinator's status");
            let ready = status["builders"].as_array()?.iter().filter(|builder| builder["ready"] == true).count();
            (ready == count).then_some(())
        };
        wait_for("the coordinator's builders", WAITING, look);
    }

    /// The names of the tailnet's nodes, as one of them sees it.
    pub(crate) fn nodes(&self) -> Vec<String> {
        let words = ["nixtail", "status", "--json", "--socket", "/root/observer.sock"];
        let status: Value = serde_json::from_str(&self.node.run_ok(User::Root, words)).expect("the observer's status");
        let names = status["peers"].as_array().expect("peers").iter().filter_map(|peer| peer["name"].as_str());
        names.map(str::to_owned).collect()
    }

    /// No node within `patience`, no process and no file of any job.
    pub(crate) fn assert_nothing_left(&self, patience: Duration) {
        self.assert_all_gone(patience);
        // The stub's stores stay: only root could remove what Nix has made read-only.
        let places = format!(
            "find /tmp {HOME}/.cache \\( -path '*/installed-nix' -o -path '*/act/actions' \\) -prune -o -name 'nixtail-*' -print -o -type s -print"
        );
        let words = ["sh", "-c", &places];
        let files = self.node.run_ok(User::Root, words);
        assert_eq!(files, "", "files of a job are left");
    }

    /// No node and no process of any job, within `patience`.
    pub(crate) fn assert_all_gone(&self, patience: Duration) {
        let deadline = Instant::now() + patience + Duration::from_secs(2);
        loop {
            let (nodes, processes) = (self.nodes(), self.processes());
            if nodes.is_empty() && processes.is_empty() {
                return;
            }
            let all = || format!("{nodes:?} {processes:?}\n{}", self.observer.log());
            assert!(Instant::now() < deadline, "left after {patience:?}: {}", all());
            sleep(Duration::from_millis(200));
        }
    }

    /// The command lines of what runs as the jobs' user.
    pub(crate) fn processes(&self) -> Vec<String> {
        // ps fails where there is none.
        let said = self.node.run_ok(User::Root, ["sh", "-c", "ps -o args= -u 2001 || true"]);
        said.lines().map(str::to_owned).collect()
    }

    /// Neither the workflow's secret nor a key that was made with it has been seen by others, in a log, or in a file.
    pub(crate) fn assert_no_secret_was_shown(&self, log: &str) {
        let watched = fs::read_to_string(self.node.path(WATCHED)).expect("what the watcher has seen");
        assert!(watched.contains("--hostname=nix-"), "the watcher has seen an agent: {watched}");
        for program in ["nixtail", "nix-daemon"] {
            let environment = format!("environment of {program}: ");
            assert!(watched.contains(&environment), "the watcher has seen no {environment}{watched}");
        }
        let secret = self.told("client_secret").split('?').next().expect("a secret");
        let bearer = self.told("id_token_request_token");
        for (what, text) in [("the log", log), ("what others could see", &watched)] {
            let found = text.lines().find(|line| {
                [secret, bearer, "tskey-", "privkey:", ".eyJ", "holds a key"].iter().any(|mark| line.contains(mark))
            });
            assert_eq!(found, None, "in {what}");
        }
    }
}

/// Makes a machine one that runs jobs.
fn prepare(node: &NixNode, act: &Path) {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut prepare = Command::new("bash");
    prepare.arg(tree.join("tests/action/prepare.sh")).args([&node.path(HOME), tree, act]);
    run_ok(&mut prepare, lab::PATIENCE);
    run_ok(Command::new("chown").args(["-R", "2001:2001"]).arg(node.path(HOME)), lab::PATIENCE);
    // As where systemd has started the machine.
    node.run_ok(User::Root, ["mkdir", "-p", "/run/systemd/system"]);
}

fn write_secret(node: &NixNode, secret: &str) {
    node.write(User::Alice, format!("{HOME}/secrets"), &format!("TS_OAUTH_SECRET={secret}\n"));
}

impl Ended {
    /// The lines of one job.
    pub(crate) fn of(&self, job: &str) -> String {
        let mut is_its = false;
        let lines = self.log.lines().filter(|line| {
            // What has several lines has the job in front of the first.
            if let Some((_, rest)) = line.split_once('/').filter(|_| line.starts_with('[')) {
                let name = rest.split(']').next().unwrap_or_default().trim_end();
                // A matrix' jobs have a number behind their names.
                is_its = name.strip_prefix(job).is_some_and(|number| number.is_empty() || number.starts_with('-'));
            }
            is_its
        });
        lines.map(|line| format!("{line}\n")).collect()
    }

    /// The JSON behind these words.
    pub(crate) fn json(&self, words: &str) -> Value {
        let line = self.log.lines().find_map(|line| line.split_once(&format!("| {words}")));
        serde_json::from_str(line.expect("such a line").1).expect("JSON")
    }
}

/// The log without what act says of itself.
fn readable(log: &str) -> String {
    log.lines().filter(|line| !line.contains("LocalRepositoryCache")).map(|line| format!("{line}\n")).collect()
}

/// The policy that the documents tell to paste.
fn policy_of_the_documents() -> Value {
    serde_json::from_str(include_str!("../../docs/policy.json")).expect("a policy")
}

/// A policy with an observer, too, that sees all nodes and may do nothing.
fn watched(policy: &Value) -> String {
    let mut policy = policy.clone();
    policy["tagOwners"]["tag:observer"] = json!(["tag:nix-ci-coordinator"]);
    let rules = policy["acls"].as_array_mut().expect("rules");
    rules.push(json!({ "action": "accept", "src": ["tag:observer"], "dst": ["*:9"] }));
    policy.to_string()
}
