//! Who may log in as whom: the netmap's SSH policy, evaluated for one peer. Deny is the default.
//!
//! The rules are those of `tailscale/tailscale` `ssh/tailssh/tailssh.go` (`evalSSHPolicy`, `matchRule`). Where Go would
//! hold the connection until somebody agrees, or record it, nixtail can do neither, and refuses.

mod admission;
mod authority;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

pub use admission::{Admission, AdmissionEnd, as_local_user};
pub use authority::{Asker, Authority};

use crate::tailcfg::{SshAction, SshPolicy, SshPrincipal, SshRule};

/// How many characters of control's own words are passed on to a client.
const MAX_MESSAGE_LENGTH: usize = 1024;

/// What a rule can ask about the peer. All of it comes from the node that owns the WireGuard session, never from what
/// the peer says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PrincipalFacts {
    /// The node's stable id.
    pub stable_id: String,
    /// The node's own addresses.
    pub addresses: Vec<IpAddr>,
    /// The login name of the node's owner; `None` where the node is tagged, for then nobody owns it.
    pub login_name: Option<String>,
}

/// What the policy says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The peer may log in.
    Accept(Acceptance),
    /// The peer may not.
    Reject(Rejection),
}

/// How a peer may log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acceptance {
    /// The local user that the rule names, never empty.
    pub local_user: String,
    /// How long a session may last; `None` is without end.
    pub session_duration: Option<Duration>,
    /// Words of the policy for the client; may be empty. Bounded, without control characters.
    pub message: String,
    /// When the rule stops to count, in Unix seconds.
    pub expires: Option<i64>,
}

/// Why a peer may not log in. Its text is a line for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejection {
    /// The netmap has no such node, or has it no more.
    #[error(
        "your node isn't in this node's netmap; it has left the tailnet, its key has ended, or the policy hides it"
    )]
    UnknownNode,
    /// The node no longer has the address that it connected from.
    #[error("your node no longer has the address {0}; connect again")]
    Renumbered(IpAddr),
    /// The packet filter wouldn't let the connection begin any more.
    #[error("tailnet policy no longer lets your node connect to this port; an `acls` or `grants` rule must allow it")]
    Filtered,
    /// There is no policy at all.
    #[error(
        "this tailnet has no SSH policy for this node, so nobody may log in; add an `ssh` rule to the tailnet's policy"
    )]
    NoPolicy,
    /// No rule matches.
    #[error("tailnet policy does not permit you to SSH to this node; an `ssh` rule for your node must come first")]
    NoRule,
    /// Rules match the peer, but none the user asked for.
    #[error("tailnet policy does not permit you to SSH as this user; ask for a user that an `ssh` rule lists")]
    NoUser,
    /// The policy maps the user asked for to another one than this endpoint's, which is given.
    #[error(
        "this node's endpoint runs commands only as {0}, and the tailnet policy maps the user asked for to another one; \
         log in as a user that the `ssh` rule maps to {0}"
    )]
    OtherLocalUser(String),
    /// A rule refuses.
    #[error("tailnet policy refuses this connection{}", suffix(.0))]
    Refused(String),
    /// The rule wants somebody to agree first (check mode), which nixtail can't wait for.
    #[error(
        "tailnet policy wants a check before this connection, which nixtail can't do; use `accept` in the `ssh` rule"
    )]
    Hold,
    /// The rule wants the session recorded, which nixtail can't do.
    #[error(
        "tailnet policy wants this session recorded, which nixtail can't do; remove `recorder` from the `ssh` rule"
    )]
    Recording,
    /// The rule neither accepts nor refuses.
    #[error("tailnet policy has an `ssh` rule that neither accepts nor refuses; this is control's fault")]
    NoVerdict,
}

/// What `policy` says about `peer` logging in as `wanted_user` at `now_unix` (Unix seconds). The first rule that matches
/// decides.
pub fn evaluate(policy: Option<&SshPolicy>, peer: &PrincipalFacts, wanted_user: &str, now_unix: i64) -> Decision {
    let Some(policy) = policy else {
        return Decision::Reject(Rejection::NoPolicy);
    };
    let mut rejection = Rejection::NoRule;
    for rule in policy.rules.iter().flatten() {
        match match_rule(rule, peer, wanted_user, now_unix) {
            Match::No => {}
            Match::NotThisUser => rejection = Rejection::NoUser,
            Match::Yes(action, local_user) => return decide(action, local_user, rule.rule_expires.map(|at| at.unix())),
        }
    }
    Decision::Reject(rejection)
}

/// The users that those rules name which match `peer` and could accept it; `*` among them stands for all others. For a
/// decision about everybody at once, ask about each of them.
pub fn named_users<'a>(policy: &'a SshPolicy, peer: &PrincipalFacts, now_unix: i64) -> BTreeSet<&'a str> {
    let about_peer = policy.rules.iter().flatten().filter(|rule| concerns(rule, peer, now_unix));
    about_peer.flat_map(|rule| rule.ssh_users.keys().map(String::as_str)).collect()
}

enum Match<'a> {
    No,
    /// All but the user matches.
    NotThisUser,
    Yes(&'a SshAction, String),
}

fn match_rule<'a>(rule: &'a SshRule, peer: &PrincipalFacts, wanted_user: &str, now_unix: i64) -> Match<'a> {
    let Some(action) = rule.action.as_ref().filter(|_| concerns(rule, peer, now_unix)) else {
        return Match::No;
    };
    if action.reject {
        return Match::Yes(action, String::new());
    }
    match local_user(rule, wanted_user) {
        Some(local_user) => Match::Yes(action, local_user),
        None => Match::NotThisUser,
    }
}

/// Whether the rule counts now and is about `peer`.
fn concerns(rule: &SshRule, peer: &PrincipalFacts, now_unix: i64) -> bool {
    let is_expired = rule.rule_expires.is_some_and(|expires| expires.unix() < now_unix);
    !is_expired && rule.principals.iter().flatten().any(|principal| principal_matches(principal, peer))
}

/// Any one of a principal's fields suffices.
fn principal_matches(principal: &SshPrincipal, peer: &PrincipalFacts) -> bool {
    principal.any
        || (!principal.node.is_empty() && principal.node == peer.stable_id)
        || principal.node_ip.parse::<IpAddr>().is_ok_and(|ip| peer.addresses.contains(&ip))
        || (!principal.user_login.is_empty() && peer.login_name.as_ref() == Some(&principal.user_login))
}

/// The local user for `wanted_user`: its own entry, else that of `*`. An empty value is no match; `=` is the same name,
/// though never root, which `autogroup:nonroot` relies on.
fn local_user(rule: &SshRule, wanted_user: &str) -> Option<String> {
    let mapped = rule.ssh_users.get(wanted_user).or_else(|| rule.ssh_users.get("*"))?;
    match mapped.as_str() {
        "" => None,
        "=" => (!wanted_user.is_empty() && wanted_user != "root").then(|| wanted_user.to_owned()),
        user => Some(user.to_owned()),
    }
}

/// Reject counts before accept, and what can't be honoured before both.
fn decide(action: &SshAction, local_user: String, expires: Option<i64>) -> Decision {
    let rejection = if action.reject {
        Rejection::Refused(plain(&action.message))
    } else if !action.hold_and_delegate.is_empty() {
        Rejection::Hold
    } else if !action.recorders.is_empty() || action.on_recording_failure.is_some() {
        Rejection::Recording
    } else if !action.accept {
        Rejection::NoVerdict
    } else {
        // A negative duration is over at once, as in Go.
        let duration = Duration::from_nanos(u64::try_from(action.session_duration).unwrap_or(0));
        return Decision::Accept(Acceptance {
            local_user,
            session_duration: (action.session_duration != 0).then_some(duration),
            message: plain(&action.message),
            expires,
        });
    };
    Decision::Reject(rejection)
}

/// Control's words, bounded; line ends stay, other control characters go.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || *c == '\n').take(MAX_MESSAGE_LENGTH).collect()
}

fn suffix(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

#[cfg(test)]
mod tests;
