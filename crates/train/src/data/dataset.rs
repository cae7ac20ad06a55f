//! Data sets in the layout of the RebQ code release (METHOD.md 6): one JSON list of items beside `images/`.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::classes::{ClassSet, Classes};
use super::list::{self, ListedItem};
use super::names;

/// Why a data set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A file or folder that cannot be read.
    #[error("cannot read {}: {source}; --data names a folder that holds one list of items (*.json) and images/", path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The folder holds no list of items, or an empty one.
    #[error("{}: no list of items (*.json with task_id, split, image, text, label) in this folder", .0.display())]
    NoList(PathBuf),
    /// The folder holds more than one list of items.
    #[error("{}: more than one list of items ({}); leave one", dir.display(), names.join(", "))]
    SeveralLists {
        /// The folder.
        dir: PathBuf,
        /// File names of the lists.
        names: Vec<String>,
    },
    /// A list that is not JSON.
    #[error("{}: not JSON: {source}", path.display())]
    Json {
        /// The list.
        path: PathBuf,
        /// What is wrong, with line and column.
        source: serde_json::Error,
    },
    /// A field of an item that is missing or has a wrong value.
    #[error("{list}: item {index}{image}, field `{field}`: {problem}")]
    Field {
        /// File name of the list.
        list: String,
        /// Index of the item in the list.
        index: usize,
        /// The item's image in brackets after a space; empty where it has none.
        image: String,
        /// Name of the field.
        field: &'static str,
        /// What is wrong, and what is expected.
        problem: String,
    },
    /// A `labels.json` that is damaged or does not fit the list.
    #[error("{}: {problem}", path.display())]
    Labels {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A task whose classes are all owned by earlier tasks, or that has none.
    #[error(
        "{list}: task_id {task_id} has no class of its own: a class belongs to the first task that has it; say in \
         labels.json which classes are whose (task_id, name, labels, classes)"
    )]
    NoClasses {
        /// File name of the list.
        list: String,
        /// The task's id.
        task_id: u64,
    },
    /// A task that the data set does not have.
    #[error("no task {wanted:?} in {dataset}; it has {known}")]
    UnknownTask {
        /// The name or id that was asked for.
        wanted: String,
        /// Name of the data set.
        dataset: String,
        /// Ids and names of its tasks.
        known: String,
    },
    /// An item whose image or text cannot be made a sample.
    #[error("{list}: item {index} ({image}): {problem}")]
    Sample {
        /// File name of the list.
        list: String,
        /// Index of the item in the list.
        index: usize,
        /// Path of the item's image.
        image: String,
        /// What is wrong.
        problem: String,
    },
}

/// A part of the data, kept apart from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Items that a task learns from.
    Train,
    /// Items that validate a partition when its training ends.
    Val,
    /// Items of the published figures.
    Test,
}

impl Split {
    /// All splits, in the order of their declaration: `split as usize` is the index in this list.
    pub const ALL: [Self; 3] = [Self::Train, Self::Val, Self::Test];
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Val => "val",
            Self::Test => "test",
        })
    }
}

impl FromStr for Split {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|split| split.to_string() == text);
        named.ok_or_else(|| format!("{text:?} is no split: write train, val or test"))
    }
}

/// The true classes of an item, over the classes of its task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Label {
    /// One class.
    Class(usize),
    /// Any number of classes: one flag for each class of the task.
    Classes(Vec<bool>),
}

/// One image-text pair.
#[derive(Clone, Debug)]
pub struct Item {
    /// Index in [`Dataset::tasks`].
    pub task: usize,
    /// The part of the data that the item belongs to.
    pub split: Split,
    /// The file, as the list names it, under `images/`.
    pub image: String,
    /// The text; a list of texts is joined by `". "`.
    pub text: String,
    /// Its true classes among those of its task.
    pub label: Label,
    /// Its true classes among those of all tasks, where an item has any number of them: it may be of another
    /// task's classes too. Empty where an item has one class.
    pub all_classes: ClassSet,
    /// The family of items that are not independent of each other, as drawings of one thing. `None`: the item
    /// is independent of all others.
    pub group: Option<String>,
}

/// One session: its classes come together, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// `task_id` of the list.
    pub id: u64,
    /// From `labels.json`, else `task-ID`.
    pub name: String,
    /// Class names: from `labels.json`, else numbers of the list. Items of other tasks' classes may be among
    /// the task's items; those classes are not among its own.
    pub labels: Vec<String>,
}

/// A continual-learning data set: tasks in order, and their items.
#[derive(Debug)]
pub struct Dataset {
    /// The folder that holds the list of items and `images/`.
    pub dir: PathBuf,
    /// The list's file name without `.json`.
    pub name: String,
    /// Items have any number of classes, scored by F1-macro; otherwise one, scored by accuracy.
    pub multi_label: bool,
    /// By rising id: the order in which they are learnt.
    pub tasks: Vec<Task>,
    /// In the order of the list: an item's index is its identity in missing tables.
    pub items: Vec<Item>,
    /// Indices of the items of each task, by split.
    rows: Vec<[Vec<usize>; Split::ALL.len()]>,
}

impl Dataset {
    /// A data set of these tasks and items; every item's task is an index in `tasks`, and its label is over
    /// that task's classes.
    pub fn new(dir: PathBuf, name: String, multi_label: bool, tasks: Vec<Task>, items: Vec<Item>) -> Self {
        let mut rows = vec![<[Vec<usize>; Split::ALL.len()]>::default(); tasks.len()];
        for (row, item) in items.iter().enumerate() {
            rows[item.task][item.split as usize].push(row);
        }
        Self { dir, name, multi_label, tasks, items, rows }
    }

    /// A note for who reads the figures, where no `labels.json` says whose a class is and several tasks train on it.
    pub fn shared_classes(&self) -> Option<String> {
        if !self.multi_label || self.dir.join(names::FILE).exists() {
            return None;
        }
        let classes: usize = self.tasks.iter().map(|task| task.labels.len()).sum();
        let tasks_of = |class: usize| {
            let items = self.items.iter().filter(|item| item.split == Split::Train && item.all_classes.contains(class));
            items.map(|item| item.task).collect::<BTreeSet<_>>().len()
        };
        let shared = (0..classes).filter(|&class| tasks_of(class) > 1).count();
        let note = format!(
            "{shared} of {classes} classes occur in training items of several tasks, and were taken as the first one's: say in \
             labels.json whose they are"
        );
        (shared > 0).then_some(note)
    }

    /// Reads `dir`: its one list of items, and `labels.json` where there is one.
    ///
    /// Which classes are a task's stands in `labels.json`. Without it, a task's classes are those that occur in
    /// its items; so both kinds of list can be read, those that number classes over all tasks
    /// (UPMC-Food101-CMML) and those that number them within a task. Where an item has any number of classes
    /// (MM-IMDB-CMML), the list runs over the classes of all tasks, and a class is owned by the first task, by
    /// rising id, that has it in its train split, or else in any split. Classes that a task does not own are
    /// left out of its labels and kept in [`Item::all_classes`].
    ///
    /// # Errors
    /// [`DatasetError`] names the file, the item and the field. Images are not opened here.
    pub fn open(dir: &Path) -> Result<Self, DatasetError> {
        let path = list::find(dir)?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let listed = list::read(&path, &file)?;
        if listed.is_empty() {
            return Err(DatasetError::NoList(dir.to_owned()));
        }
        let multi_label = matches!(listed[0].item.label, Label::Classes(_));

        let wrong_label = |index: usize, item: &Item, problem: String| DatasetError::Field {
            list: file.clone(),
            index,
            image: format!(" ({})", item.image),
            field: "label",
            problem,
        };
        for (index, ListedItem { item, .. }) in listed.iter().enumerate() {
            let problem = match (&item.label, multi_label) {
                (Label::Class(_), true) => "a class number, but the first item has a list: all items must have the same form",
                (Label::Classes(_), false) => "a list, but the first item has a class number: all items must have the same form",
                _ => continue,
            };
            return Err(wrong_label(index, item, problem.to_owned()));
        }
        let (tasks, classes) = Classes::read(dir, &file, &listed)?;
        let mut items = Vec::with_capacity(listed.len());
        for (index, ListedItem { task_id, mut item }) in listed.into_iter().enumerate() {
            item.task = classes.task(task_id);
            (item.label, item.all_classes) = classes.label(task_id, &item.label).map_err(|problem| wrong_label(index, &item, problem))?;
            items.push(item);
        }
        Ok(Self::new(dir.to_owned(), name, multi_label, tasks, items))
    }

    /// Number of the classes of all tasks before this one: where its own begin in [`Item::all_classes`].
    pub fn first_class(&self, task: usize) -> usize {
        self.tasks[..task].iter().map(|task| task.labels.len()).sum()
    }

    /// Indices of the items of one task and split, in the order of the list.
    pub fn rows(&self, task: usize, split: Split) -> &[usize] {
        &self.rows[task][split as usize]
    }

    /// Leaves out all other training items; the numbers of the items stay.
    pub fn keep_train_rows(&mut self, keep: impl Fn(usize) -> bool) {
        self.rows.iter_mut().for_each(|rows| rows[Split::Train as usize].retain(|&row| keep(row)));
    }

    /// Index of the task with this name or, where no task has it, this id.
    ///
    /// # Errors
    /// [`DatasetError::UnknownTask`] lists the tasks that there are.
    pub fn task(&self, wanted: &str) -> Result<usize, DatasetError> {
        let by_name = self.tasks.iter().position(|t| t.name == wanted);
        let by_id = || wanted.parse().ok().and_then(|id: u64| self.tasks.iter().position(|t| t.id == id));
        by_name.or_else(by_id).ok_or_else(|| DatasetError::UnknownTask {
            wanted: wanted.to_owned(),
            dataset: self.name.clone(),
            known: self.tasks.iter().map(|t| format!("{} ({})", t.id, t.name)).collect::<Vec<_>>().join(", "),
        })
    }

    /// A hash of the list, of `labels.json` and of the sizes of the images, in hexadecimal: equal for copies
    /// of the same data set.
    ///
    /// # Errors
    /// [`DatasetError::Unreadable`].
    pub fn fingerprint(&self) -> Result<String, DatasetError> {
        let unreadable = |path: &Path| {
            let path = path.to_owned();
            move |source| DatasetError::Unreadable { path, source }
        };
        let list = self.dir.join(format!("{}.json", self.name));
        let mut hash = Sha256::new();
        hash.update(std::fs::read(&list).map_err(unreadable(&list))?);
        let names = self.dir.join(super::names::FILE);
        if names.exists() {
            hash.update(std::fs::read(&names).map_err(unreadable(&names))?);
        }
        for item in &self.items {
            // An image that is not there is found when it is read.
            let size = std::fs::metadata(self.image_path(item)).map_or(0, |metadata| metadata.len());
            hash.update(size.to_le_bytes());
        }
        Ok(format!("{:x}", hash.finalize()))
    }

    /// Path of an item's image.
    pub fn image_path(&self, item: &Item) -> PathBuf {
        self.dir.join("images").join(&item.image)
    }

    /// An error about the image or text of the item at `index`.
    pub fn sample_error(&self, index: usize, problem: &dyn fmt::Display) -> DatasetError {
        let image = self.image_path(&self.items[index]).display().to_string();
        DatasetError::Sample { list: format!("{}.json", self.name), index, image, problem: problem.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        dir
    }

    const FOOD: &str = r#"[
        {"task_id": 1, "split": "train", "image": "b/c.jpg", "text": ["two", "words"], "label": 12},
        {"task_id": 0, "split": "train", "image": "a.jpg", "text": "one", "label": 3},
        {"task_id": 1, "split": "test", "image": "d.jpg", "text": "three", "label": 10}
    ]"#;

    #[test]
    fn reads_a_list_that_numbers_classes_over_all_tasks() {
        let dir = folder(&[("UPMC-Food101-CMML.json", FOOD), ("missing.json", r#"{"eta": 0.7}"#)]);
        let data = Dataset::open(dir.path()).unwrap();
        assert_eq!((data.name.as_str(), data.multi_label), ("UPMC-Food101-CMML", false));
        let names: Vec<_> = data.tasks.iter().map(|t| (t.name.as_str(), t.labels.join(","))).collect();
        assert_eq!(names, [("task-0", "3".to_owned()), ("task-1", "10,12".to_owned())]);
        assert_eq!(data.items[0].text, "two. words");
        assert_eq!(data.items.iter().map(|i| i.label.clone()).collect::<Vec<_>>(), [1, 0, 0].map(Label::Class));
        assert_eq!(
            [(1, Split::Train), (1, Split::Test), (0, Split::Val)].map(|(task, split)| data.rows(task, split)),
            [&[0][..], &[2], &[]]
        );
        assert!(data.image_path(&data.items[0]).ends_with("images/b/c.jpg"));
    }

    #[test]
    fn reads_a_multi_label_list() {
        let list = r#"[{"task_id": 0, "split": "train", "image": "a.jpeg", "text": ["plot"], "label": [0, 1, 0, 1]},
                       {"task_id": 0, "split": "val", "image": "b.jpeg", "text": ["plot"], "label": [0, 0, 0, 1]}]"#;
        let dir = folder(&[("MM-IMDB-CMML.json", list)]);
        let data = Dataset::open(dir.path()).unwrap();
        assert!(data.multi_label);
        assert_eq!(data.tasks[0].labels, ["1", "3"]);
        assert_eq!(data.items[1].label, Label::Classes(vec![false, true]));
    }

    #[test]
    fn labels_json_names_tasks_and_classes() {
        let names =
            r#"[{"task_id": 0, "name": "soups", "labels": ["w", "x", "y", "z"]}, {"task_id": 1, "name": "cakes", "labels": ["p"]}]"#;
        let list = r#"[{"task_id": 0, "split": "train", "image": "a.png", "text": "", "label": 2}]"#;
        let dir = folder(&[("ANY.json", list), ("labels.json", names)]);
        let data = Dataset::open(dir.path()).unwrap();
        assert_eq!(data.tasks, [Task { id: 0, name: "soups".into(), labels: ["w", "x", "y", "z"].map(String::from).to_vec() }]);
        assert_eq!(data.items[0].label, Label::Class(2));
        assert_eq!((data.task("soups").unwrap(), data.task("0").unwrap()), (0, 0));
        assert!(data.task("pies").unwrap_err().to_string().contains("0 (soups)"));
    }

    #[test]
    fn names_that_an_artifact_cannot_hold_or_that_are_not_unique_are_refused() {
        let list = r#"[{"task_id": 0, "split": "train", "image": "a.png", "text": "", "label": 0}]"#;
        for (name, labels, words) in [
            ("soups", r#"["red", "hot", "red"]"#, r#"task "soups": two labels are "red""#),
            ("soups", r#"["red", ""]"#, "label 1"),
            ("soups", r#"["red", " \t"]"#, "blank"),
            ("soups", r#"["red", "a\nb"]"#, "control"),
            ("", r#"["red"]"#, "blank"),
        ] {
            let names = format!(r#"[{{"task_id": 0, "name": "{name}", "labels": {labels}}}]"#);
            let dir = folder(&[("ANY.json", list), ("labels.json", &names)]);
            let error = Dataset::open(dir.path()).unwrap_err().to_string();
            assert!(error.contains("labels.json") && error.contains(words), "{error}");
        }
    }

    #[test]
    fn an_error_names_the_item_and_the_field() {
        let good = r#"{"task_id": 0, "split": "train", "image": "a.png", "text": "t", "label": 0}"#;
        for (bad, expected) in [
            (r#"{"split": "train"}"#, "item 1, field `task_id`: missing"),
            (r#"{"task_id": 0, "split": "dev"}"#, r#"item 1, field `split`: expected "train", "val" or "test", found "dev""#),
            (
                r#"{"task_id": 0, "split": "val", "image": "../a.png"}"#,
                "item 1 (../a.png), field `image`: expected a file name under images/",
            ),
            (
                r#"{"task_id": 0, "split": "val", "image": "x", "text": 3}"#,
                "item 1 (x), field `text`: expected a string or a list of strings, found 3",
            ),
            (
                r#"{"task_id": 0, "split": "val", "image": "x", "text": "t", "label": [0, 2]}"#,
                "field `label`: expected a class number or a list of 0 and 1, found [0,2]",
            ),
            (r#"{"task_id": 0, "split": "val", "image": "x", "text": "t", "label": [0, 1]}"#, "all items must have the same form"),
        ] {
            let dir = folder(&[("L.json", &format!("[{good}, {bad}]"))]);
            let error = Dataset::open(dir.path()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn refuses_a_folder_without_one_list() {
        let none = folder(&[("labels.json", "[]")]);
        assert!(matches!(Dataset::open(none.path()), Err(DatasetError::NoList(_))));
        let two = folder(&[("A.json", FOOD), ("B.json", FOOD)]);
        assert!(Dataset::open(two.path()).unwrap_err().to_string().contains("A.json, B.json"));
    }
}
