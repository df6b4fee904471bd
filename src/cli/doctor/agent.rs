//! The agent at the socket, if there is one: how it does, by its own status.

use std::time::Duration;

use super::check::Check;
use crate::agent::{State, Status};
use crate::report::words::duration;
use crate::report::{Exit, Failure, plain};

/// A key that ends sooner than this is worth a word.
const SOON: Duration = Duration::from_secs(24 * 3600);

/// All that an agent's answer tells, or that there is none.
pub(super) fn checks(answer: &Result<Status, Failure>) -> Vec<Check> {
    let own = env!("CARGO_PKG_VERSION");
    match answer {
        Ok(status) => {
            let mut checks = vec![version(own, &plain(&status.version)), standing(status), home(status), key(status)];
            checks.extend(status.health.iter().map(|line| {
                Check::warning(
                    "health",
                    plain(line),
                    "`nixtail status` shows it as it is now; the agent's log says since when",
                )
            }));
            checks
        }
        Err(failure) if failure.exit == Exit::Unavailable => vec![
            Check::ok("version", own),
            Check::warning(
                "agent",
                plain(&failure.message),
                failure.next.as_deref().unwrap_or("start one with `nixtail up`"),
            ),
        ],
        Err(failure) => vec![Check::ok("version", own), Check::failed("agent", failure)],
    }
}

fn version(own: &str, agents: &str) -> Check {
    if own == agents {
        return Check::ok("version", format!("{own}, as the agent's"));
    }
    let found = format!("this is {own}, and the agent is {agents}");
    Check::warning("version", found, "restart the agent with this version, or use the agent's")
}

fn standing(status: &Status) -> Check {
    let name = plain(&status.own.name);
    match status.state {
        State::Running => {
            let addresses: Vec<_> = status.own.addresses.iter().map(ToString::to_string).collect();
            Check::ok("agent", format!("{name} is on the tailnet as {}", addresses.join(" ")))
        }
        State::ControlLost => Check::problem(
            "agent",
            Exit::Unavailable,
            format!("{name} has lost its connection to control; peers stay reachable meanwhile"),
            "it dials again by itself: see `login-server` below, then control's own state",
        ),
        State::Refused => Check::problem(
            "agent",
            Exit::Refused,
            format!("control took {name} off the tailnet"),
            "start it again with a new key",
        ),
        State::Leaving => Check::warning("agent", format!("{name} is leaving the tailnet"), "wait for its end"),
    }
}

fn home(status: &Status) -> Check {
    match status.own.home_region {
        Some(home) if status.relays.contains(&home) => {
            Check::ok("home-relay", format!("connected, DERP region {home}"))
        }
        Some(home) => Check::problem(
            "home-relay",
            Exit::Unavailable,
            format!("the relay of DERP region {home} is not connected: peers can't call this node"),
            "it is dialled again and again: see `relay` below for why that fails",
        ),
        None => Check::warning("home-relay", "no DERP region is home", "see `relay` below; or it runs without relays"),
    }
}

fn key(status: &Status) -> Check {
    match status.key_ends_in_s.map(Duration::from_secs) {
        None => Check::ok("node-key", "has no end"),
        Some(Duration::ZERO) => {
            Check::problem("node-key", Exit::Refused, "has ended", "start the agent again with a new key")
        }
        Some(left) if left < SOON => Check::warning(
            "node-key",
            format!("ends in {}, and the agent with it", duration(left)),
            "start the agent again before that; keys of tagged nodes have no end",
        ),
        Some(left) => Check::ok("node-key", format!("ends in {}", duration(left))),
    }
}
