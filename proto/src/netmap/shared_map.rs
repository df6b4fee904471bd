//! An ordered map whose copies share what they have in common.
//!
//! A netmap never changes; a message makes a new one. With ten thousand peers, of which a message changes one, copying
//! them all would cost more than everything else. So entries lie in chunks, a copy shares all of them, and a change
//! copies the one chunk that it falls into. What two copies share needn't be looked at to tell them apart, either.

use std::fmt;
use std::sync::Arc;

/// Entries of a chunk at most: near the square root of a large tailnet, so that a change copies about as much of the list
/// of chunks as of the chunk.
const MOST: usize = 128;
/// A chunk with fewer is joined with a neighbour if both together have no more than [`JOINED`].
const FEW: usize = MOST / 4;
/// What a joined chunk may have: room for what comes.
const JOINED: usize = MOST * 3 / 4;

type Chunk<K, V> = Arc<Vec<(K, V)>>;

/// An ordered map that is cheap to copy and cheap to compare with its copies.
pub struct SharedMap<K, V> {
    /// In order, none of them empty.
    chunks: Arc<Vec<Chunk<K, V>>>,
    len: usize,
}

impl<K: Ord, V> SharedMap<K, V> {
    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&V> {
        let chunk = self.chunks.get(self.chunk_of(key))?;
        let at = chunk.binary_search_by(|(other, _)| other.cmp(key)).ok()?;
        chunk.get(at).map(|(_, value)| value)
    }

    /// Whether it has this key.
    #[must_use]
    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// All entries, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.chunks.iter().flat_map(|chunk| chunk.iter()).map(|(key, value)| (key, value))
    }

    /// All keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// All values, by key.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// The entries from this key on, itself included.
    pub fn range_from<'a>(&'a self, key: &K) -> impl Iterator<Item = (&'a K, &'a V)> + use<'a, K, V> {
        let first = self.chunk_of(key);
        let at = self.chunks.get(first).map_or(0, |chunk| chunk.partition_point(|(other, _)| other < key));
        let chunks = self.chunks.iter().skip(first).flat_map(|chunk| chunk.iter());
        chunks.skip(at).map(|(key, value)| (key, value))
    }

    /// Shows every entry that isn't known to be the same in `old`, by key, with its value there and here. Chunks that both
    /// share are left out; an entry beside one that changed is shown though it is the same.
    pub fn differences<'a>(&'a self, old: &'a Self, mut visit: impl FnMut(&'a K, Option<&'a V>, Option<&'a V>)) {
        if Arc::ptr_eq(&self.chunks, &old.chunks) {
            return;
        }
        let (mut before, mut after) = (Cursor::new(old), Cursor::new(self));
        loop {
            if before.at == 0
                && after.at == 0
                && let (Some(one), Some(other)) = (before.chunk(), after.chunk())
                && Arc::ptr_eq(one, other)
            {
                before.skip_chunk();
                after.skip_chunk();
                continue;
            }
            match (before.entry(), after.entry()) {
                (None, None) => return,
                (Some((key, value)), None) => {
                    visit(key, Some(value), None);
                    before.step();
                }
                (None, Some((key, value))) => {
                    visit(key, None, Some(value));
                    after.step();
                }
                (Some((old_key, old_value)), Some((key, value))) => match old_key.cmp(key) {
                    std::cmp::Ordering::Less => {
                        visit(old_key, Some(old_value), None);
                        before.step();
                    }
                    std::cmp::Ordering::Greater => {
                        visit(key, None, Some(value));
                        after.step();
                    }
                    std::cmp::Ordering::Equal => {
                        visit(key, Some(old_value), Some(value));
                        before.step();
                        after.step();
                    }
                },
            }
        }
    }

    /// The number of the chunk that has this key, or would have it. 0 if there is none.
    fn chunk_of(&self, key: &K) -> usize {
        let begins_before = |chunk: &Chunk<K, V>| chunk.first().is_some_and(|(first, _)| first <= key);
        self.chunks.partition_point(begins_before).saturating_sub(1)
    }
}

impl<K: Ord + Clone, V: Clone> SharedMap<K, V> {
    /// Puts a value in; returns the one that the key had.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let number = self.chunk_of(&key);
        let chunks = Arc::make_mut(&mut self.chunks);
        let is_last = number + 1 >= chunks.len();
        let Some(shared) = chunks.get_mut(number) else {
            chunks.push(Arc::new(vec![(key, value)]));
            self.len = 1;
            return None;
        };
        let chunk = Arc::make_mut(shared);
        match chunk.binary_search_by(|(other, _)| other.cmp(&key)) {
            Ok(at) => return chunk.get_mut(at).map(|entry| std::mem::replace(&mut entry.1, value)),
            // What comes in order fills each chunk.
            Err(at) if at == MOST && is_last => chunks.push(Arc::new(vec![(key, value)])),
            Err(at) => {
                chunk.insert(at, (key, value));
                if chunk.len() > MOST {
                    let rest = chunk.split_off(MOST / 2);
                    chunks.insert(number + 1, Arc::new(rest));
                }
            }
        }
        self.len += 1;
        None
    }

    /// Takes a key out; returns the value that it had.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let number = self.chunk_of(key);
        let at = self.chunks.get(number)?.binary_search_by(|(other, _)| other.cmp(key)).ok()?;
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(chunks.get_mut(number)?);
        let (_, value) = chunk.remove(at);
        self.len -= 1;
        let left = chunk.len();
        if left == 0 {
            chunks.remove(number);
        } else if left < FEW {
            let fits = |first: &usize| {
                chunks
                    .get(*first..first + 2)
                    .is_some_and(|both| both.iter().map(|chunk| chunk.len()).sum::<usize>() <= JOINED)
            };
            if let Some(first) =
                [number.wrapping_sub(1), number].into_iter().filter(|first| *first < chunks.len()).find(fits)
            {
                let next = chunks.remove(first + 1);
                if let Some(chunk) = chunks.get_mut(first) {
                    Arc::make_mut(chunk).extend(next.iter().cloned());
                }
            }
        }
        Some(value)
    }
}

/// A place in a map.
struct Cursor<'a, K, V> {
    chunks: &'a [Chunk<K, V>],
    at: usize,
}

impl<'a, K, V> Cursor<'a, K, V> {
    fn new(map: &'a SharedMap<K, V>) -> Self {
        Self { chunks: &map.chunks, at: 0 }
    }

    fn chunk(&self) -> Option<&'a Chunk<K, V>> {
        self.chunks.first()
    }

    fn entry(&self) -> Option<(&'a K, &'a V)> {
        self.chunk()?.get(self.at).map(|(key, value)| (key, value))
    }

    fn step(&mut self) {
        self.at += 1;
        if self.chunk().is_some_and(|chunk| self.at >= chunk.len()) {
            self.skip_chunk();
        }
    }

    fn skip_chunk(&mut self) {
        self.chunks = self.chunks.get(1..).unwrap_or_default();
        self.at = 0;
    }
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        Self { chunks: Arc::clone(&self.chunks), len: self.len }
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self { chunks: Arc::default(), len: 0 }
    }
}

impl<K: Ord, V: PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        let mut is_equal = self.len == other.len;
        if is_equal {
            self.differences(other, |_, old, new| is_equal = is_equal && old == new);
        }
        is_equal
    }
}

impl<K: Ord + fmt::Debug, V: fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Ord + Clone, V: Clone> Extend<(K, V)> for SharedMap<K, V> {
    fn extend<T: IntoIterator<Item = (K, V)>>(&mut self, entries: T) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<T: IntoIterator<Item = (K, V)>>(entries: T) -> Self {
        let mut map = Self::default();
        map.extend(entries);
        map
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn whole(map: &SharedMap<u16, u8>) -> BTreeMap<u16, u8> {
        map.iter().map(|(key, value)| (*key, *value)).collect()
    }

    /// Chunks are in order, and none is empty or too large.
    fn check(map: &SharedMap<u16, u8>) {
        assert!(map.chunks.iter().all(|chunk| (1..=MOST).contains(&chunk.len())));
        let keys: Vec<_> = map.keys().collect();
        assert!(keys.is_sorted() && keys.len() == map.len());
    }

    proptest! {
        #[test]
        fn it_is_a_map_and_tells_what_differs(
            first in prop::collection::vec((0_u16..600, any::<u8>()), 0..800),
            then in prop::collection::vec((0_u16..600, prop::option::of(any::<u8>())), 0..400),
        ) {
            let mut map: SharedMap<u16, u8> = first.iter().copied().collect();
            let mut model: BTreeMap<u16, u8> = first.into_iter().collect();
            check(&map);
            let (old, old_model) = (map.clone(), model.clone());
            for (key, value) in then {
                match value {
                    Some(value) => prop_assert_eq!(map.insert(key, value), model.insert(key, value)),
                    None => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                }
            }
            check(&map);
            prop_assert_eq!(&whole(&map), &model);
            prop_assert_eq!(&whole(&old), &old_model);
            for key in [0, 1, 299, 300, 599, 600] {
                prop_assert_eq!(map.get(&key), model.get(&key));
                prop_assert!(map.range_from(&key).eq(model.range(key..)));
            }
            let (mut before, mut after) = (old_model, BTreeMap::new());
            map.differences(&old, |key, had, has| {
                assert_eq!(had.copied(), before.get(key).copied());
                match has {
                    Some(value) => before.insert(*key, *value),
                    None => before.remove(key),
                };
                assert!(after.insert(*key, ()).is_none(), "each is shown once");
            });
            prop_assert_eq!(before, model.clone(), "what was shown leads from one to the other");
            prop_assert_eq!(map == old, whole(&map) == whole(&old));
        }
    }

    #[test]
    fn a_change_is_told_without_a_look_at_the_rest() {
        let map: SharedMap<u16, u8> = (0..10_000).map(|key| (key, 0)).collect();
        assert_eq!(map.chunks.len(), 10_000_usize.div_ceil(MOST), "what comes in order fills each chunk");
        let mut changed = map.clone();
        changed.insert(5_000, 1);
        changed.remove(&7_000);
        let mut shown = 0;
        changed.differences(&map, |_, _, _| shown += 1);
        assert!(shown <= 2 * MOST, "{shown}");
        map.differences(&map.clone(), |_, _, _| panic!("a copy is the same"));
        // What shrinks doesn't leave ever smaller chunks behind.
        for key in (0..10_000).filter(|key| key % 100 != 0) {
            changed.remove(&key);
        }
        check(&changed);
        assert!(changed.len() == 99 && changed.chunks.len() <= 6, "{} chunks", changed.chunks.len());
    }
}
