//! How far each wanted builder is, and how that is told to people.

use std::fmt;

use crate::key::NodePublic;

/// How many builders one line of progress names.
const NAMED_IN_A_LINE: usize = 12;

/// How a wanted builder stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Standing {
    /// Not in the netmap yet.
    #[default]
    Awaited,
    /// In the netmap; being tried, or about to be again after the failure.
    Trying(Option<Failure>),
    /// It answers and isn't claimed: there are enough, or another coordinator goes first.
    Spare,
    /// Another coordinator has it; it is asked again.
    Taken(Holder),
    /// It is of another run.
    Foreign(String),
    /// Claimed, proved and in the machines list.
    Ready,
    /// Was ready and is gone; it is tried again when it comes back.
    Gone,
    /// Told to end.
    Stopped,
}

/// The coordinator that has a builder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Who it is.
    pub key: NodePublic,
    /// What the builder calls it.
    pub name: String,
}

/// How far a try came, and in which words it failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What didn't work.
    pub stage: Stage,
    /// Why.
    pub reason: String,
}

/// The steps of proving a builder, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// A connection through the tunnel.
    Connect,
    /// The SSH host key, as control gave it.
    HostKey,
    /// The SSH policy.
    Policy,
    /// Its facts.
    Facts,
    /// The claim.
    Claim,
    /// A probe build with Nix.
    ProbeBuild,
}

/// How the waiting goes: one line for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// How many are ready.
    pub ready: usize,
    /// How many there are to be.
    pub total: usize,
    /// How many are enough to begin.
    pub enough: usize,
    /// The ones that aren't ready, and why.
    pub rest: Vec<(String, Standing)>,
    /// How many more are wanted than there are nodes for, and what such a node must have.
    pub unseen: Option<(usize, String)>,
    /// The wanted systems for which none is ready.
    pub systems: Vec<String>,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "no answer",
            Self::HostKey => "host key",
            Self::Policy => "refused by policy",
            Self::Facts => "facts",
            Self::Claim => "claim",
            Self::ProbeBuild => "probe build failed",
        })
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Awaited => f.write_str("not in the netmap"),
            Self::Trying(None) => f.write_str("being tried"),
            Self::Trying(Some(failure)) => write!(f, "{}: {}", failure.stage, failure.reason),
            Self::Spare => f.write_str("answers, and isn't claimed"),
            Self::Taken(holder) => write!(f, "taken by {}", holder.name),
            Self::Foreign(run) => write!(f, "of another run: {run}"),
            Self::Ready => f.write_str("ready"),
            Self::Gone => f.write_str("gone"),
            Self::Stopped => f.write_str("told to end"),
        }
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} ready", self.ready, self.total)?;
        if self.enough < self.total {
            write!(f, " ({} needed)", self.enough)?;
        }
        for (name, standing) in self.rest.iter().take(NAMED_IN_A_LINE) {
            write!(f, "; {name}: {standing}")?;
        }
        if let Some(more) = self.rest.len().checked_sub(NAMED_IN_A_LINE).filter(|more| *more > 0) {
            write!(f, "; and {more} more")?;
        }
        if let Some((count, description)) = &self.unseen {
            write!(f, "; {count} more: no node {description} in the netmap")?;
        }
        if !self.systems.is_empty() {
            write!(f, "; none for {}", self.systems.join(", "))?;
        }
        Ok(())
    }
}
