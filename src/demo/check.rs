//! What must hold at the end of the demo.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use nixtail_devnet::Devnet;
use serde_json::Value;

use super::DemoError;
use super::graph::{Attribution, DERIVATIONS, expected_output};

/// The top's output is right, and all derivations were built, each by a builder and some by each.
pub(super) fn outputs(store: &Path, attribution: &Attribution, builders: &[&str]) -> Result<(), DemoError> {
    if attribution.total() != DERIVATIONS {
        return Err(wrong(format!(
            "{} of {DERIVATIONS} derivations were sent to builders; the coordinator must build none",
            attribution.total()
        )));
    }
    if let Some(idle) = builders.iter().find(|builder| !attribution.by_builder.contains_key(**builder)) {
        return Err(wrong(format!("{idle} built nothing")));
    }
    let outputs = store.join("nix/store");
    let top = fs::read_dir(&outputs)?
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().ends_with("-demo-top"))
        .ok_or_else(|| wrong("the build's output isn't in the coordinator's store".to_owned()))?;
    let content = fs::read_to_string(top.path())?;
    if content == expected_output() {
        return Ok(());
    }
    Err(wrong(format!("the build's output is {content:?} where {:?} was due", expected_output())))
}

/// How the coordinator reaches the builders, in words: `direct`, `DERP`, or both.
pub(super) fn paths(status: &Value, builders: &[&str]) -> Result<String, DemoError> {
    let peers = status["peers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut kinds = BTreeSet::new();
    for builder in builders {
        let named = |peer: &&Value| peer["name"].as_str().is_some_and(|name| name.split('.').next() == Some(builder));
        let path = peers.iter().find(named).and_then(|peer| peer["path"]["kind"].as_str());
        match path {
            Some(kind @ ("direct" | "derp")) => kinds.insert(if kind == "derp" { "DERP" } else { kind }),
            other => return Err(wrong(format!("no path to {builder}: status says {other:?}"))),
        };
    }
    Ok(kinds.into_iter().collect::<Vec<_>>().join(" and "))
}

/// Control knows no node any more.
pub(super) async fn no_nodes(devnet: &Devnet, within: Duration) -> Result<(), DemoError> {
    let started = Instant::now();
    loop {
        let nodes = devnet.nodes();
        if nodes.is_empty() {
            return Ok(());
        }
        if started.elapsed() > within {
            let names: Vec<_> = nodes.iter().map(|node| node.name.as_str()).collect();
            return Err(wrong(format!("nodes left in the devnet: {}", names.join(", "))));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// No process is left that was started for the demo: none has the demo's folder in its arguments or environment, nor
/// works in it.
pub(super) async fn no_processes(folder: &Path, within: Duration) -> Result<(), DemoError> {
    let started = Instant::now();
    loop {
        let left = processes_naming(folder);
        if left.is_empty() {
            return Ok(());
        }
        if started.elapsed() > within {
            return Err(wrong(format!("processes are left: {}", left.join(", "))));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Processes of ours that have to do with `folder`, as proc(5) shows them. Where there is no `/proc`, none are seen.
fn processes_naming(folder: &Path) -> Vec<String> {
    let needle = folder.as_os_str().as_encoded_bytes();
    let names = |bytes: &[u8]| bytes.windows(needle.len()).any(|part| part == needle);
    let own = std::process::id().to_string();
    let entries = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let processes = entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()));
    processes
        .filter(|entry| entry.file_name().to_str() != Some(&own))
        .filter(|entry| {
            let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
            let works_in_it = fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder));
            works_in_it || names(&read("cmdline")) || names(&read("environ"))
        })
        .map(|entry| {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            format!("{} ({})", entry.file_name().to_string_lossy(), name.trim())
        })
        .collect()
}

/// No socket is left, and nothing in the folder that the coordinator made for Nix.
pub(super) fn no_sockets(folder: &Path, run: &Path) -> Result<(), DemoError> {
    for entry in fs::read_dir(folder)?.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_socket()) {
            return Err(wrong(format!("{} is left", entry.path().display())));
        }
    }
    match fs::read_dir(run).map(|mut entries| entries.next()) {
        Ok(Some(Ok(entry))) => Err(wrong(format!("{} is left", entry.path().display()))),
        _ => Ok(()),
    }
}

/// Nix takes the write permission from what is in a store; without it nothing can be removed.
pub(super) fn make_removable(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.filter_map(Result::ok) {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder && fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o700)).is_ok() {
            make_removable(&entry.path());
        }
    }
}

fn wrong(what: String) -> DemoError {
    DemoError::Wrong(what)
}
