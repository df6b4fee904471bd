//! Who has what of things that only one can have: addresses, disco keys.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

use super::PeerId;

/// Things and whose they are. What several peers claim is the one's that came first, always and alone; when that one lets
/// go, it is the next one's.
#[derive(Debug)]
pub(super) struct Claims<T> {
    owners: HashMap<T, PeerId>,
    /// All who claim what several do. No control server should let that happen, so there are few.
    contested: HashMap<T, BTreeSet<PeerId>>,
}

impl<T> Default for Claims<T> {
    fn default() -> Self {
        Self { owners: HashMap::new(), contested: HashMap::new() }
    }
}

impl<T: Copy + Eq + Hash> Claims<T> {
    /// Whose it is.
    pub(super) fn owner(&self, thing: &T) -> Option<PeerId> {
        self.owners.get(thing).copied()
    }

    /// A peer claims it. Answers who has lost it by that.
    pub(super) fn claim(&mut self, thing: T, claimant: PeerId) -> Option<PeerId> {
        let owner = *self.owners.entry(thing).or_insert(claimant);
        if owner == claimant {
            return None;
        }
        self.contested.entry(thing).or_default().extend([owner, claimant]);
        if claimant > owner {
            return None;
        }
        self.owners.insert(thing, claimant)
    }

    /// A peer claims it no more. Answers who has it now because of that.
    pub(super) fn release(&mut self, thing: T, claimant: PeerId) -> Option<PeerId> {
        let mut next = None;
        if let Some(claimants) = self.contested.get_mut(&thing) {
            claimants.remove(&claimant);
            next = claimants.first().copied();
            if claimants.len() <= 1 {
                self.contested.remove(&thing);
            }
        }
        if self.owner(&thing) != Some(claimant) {
            return None;
        }
        match next {
            Some(next) => drop(self.owners.insert(thing, next)),
            None => drop(self.owners.remove(&thing)),
        }
        next
    }
}
