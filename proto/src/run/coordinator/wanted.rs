//! Whom a coordinator wants as its builders, and when it has enough of them.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::key::NodePublic;
use crate::names;
use crate::netmap::Netmap;
use crate::tailcfg::Node;

/// The tag of builders, unless another one is asked for.
pub const BUILDER_TAG: &str = "tag:nix-ci-builder";
/// The longest name of a run, in bytes: it must leave room for more in a node's name.
pub const MAX_RUN_NAME: usize = 40;

/// What a coordinator wants.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Which nodes.
    pub who: Who,
    /// This many are enough to begin with; without it all of them are needed.
    pub at_least: Option<usize>,
    /// There must be a builder for each of these systems, too.
    pub systems: BTreeSet<String>,
    /// How long the waiting may take.
    pub wait: Duration,
}

/// Which nodes of the tailnet are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// Those of these names, wherever they come from.
    Named(Vec<String>),
    /// Those that control has given this tag.
    Tagged {
        /// The tag, with its `tag:`.
        tag: String,
        /// Only those of this run. Without one: only those of none.
        run: Option<String>,
        /// So many; without a number, all there are.
        count: Option<usize>,
    },
}

/// A node of the netmap that may be a wanted builder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// What it is called here, in the machines list, and when it is dialled.
    pub name: String,
    /// Who it is.
    pub key: NodePublic,
    /// Whether control sees it, where control says.
    pub online: Option<bool>,
    /// Whether it is meant by its name: given, or with the run in it. Others may say that they are of the run when they
    /// are asked.
    pub is_meant: bool,
}

/// A name that no run can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} can't name a run: it takes 1 to {MAX_RUN_NAME} letters, digits, dots, hyphens and underscores, and begins with a letter or digit"
)]
pub struct RunNameError(pub String);

/// Checks the name of a run: it goes into names of nodes, command lines and file names.
///
/// # Errors
/// When it is no such name.
pub fn check_run_name(name: &str) -> Result<(), RunNameError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins_well && name.len() <= MAX_RUN_NAME && name.chars().all(is_plain) {
        return Ok(());
    }
    Err(RunNameError(name.chars().take(MAX_RUN_NAME).collect()))
}

/// What the Action calls its builders, before the run.
const ACTION_PREFIX: &str = "nix-builder-";

/// Whether a node's name carries a run: `RUN-…`, `PREFIX-RUN-…`, where the prefix is one word, or `nix-builder-RUN-…`.
///
/// Any other prefix must not hold a hyphen: else run `1` would be found in `ci-77-1-3`, which is of run `77`.
#[must_use]
pub fn carries_run(node: &str, run: &str) -> bool {
    let run = names::valid_hostname(run);
    let begins = |name: &str| name.strip_prefix(run.as_str()).is_some_and(|rest| rest.starts_with('-'));
    let behind_word = node.split_once('-').map(|(_, rest)| rest);
    [Some(node), behind_word, node.strip_prefix(ACTION_PREFIX)].into_iter().flatten().any(begins)
}

impl Wanted {
    /// The nodes of a netmap that may be wanted. What a node is called comes from control, but the node asked for it: of
    /// what is looked at here, only names that were given and tags decide. Which run a builder is of, it says itself.
    #[must_use]
    pub fn sightings(&self, netmap: &Netmap) -> Vec<Sighting> {
        let sighting =
            |name: String, node: &Node, is_meant| Sighting { name, key: node.key, online: node.online, is_meant };
        let node_of = |name: &str| {
            let key = names::resolve(netmap, name).ok().and_then(|(_, key)| key)?;
            netmap.peer_by_key(&key)
        };
        match &self.who {
            Who::Named(names) => {
                let seen = names.iter().filter_map(|name| Some(sighting(name.clone(), node_of(name)?, true)));
                seen.collect()
            }
            Who::Tagged { tag, run, .. } => {
                let tagged = netmap.peers.tagged(tag);
                let seen = tagged.filter_map(|node| {
                    // The short name, unless it leads to another node: one that is shared in, or a ghost's successor.
                    let leads_here = |name: &&str| node_of(name).is_some_and(|found| found.key == node.key);
                    let name = [node.short_name(), node.dns_name()].into_iter().find(leads_here)?;
                    let is_meant = run.as_ref().is_none_or(|run| carries_run(node.short_name(), run));
                    Some(sighting(name.to_owned(), node, is_meant))
                });
                seen.collect()
            }
        }
    }

    /// How many must be ready before the waiting is over.
    #[must_use]
    pub fn enough(&self) -> usize {
        let all = match &self.who {
            Who::Named(names) => names.len(),
            Who::Tagged { count, .. } => count.unwrap_or(1),
        };
        self.at_least.unwrap_or(all).max(1)
    }

    /// How many are claimed at the most; `None` is no limit.
    pub(super) fn most(&self) -> Option<usize> {
        match &self.who {
            Who::Named(_) | Who::Tagged { count: None, .. } => None,
            Who::Tagged { count: Some(count), .. } => Some((*count).max(self.enough()).max(self.systems.len())),
        }
    }

    /// How many there are to be in the end, as far as that is known.
    pub(super) fn total(&self) -> usize {
        match &self.who {
            Who::Named(names) => names.len(),
            Who::Tagged { .. } => self.most().unwrap_or_else(|| self.enough()),
        }
    }

    /// Whether a builder that says this of its run is one of ours. By name it is whoever it says that it is.
    pub(super) fn takes_run(&self, said: Option<&str>, is_meant: bool) -> bool {
        match &self.who {
            Who::Named(_) => true,
            Who::Tagged { run: None, .. } => said.is_none(),
            // One that was started without a run belongs to the run that its name carries.
            Who::Tagged { run: Some(run), .. } => said.map_or(is_meant, |said| said == run),
        }
    }

    /// What a node must have to be found, in words.
    pub(super) fn description(&self) -> String {
        match &self.who {
            Who::Named(_) => "of these names".to_owned(),
            Who::Tagged { tag, run: None, .. } => format!("with {tag}"),
            Who::Tagged { tag, run: Some(run), .. } => format!("with {tag} of run {run}"),
        }
    }
}
