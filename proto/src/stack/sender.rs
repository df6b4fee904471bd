//! What a connection's peer has of what we sent, what is missing, and how much may follow.
//!
//! smoltcp 0.14 keeps what was sent, and sends it; when, and what again, is decided here. Its own control of congestion knows neither byte
//! counts (RFC 3465), nor selective acknowledgements (RFC 2018), nor a second hole in one window (RFC 6582), and waits for a second at
//! least when the last of a burst is lost. So it has none: it is shown a peer's window that is no larger than [`Window`] allows. To
//! repeat something it is sent back to the first byte that isn't acknowledged, and of what it sends from there only what is lost goes out.

use std::ops::Range;
use std::time::Duration;

use super::scoreboard::{News, Scoreboard};
use super::window::Window;
use crate::packet::tcp::{self, Options, Segment, is_before};

/// Duplicates that say that something is missing, from a peer that doesn't say what (RFC 5681 §3.2).
const DUPLICATES: u32 = 3;
/// A packet may be overtaken for this part of the round trip before it counts as lost (RFC 8985 §7.1 begins with a quarter), within these.
const REORDERING_PART: u32 = 8;
const REORDERING: (Duration, Duration) = (Duration::from_micros(500), Duration::from_millis(10));
/// Besides two round trips: how long an acknowledgement may be held back, and a woken process take (RFC 8985 §7.2).
const PROBE_SLACK: Duration = Duration::from_millis(25);
/// How often the same is repeated, each time after twice as long, before it is left to [`super::REPEAT_WITHIN`].
const MOST_PROBES: u32 = 4;
/// Who waits for a timer may be woken so much later than it is due, on a busy machine. What could have gone out meanwhile may go out then: else
/// a sender whose timers are always a little late never finds out that the path takes more.
const LATE_TIMER: Duration = Duration::from_millis(4);
/// A round trip as long as that is assumed until one is measured: what makes a second until the first probe (RFC 6298 §2).
const UNKNOWN_ROUND_TRIP: Duration = Duration::from_millis(500);

/// The sending side of one connection.
#[derive(Debug, Clone)]
pub(super) struct Sender {
    segment: usize,
    window: Window,
    /// The shift of the peer's window field (RFC 7323 §2).
    scale: u8,
    /// It tells what it has beyond what it acknowledges (RFC 2018).
    is_selective: bool,
    /// What is under way, once anything was acknowledged.
    board: Option<Scoreboard>,
    /// The end of what the peer takes.
    edge: u32,
    /// What the engine sends next.
    next: u32,
    /// Acknowledgements that said nothing.
    duplicates: u32,
    /// Bytes that have arrived, whether acknowledged or only said to be there.
    delivered: u64,
    /// Bytes that were lost since somebody asked.
    lost: usize,
    round: Option<Round>,
    /// Something was sent that no round counts yet.
    is_new: bool,
    /// What may go out at once, and since when it grows.
    credit: usize,
    credited: Duration,
    /// More would have gone out if the credit had let it.
    is_held: bool,
    /// When the peer's state last moved, or anything was sent to it after that.
    moved: Duration,
    probes: u32,
}

/// From a moment at which something was sent, until that has arrived, or something that was sent later.
#[derive(Debug, Clone, Copy)]
struct Round {
    end: u32,
    since: Duration,
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
            board: None,
            edge: 0,
            next: 0,
            duplicates: 0,
            delivered: 0,
            lost: 0,
            round: None,
            is_new: false,
            credit: 0,
            credited: Duration::ZERO,
            is_held: false,
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
        self.board.as_ref().map(Scoreboard::from)
    }

    /// Whether anything within the peer's window isn't acknowledged.
    pub(super) fn is_under_way(&self) -> bool {
        self.board.as_ref().is_some_and(|board| board.length() > 0)
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
        let (Some(sent), Some(board)) = (sent, &mut self.board) else {
            // Another number acknowledges nothing of ours, but what a connection had that was here before (RFC 9293 §3.10.7.3).
            if sent == Some(to) {
                self.board = Some(Scoreboard::new(to));
                (self.edge, self.next, self.moved) = (edge, to, now);
            }
            return true;
        };
        let from = board.from();
        if is_before(sent, to) || is_before(to, from) {
            return true;
        }
        let before = std::mem::replace(&mut self.edge, edge);
        let round_trip = self.window.round_trip().unwrap_or_default();
        let mut news = if to == from { News::default() } else { board.acknowledge(now, to, round_trip) };
        if is_before(self.next, to) {
            self.next = to;
        }
        for (from, to) in options.selected.into_iter().flatten() {
            let more = board.select(now, from..to, round_trip);
            news = News { bytes: news.bytes + more.bytes, round_trip: more.round_trip.or(news.round_trip) };
        }
        self.handle_news(now, news, waits);
        if to != from {
            self.duplicates = 0;
            return true;
        }
        let says_nothing = segment.length == 0 && segment.flags == tcp::ACK && to != sent;
        if !says_nothing || (edge != before && options.selected == [None; 4]) {
            return true;
        }
        self.duplicates += 1;
        // Who is selective got something twice if it doesn't say what it has.
        if let Some(board) = self.board.as_mut().filter(|_| !self.is_selective && self.duplicates == DUPLICATES) {
            board.give_up(self.segment);
        }
        false
    }

    fn handle_news(&mut self, now: Duration, news: News, waits: bool) {
        let Some(board) = self.board.as_ref().filter(|_| news.bytes > 0) else { return };
        (self.moved, self.probes) = (now, 0);
        self.delivered += news.bytes as u64;
        self.window.handle_delivered(news.bytes, waits);
        if let Some(took) = news.round_trip {
            self.window.handle_round_trip(now, took);
        }
        // What ends sooner than a round trip takes was sent before it began.
        let least = self.window.round_trip().unwrap_or_default() / 8 * 7;
        let is_over =
            |round: &Round| now.saturating_sub(round.begun) >= least && board.has_arrived(round.since, round.end);
        if let Some(round) = self.round.filter(is_over) {
            let bytes = self.delivered.saturating_sub(round.delivered);
            self.window.handle_round(bytes, now.saturating_sub(round.begun), round.is_full && waits);
            let lost = std::mem::take(&mut self.lost);
            self.window.handle_loss(lost + usize::try_from(bytes).unwrap_or(usize::MAX), lost);
            self.round = None;
        }
    }

    /// The engine writes a segment. Answers which parts of it are to go out; `None` if all of it is.
    pub(super) fn send(&mut self, now: Duration, segment: Segment) -> Option<Vec<Range<usize>>> {
        let length = segment.sequence_length() as usize;
        let board = self.board.as_mut()?;
        let (from, end) = (board.from(), segment.sequence.wrapping_add(segment.sequence_length()));
        // A question whether the peer is there, or whether its window is open.
        if length == 0 || !is_before(from, end) || !is_before(segment.sequence, self.edge) {
            return None;
        }
        // The former, where something is under way: the byte is none of the stream's.
        if length == 1 && end == self.next && segment.sequence != from {
            return Some(Vec::new());
        }
        if board.length() == 0 {
            self.moved = now;
        }
        let known = if is_before(segment.sequence, from) { from.wrapping_sub(segment.sequence) as usize } else { 0 };
        let round_trip = self.window.round_trip().unwrap_or_default();
        let parts = board.send(now, segment.sequence.wrapping_add(known as u32), length - known, round_trip);
        let parts: Option<Vec<Range<usize>>> = match parts {
            None if known > 0 => Some(std::iter::once(known..length).collect()),
            parts => parts.map(|parts| parts.into_iter().map(|part| part.start + known..part.end + known).collect()),
        };
        self.next = end;
        let bytes = parts.as_ref().map_or(length, |parts| parts.iter().map(Range::len).sum());
        self.credit = self.credit.saturating_sub(bytes);
        self.is_new |= bytes > 0;
        parts
    }

    /// All was sent that may be now; `waits` is whether there is more.
    pub(super) fn handle_sent(&mut self, now: Duration, waits: bool) {
        self.is_held = self.paced_until(waits).is_some();
        let Some(board) = self.board.as_ref().filter(|_| std::mem::take(&mut self.is_new)) else { return };
        let since = board.sent_at(self.next).unwrap_or(now);
        let round = Round { end: self.next, since, begun: now, delivered: self.delivered, is_full: false };
        self.round.get_or_insert(round).is_full |= waits;
    }

    /// Whether the engine is to go back to what isn't acknowledged: it counts as done.
    pub(super) fn poll_repair(&mut self, now: Duration) -> bool {
        let reordering = self.reordering();
        let is_due = self.probe_at().is_some_and(|at| at <= now);
        let Some(board) = &mut self.board else { return false };
        self.lost += board.find_lost(now, reordering);
        if is_due {
            (self.probes, self.moved) = (self.probes + 1, now);
            match self.probes {
                // All but the last may have arrived, or only its acknowledgement be late.
                1 => board.give_up(self.segment),
                _ => self.give_up(),
            }
        }
        let more = self.allowed(now).unwrap_or(0);
        self.goes_back(is_due, more)
    }

    /// Nothing of what is under way has arrived, or will.
    pub(super) fn give_up(&mut self) {
        let Some(board) = &mut self.board else { return };
        let under_way = board.under_way();
        self.window.handle_loss(under_way.min(self.window.size()), under_way);
        board.give_up(under_way);
        if board.is_contradicted() {
            board.forget();
        }
    }

    fn goes_back(&mut self, anyway: bool, more: usize) -> bool {
        let Some(board) = &self.board else { return false };
        let next = self.next.wrapping_sub(board.from()) as usize;
        let goes_back = anyway || (more >= self.segment && board.first_lost().is_some_and(|lost| lost < next));
        if goes_back {
            self.next = board.from();
        }
        goes_back
    }

    /// When [`Sender::poll_repair`] has something, unless the peer's state moves before.
    pub(super) fn repair_at(&self) -> Option<Duration> {
        let lost_at = self.board.as_ref().and_then(|board| board.lost_at(self.reordering()));
        [lost_at, self.probe_at()].into_iter().flatten().min()
    }

    fn reordering(&self) -> Duration {
        let round_trip = self.window.round_trip().unwrap_or(UNKNOWN_ROUND_TRIP);
        (round_trip / REORDERING_PART).clamp(REORDERING.0, REORDERING.1)
    }

    fn probe_at(&self) -> Option<Duration> {
        self.board.as_ref().filter(|board| board.length() > 0 && self.probes < MOST_PROBES)?;
        let round_trip = self.window.round_trip().unwrap_or(UNKNOWN_ROUND_TRIP);
        Some(self.moved + (round_trip * 2 + PROBE_SLACK) * 2u32.pow(self.probes))
    }

    /// When more may go out that [`Sender::shown_window`] held back; `waits` is whether there is anything new.
    pub(super) fn paced_until(&self, waits: bool) -> Option<Duration> {
        self.board.as_ref().filter(|board| waits || board.first_lost().is_some())?;
        let (rate, burst) = self.window.pace()?;
        let lacking = (burst / 2).checked_sub(self.credit)?;
        let micros = u64::try_from(lacking as u128 * 1_000_000 / u128::from(rate.max(1))).unwrap_or(u64::MAX);
        Some(self.credited + Duration::from_micros(micros))
    }

    fn earn(&mut self, now: Duration) -> Option<usize> {
        let (rate, burst) = self.window.pace()?;
        let within =
            |time: Duration| usize::try_from(u128::from(rate) * time.as_micros() / 1_000_000).unwrap_or(usize::MAX);
        let earned = within(now.saturating_sub(self.credited));
        if earned > 0 {
            // Else a slow path that is looked at often would never earn a byte.
            self.credited = now;
        }
        let late = if self.is_held { within(LATE_TIMER) } else { 0 };
        self.credit = earned.saturating_add(self.credit).min(burst.saturating_add(late));
        Some(self.credit)
    }

    /// The peer's window field as it is to be shown to the engine: what the peer takes, or less.
    pub(super) fn shown_window(&mut self, now: Duration) -> Option<u16> {
        let more = self.allowed(now)?;
        let board = self.board.as_ref()?;
        let real = self.edge.wrapping_sub(board.from()) as usize;
        let units = real.min(board.position(more)) >> self.scale;
        let least = usize::from(real > 0);
        u16::try_from(units.max(least)).ok()
    }

    /// How many bytes may go out now.
    fn allowed(&mut self, now: Duration) -> Option<usize> {
        let credit = self.earn(now).unwrap_or(usize::MAX);
        // A probe has its place besides what nothing was heard of.
        let probe = if self.probes > 0 { self.segment } else { 0 };
        let under_way = self.board.as_ref()?.under_way();
        Some(self.window.size().saturating_sub(under_way).min(credit).max(probe))
    }

    /// What a segment without data is numbered, when `end` is the end of what was sent: the peer takes nothing from beyond its window,
    /// where a question may lie whether that is open.
    pub(super) fn number(&self, end: u32) -> u32 {
        if self.board.is_some() && is_before(self.edge, end) { self.edge } else { end }
    }
}

#[cfg(test)]
mod tests;
