//! Sorting and collecting in little code.
//!
//! The standard library makes 5 KB of code of each type that is sorted, and of each that is collected into a
//! tree, for speed with many items. What strait sorts is a host's devices, properties and files: here all
//! types share that code, and it calls back for each comparison.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

/// Sorts as [`slice::sort_by`] does: equal items stay in their order.
pub fn sort_by<T>(items: &mut [T], compare: impl Fn(&T, &T) -> Ordering) {
    let mut places = places(items.len(), &|a, b| match (items.get(a), items.get(b)) {
        (Some(a), Some(b)) => compare(a, b),
        _ => Ordering::Equal,
    });
    for at in 0..items.len() {
        // Each exchange brings an item to its place.
        while let Some(place) = places.get(at).copied().filter(|place| *place != at) {
            items.swap(at, place);
            places.swap(at, place);
        }
    }
}

/// Sorts by a key, as [`slice::sort_by_key`] does.
pub fn sort_by_key<T, K: Ord>(items: &mut [T], key: impl Fn(&T) -> K) {
    sort_by(items, |a, b| key(a).cmp(&key(b)));
}

/// Sorts as [`slice::sort`] does.
pub fn sort<T: Ord>(items: &mut [T]) {
    sort_by(items, T::cmp);
}

/// The place that each of `count` items has in order.
fn places(count: usize, compare: &dyn Fn(usize, usize) -> Ordering) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|a, b| compare(*a, *b));
    let mut places = vec![0; count];
    for (place, item) in order.into_iter().enumerate() {
        if let Some(of) = places.get_mut(item) {
            *of = place;
        }
    }
    places
}

/// A set of these.
pub fn set<T: Ord>(items: impl IntoIterator<Item = T>) -> BTreeSet<T> {
    let mut set = BTreeSet::new();
    items.into_iter().for_each(|item| {
        set.insert(item);
    });
    set
}

/// A map of these; of equal keys, the last one's value counts.
pub fn map<K: Ord, V>(items: impl IntoIterator<Item = (K, V)>) -> BTreeMap<K, V> {
    let mut map = BTreeMap::new();
    items.into_iter().for_each(|(key, value)| {
        map.insert(key, value);
    });
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_sorted_and_equal_ones_stay_in_order() {
        // A generator of all numbers below 64, each many times.
        let next = |seed: u32| seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        for count in 0..200_usize {
            let seeds = std::iter::successors(Some(1), |seed| Some(next(*seed)));
            let mut items: Vec<(u32, usize)> =
                seeds.map(|seed| seed >> 26).zip(0..).take(count).collect();
            let mut expected = items.clone();
            expected.sort_by_key(|item| item.0);
            sort_by_key(&mut items, |item| item.0);
            assert_eq!(items, expected);
            items.reverse();
            sort(&mut items);
            assert_eq!(items, expected);
        }
    }

    #[test]
    fn of_equal_keys_the_last_counts() {
        let values: String = map([(2, 'a'), (1, 'b'), (2, 'c')]).into_values().collect();
        assert_eq!(values, "bc");
        assert_eq!(set([3, 1, 3]).into_iter().collect::<Vec<_>>(), [1, 3]);
    }
}
