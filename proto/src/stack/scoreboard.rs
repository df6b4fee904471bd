//! Which of the bytes under way have arrived, which are lost, and of which nobody knows yet.
//!
//! The peer says what it has (RFC 9293, RFC 2018). What was sent some time before something that arrived, and didn't arrive, is lost:
//! RACK (RFC 8985 §6.2), for which the moment counts at which each byte was sent last. So what was lost once more is noticed, too.

use std::ops::Range;
use std::time::Duration;

use crate::packet::tcp::is_before;

/// Beyond so many stretches, nothing new is told apart: a peer can't make the list long.
pub(super) const MOST_STRETCHES: usize = 512;
/// What is sent within this part of a round trip counts as sent at once.
const MOMENTS: u32 = 32;

/// All bytes from the first that isn't acknowledged to the last that was sent.
#[derive(Debug, Clone)]
pub(super) struct Scoreboard {
    /// The first byte that isn't acknowledged (SND.UNA).
    from: u32,
    /// In the order of the bytes, without gaps.
    stretches: Vec<Stretch>,
    latest: Option<Latest>,
}

/// What an acknowledgement told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct News {
    /// Bytes that have arrived and weren't known to have.
    pub(super) bytes: usize,
    /// How long ago the last of them was sent, unless it was sent twice (RFC 6298 §3).
    pub(super) round_trip: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stretch {
    length: usize,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    UnderWay { since: Duration, is_repeated: bool },
    Lost,
    Arrived,
}

/// Of all that has arrived, what was sent last, and how long it took.
#[derive(Debug, Clone, Copy)]
struct Latest {
    since: Duration,
    end: u32,
    took: Duration,
}

impl Scoreboard {
    /// Nothing was sent from `from` on.
    pub(super) fn new(from: u32) -> Self {
        Self { from, stretches: Vec::new(), latest: None }
    }

    /// The first byte that isn't acknowledged.
    pub(super) fn from(&self) -> u32 {
        self.from
    }

    /// Bytes from there to the last that was sent.
    pub(super) fn length(&self) -> usize {
        self.stretches.iter().map(|stretch| stretch.length).sum()
    }

    /// Bytes that are neither lost nor known to have arrived.
    pub(super) fn under_way(&self) -> usize {
        let is_under_way = |stretch: &&Stretch| matches!(stretch.state, State::UnderWay { .. });
        self.stretches.iter().filter(is_under_way).map(|stretch| stretch.length).sum()
    }

    /// How far in the first byte is that is lost.
    pub(super) fn first_lost(&self) -> Option<usize> {
        self.places().find(|(_, state)| *state == State::Lost).map(|(place, _)| place.start)
    }

    /// When the byte before `end` was sent, about; `None` if it has arrived.
    pub(super) fn sent_at(&self, end: u32) -> Option<Duration> {
        let end = end.wrapping_sub(self.from) as usize;
        let (_, state) = self.places().find(|(place, _)| end <= place.end)?;
        if let State::UnderWay { since, .. } = state { Some(since) } else { None }
    }

    /// Whether something has arrived that was sent after what ends at `end` and was sent at `since`, or that itself.
    pub(super) fn has_arrived(&self, since: Duration, end: u32) -> bool {
        self.latest.is_some_and(|latest| latest.since > since || (latest.since == since && !is_before(latest.end, end)))
    }

    /// How far in one gets who sends what is lost, and then what is new, `bytes` in all.
    pub(super) fn position(&self, mut bytes: usize) -> usize {
        for (place, _) in self.places().filter(|(_, state)| *state == State::Lost) {
            if bytes < place.len() {
                return place.start + bytes;
            }
            bytes -= place.len();
        }
        self.length() + bytes
    }

    /// All before `to` is acknowledged. What took less than `round_trip` was sent before it was repeated.
    pub(super) fn acknowledge(&mut self, now: Duration, to: u32, round_trip: Duration) -> News {
        let all = to.wrapping_sub(self.from) as usize;
        let mut news = News { bytes: all.saturating_sub(self.length()), round_trip: None };
        let acknowledged = self.split(all);
        let mut end = self.from;
        for index in 0..acknowledged {
            let Some(stretch) = self.stretches.get(index).copied() else { break };
            end = end.wrapping_add(stretch.length as u32);
            self.hear(now, stretch, end, round_trip, &mut news);
        }
        self.stretches.drain(..acknowledged);
        self.from = to;
        news
    }

    /// The peer has this, though not all before it (RFC 2018). What it can't have, and what would make the list too long, is not heeded.
    pub(super) fn select(&mut self, now: Duration, block: Range<u32>, round_trip: Duration) -> News {
        let mut news = News::default();
        let from = if is_before(block.start, self.from) { self.from } else { block.start };
        let place = from.wrapping_sub(self.from) as usize..block.end.wrapping_sub(self.from) as usize;
        let is_possible = place.start < place.end && place.end <= self.length();
        let is_known = || {
            self.places()
                .any(|(known, state)| state == State::Arrived && known.end >= place.end && known.start <= place.start)
        };
        if !is_possible || self.stretches.len() + 2 > MOST_STRETCHES || is_known() {
            return news;
        }
        let (first, last) = (self.split(place.start), self.split(place.end));
        let mut end = from;
        for index in first..last {
            let Some(stretch) = self.stretches.get_mut(index) else { break };
            let before = std::mem::replace(stretch, Stretch { state: State::Arrived, ..*stretch });
            end = end.wrapping_add(before.length as u32);
            self.hear(now, before, end, round_trip, &mut news);
        }
        self.join();
        news
    }

    fn hear(&mut self, now: Duration, stretch: Stretch, end: u32, round_trip: Duration, news: &mut News) {
        if stretch.state == State::Arrived {
            return;
        }
        news.bytes += stretch.length;
        let State::UnderWay { since, is_repeated } = stretch.state else { return };
        let took = now.saturating_sub(since);
        if !is_repeated {
            news.round_trip = Some(took);
        } else if took < round_trip {
            return;
        }
        if self
            .latest
            .is_none_or(|latest| latest.since < since || (latest.since == since && is_before(latest.end, end)))
        {
            self.latest = Some(Latest { since, end, took });
        }
    }

    /// A segment is about to be sent. Answers which parts of it need be, what is lost and what is new; `None` if all of it does.
    pub(super) fn send(
        &mut self,
        now: Duration,
        sequence: u32,
        length: usize,
        round_trip: Duration,
    ) -> Option<Vec<Range<usize>>> {
        let (begins, known) = (sequence.wrapping_sub(self.from) as usize, self.length());
        let again = known.saturating_sub(begins).min(length);
        if again == 0 {
            self.add(now, length, round_trip / MOMENTS);
            return None;
        }
        let (first, last) = (self.split(begins), self.split(begins + again));
        let (mut parts, mut end) = (Vec::new(), 0);
        let mut before = first.checked_sub(1).and_then(|index| self.stretches.get(index)).map(|stretch| stretch.state);
        let is_full = self.stretches.len() >= MOST_STRETCHES;
        for stretch in self.stretches.get_mut(first..last).into_iter().flatten() {
            let part = end..end + stretch.length;
            end = part.end;
            if stretch.state == State::Lost {
                let since = match before {
                    Some(State::UnderWay { since, is_repeated: true })
                        if is_full || now.saturating_sub(since) <= round_trip / MOMENTS =>
                    {
                        since
                    }
                    _ => now,
                };
                stretch.state = State::UnderWay { since, is_repeated: true };
                parts.push(part);
            }
            before = Some(stretch.state);
        }
        self.join();
        if again < length {
            self.add(now, length - again, round_trip / MOMENTS);
            parts.push(again..length);
        }
        let is_all = matches!(parts.as_slice(), [part] if part.len() == length);
        (!is_all).then_some(parts)
    }

    fn add(&mut self, now: Duration, new: usize, moment: Duration) {
        let is_full = self.stretches.len() >= MOST_STRETCHES;
        match self.stretches.last_mut() {
            Some(Stretch { length, state: State::UnderWay { since, is_repeated: false } })
                if is_full || now.saturating_sub(*since) <= moment =>
            {
                *length += new;
            }
            _ => {
                let state = State::UnderWay { since: now, is_repeated: false };
                self.stretches.push(Stretch { length: new, state });
            }
        }
    }

    /// Takes for lost what was sent before something that arrived, and had `reordering` longer to arrive. Answers how many bytes.
    pub(super) fn find_lost(&mut self, now: Duration, reordering: Duration) -> usize {
        let overdue: Vec<usize> =
            self.overtaken(reordering).filter(|(_, at)| *at <= now).map(|(index, _)| index).collect();
        let mut lost = 0;
        for index in overdue {
            if let Some(stretch) = self.stretches.get_mut(index) {
                stretch.state = State::Lost;
                lost += stretch.length;
            }
        }
        if lost > 0 {
            self.join();
        }
        lost
    }

    /// When [`Scoreboard::find_lost`] finds something.
    pub(super) fn lost_at(&self, reordering: Duration) -> Option<Duration> {
        self.overtaken(reordering).map(|(_, at)| at).min()
    }

    /// What was sent before something that arrived, and until when it may still arrive.
    fn overtaken(&self, reordering: Duration) -> impl Iterator<Item = (usize, Duration)> {
        let places = self.places().enumerate();
        self.latest.into_iter().flat_map(move |latest| {
            places.clone().filter_map(move |(index, (place, state))| {
                let State::UnderWay { since, .. } = state else { return None };
                let end = self.from.wrapping_add(place.end as u32);
                let is_before = since < latest.since || (since == latest.since && is_before(end, latest.end));
                is_before.then(|| (index, since + latest.took + reordering))
            })
        })
    }

    /// Takes the first `bytes` for lost of which nobody knows.
    pub(super) fn give_up(&mut self, mut bytes: usize) {
        let mut index = 0;
        while let Some(stretch) = self.stretches.get_mut(index).filter(|_| bytes > 0) {
            if let State::UnderWay { .. } = stretch.state {
                let behind = Stretch { length: stretch.length.saturating_sub(bytes), ..*stretch };
                *stretch = Stretch { length: stretch.length - behind.length, state: State::Lost };
                bytes -= stretch.length;
                if behind.length > 0 {
                    self.stretches.insert(index + 1, behind);
                }
            }
            index += 1;
        }
        self.join();
    }

    /// Takes for lost what isn't acknowledged, whatever was said of it: the peer may have thrown away what it had (RFC 2018 §8).
    pub(super) fn forget(&mut self) {
        self.stretches.iter_mut().for_each(|stretch| stretch.state = State::Lost);
        self.join();
    }

    /// Whether the peer says that it has the very byte that it waits for.
    pub(super) fn is_contradicted(&self) -> bool {
        self.stretches.first().is_some_and(|stretch| stretch.state == State::Arrived)
    }

    fn places(&self) -> impl Iterator<Item = (Range<usize>, State)> + Clone {
        self.stretches.iter().scan(0, |end, stretch| {
            let start = std::mem::replace(end, *end + stretch.length);
            Some((start..*end, stretch.state))
        })
    }

    /// Makes one stretch end so far in. Answers the index of the one behind it.
    fn split(&mut self, at: usize) -> usize {
        let mut start = 0;
        for index in 0..self.stretches.len() {
            let Some(stretch) = self.stretches.get_mut(index) else { break };
            if at <= start {
                return index;
            }
            let end = start + stretch.length;
            if at < end {
                let behind = Stretch { length: end - at, ..*stretch };
                stretch.length = at - start;
                self.stretches.insert(index + 1, behind);
                return index + 1;
            }
            start = end;
        }
        self.stretches.len()
    }

    fn join(&mut self) {
        self.stretches.dedup_by(|next, kept| {
            let is_same = next.state == kept.state;
            kept.length += if is_same { next.length } else { 0 };
            is_same
        });
    }
}

#[cfg(test)]
mod tests;
