//! `nixtail demo`, as somebody new runs it: two at once, and one that is interrupted.

mod lab;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long one demo may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

fn demo(folder: &Path) -> Child {
    Command::new(lab::nixtail::program())
        .arg("demo")
        .env("TMPDIR", folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the demo starts")
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).expect("the folder").next().is_none()
}

fn said(output: &Output) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{stdout}\n{}", String::from_utf8_lossy(&output.stderr));
    stdout
}

#[test]
fn two_demos_at_once_end_well_and_leave_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let demos = [demo(folder.path()), demo(folder.path())];
    for demo in demos {
        let said = said(&demo.wait_with_output().expect("the demo ends"));
        let summary = said.lines().find(|line| line.contains("12 builds on 2 builders in ")).unwrap_or_default();
        // Nothing else: none failed, was lost, was given up or still runs.
        assert!(summary.contains(": 12 built; "), "{said}");
        let line = said.lines().last().unwrap_or_default();
        assert!(line.starts_with("demo: 12 derivations on 2 builders, all traffic over WireGuard ("), "{line}");
        assert!(line.ends_with("), nothing left behind"), "{line}");
    }
    assert!(is_empty(folder.path()));
}

#[test]
fn an_interrupted_demo_cleans_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut child = demo(folder.path());
    // Once the builders have their stores, everything is under way.
    lab::wait_for("the demo to be under way", lab::PATIENCE, || {
        let demo = std::fs::read_dir(folder.path()).ok()?.next()?.ok()?.path();
        demo.join("coordinator.sock").exists().then_some(())
    });
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::INT).expect("the demo is there");
    let begun = Instant::now();
    let status = child.wait().expect("the demo ends");
    assert!(begun.elapsed() < PATIENCE && status.code() == Some(1), "{status}");
    assert!(is_empty(folder.path()), "files are left");
}
