//! The reference model: who must reach whom, over what, by when. It knows the world as it is and no protocol at all.

use std::time::{Duration, Instant};

use nixtail_proto::node::Path;
use nixtail_proto::stack::ConnectionError;

use crate::conversation::{Application, Conversation};
use crate::world::World;

/// Who can be reached is reached within this time, whatever was before: an address is trusted for 6.5 s, a dead session is noticed after
/// 15 s, and a peer, a relay and what a stream owes are tried every 5 s at least.
pub(crate) const REACHED_WITHIN: Duration = Duration::from_secs(35);
/// Where the network loses packets, three such rounds in a row may come to nothing.
pub(crate) const REACHED_WITHIN_LOSSY: Duration = Duration::from_secs(50);
/// First contact where nothing has happened lately, and the network loses nothing.
pub(crate) const FIRST_CONTACT_WITHIN: Duration = Duration::from_millis(2500);
/// For how long nothing must have happened for that.
const SETTLED_FOR: Duration = Duration::from_secs(10);
/// Who can talk directly does so within this time: our own addresses are asked for every 26 s, the peer's every 5 s.
pub(crate) const DIRECT_WITHIN: Duration = Duration::from_secs(60);
/// For how long people may be told of a direct path that is no more: trust and a ping's time.
const LIE_AT_MOST: Duration = Duration::from_secs(12);
/// A stream dies only if its peer was out of reach within this time: silence of 45 s and what led to it.
const OUT_OF_REACH_WITHIN: Duration = Duration::from_secs(75);
/// Nothing waits for longer than this: it goes on, or ends with an error. A stream gives up after 45 s of silence; the peer may be heard
/// once meanwhile, and lost again.
const ENDS_WITHIN: Duration = Duration::from_secs(100);

/// What must be true of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Facts {
    /// The one can reach the other.
    reachable: bool,
    /// Both can send each other datagrams.
    direct: bool,
    /// Nothing is lost on the way.
    reliable: bool,
}

/// What is true of a conversation's pair, and since when.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Watch {
    facts: Facts,
    reachable_since: Option<Instant>,
    direct_since: Option<Instant>,
    relayed_since: Option<Instant>,
    last_direct: Option<Instant>,
    last_frozen: Option<Instant>,
    /// When the wanted echo was first asked for, if that was a first contact in a quiet world.
    first_contact: Option<Instant>,
    had_contact: bool,
}

/// Times that are told at the end, in the order of their names.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Longest {
    pub(crate) first_contact: Duration,
    pub(crate) reached: Duration,
    pub(crate) direct: Duration,
}

impl Longest {
    pub(crate) fn max(self, other: Self) -> Self {
        Self {
            first_contact: self.first_contact.max(other.first_contact),
            reached: self.reached.max(other.reached),
            direct: self.direct.max(other.direct),
        }
    }
}

impl Watch {
    /// Something happened to the pair.
    pub(crate) fn disturb(&mut self) {
        (self.reachable_since, self.direct_since, self.relayed_since) = (None, None, None);
        (self.first_contact, self.last_direct) = (None, None);
    }

    /// The talker or its peer is another process now.
    pub(crate) fn restart(&mut self) {
        self.disturb();
        self.had_contact = false;
    }

    /// Compares what is with what must be.
    pub(crate) fn check(
        &mut self,
        world: &mut World,
        conversation: &Conversation,
        longest: &mut Longest,
    ) -> Result<(), String> {
        let (now, from, to) = (world.now, conversation.from, conversation.to);
        self.facts = facts(world, from, to);
        if world.hosts[from].frozen {
            self.last_frozen = Some(now);
        }
        let since = |since: &mut Option<Instant>, holds: bool| match holds {
            true => *since.get_or_insert(now),
            false => {
                *since = None;
                now
            }
        };
        let reachable = since(&mut self.reachable_since, self.facts.reachable);
        let direct = since(&mut self.direct_since, self.facts.reachable && self.facts.direct);
        let relayed = since(&mut self.relayed_since, self.facts.reachable && !self.facts.direct);

        if !self.facts.reachable {
            self.first_contact = None;
        }
        if let Some(wanted) = conversation.wants_since {
            let waited = now - wanted.max(reachable).max(conversation.heard_at.unwrap_or(wanted));
            longest.reached = longest.reached.max(waited);
            let within = if self.facts.reliable { REACHED_WITHIN } else { REACHED_WITHIN_LOSSY };
            if waited > within {
                return Err(format!(
                    "{to} isn't reached from {from} after {waited:?}, though it can be: {conversation:?}"
                ));
            }
            if !self.had_contact
                && self.first_contact.is_none()
                && self.facts.reliable
                && wanted - reachable.min(wanted) > SETTLED_FOR
            {
                self.first_contact = Some(wanted);
            }
        }
        if let Some(wanted) = self.first_contact.filter(|_| self.facts.reliable && self.facts.reachable) {
            let end = conversation.heard_at.filter(|heard| *heard >= wanted);
            let waited = end.unwrap_or(now) - wanted;
            if waited > FIRST_CONTACT_WITHIN {
                return Err(format!("the first contact of {from} with {to} takes {waited:?}"));
            }
            if end.is_some() {
                longest.first_contact = longest.first_contact.max(waited);
                self.first_contact = None;
            }
        }
        self.had_contact |= conversation.heard_at.is_some();

        if let Some(waits) = conversation.waits_since() {
            let waited = now
                - [Some(waits), self.last_frozen, conversation.heard_at].into_iter().flatten().max().unwrap_or(waits);
            if waited > ENDS_WITHIN {
                return Err(format!("a stream from {from} to {to} neither goes on nor ends for {waited:?}"));
            }
        }
        self.check_path(world, conversation, (direct, relayed), longest)
    }

    fn check_path(
        &mut self,
        world: &mut World,
        conversation: &Conversation,
        (direct, relayed): (Instant, Instant),
        longest: &mut Longest,
    ) -> Result<(), String> {
        let (now, from, to) = (world.now, conversation.from, conversation.to);
        let paths = [world.path(from, to), world.path(to, from)];
        let is_direct = paths.map(|path| matches!(path, Path::Direct(_)));
        if is_direct == [true, true] {
            if self.last_direct.is_none() && self.direct_since.is_some() {
                world.note("pairs that can go direct did");
                for site in [from, to].map(|host| world.hosts[host].site) {
                    world.note(world.sites[site].nat.kind.landmark());
                }
            }
            self.last_direct = Some(now);
        }
        if let Some((busy, _)) = conversation.busy_since.zip(self.direct_since).filter(|_| {
            !conversation.paused && conversation.every <= Duration::from_secs(3) && conversation.wants_since.is_none()
        }) {
            let begun = busy.max(direct).max(self.last_direct.unwrap_or(direct));
            longest.direct = longest.direct.max(now - begun);
            if now - begun > DIRECT_WITHIN {
                return Err(format!("{from} and {to} could talk directly for {:?}, but: {paths:?}", now - begun));
            }
        }
        if self.relayed_since.is_some() && now - relayed > LIE_AT_MOST {
            if is_direct != [false, false] {
                return Err(format!("{from} and {to} can't talk directly, but say so: {paths:?}"));
            }
            if conversation.wants_since.is_none() && conversation.busy_since.is_some() {
                world.note("pairs that can't go direct stayed at the relay");
            }
        }
        Ok(())
    }

    /// A stream of the conversation ended.
    pub(crate) fn check_end(
        &self,
        now: Instant,
        conversation: &Conversation,
        error: Option<ConnectionError>,
    ) -> Result<(), String> {
        let long = self.reachable_since.is_some_and(|since| now - since > OUT_OF_REACH_WITHIN);
        match error {
            None => Err(format!("a stream from {} to {} was closed by nobody", conversation.from, conversation.to)),
            Some(error) if long => Err(format!(
                "a stream from {} to {} ended ({error}), though nothing has happened for {:?}",
                conversation.from,
                conversation.to,
                self.reachable_since.map(|since| now - since)
            )),
            Some(_) => Ok(()),
        }
    }
}

fn facts(world: &World, one: usize, other: usize) -> Facts {
    let (a, b) = (&world.hosts[one], &world.hosts[other]);
    let (here, there) = (&world.sites[a.site], &world.sites[b.site]);
    let awake = !a.frozen && !b.frozen && !here.cut && !there.cut;
    let known = knows(world, one, other) && knows(world, other, one);
    let relay = |home| world.relays.get(&home).copied().unwrap_or(false);
    let relayed = relay(a.record.home_derp) && relay(b.record.home_derp);
    let udp = here.udp && there.udp && !world.is_severed(a.site, b.site);
    let v6 = a.address_v6.is_some() && b.address_v6.is_some();
    let direct = a.site == b.site || udp && (v6 || here.nat.kind.goes_direct_with(there.nat.kind));
    let links = [&world.udp, &here.access, &there.access];
    Facts { reachable: awake && known && relayed, direct, reliable: links.iter().all(|link| link.is_reliable()) }
}

/// Whether a host has heard from control how things are with it and another, and control how they are with the host.
fn knows(world: &World, one: usize, other: usize) -> bool {
    let host = &world.hosts[one];
    let seen = |of: usize| host.control.seen.get(of) == Some(&world.hosts[of].control.version);
    seen(one) && seen(other) && host.endpoints == host.record.endpoints && host.home == host.record.home_derp
}

/// Compares all of a world.
pub(crate) fn check(
    world: &mut World,
    application: &mut Application,
    watches: &mut [Watch],
    longest: &mut Longest,
) -> Result<(), String> {
    for (index, error) in std::mem::take(&mut application.ended) {
        watches[index].check_end(world.now, &application.conversations[index], error)?;
    }
    for (watch, conversation) in watches.iter_mut().zip(&application.conversations) {
        watch.check(world, conversation, longest)?;
    }
    Ok(())
}
