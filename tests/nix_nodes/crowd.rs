//! The big run: a hundred derivations of mixed length, a builder that is killed in the middle, another that comes late.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::lab::nixnode::{NixNode, NixVersion, NodeProcess, User};
use crate::lab::wait_for;
use crate::stage::{SINGLE_USER, Stage, assert_no_lock_is_held};

/// Beside the one that wants all of them.
const NUMBERED: usize = 99;
/// How long all of it may take on a busy machine; it takes about a minute.
const PATIENCE: Duration = Duration::from_secs(400);
/// After how many derivations the third builder joins, and the first one is killed.
const JOINS_AFTER: usize = 15;
const KILLED_AFTER: usize = 40;

#[test]
#[ignore = "make test-long: a hundred derivations"]
fn a_hundred_derivations_end_well_with_a_builder_killed_and_one_late() {
    let Some(own) = NixVersion::Own.require() else { return };
    let Some(stage) = Stage::start() else { return };
    let node = stage.node("coordinator", &own, SINGLE_USER);
    let nodes = ["b1", "b2", "b3"].map(|name| stage.node(name, &own, &format!("{SINGLE_USER}max-jobs = 3\n")));
    stage.write_tools(&node, User::Root);
    node.write(User::Root, "/root/hundred.nix", &hundred(Path::new("/root/tools")));

    let mut first = stage.builder(&nodes[0], User::Root, "b1", &[]);
    let _second = stage.builder(&nodes[1], User::Root, "b2", &[]);
    let begun = Instant::now();
    let command = ["nix-build", "--no-out-link", "--max-jobs", "0", "/root/hundred.nix"];
    let wanted = ["--builders", "b1 b2 b3", "--min-builders", "2", "--summary", "/root/summary", "--"];
    let mut run = stage.start_coordinator(&node, User::Root, &[&wanted[..], &command].concat(), &[]);

    wait_for_derivations(&mut run, JOINS_AFTER);
    let late = stage.builder(&nodes[2], User::Root, "b3", &[]);
    wait_for_derivations(&mut run, KILLED_AFTER);
    wait_for("the first builder to build something", PATIENCE, || is_building(&nodes[0]).then_some(()));
    first.end(Signal::KILL);
    let status = run.wait(PATIENCE);
    let log = run.log();
    eprintln!(
        "figure: a hundred derivations with a builder killed and one late {:.1} s",
        begun.elapsed().as_secs_f64()
    );
    assert!(status.success(), "{status}:\n{log}");

    let output = log.lines().rfind(|line| line.ends_with("-all")).expect("the output's path");
    assert_eq!(std::fs::read_to_string(node.path(output.trim())).unwrap(), right());
    let built = nodes.each_ref().map(built);
    eprintln!("figure: built by the killed, the staying and the late builder {built:?}");
    assert!(built.iter().all(|count| *count > 0), "{built:?}:\n{log}");
    let summary = std::fs::read_to_string(node.path("/root/summary/summary.md")).unwrap();
    eprintln!("figure: the summary\n{summary}");
    for told in ["b1", "b2", "b3"] {
        assert!(summary.contains(told), "{told}:\n{summary}");
    }
    let summary = std::fs::read_to_string(node.path("/root/summary/summary.json")).unwrap();
    let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
    let count = |name: &str| summary["totals"][name].as_u64().unwrap();
    // What was under way at the loss is lost or given up, and built in the second run. What the first builder finished in its last
    // moment may be in Nix' hands while its report died with it: that counts as lost, and isn't built again.
    assert!(count("built") + count("lost") > NUMBERED as u64 && count("lost") > 0, "{}", summary["totals"]);
    assert_eq!((count("failed"), count("running")), (0, 0), "{}", summary["totals"]);
    assert_no_lock_is_held(&node.path("/nix/var/nix/current-load"));
    drop(late);
}

/// An expression whose `all` lists a number for each of the others, some of which need two others each.
fn hundred(tools: &Path) -> String {
    format!(
        r#"let
  tools = builtins.path {{ path = {tools}; name = "test-tools"; }};
  run = name: inputs: script: derivation {{
    inherit name inputs;
    system = builtins.currentSystem;
    builder = "${{tools}}/busybox";
    args = [ "sh" "-euc" ''
      busybox=${{tools}}/busybox
      ${{script}}
    '' ];
  }};
  remainder = n: by: n - n / by * by;
  tenths = n: 1 + remainder (n * 7) 20;
  numbered = n: run "number-${{toString n}}" (inputs n) ''
    $busybox sleep ${{toString (tenths n / 10)}}.${{toString (remainder (tenths n) 10)}}
    total=${{toString n}}
    for input in $inputs; do total=$((total + $($busybox cat $input))); done
    echo $total > $out
  '';
  inputs = n: if n < 10 || remainder n 3 != 0 then [ ] else map (builtins.elemAt all) [ (n - 10) (n - 7) ];
  all = builtins.genList numbered {NUMBERED};
in run "all" all ''
  for input in $inputs; do $busybox cat $input; done > $out
''
"#,
        tools = tools.display(),
    )
}

/// What `all` of [`hundred`] must hold.
fn right() -> String {
    let mut totals: Vec<usize> = Vec::new();
    for n in 0..NUMBERED {
        let inputs = if n < 10 || n % 3 != 0 { 0 } else { totals[n - 10] + totals[n - 7] };
        totals.push(n + inputs);
    }
    totals.iter().fold(String::new(), |mut text, total| {
        let _ = writeln!(text, "{total}");
        text
    })
}

/// Waits until Nix has sent so many derivations to builders.
fn wait_for_derivations(run: &mut NodeProcess, count: usize) {
    wait_for(&format!("{count} derivations to be under way"), PATIENCE, || {
        let log = run.log();
        assert!(run.ended().is_none(), "it ended early:\n{log}");
        (log.matches(".drv' on '").count() >= count).then_some(())
    });
}

fn is_building(node: &NixNode) -> bool {
    node.count_processes("busybox sleep") > 0
}

/// How many of the derivations were built there: each leaves a log, which copying does not.
fn built(node: &NixNode) -> usize {
    let folders = std::fs::read_dir(node.path("/nix/var/log/nix/drvs")).into_iter().flatten().filter_map(Result::ok);
    let files =
        folders.flat_map(|folder| std::fs::read_dir(folder.path()).into_iter().flatten().filter_map(Result::ok));
    files.filter(|file| file.file_name().to_string_lossy().contains("-number-")).count()
}
