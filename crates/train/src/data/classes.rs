//! Whose a class is: the class numbers of a list as classes of its tasks (METHOD.md 6).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::dataset::{DatasetError, Label, Split, Task};
use super::list::ListedItem;
use super::names::{self, TaskNames};

/// Some classes of a data set, one bit for each class. The classes of the first task come first, then those of
/// the second, and so on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClassSet(Vec<u64>);

impl ClassSet {
    /// Whether the set holds this class.
    pub fn contains(&self, class: usize) -> bool {
        self.0.get(class / 64).is_some_and(|word| (word >> (class % 64)) & 1 == 1)
    }
}

impl FromIterator<usize> for ClassSet {
    fn from_iter<I: IntoIterator<Item = usize>>(classes: I) -> Self {
        let mut words = Vec::new();
        for class in classes {
            if words.len() <= class / 64 {
                words.resize(class / 64 + 1, 0);
            }
            words[class / 64] |= 1 << (class % 64);
        }
        Self(words)
    }
}

/// How the class numbers of a list become classes of its tasks.
pub(super) struct Classes {
    /// By `task_id`.
    of_task: BTreeMap<u64, TaskClasses>,
    /// Where a flag list runs over the classes of all tasks: a class number of the list → its index among all
    /// classes of the data set.
    over_all: Option<BTreeMap<usize, usize>>,
}

/// How the class numbers of a list become the classes of one task.
struct TaskClasses {
    /// Index of the task.
    task: usize,
    /// Number of the classes of all earlier tasks.
    first: usize,
    /// Number of the task's classes.
    count: usize,
    /// A class number of the list → its index among the task's classes.
    index: BTreeMap<usize, usize>,
}

impl Classes {
    /// The tasks of a list by rising id, and how its class numbers become their classes. `file` is the name of
    /// the list in `dir`.
    ///
    /// # Errors
    /// [`DatasetError::Labels`] where `labels.json` is damaged or lacks a task; [`DatasetError::NoClasses`]
    /// where a task owns no class.
    pub(super) fn read(dir: &Path, file: &str, listed: &[ListedItem]) -> Result<(Vec<Task>, Self), DatasetError> {
        let names = names::read(dir)?;
        let ids: BTreeSet<u64> = listed.iter().map(|item| item.task_id).collect();
        let multi_label = listed.iter().any(|listed| matches!(listed.item.label, Label::Classes(_)));
        // Class numbers run over all tasks: each is one task's.
        let exclusive = multi_label && names.as_ref().is_none_or(|names| names.iter().any(|n| n.classes.is_some()));
        let mut occurring = if multi_label { owned(listed) } else { occurring(listed, |_| true) };

        let mut tasks = Vec::with_capacity(ids.len());
        let mut classes = Self { of_task: BTreeMap::new(), over_all: exclusive.then(BTreeMap::new) };
        let mut first = 0;
        for id in ids {
            let (name, labels, numbers) = match &names {
                Some(names) => {
                    let named = names.iter().find(|n| n.task_id == id).ok_or_else(|| DatasetError::Labels {
                        path: dir.join(names::FILE),
                        problem: format!("no entry for task_id {id}, which {file} has"),
                    })?;
                    (named.name.clone(), named.labels.clone(), named.numbers())
                }
                None => {
                    let numbers: Vec<usize> = occurring.remove(&id).unwrap_or_default().into_iter().collect();
                    if numbers.is_empty() {
                        return Err(DatasetError::NoClasses { list: file.to_owned(), task_id: id });
                    }
                    (format!("task-{id}"), numbers.iter().map(ToString::to_string).collect(), numbers)
                }
            };
            if let Some(over_all) = &mut classes.over_all {
                over_all.extend(numbers.iter().enumerate().map(|(index, number)| (*number, first + index)));
            }
            let (task, count) = (tasks.len(), labels.len());
            let index = numbers.into_iter().enumerate().map(|(index, number)| (number, index)).collect();
            classes.of_task.insert(id, TaskClasses { task, first, count, index });
            first += count;
            tasks.push(Task { id, name, labels });
        }
        Ok((tasks, classes))
    }

    /// Index of the task with this id, which the list has.
    pub(super) fn task(&self, id: u64) -> usize {
        self.of_task[&id].task
    }

    /// A label over the list's class numbers as one over the classes of the task with this id, and the set of
    /// all classes of the data set that it names (empty for a label of one class).
    ///
    /// # Errors
    /// What is wrong: a class that is none of the task's, where each label names classes of its own task only.
    pub(super) fn label(&self, id: u64, listed: &Label) -> Result<(Label, ClassSet), String> {
        let of_task = &self.of_task[&id];
        let flags = match listed {
            Label::Class(class) => return Ok((Label::Class(of_task.index(*class)?), ClassSet::default())),
            Label::Classes(flags) => flags,
        };
        let mut own = vec![false; of_task.count];
        match &self.over_all {
            Some(over_all) => {
                numbers(flags).filter_map(|number| of_task.index.get(&number)).for_each(|&index| own[index] = true);
                Ok((Label::Classes(own), numbers(flags).filter_map(|number| over_all.get(&number).copied()).collect()))
            }
            None => {
                for number in numbers(flags) {
                    own[of_task.index(number)?] = true;
                }
                let set = numbers(&own).map(|index| of_task.first + index).collect();
                Ok((Label::Classes(own), set))
            }
        }
    }
}

impl TaskClasses {
    fn index(&self, number: usize) -> Result<usize, String> {
        self.index.get(&number).copied().ok_or_else(|| {
            let count = self.count;
            format!(
                "class {number}, but labels.json names {count} classes for this task; where class numbers run over \
                 all tasks, say in its field `classes` which numbers are the task's"
            )
        })
    }
}

impl TaskNames {
    /// The numbers that the list has for the task's classes, in the order of its labels.
    fn numbers(&self) -> Vec<usize> {
        self.classes.clone().unwrap_or_else(|| (0..self.labels.len()).collect())
    }
}

/// The class numbers whose flag is set.
fn numbers(flags: &[bool]) -> impl Iterator<Item = usize> {
    flags.iter().enumerate().filter(|(_, flag)| **flag).map(|(number, _)| number)
}

/// By task id: the class numbers that occur in its items of some splits.
fn occurring(listed: &[ListedItem], wanted: impl Fn(Split) -> bool) -> BTreeMap<u64, BTreeSet<usize>> {
    let mut occurring: BTreeMap<u64, BTreeSet<usize>> = BTreeMap::new();
    for ListedItem { task_id, item } in listed.iter().filter(|listed| wanted(listed.item.split)) {
        let occurring = occurring.entry(*task_id).or_default();
        match &item.label {
            Label::Class(class) => drop(occurring.insert(*class)),
            Label::Classes(flags) => occurring.extend(numbers(flags)),
        }
    }
    occurring
}

/// By task id: the class numbers that a task owns. A class is owned by the first task that trains on an item
/// of it; a class without such an item by the first task that has an item of it in any split.
fn owned(listed: &[ListedItem]) -> BTreeMap<u64, BTreeSet<usize>> {
    let mut owner = BTreeMap::new();
    for of_splits in [occurring(listed, |split| split == Split::Train), occurring(listed, |_| true)] {
        for (id, numbers) in of_splits {
            for number in numbers {
                owner.entry(number).or_insert(id);
            }
        }
    }
    let mut owned: BTreeMap<u64, BTreeSet<usize>> = BTreeMap::new();
    for (number, id) in owner {
        owned.entry(id).or_default().insert(number);
    }
    owned
}
