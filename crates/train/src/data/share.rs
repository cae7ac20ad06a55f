//! A share of a data set's training items: how much data a method needs.
use std::collections::{BTreeMap, BTreeSet};

use super::dataset::{Dataset, Label, Split};
use crate::random::{Purpose, choose, stream};

/// Items that are kept or left out together.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Family<'a> {
    /// Those of one group.
    Group(&'a str),
    /// An item without a group.
    Item(usize),
}

impl Dataset {
    /// Of every task and class, keeps ⌈share · n⌉ of the n groups of training items, so that no class is lost;
    /// an item without a group is one of its own, and items with any number of classes count as one class. Other
    /// splits and the numbers of all items stay, so that a missing table fits before and after. The groups of a
    /// smaller share are among those of a larger one with the same seed.
    pub fn keep_train_share(&mut self, share: f64, seed: u64) {
        let mut kept = BTreeSet::new();
        for (task, known) in self.tasks.iter().enumerate() {
            let mut classes: BTreeMap<usize, BTreeMap<Family<'_>, Vec<usize>>> = BTreeMap::new();
            for &row in self.rows(task, Split::Train) {
                let item = &self.items[row];
                let class = if let Label::Class(class) = item.label { class } else { 0 };
                let family = item.group.as_deref().map_or(Family::Item(row), Family::Group);
                classes.entry(class).or_default().entry(family).or_default().push(row);
            }
            for (class, families) in classes {
                let families: Vec<Vec<usize>> = families.into_values().collect();
                let count = (share * families.len() as f64).ceil() as usize;
                let chosen = choose(&mut stream(Purpose::Share, seed, (known.id, class as u64)), families.len(), count);
                kept.extend(chosen.into_iter().flat_map(|family| &families[family]).copied());
            }
        }
        self.keep_train_rows(|row| kept.contains(&row));
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::classes::ClassSet;
    use super::super::dataset::{Item, Task};
    use super::*;

    /// One task of two classes: 30 training items of the first in groups of 3, 5 of the second without a group;
    /// 4 test items.
    fn data() -> Dataset {
        let item = |split, class, group: Option<String>| Item {
            task: 0,
            split,
            image: "i.png".into(),
            text: "t".into(),
            label: Label::Class(class),
            all_classes: ClassSet::default(),
            group,
        };
        let grouped = (0..30).map(|i| item(Split::Train, 0, Some(format!("g{}", i / 3))));
        let alone = (0..5).map(|_| item(Split::Train, 1, None));
        let test = (0..4).map(|_| item(Split::Test, 0, None));
        let tasks = vec![Task { id: 0, name: "task".into(), labels: vec!["a".into(), "b".into()] }];
        Dataset::new(PathBuf::new(), "tiny".into(), false, tasks, grouped.chain(alone).chain(test).collect())
    }

    fn kept(share: f64, seed: u64) -> Vec<usize> {
        let mut data = data();
        data.keep_train_share(share, seed);
        assert_eq!(data.rows(0, Split::Test).len(), 4);
        assert_eq!(data.items.len(), 39);
        data.rows(0, Split::Train).to_vec()
    }

    #[test]
    fn a_share_keeps_whole_groups_of_every_class() {
        for (share, of_first, of_second) in [(0.01, 3, 1), (0.3, 9, 2), (1.0, 30, 5)] {
            let rows = kept(share, 0);
            assert_eq!(rows.iter().filter(|&&row| row < 30).count(), of_first, "{share}");
            assert_eq!(rows.iter().filter(|&&row| row >= 30).count(), of_second, "{share}");
            assert!(rows.is_sorted(), "{rows:?}");
            let groups: BTreeSet<usize> = rows.iter().filter(|&&row| row < 30).map(|row| row / 3).collect();
            assert_eq!(groups.len() * 3, of_first);
        }
    }

    #[test]
    fn a_smaller_share_is_a_part_of_a_larger_one_and_the_seed_decides_which() {
        let (small, large) = (kept(0.3, 1), kept(0.6, 1));
        assert!(small.iter().all(|row| large.contains(row)), "{small:?}, {large:?}");
        assert_ne!(small, kept(0.3, 2));
    }
}
