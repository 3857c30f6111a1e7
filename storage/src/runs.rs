//! Numbers, kept as the runs in which they follow each other.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;

/// Some numbers.
#[derive(Debug, Default)]
pub struct Runs {
    /// Where each run ends, exclusively, by where it begins. None touches another.
    ends: BTreeMap<u64, u64>,
}

impl Runs {
    /// How many runs there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether this number is one of them.
    pub fn contains(&self, number: u64) -> bool {
        self.ends.range(..=number).next_back().is_some_and(|(_, end)| *end > number)
    }

    /// How many runs there will be with these numbers.
    pub fn len_with(&self, range: &Range<u64>) -> usize {
        if range.is_empty() {
            return self.len();
        }
        self.len().saturating_sub(self.touching(range).count()).saturating_add(1)
    }

    /// How many runs there will be without these numbers.
    pub fn len_without(&self, range: &Range<u64>) -> usize {
        let left = self.overlapping(range).map(|run| left_of(&run, range).count());
        let rest = self.len().saturating_sub(self.overlapping(range).count());
        rest.saturating_add(left.sum())
    }

    /// Takes these numbers in.
    pub fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let joined: Vec<Range<u64>> = self.touching(&range).collect();
        let mut whole = range;
        for run in joined {
            self.ends.remove(&run.start);
            whole = whole.start.min(run.start)..whole.end.max(run.end);
        }
        self.ends.insert(whole.start, whole.end);
    }

    /// Leaves these numbers out.
    pub fn remove(&mut self, range: &Range<u64>) {
        let cut: Vec<Range<u64>> = self.overlapping(range).collect();
        for run in cut {
            self.ends.remove(&run.start);
            self.ends.extend(left_of(&run, range).map(|left| (left.start, left.end)));
        }
    }

    /// The runs that have some of these numbers.
    fn overlapping(&self, range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<'_> {
        let Range { start, end } = *range;
        let before = self.ends.range(..end.max(start)).rev().map(|(start, end)| *start..*end);
        before.take_while(move |run| run.end > start && start < end)
    }

    /// The runs that have some of these numbers, or neighbours of theirs.
    fn touching(&self, range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<'_> {
        self.overlapping(&(range.start.saturating_sub(1)..range.end.saturating_add(1)))
    }
}

/// What of a run lies before a range, and behind it.
fn left_of(run: &Range<u64>, range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    [run.start..run.end.min(range.start), run.start.max(range.end)..run.end]
        .into_iter()
        .filter(|part| !part.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn they_are_the_numbers_that_were_taken_in(
            steps in proptest::collection::vec((any::<bool>(), 0_u64..60, 0_u64..12), 1..60),
        ) {
            let (mut runs, mut model) = (Runs::default(), BTreeSet::new());
            for (adds, start, len) in steps {
                let range = start..start + len;
                let expected = if adds { runs.len_with(&range) } else { runs.len_without(&range) };
                if adds {
                    runs.add(range.clone());
                    model.extend(range);
                } else {
                    runs.remove(&range);
                    model.retain(|number| !range.contains(number));
                }
                prop_assert!((0..80).all(|number| runs.contains(number) == model.contains(&number)));
                let firsts = model.iter().filter(|number| **number == 0 || !model.contains(&(**number - 1)));
                prop_assert_eq!(runs.len(), firsts.count());
                prop_assert_eq!(runs.len(), expected);
            }
        }
    }
}
