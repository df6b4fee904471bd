//! `nixtail bench` between two nodes of a devnet, as its users call it.
#![allow(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

mod lab;

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use lab::nixtail::{Nixtail, program};
use lab::process::{Process, run};
use lab::{PATIENCE, wait_for};
use nixtail_devnet::{AuthKeyOptions, Config, Devnet, Policy};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// A devnet beside the test's own thread.
struct Net {
    runtime: Runtime,
    devnet: Option<Devnet>,
    url: String,
    key: String,
    folder: TempDir,
}

impl Net {
    fn start() -> Self {
        let runtime = Runtime::new().unwrap();
        let config = Config { policy: Policy::allow_all(), ..Config::default() };
        let devnet = runtime.block_on(Devnet::start(config)).unwrap();
        let options = AuthKeyOptions { reusable: true, ephemeral: true, ..AuthKeyOptions::default() };
        let (url, key) = (devnet.url(), devnet.add_auth_key(options).unwrap().expose().to_owned());
        Self { runtime, devnet: Some(devnet), url, key, folder: tempfile::tempdir().unwrap() }
    }

    fn up(&self, name: &str) -> Nixtail {
        Nixtail::up(&self.url, &self.key, name, &[])
    }

    fn socket(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// `nixtail bench serve` as a node of its own, once it is ready.
    fn serve(&self) -> Process {
        let (socket, log) = (self.socket("serve.sock"), self.folder.path().join("serve.log"));
        let args = ["bench", "serve", "--login-server", &self.url, "--hostname", "server", "--socket", &socket];
        let env = [("TS_AUTHKEY", self.key.as_str()), ("HOME", self.folder.path().to_str().unwrap())];
        ready(Process::start("bench serve", &program(), args, env, &log))
    }

    /// `nixtail bench run server` from a node that joins for it.
    fn joining(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(["bench", "run", "server", "--login-server", &self.url, "--hostname", "client"]).args(args);
        command.env("TS_AUTHKEY", &self.key).env("NIXTAIL_SOCKET", self.socket("no.sock"));
        command
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.devnet.as_ref().unwrap().nodes().into_iter().map(|node| node.name).collect();
        names.sort();
        names
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        if let Some(devnet) = self.devnet.take() {
            self.runtime.block_on(devnet.shutdown());
        }
    }
}

fn ready(mut process: Process) -> Process {
    wait_for("bench serve to be ready", 2 * PATIENCE, || {
        assert!(process.ended().is_none(), "it ended at once:\n{}", process.log());
        process.log().lines().any(|line| line.starts_with("ready ")).then_some(())
    });
    process
}

/// `nixtail bench serve` as the agent that runs already.
fn serve_as(agent: &Nixtail, folder: &Path) -> Process {
    let socket = agent.socket().display().to_string();
    let args = ["bench", "serve", "--agent", "--socket", &socket];
    ready(Process::start("bench serve --agent", &program(), args, [], &folder.join("serve.log")))
}

fn words(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(output: &Output) -> Value {
    let said = words(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"))
}

/// Starts `command` and sends it SIGINT once it measures.
fn interrupted(mut command: Command, log: &Path) -> Output {
    let stderr = std::fs::File::create(log).unwrap();
    let child = command.stdout(std::process::Stdio::piped()).stderr(stderr).spawn().unwrap();
    // The first second's line.
    wait_for("the measurement to go on", 2 * PATIENCE, || {
        std::fs::read_to_string(log).unwrap().contains("   1.0 s ").then_some(())
    });
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn two_agents_measure_each_other_with_four_streams_both_ways() {
    let net = Net::start();
    let (left, right) = (net.up("left"), net.up("right"));
    left.wait_for_peer("right");
    let nobody = left.cli(&["bench", "run", "right"]);
    assert_eq!(nobody.status.code(), Some(69), "{nobody:?}");
    assert!(words(&nobody.stderr).contains("nothing listens there"), "{nobody:?}");

    let mut server = serve_as(&right, net.folder.path());
    let asked =
        ["bench", "run", "right", "--streams", "4", "--direction", "both", "--duration", "1s", "--latency", "--json"];
    let output = left.cli(&asked);
    assert!(output.status.success(), "{output:?}");
    let report = json(&output);
    for key in [
        "schema",
        "host",
        "direction",
        "streams",
        "interrupted",
        "confirmed",
        "path",
        "path_at_end",
        "path_changes",
        "bytes",
        "seconds",
        "gbit_per_s",
        "cpu_s_per_gb",
        "remote_cpu_s_per_gb",
        "rss_bytes",
        "remote_rss_bytes",
        "upload",
        "download",
        "latency",
        "intervals",
    ] {
        assert!(!report[key].is_null(), "no {key} in {report:#}");
    }
    assert_eq!(
        (&report["schema"], &report["direction"], &report["confirmed"]),
        (&2.into(), &"both".into(), &true.into())
    );
    for way in ["upload", "download"] {
        let streams = report[way]["streams"].as_array().unwrap();
        assert_eq!(streams.len(), 4);
        assert!(streams.iter().all(|stream| stream["gbit_per_s"].as_f64().unwrap() > 0.0), "{report:#}");
    }
    assert!(report["latency"]["idle"]["p99_ms"].as_f64().unwrap() > 0.0, "{report:#}");
    assert!(report["latency"]["loaded"]["samples"].as_u64().unwrap() > 0, "{report:#}");
    let said = words(&output.stderr);
    assert!(said.contains("right over ") && said.contains("both ways, 4 streams each"), "{said}");
    assert!(said.contains("   up ") && said.contains("   down "), "{said}");

    // For people: the report on stdout, and no second of it where that is no terminal.
    let output = left.cli(&["bench", "run", "right", "--agent", "--direction", "download", "-P", "2", "-t", "200ms"]);
    assert!(output.status.success(), "{output:?}");
    let lines: Vec<String> = words(&output.stdout).lines().map(str::to_owned).collect();
    let firsts: Vec<&str> = lines.iter().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(firsts, ["download", "each", "cpu", "memory", "path"], "{lines:?}");
    let told = wait_for("the server to tell of both", PATIENCE, || {
        let log = server.log();
        (log.matches("left: ").count() == 2).then_some(log)
    });
    assert!(told.contains("left: both ways, 4 streams, up ") && told.contains("left: download, 2 streams, "), "{told}");

    // Through the agent, too, Ctrl-C ends the run in the middle; and the server, and with it the port.
    let log = net.folder.path().join("run.log");
    let output = interrupted(left.command(&["bench", "run", "right", "--duration", "10m", "--json"]), &log);
    assert_eq!((output.status.code(), &json(&output)["interrupted"]), (Some(1), &true.into()));
    server.signal(Signal::INT);
    assert!(server.wait(PATIENCE).success());
    wait_for("the port to be given back", PATIENCE, || {
        (left.cli(&["bench", "run", "right", "-t", "100ms"]).status.code() == Some(69)).then_some(())
    });
}

#[test]
fn a_node_that_joins_for_a_run_leaves_after_it_and_when_it_is_interrupted() {
    let net = Net::start();
    let mut server = net.serve();
    let output = run(&mut net.joining(&["--direction", "download", "--duration", "300ms", "--json"]), 2 * PATIENCE);
    assert!(output.status.success(), "{output:?}");
    let report = json(&output);
    assert!(report["upload"].is_null() && report["download"]["bytes"].as_u64().unwrap() > 0, "{report:#}");
    assert_eq!(net.names(), ["server.tail.devnet"], "the client has left");

    let log = net.folder.path().join("run.log");
    let output = interrupted(net.joining(&["--duration", "10m", "--streams", "3", "--json"]), &log);
    let said = std::fs::read_to_string(&log).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("interrupted: the report holds what there was"), "{said}");
    let report = json(&output);
    assert_eq!((&report["interrupted"], &report["confirmed"]), (&true.into(), &true.into()), "{report:#}");
    assert!(report["bytes"].as_u64().unwrap() > 0 && report["seconds"].as_f64().unwrap() < 60.0, "{report:#}");
    assert_eq!(net.names(), ["server.tail.devnet"], "the client has left");
    server.signal(Signal::TERM);
    assert!(server.wait(Duration::from_secs(60)).success());
    assert!(net.names().is_empty(), "the server has left");
}

#[test]
fn what_this_machine_could_do_is_measured_without_a_network() {
    let nixtail = |args: &[&str]| {
        let mut command = Command::new(program());
        command.args(["bench", "loopback", "--duration"]).args(args).env("COLUMNS", "200");
        run(&mut command, 2 * PATIENCE)
    };
    let output = nixtail(&["10ms", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let result = json(&output);
    let names = |stages: &Value| -> Vec<String> {
        let stages = stages.as_array().unwrap().iter();
        stages.map(|stage| stage["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(result["schema"], 1);
    assert_eq!(names(&result["stages"]), ["tcp", "wireguard", "node", "syscalls"]);
    assert_eq!(names(&result["others"]), ["syscalls_one_by_one", "ssh_aes128_gcm", "ssh_chacha20_poly1305"]);
    for figure in [
        &result["stages"][1]["sending"]["gbit_per_s"],
        &result["sum"]["receiving"]["cpu_s_per_gb"],
        &result["others"][2]["receiving"]["gbit_per_s"],
        &result["together"]["gbit_per_s"],
        &result["limit"]["share"],
    ] {
        assert!(figure.as_f64().unwrap() > 0.0, "{result:#}");
    }
    let output = nixtail(&["10ms"]);
    let shown = words(&output.stdout);
    assert!(output.status.success() && shown.starts_with("STAGE "), "{output:?}");
    assert!(shown.lines().last().unwrap().starts_with("your limit is "), "{shown}");
    assert!(words(&output.stderr).contains("measuring TCP"), "{output:?}");
    for wrong in ["0", "2m"] {
        assert_eq!(nixtail(&[wrong]).status.code(), Some(2));
    }
}
