//! Which keys boringtun holds for a peer and how old they are by our clock.

use std::time::Instant;

use super::REJECT_AFTER;

/// boringtun keeps this many, each in the slot of its local index modulo this.
const SLOTS: usize = 8;

#[derive(Debug, Clone, Copy)]
struct Keys {
    /// What the peer puts into its packets to us.
    local: u32,
    /// What we put into ours.
    remote: u32,
    made: Instant,
    initiator: bool,
    /// The peer has used them.
    confirmed: bool,
}

/// The keys of one peer, as boringtun keeps them.
#[derive(Debug, Default)]
pub(super) struct KeyRing {
    slots: [Option<Keys>; SLOTS],
    /// The slot of the keys that seal.
    current: usize,
}

impl KeyRing {
    /// The peer has answered our handshake: the new keys seal from now on.
    pub(super) fn initiated(&mut self, now: Instant, local: u32, remote: u32) {
        let slot = self.put(Keys { local, remote, made: now, initiator: true, confirmed: true });
        self.current = slot;
    }

    /// We have answered the peer's handshake: the new keys seal once the peer has used them.
    pub(super) fn responded(&mut self, now: Instant, local: u32, remote: u32) {
        self.put(Keys { local, remote, made: now, initiator: false, confirmed: false });
    }

    fn put(&mut self, keys: Keys) -> usize {
        let slot = slot_of(keys.local);
        self.slots[slot] = Some(keys);
        slot
    }

    /// Whether a packet to the local index may be opened.
    pub(super) fn may_open(&self, now: Instant, local: u32) -> bool {
        self.slots[slot_of(local)].is_some_and(|keys| keys.local == local && is_fresh(&keys, now))
    }

    /// A packet to the local index was opened. Says whether it was the first one.
    pub(super) fn opened(&mut self, local: u32) -> bool {
        let slot = slot_of(local);
        let current_made = self.slots[self.current].map(|keys| keys.made);
        let Some(keys) = &mut self.slots[slot] else {
            return false;
        };
        if current_made.is_none_or(|made| keys.made >= made) {
            self.current = slot;
        }
        !std::mem::replace(&mut keys.confirmed, true)
    }

    /// The keys that seal, if they are young enough. As responder, only after the peer has used them.
    pub(super) fn current(&self, now: Instant) -> Option<u32> {
        let keys = self.slots[self.current].filter(|keys| keys.confirmed && is_fresh(keys, now))?;
        Some(keys.remote)
    }

    /// Whether a packet sealed for the peer's index may go out.
    pub(super) fn may_seal(&self, now: Instant, remote: u32) -> bool {
        self.slots.iter().flatten().any(|keys| keys.remote == remote && is_fresh(keys, now))
    }

    /// Whether the keys that seal are ours by initiation and at least so old.
    pub(super) fn initiated_and_older_than(&self, now: Instant, age: std::time::Duration) -> bool {
        self.slots[self.current].is_some_and(|keys| keys.initiator && now.saturating_duration_since(keys.made) >= age)
    }

    /// When the newest keys were made.
    pub(super) fn newest(&self) -> Option<Instant> {
        self.slots.iter().flatten().map(|keys| keys.made).max()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

fn slot_of(local: u32) -> usize {
    local as usize % SLOTS
}

fn is_fresh(keys: &Keys, now: Instant) -> bool {
    now.saturating_duration_since(keys.made) < REJECT_AFTER
}
