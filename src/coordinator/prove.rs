//! Proving one builder end to end: host key, policy, facts, claim, and a build that Nix itself makes through it.

use std::net::IpAddr;
use std::time::Duration;

use nixtail_proto::key::NodePublic;
use nixtail_proto::nix_command::{CONTROL_PROTOCOL, ControlRequest, ControlVerb};
use nixtail_proto::run::{ClaimRefusal, Failure, Holder, Stage};
use tokio::time::timeout;

use super::claims::{Claim, Claims};
use super::mode::Mode;
use super::probe_build::{ProbeBuild, STORE_FOLDER_VARIABLE};
use super::verbs::{HostKeyLine, Lines, Refusal, ask, ask_directly, follow, follow_directly};
use super::{Options, Transport};
use crate::agent::Agent;
use crate::builder::SSH_PORT;
use crate::direct::{Lane, LaneError, SshLinks, store_uri};
use crate::nix::config::known_hosts_line;
use crate::nix::facts::{FACTS_SCHEMA, Facts};
use crate::nix::machines::Machine;
use crate::report::plain;

/// How long a builder that control calls offline may take to answer. Its dial is retried meanwhile.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);
/// The pause between two such questions.
const WATCH_PAUSE: Duration = Duration::from_secs(5);

/// What every builder's proof needs.
#[derive(Debug)]
pub(super) struct Prover {
    pub(super) agent: Agent,
    pub(super) options: Options,
    pub(super) claims: Claims,
    /// The direct lane, where it may be used.
    pub(super) lane: Option<Lane>,
    /// What a daemon's Nix starts in place of ssh, where SSH may be used and Nix isn't told otherwise how to use it.
    pub(super) ssh_links: Option<SshLinks>,
}

/// The lane by which Nix reaches a builder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Via {
    Direct,
    Ssh,
}

/// A builder that answers, is ours, and is known well enough for ssh to reach it.
#[derive(Debug, Clone)]
pub(super) struct Acquaintance {
    pub(super) node_key: NodePublic,
    pub(super) facts: Facts,
    /// The `Host` block; empty where SSH isn't used at all.
    pub(super) ssh_host: String,
    pub(super) known_hosts: String,
    /// Its place in the machines list by SSH; the speed factor is set among all that are in it.
    pub(super) machine: Machine,
    /// Its URI by the direct lane, where that may be used.
    pub(super) direct_uri: Option<String>,
    /// How Nix reaches it; until that is proved, what is tried first.
    pub(super) via: Via,
    pub(super) host_keys: Vec<String>,
}

impl Acquaintance {
    /// How Nix is told of it.
    pub(super) fn machine(&self, speed_factor: u32) -> Machine {
        self.machine_via(self.via, speed_factor)
    }

    fn machine_via(&self, via: Via, speed_factor: u32) -> Machine {
        let machine = Machine { speed_factor, ..self.machine.clone() };
        match (&self.direct_uri, via) {
            (Some(uri), Via::Direct) => Machine { store_uri: uri.clone(), host_key: None, ..machine },
            _ => machine,
        }
    }
}

impl Via {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Ssh => "ssh",
        }
    }
}

impl Prover {
    /// Asks a builder who it is, and makes all that Nix and ssh are to be told of it.
    pub(super) async fn meet(&self, name: &str) -> Result<Acquaintance, Failure> {
        let (node_key, published) = self.published(name)?;
        let facts = self.verb(name, &published, ControlVerb::Facts, Vec::new()).await?;
        let host_key = facts.1;
        let facts = read_facts(&facts.0, &own_store_folder())?;
        // From here on the key that was shown is the only one: a builder doesn't change it while it lives.
        let host_keys: Vec<String> = host_key.iter().cloned().collect();
        let unfit = |error: &dyn std::fmt::Display| Failure { stage: Stage::Facts, reason: error.to_string() };
        let offer = &self.options.offer;
        let machine = Machine {
            store_uri: self.options.ssh_uri(name).map_err(|error| unfit(&error))?,
            systems: std::iter::once(&facts.system).chain(&facts.extra_platforms).cloned().collect(),
            max_jobs: offer.max_jobs.unwrap_or_else(|| jobs(&facts)),
            speed_factor: 1,
            supported_features: facts.features.clone(),
            mandatory_features: offer.mandatory_features.clone(),
            // A link finds it in ssh's files.
            host_key: host_key.clone().filter(|_| self.options.mode != Mode::TrustedUser),
        };
        // All that may fail here does before the claim: a claimed builder waits for us.
        machine.line().map_err(|error| unfit(&error))?;
        if let (true, Some(host_key)) = (published.is_empty(), &host_key) {
            tracing::warn!(
                builder = %name, host_key = %plain(host_key),
                "control passes on no host key of it; the one that it shows in the session of its node key is taken"
            );
        }
        let (ssh_host, known_hosts) = match &host_key {
            Some(host_key) => (
                self.options.ssh_host(name).block().map_err(|error| unfit(&error))?,
                known_hosts_line(name, host_key).map_err(|error| unfit(&error))?,
            ),
            None => (String::new(), String::new()),
        };
        let direct_uri = self.lane.as_ref().and_then(|_| store_uri(&self.options.layout.run, name).ok());
        if direct_uri.is_none() && self.options.transport == Transport::Direct {
            return Err(unfit(&"its name can't stand in the URI of the direct lane; use `--transport auto`"));
        }
        Ok(Acquaintance {
            node_key,
            ssh_host,
            known_hosts,
            machine,
            via: if direct_uri.is_some() { Via::Direct } else { Via::Ssh },
            direct_uri,
            facts,
            host_keys,
        })
    }

    /// Claims a builder for ourselves and our run.
    pub(super) async fn claim(&self, name: &str, known: &Acquaintance) -> Result<(), ClaimRefusal> {
        let claim = Claim { node_key: known.node_key, host_keys: known.host_keys.clone() };
        // Before the question: where its answer is lost the builder may be ours all the same, and must be told to end.
        self.claims.add(name, claim.clone());
        let run = self.options.run.iter().cloned().collect();
        let Err(refusal) = self.verb(name, &known.host_keys, ControlVerb::Claim, run).await else { return Ok(()) };
        if refusal.status.is_some() {
            self.claims.forget(name, &claim);
        }
        match serde_json::from_str::<crate::builder::Holder>(&refusal.text) {
            Ok(holder) => Err(ClaimRefusal::Taken(Holder { key: holder.node_key, name: plain(&holder.name) })),
            Err(_) => Err(ClaimRefusal::Failed(refusal.failure)),
        }
    }

    /// Gives a claim back. One that can't be reached isn't ours to keep either.
    pub(super) async fn release(&self, name: &str) {
        let Some(claim) = self.claims.all().remove(name) else { return };
        match self.verb(name, &claim.host_keys, ControlVerb::Release, Vec::new()).await {
            Ok(_) => self.claims.forget(name, &claim),
            // It stays among those that are told to end when we do.
            Err(refusal) => tracing::info!(builder = %name, reason = %refusal.failure.reason, "couldn't be given back"),
        }
    }

    /// Lets Nix build something through the builder.
    ///
    /// Where the direct lane may be used it goes first; SSH, if that may be used too, follows only where no session came
    /// through the lane: for what goes wrong behind it SSH is no remedy.
    pub(super) async fn probe(&self, name: &str, known: &Acquaintance) -> Result<Via, Failure> {
        let unfit = |error: LaneError| Failure { stage: Stage::ProbeBuild, reason: error.to_string() };
        if let (Some(lane), Some(_)) = (&self.lane, &known.direct_uri) {
            lane.open(name, known.node_key).map_err(unfit)?;
            let before = lane.accepted(name);
            match self.probe_build(name, known, Via::Direct).await {
                Ok(()) => return Ok(Via::Direct),
                Err(failure) if self.options.transport == Transport::Direct || lane.accepted(name) != before => {
                    lane.close(name, &format!("its probe build failed: {}", failure.reason));
                    return Err(failure);
                }
                Err(failure) => {
                    lane.close(name, "it is reached over SSH in this run");
                    let reason = failure.reason;
                    tracing::warn!(builder = %name, %reason, "the direct lane doesn't work with this Nix; trying SSH");
                }
            }
        }
        if let Some(links) = &self.ssh_links {
            links.open(name).map_err(unfit)?;
        }
        self.probe_build(name, known, Via::Ssh).await.map(|()| Via::Ssh)
    }

    /// Lets nobody of Nix's through to a builder any more.
    pub(super) fn withdraw(&self, name: &str, why: &str) {
        if let Some(lane) = &self.lane {
            lane.close(name, why);
        }
    }

    async fn probe_build(&self, name: &str, known: &Acquaintance, via: Via) -> Result<(), Failure> {
        let (program, machine) = (self.options.nix_build.clone(), known.machine_via(via, 1));
        let build = match self.options.mode {
            Mode::TrustedUser => ProbeBuild::of_daemon(program, name, &machine)
                .map_err(|error| Failure { stage: Stage::ProbeBuild, reason: error.to_string() })?,
            Mode::OwnStore | Mode::System => {
                let eval_store = self.options.store.as_deref().unwrap_or("auto");
                let ssh = format!("-F {}", self.options.layout.ssh_config().display());
                ProbeBuild::of_own_nix(program, name, eval_store, &machine.store_uri, ssh)
            }
        };
        build.run().await
    }

    /// Asks a builder for a sign of life, again and again, until control sees it once more (or has another in its place),
    /// or it fails to give one.
    pub(super) async fn watch(&self, name: &str, known: &Acquaintance) -> Result<(), Failure> {
        let offline = || {
            let netmap = self.agent.netmap().borrow().clone();
            let node = netmap.as_ref().and_then(|netmap| netmap.peer_by_key(&known.node_key));
            node.is_some_and(|node| node.online == Some(false))
        };
        while offline() {
            self.sign_of_life(name, known).await?;
            tokio::time::sleep(WATCH_PAUSE).await;
        }
        Ok(())
    }

    /// Asks a builder for a sign of life.
    pub(super) async fn sign_of_life(&self, name: &str, known: &Acquaintance) -> Result<(), Failure> {
        let reason = || format!("it didn't answer within {} s", SIGN_OF_LIFE.as_secs());
        let asked = timeout(SIGN_OF_LIFE, self.verb(name, &known.host_keys, ControlVerb::Ping, Vec::new())).await;
        let answer = asked.map_err(|_| Failure { stage: Stage::Connect, reason: reason() })?;
        Ok(answer.map(drop)?)
    }

    /// Watches a claimed builder over the lane that Nix takes: its reports on what happened after event `after`, line by line.
    pub(super) async fn open_watch(&self, name: &str, via: Via, keys: &[String], after: u64) -> Result<Lines, Failure> {
        let unreachable = |error: crate::agent::DialError| Failure { stage: Stage::Connect, reason: error.to_string() };
        let stream = self.agent.dial(name, SSH_PORT).await.map_err(unreachable)?;
        let request = ControlRequest { verb: ControlVerb::Watch, arguments: vec![after.to_string()] };
        let login = &self.options.login;
        Ok(match via {
            Via::Direct => follow_directly(stream, login, &request).await?,
            Via::Ssh => follow(stream, login, keys, &request).await?,
        })
    }

    /// Tells a claimed builder to end.
    pub(super) async fn stop(&self, name: &str, claim: &Claim) -> Result<(), Failure> {
        match self.verb(name, &claim.host_keys, ControlVerb::Stop, Vec::new()).await {
            // Where it says that it isn't ours, a claim without an answer never reached it.
            Err(refusal) if refusal.status.is_none() => return Err(refusal.failure),
            _ => {}
        }
        self.claims.forget(name, claim);
        Ok(())
    }

    /// Asks one thing; answers with the host key under which it was answered, where that was over SSH.
    async fn verb(
        &self,
        name: &str,
        keys: &[String],
        verb: ControlVerb,
        arguments: Vec<String>,
    ) -> Result<(String, Option<String>), Refusal> {
        let unreachable = |error: crate::agent::DialError| Refusal {
            failure: Failure { stage: Stage::Connect, reason: error.to_string() },
            status: None,
            text: String::new(),
        };
        let stream = self.agent.dial(name, SSH_PORT).await.map_err(unreachable)?;
        let request = ControlRequest { verb, arguments };
        if self.options.transport == Transport::Direct {
            return Ok((ask_directly(stream, &self.options.login, &request).await?, None));
        }
        let answer = ask(stream, &self.options.login, keys, &request).await?;
        let HostKeyLine(host_key) = answer.host_key;
        Ok((answer.text, Some(host_key)))
    }

    /// A builder's node key, and its host keys as control passes them on.
    fn published(&self, name: &str) -> Result<(NodePublic, Vec<String>), Failure> {
        let absent = |reason: String| Failure { stage: Stage::Connect, reason };
        let netmap = self.agent.netmap().borrow().clone().ok_or_else(|| absent("there is no netmap yet".to_owned()))?;
        let (_, key): (IpAddr, _) =
            nixtail_proto::names::resolve(&netmap, name).map_err(|error| absent(error.to_string()))?;
        let node = key.and_then(|key| netmap.peer_by_key(&key)).ok_or_else(|| absent("it is no node".to_owned()))?;
        Ok((node.key, node.hostinfo.ssh_host_keys.clone()))
    }
}

/// The folder that the names of our own store's paths begin with.
fn own_store_folder() -> String {
    let named = std::env::var(STORE_FOLDER_VARIABLE).ok().filter(|folder| !folder.is_empty());
    named.unwrap_or_else(|| "/nix/store".to_owned())
}

/// Builds at once: the builder's own word, else its processors. Nix polls a builder of one slot, so that there are two.
fn jobs(facts: &Facts) -> u32 {
    if facts.max_jobs > 0 { facts.max_jobs } else { facts.cores }.max(2)
}

fn read_facts(json: &str, own_store_folder: &str) -> Result<Facts, Failure> {
    let unfit = |reason: String| Failure { stage: Stage::Facts, reason };
    let facts: Facts = serde_json::from_str(json).map_err(|error| unfit(format!("unreadable: {error}")))?;
    if facts.schema != FACTS_SCHEMA {
        return Err(unfit(format!("it runs another version of nixtail (facts {}, here {FACTS_SCHEMA})", facts.schema)));
    }
    if facts.protocol != CONTROL_PROTOCOL {
        let theirs = facts.protocol;
        return Err(unfit(format!("it speaks another nixtail-control ({theirs}, here {CONTROL_PROTOCOL})")));
    }
    if facts.store_folder.trim_end_matches('/') != own_store_folder.trim_end_matches('/') {
        let theirs = plain(&facts.store_folder);
        return Err(unfit(format!(
            "its store paths begin with {theirs}, ours with {own_store_folder}: neither could use what the other builds"
        )));
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            schema: FACTS_SCHEMA,
            protocol: CONTROL_PROTOCOL,
            login: "bob".into(),
            system: "x86_64-linux".into(),
            extra_platforms: vec![],
            features: vec![],
            cores: 4,
            memory_bytes: 1,
            free_disk_bytes: 1,
            nix_version: "2.8.0".into(),
            store_folder: "/nix/store".into(),
            remote_store: None,
            max_jobs: 0,
            sandbox: true,
            trusted: Some(true),
            speed: None,
            memory_available_bytes: None,
            store_on_disk: None,
            run: None,
            store_access: None,
            cores_per_build: None,
            timeout_seconds: None,
            max_silent_seconds: None,
            settings_reach_builds: None,
        }
    }

    #[test]
    fn facts_of_another_version_are_refused_with_words() {
        let read = |facts: &Facts| read_facts(&serde_json::to_string(facts).unwrap(), "/nix/store");
        let refused = |result: Result<Facts, Failure>, word: &str| {
            let failure = result.unwrap_err();
            assert!(failure.stage == Stage::Facts && failure.reason.contains(word), "{failure:?}");
        };
        refused(read_facts("{}", "/nix/store"), "unreadable");
        refused(read_facts("nonsense", "/nix/store"), "unreadable");
        assert_eq!(read(&facts()), Ok(facts()));
        refused(read(&Facts { schema: FACTS_SCHEMA + 1, ..facts() }), "another version");
        refused(read(&Facts { protocol: CONTROL_PROTOCOL + 1, ..facts() }), "another nixtail-control");
        refused(read(&Facts { store_folder: "/elsewhere/store".into(), ..facts() }), "/elsewhere/store");
        assert!(read_facts(&serde_json::to_string(&facts()).unwrap(), "/elsewhere").is_err());
    }

    #[test]
    fn a_builder_says_how_many_builds_it_takes() {
        for (max_jobs, cores, wanted) in [(8, 4, 8), (0, 4, 4), (1, 4, 2), (0, 1, 2)] {
            assert_eq!(jobs(&Facts { max_jobs, cores, ..facts() }), wanted);
        }
    }
}
