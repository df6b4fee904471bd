//! What a connection's peer has of what we sent, what is missing, and how much may follow.
//!
//! smoltcp 0.14 sends, keeps and repeats; when, is decided here. Its own control of congestion knows neither byte counts
//! (RFC 3465), nor selective acknowledgements (RFC 2018), nor a second hole in one window (RFC 6582), and waits for a second at least
//! when the last of a burst is lost. So it has none: it is shown a peer's window that is no larger than [`Window`] allows, and told to
//! repeat something by the three duplicates that it waits for.

use std::collections::VecDeque;
use std::time::Duration;

use super::window::Window;
use crate::packet::tcp::{self, Options, Segment};

/// Duplicates that say that something is missing (RFC 5681 §3.2).
const DUPLICATES: usize = 3;
/// Moments whose round trip is measured; eight in a round trip.
const MARKS: usize = 64;
const MARKS_IN_ROUND_TRIP: u32 = 8;
/// A packet may be overtaken for this part of the round trip before it counts as lost (RFC 8985 §7.1 begins with a quarter), at most so long.
const REORDERING_PART: u32 = 8;
const LONGEST_REORDERING: Duration = Duration::from_millis(10);
/// Besides two round trips: how long an acknowledgement may be held back, and a woken process take (RFC 8985 §7.2).
const PROBE_SLACK: Duration = Duration::from_millis(25);
/// How often the same is repeated, each time after twice as long, before it is left to the pauses of smoltcp.
const MOST_PROBES: u32 = 4;

/// What must be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repair {
    /// The first segment that isn't acknowledged.
    First,
    /// All from there, as far as [`Sender::shown_window`] lets.
    Hole,
}

/// The sending side of one connection.
#[derive(Debug, Clone)]
pub(super) struct Sender {
    segment: usize,
    window: Window,
    /// The shift of the peer's window field (RFC 7323 §2).
    scale: u8,
    /// It tells what it has beyond what it acknowledges (RFC 2018).
    is_selective: bool,
    /// The end of what is acknowledged (SND.UNA), once anything is.
    acknowledged: Option<u32>,
    /// The end of what the peer takes.
    edge: u32,
    missing: Option<Missing>,
    recovery: Option<Recovery>,
    /// The end of what was sent when it was last looked at.
    sent: Option<u32>,
    /// Bytes that have arrived, whether acknowledged or only said to be there.
    delivered: u64,
    /// Ends of what was sent, and when.
    marks: VecDeque<(u32, Duration)>,
    round: Option<Round>,
    /// What may go out at once, and since when it grows.
    credit: usize,
    credited: Duration,
    /// When the peer's state last moved, or anything was sent to it after that.
    moved: Duration,
    probes: u32,
}

/// Something that the peer doesn't have, though it has what came after it.
#[derive(Debug, Clone, Copy)]
struct Missing {
    since: Duration,
    duplicates: usize,
    /// Bytes behind it that have arrived.
    arrived: usize,
    /// Where those begin, as far as is known.
    ends: Option<u32>,
    /// Bytes that were under way when it was noticed.
    under_way: usize,
    /// How much is missing tells whether too much was sent: it isn't what was known to be missing before.
    tells: bool,
    repeated: Option<Repeated>,
}

/// When something missing was repeated, and how many duplicates there had been.
#[derive(Debug, Clone, Copy)]
struct Repeated {
    at: Duration,
    duplicates: usize,
}

/// From the first repetition until all is acknowledged that was sent before it: more of that may be missing.
#[derive(Debug, Clone, Copy)]
struct Recovery {
    until: u32,
    /// Nothing is known to have arrived of it.
    is_blind: bool,
    anew: Option<Anew>,
}

/// Everything up to `until` is being sent anew, and was up to `end`.
#[derive(Debug, Clone, Copy)]
struct Anew {
    until: u32,
    end: u32,
}

#[derive(Debug, Clone, Copy)]
struct Round {
    end: u32,
    begun: Duration,
    delivered: u64,
    is_full: bool,
}

impl Sender {
    /// A connection on which nothing was sent. `segment` is the length of a full segment's data.
    pub(super) fn new(segment: usize) -> Self {
        Self {
            segment,
            window: Window::new(segment),
            scale: 0,
            is_selective: false,
            acknowledged: None,
            edge: 0,
            missing: None,
            recovery: None,
            sent: None,
            delivered: 0,
            marks: VecDeque::new(),
            round: None,
            credit: 0,
            credited: Duration::ZERO,
            moved: Duration::ZERO,
            probes: 0,
        }
    }

    /// Bytes of data in a full segment.
    pub(super) fn segment(&self) -> usize {
        self.segment
    }

    /// The end of what is acknowledged, once anything is.
    pub(super) fn acknowledged(&self) -> Option<u32> {
        self.acknowledged
    }

    /// Reads a segment of the peer; `sent` is the end of what was sent, and `waits` whether more waits to be. Answers whether the engine
    /// is to see it: not when it only says again what it said before.
    pub(super) fn read(
        &mut self,
        now: Duration,
        segment: Segment,
        options: Options,
        sent: Option<u32>,
        waits: bool,
    ) -> bool {
        if segment.flags & tcp::SYN != 0 {
            self.scale = options.window_scale.unwrap_or(0).min(14);
            self.is_selective = options.sack_permitted;
        }
        let to = segment.acknowledgement;
        if segment.flags & tcp::ACK == 0 || segment.flags & tcp::RST != 0 {
            return true;
        }
        let scale = if segment.flags & tcp::SYN != 0 { 0 } else { self.scale };
        let edge = to.wrapping_add(u32::from(segment.window) << scale);
        let (Some(sent), Some(from)) = (sent, self.acknowledged) else {
            (self.acknowledged, self.edge, self.moved) = (Some(to), edge, now);
            return true;
        };
        if is_before(sent, to) || is_before(to, from) {
            return true;
        }
        let before = std::mem::replace(&mut self.edge, edge);
        if to != from {
            self.handle_progress(now, from, to, sent, options, waits);
            return true;
        }
        let says_nothing = segment.length == 0 && segment.flags == tcp::ACK && to != sent;
        if !says_nothing || (edge != before && options.sacked_from.is_none()) {
            return true;
        }
        if self.is_selective && options.sacked == 0 {
            // It got something twice.
            return false;
        }
        // What is lost of what is being sent anew tells as much as what was lost at first.
        let anew = self.recovery.and_then(|recovery| recovery.anew).filter(|anew| is_before(from, anew.end));
        let missing = self.missing.get_or_insert_with(|| Missing {
            since: now,
            duplicates: 0,
            arrived: 0,
            ends: None,
            under_way: anew.map_or(sent, |anew| anew.end).wrapping_sub(from) as usize,
            tells: self.recovery.is_none() || anew.is_some(),
            repeated: None,
        });
        missing.duplicates += 1;
        let arrived = (missing.duplicates * self.segment).max(options.sacked).max(missing.arrived);
        let more = arrived - std::mem::replace(&mut missing.arrived, arrived);
        // Some tell of one stretch at a time, not of the first.
        let begins = options.sacked_from.filter(|from| is_before(to, *from));
        missing.ends = begins.filter(|from| missing.ends.is_none_or(|ends| is_before(*from, ends))).or(missing.ends);
        self.deliver(more, waits);
        false
    }

    fn handle_progress(&mut self, now: Duration, from: u32, to: u32, sent: u32, options: Options, waits: bool) {
        (self.acknowledged, self.moved, self.probes) = (Some(to), now, 0);
        let missing = self.missing.take();
        let is_clean = missing.is_none() && self.recovery.is_none();
        let known = missing.map_or(0, |missing| missing.arrived);
        self.deliver((to.wrapping_sub(from) as usize).saturating_sub(known), waits);
        while let Some((_, at)) = self.marks.front().copied().filter(|(end, _)| !is_before(to, *end)) {
            self.marks.pop_front();
            // What was repeated, or waited behind it, tells nothing of the path (RFC 6298 §3).
            if is_clean {
                self.window.handle_round_trip(now, now.saturating_sub(at));
            }
        }
        if let Some(round) = self.round.filter(|round| !is_before(to, round.end)) {
            let bytes = self.delivered.saturating_sub(round.delivered);
            self.window.handle_round(bytes, now.saturating_sub(round.begun), round.is_full && waits);
            self.round = None;
        }
        // A round trip is over since something was noticed to be missing: what was under way then has arrived, or won't.
        let is_congested =
            missing.filter(|missing| missing.tells && missing.repeated.is_some()).is_some_and(|missing| {
                let lost = missing.under_way.saturating_sub(missing.arrived);
                self.window.handle_loss(missing.under_way, lost)
            });
        let Some(mut recovery) = self.recovery.filter(|recovery| is_before(to, recovery.until)) else {
            self.recovery = None;
            return;
        };
        recovery.is_blind |= is_congested;
        recovery.anew = recovery.anew.filter(|anew| is_before(to, anew.until));
        self.recovery = Some(recovery);
        if recovery.anew.is_some() {
            return;
        }
        // What has arrived begins later: what comes before it is missing, too, and was for as long.
        // Where much is missing, everything is sent anew: hole by hole it would take a round trip for each.
        let known = options.sacked_from.filter(|from| is_before(to, *from));
        let Some(ends) = (if recovery.is_blind { Some(recovery.until) } else { known }) else { return };
        self.missing = Some(Missing {
            since: Duration::ZERO,
            duplicates: DUPLICATES,
            arrived: options.sacked,
            ends: Some(ends),
            under_way: sent.wrapping_sub(to) as usize,
            tells: false,
            repeated: None,
        });
    }

    fn deliver(&mut self, bytes: usize, waits: bool) {
        self.delivered += bytes as u64;
        self.window.handle_delivered(bytes, waits);
    }

    /// Something was sent; `end` is the end of all that was. `latest` is the end of what was sent last, which may have been sent before.
    pub(super) fn handle_sent(&mut self, now: Duration, end: u32, latest: u32, waits: bool) {
        let Some(acknowledged) = self.acknowledged else { return };
        if let Some(anew) = self.recovery.as_mut().and_then(|recovery| recovery.anew.as_mut())
            && is_before(anew.end, latest)
            && !is_before(anew.until, latest)
        {
            let bytes = latest.wrapping_sub(std::mem::replace(&mut anew.end, latest));
            self.credit = self.credit.saturating_sub(bytes as usize);
        }
        // Nothing new, or repeated things.
        let before = self.sent.replace(end);
        if end == acknowledged || before == Some(end) {
            return;
        }
        self.credit = self.credit.saturating_sub(before.map_or(0, |before| end.wrapping_sub(before) as usize));
        if self.marks.is_empty() {
            self.moved = now;
        }
        let apart = self.window.round_trip().unwrap_or_default() / MARKS_IN_ROUND_TRIP;
        let due = |(last, at): &(u32, Duration)| is_before(*last, end) && now.saturating_sub(*at) >= apart;
        if self.marks.len() < MARKS && self.marks.back().is_none_or(due) {
            self.marks.push_back((end, now));
        }
        match &mut self.round {
            Some(round) => round.is_full |= waits,
            None => self.round = Some(Round { end, begun: now, delivered: self.delivered, is_full: waits }),
        }
    }

    /// What is to be repeated now; it counts as done.
    pub(super) fn poll_repair(&mut self, now: Duration, sent: u32) -> Option<Repair> {
        let acknowledged = self.acknowledged.filter(|acknowledged| *acknowledged != sent)?;
        if self.repair_at(sent).is_none_or(|at| at > now) {
            return None;
        }
        self.moved = now;
        let recovery = Recovery { until: sent, is_blind: self.missing.is_none(), anew: None };
        let recovery = self.recovery.get_or_insert(recovery);
        let Some(missing) = &mut self.missing else {
            self.probes += 1;
            if self.probes > 1 {
                let under_way = sent.wrapping_sub(acknowledged) as usize;
                self.window.handle_loss(under_way.min(self.window.size()), under_way);
            }
            return Some(Repair::First);
        };
        let hole = missing.ends.map_or(0, |ends| ends.wrapping_sub(acknowledged) as usize);
        if let Some(before) = missing.repeated {
            match recovery.anew {
                // What was sent behind it came, it didn't: so much at once is too much.
                Some(anew) if missing.duplicates >= before.duplicates + DUPLICATES => {
                    let under_way = anew.end.wrapping_sub(acknowledged) as usize;
                    self.window.handle_loss(under_way, hole.min(under_way));
                }
                _ => self.probes += 1,
            }
        }
        missing.repeated = Some(Repeated { at: now, duplicates: missing.duplicates });
        if hole <= self.segment {
            return Some(Repair::First);
        }
        recovery.anew = missing.ends.map(|until| Anew { until, end: acknowledged });
        Some(Repair::Hole)
    }

    /// When [`Sender::poll_repair`] has something, unless the peer's state moves before.
    pub(super) fn repair_at(&self, sent: u32) -> Option<Duration> {
        let round_trip = self.window.round_trip().filter(|_| self.acknowledged != Some(sent))?;
        let overtaken = (round_trip / REORDERING_PART).min(LONGEST_REORDERING);
        match self.missing {
            Some(Missing { since, duplicates: DUPLICATES.., repeated: None, .. }) => return Some(since + overtaken),
            // Nothing else is under way: what is told to have come was sent behind it.
            Some(Missing { duplicates, repeated: Some(before), .. })
                if self.is_anew() && duplicates >= before.duplicates + DUPLICATES =>
            {
                return Some(before.at + round_trip * 2 + overtaken);
            }
            _ => {}
        }
        let pause = (round_trip * 2 + PROBE_SLACK) * 2u32.pow(self.probes.min(MOST_PROBES));
        (self.probes < MOST_PROBES).then(|| self.moved + pause)
    }

    fn is_anew(&self) -> bool {
        self.recovery.is_some_and(|recovery| recovery.anew.is_some())
    }

    /// When more may go out that [`Sender::shown_window`] held back.
    pub(super) fn paced_until(&self) -> Option<Duration> {
        let (rate, burst) = self.window.pace()?;
        let lacking = (burst / 2).checked_sub(self.credit)?;
        let micros = u64::try_from(lacking as u128 * 1_000_000 / u128::from(rate.max(1))).unwrap_or(u64::MAX);
        Some(self.credited + Duration::from_micros(micros))
    }

    fn earn(&mut self, now: Duration) -> Option<usize> {
        let (rate, burst) = self.window.pace()?;
        let earned = u128::from(rate) * now.saturating_sub(self.credited).as_micros() / 1_000_000;
        if earned > 0 {
            // Else a slow path that is looked at often would never earn a byte.
            self.credited = now;
        }
        self.credit = usize::try_from(earned).unwrap_or(usize::MAX).saturating_add(self.credit).min(burst);
        Some(self.credit)
    }

    /// The peer's window field as it is to be shown to the engine: what the peer takes, or less.
    pub(super) fn shown_window(&mut self, now: Duration) -> Option<u16> {
        let credit = self.earn(now);
        let acknowledged = self.acknowledged?;
        let real = self.edge.wrapping_sub(acknowledged) as usize;
        let arrived = self.missing.map_or(0, |missing| missing.arrived);
        let anew = self.recovery.and_then(|recovery| recovery.anew);
        let since = |sequence: u32| sequence.wrapping_sub(acknowledged) as usize;
        // Acknowledged meanwhile, when it is behind that.
        let position = anew.map(|anew| if is_before(anew.end, acknowledged) { 0 } else { since(anew.end) });
        let under_way = position.unwrap_or_else(|| self.sent.map_or(0, since));
        let paced = credit.map_or(usize::MAX, |credit| under_way.saturating_add(credit));
        let size = self.window.size();
        let bound = anew.map_or(size + arrived, |anew| since(anew.until).min(size));
        let allowed = bound.min(paced);
        let units = real.min(allowed) >> self.scale;
        let least = usize::from(real > 0);
        u16::try_from(units.max(least)).ok()
    }
}

/// Whether one sequence number comes before another, around the corner, too.
fn is_before(one: u32, other: u32) -> bool {
    one.wrapping_sub(other) > u32::MAX / 2
}

#[cfg(test)]
mod tests;
