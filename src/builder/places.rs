//! Places for connections: so many in all, and so many of one node, so that no node shuts the others out.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nixtail_proto::key::NodePublic;

/// Connections served at once. What they queue is bounded together (`ssh::Limits`), not each by itself.
pub(super) const MAX_CONNECTIONS: usize = 400;
/// Connections of one node served at once: a coordinator has one for each running build and a few for questions, and
/// half of the places stay for others.
pub(super) const MAX_CONNECTIONS_OF_NODE: usize = 200;

/// The places of one builder, and who has how many. A node that has none isn't remembered, so there are at most
/// [`MAX_CONNECTIONS`] entries.
#[derive(Debug, Default)]
pub(super) struct Places {
    taken: Mutex<HashMap<NodePublic, usize>>,
}

/// One place, free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    node: NodePublic,
}

impl Places {
    /// A place for a connection of `node`, if there is one left for it.
    pub(super) fn take(self: &Arc<Self>, node: NodePublic) -> Option<Place> {
        let mut taken = self.taken();
        if taken.values().sum::<usize>() >= MAX_CONNECTIONS {
            return None;
        }
        if taken.get(&node).is_some_and(|count| *count >= MAX_CONNECTIONS_OF_NODE) {
            return None;
        }
        *taken.entry(node).or_default() += 1;
        Some(Place { places: Arc::clone(self), node })
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<NodePublic, usize>> {
        // Counts are right after every single step, so a panic elsewhere spoils nothing.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Entry::Occupied(mut count) = self.places.taken().entry(self.node) {
            *count.get_mut() = count.get().saturating_sub(1);
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_node_leaves_places_for_others_and_gives_its_own_back() {
        let places = Arc::new(Places::default());
        let node = |number: u8| NodePublic::from_bytes([number; 32]);
        let take_all = |number| std::iter::from_fn(|| places.take(node(number))).collect::<Vec<_>>();
        let mut held = vec![take_all(1)];
        assert!(held.iter().all(|of_node| of_node.len() == MAX_CONNECTIONS_OF_NODE));
        held.push(take_all(2));
        assert_eq!(held.iter().map(Vec::len).sum::<usize>(), MAX_CONNECTIONS);
        assert!(places.take(node(5)).is_none());
        held.pop();
        assert!(places.take(node(1)).is_none());
        assert!(places.take(node(5)).is_some());
        held.clear();
        assert!(places.taken().is_empty());
    }
}
