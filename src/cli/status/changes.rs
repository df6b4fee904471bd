//! What has changed between two looks at an agent, as lines: for a watch without a terminal.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Seen;
use super::node::online;
use crate::coordinator::EndedBuilds;
use crate::report::plain;
use crate::report::summary::Build;
use crate::report::words::{count, duration};

/// What was seen last.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Words on each thing that has a state: a builder, a peer, the claim.
    states: BTreeMap<String, String>,
    /// The builds under way: who builds what.
    building: BTreeSet<(String, String)>,
}

impl Changes {
    /// The lines that say what is new in `seen`; `ended` are the builds that have ended since the last look.
    pub(super) fn since_last(&mut self, seen: &Seen, ended: Option<&EndedBuilds>) -> Vec<String> {
        let (states, building) = (states(seen), building(seen));
        let mut lines = Vec::new();
        for (name, words) in &states {
            if self.states.get(name) != Some(words) {
                lines.push(format!("{name}: {words}"));
            }
        }
        let gone = self.states.keys().filter(|name| !states.contains_key(*name));
        lines.extend(gone.map(|name| format!("{name}: not there any more")));
        // A build may begin and end between two looks: then it is told of by its end alone.
        let begun = building.difference(&self.building);
        lines.extend(begun.map(|(builder, derivation)| format!("{builder}: begins {derivation}")));
        lines.extend(ended.into_iter().flat_map(|ended| &ended.builds).map(end));
        (self.states, self.building) = (states, building);
        lines
    }
}

fn end(build: &Build) -> String {
    let (builder, derivation) = (plain(&build.builder), plain(&build.derivation));
    format!("{builder}: {derivation} {} after {}", build.outcome, duration(build.length()))
}

fn states(seen: &Seen) -> BTreeMap<String, String> {
    match seen {
        Seen::Node(node) => {
            let peers = node.peers.iter();
            peers.map(|peer| (plain(&peer.name), format!("{}, path {}", online(peer), peer.path))).collect()
        }
        Seen::Builder(node, builder) => {
            let words = format!("{}, {}; {}", builder.claim(), builder.ended(), builder.end());
            BTreeMap::from([(plain(&node.own.name), words)])
        }
        Seen::Coordinator(status) => {
            let builders = status.builders.iter().map(|builder| {
                let standing = &builder.standing;
                let words = match (standing.ready, &standing.system, standing.cores) {
                    (true, Some(system), Some(cores)) => {
                        format!("ready ({}, {})", plain(system), count(u64::from(cores), "core"))
                    }
                    _ => plain(&standing.standing),
                };
                (plain(&standing.name), words)
            });
            builders.collect()
        }
    }
}

fn building(seen: &Seen) -> BTreeSet<(String, String)> {
    match seen {
        Seen::Node(_) => BTreeSet::new(),
        Seen::Builder(node, builder) => {
            let running = builder.running().into_iter();
            running.map(|build| (plain(&node.own.name), plain(&build.derivation))).collect()
        }
        Seen::Coordinator(status) => {
            let builders = status.builders.iter();
            let all = builders.flat_map(|builder| {
                let running = builder.running_builds.iter();
                running.map(|build| (plain(&builder.standing.name), plain(&build.derivation)))
            });
            all.collect()
        }
    }
}

/// The time since the watch or the run began, before a line.
pub(super) fn stamped(at: Duration, line: &str) -> String {
    format!("{:>7} {line}", crate::report::words::clock(at, false))
}
