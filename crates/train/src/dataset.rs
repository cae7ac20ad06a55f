//! Data sets in the layout of the RebQ code release (METHOD.md 6): one JSON list of items beside `images/`.
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use delo_model::partition::check_name;

/// Why a data set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    #[error("cannot read {}: {source}; --data names a folder that holds one list of items (*.json) and images/", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{}: no list of items (*.json with task_id, split, image, text, label) in this folder", .0.display())]
    NoList(PathBuf),
    #[error("{}: more than one list of items ({}); leave one", dir.display(), names.join(", "))]
    SeveralLists { dir: PathBuf, names: Vec<String> },
    #[error("{}: not JSON: {source}", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{list}: item {index}{image}, field `{field}`: {problem}")]
    Field { list: String, index: usize, image: String, field: &'static str, problem: String },
    #[error("{}: {problem}", path.display())]
    Labels { path: PathBuf, problem: String },
    #[error("no task {wanted:?} in {dataset}; it has {known}")]
    UnknownTask { wanted: String, dataset: String, known: String },
    #[error("{list}: item {index} ({image}): {problem}")]
    Sample { list: String, index: usize, image: String, problem: String },
}

/// A part of the data, kept apart from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    Train,
    Val,
    Test,
}

/// What is to be told of an item, over the classes of its task.
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
    pub split: Split,
    /// The file, as the list names it, under `images/`.
    pub image: String,
    /// The text; a list is joined by `". "`.
    pub text: String,
    pub label: Label,
}

/// One session: its classes come together, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// `task_id` of the list.
    pub id: u64,
    /// From `labels.json`, else `task-ID`.
    pub name: String,
    /// Class names: from `labels.json`, else the numbers that occur in the task's items.
    pub labels: Vec<String>,
}

/// A continual-learning data set: tasks in order, and their items.
#[derive(Debug)]
pub struct Dataset {
    pub dir: PathBuf,
    /// The list's file name without `.json`.
    pub name: String,
    /// Items have any number of classes, scored by F1-macro; otherwise one, scored by accuracy.
    pub multi_label: bool,
    /// By rising id: the order in which they are learnt.
    pub tasks: Vec<Task>,
    /// In the order of the list: an item's index is its identity in missing tables.
    pub items: Vec<Item>,
}

/// The names that `labels.json` gives to a task and its classes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TaskNames {
    task_id: u64,
    name: String,
    labels: Vec<String>,
}

/// One item before its label is mapped to the classes of its task.
struct RawItem {
    task: u64,
    split: Split,
    image: String,
    text: String,
    label: RawLabel,
}

enum RawLabel {
    Class(usize),
    Classes(Vec<bool>),
}

impl Dataset {
    /// Reads `dir`: its one list of items, and `labels.json` where there is one.
    ///
    /// Without `labels.json` a task's classes are those that occur in its items, so lists that number classes over all tasks
    /// (UPMC-Food101-CMML, MM-IMDB-CMML) and lists that number them within each task both read.
    ///
    /// # Errors
    /// [`DatasetError`] names the file, the item and the field. Images are not opened here.
    pub fn open(dir: &Path) -> Result<Self, DatasetError> {
        let (path, list) = find_list(dir)?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let raw = list.iter().enumerate().map(|(index, item)| raw_item(item, index, &file)).collect::<Result<Vec<_>, _>>()?;
        let multi_label = matches!(raw.first(), Some(RawItem { label: RawLabel::Classes(_), .. }));
        let names = read_names(dir)?;

        let ids: BTreeSet<u64> = raw.iter().map(|i| i.task).collect();
        let mut tasks = Vec::new();
        let mut classes = BTreeMap::new();
        for (index, &id) in ids.iter().enumerate() {
            let named = names.as_ref().map(|n| n.iter().find(|n| n.task_id == id));
            let (task, known) = match named {
                Some(Some(n)) => {
                    (Task { id, name: n.name.clone(), labels: n.labels.clone() }, (0..n.labels.len()).map(|c| (c, c)).collect())
                }
                Some(None) => {
                    let problem = format!("no entry for task_id {id}, which {file} has");
                    return Err(DatasetError::Labels { path: dir.join("labels.json"), problem });
                }
                None => {
                    let present = present_classes(raw.iter().filter(|i| i.task == id));
                    let labels = present.iter().map(ToString::to_string).collect();
                    let known: BTreeMap<_, _> = present.iter().enumerate().map(|(row, &class)| (class, row)).collect();
                    (Task { id, name: format!("task-{id}"), labels }, known)
                }
            };
            tasks.push(task);
            classes.insert(id, (index, known));
        }

        let mut items = Vec::with_capacity(raw.len());
        for (index, item) in raw.into_iter().enumerate() {
            let (task, known) = &classes[&item.task];
            let label = map_label(item.label, known, tasks[*task].labels.len(), multi_label).map_err(|problem| DatasetError::Field {
                list: file.clone(),
                index,
                image: format!(" ({})", item.image),
                field: "label",
                problem,
            })?;
            items.push(Item { task: *task, split: item.split, image: item.image, text: item.text, label });
        }
        Ok(Self { dir: dir.to_owned(), name, multi_label, tasks, items })
    }

    /// Indices of the items of one task and split, in the order of the list.
    pub fn rows(&self, task: usize, split: Split) -> Vec<usize> {
        (0..self.items.len()).filter(|&i| self.items[i].task == task && self.items[i].split == split).collect()
    }

    /// The task that a user names: by its name or by its id.
    ///
    /// # Errors
    /// [`DatasetError::UnknownTask`], with what there is.
    pub fn task(&self, wanted: &str) -> Result<usize, DatasetError> {
        let by_name = self.tasks.iter().position(|t| t.name == wanted);
        let by_id = || wanted.parse().ok().and_then(|id: u64| self.tasks.iter().position(|t| t.id == id));
        by_name.or_else(by_id).ok_or_else(|| DatasetError::UnknownTask {
            wanted: wanted.to_owned(),
            dataset: self.name.clone(),
            known: self.tasks.iter().map(|t| format!("{} ({})", t.id, t.name)).collect::<Vec<_>>().join(", "),
        })
    }

    /// Where an item's picture lies.
    pub fn image_path(&self, item: &Item) -> PathBuf {
        self.dir.join("images").join(&item.image)
    }

    /// An error about an item's picture or text.
    pub fn sample_error(&self, index: usize, problem: &dyn std::fmt::Display) -> DatasetError {
        let image = self.image_path(&self.items[index]).display().to_string();
        DatasetError::Sample { list: format!("{}.json", self.name), index, image, problem: problem.to_string() }
    }
}

/// The one file of `dir` that holds a JSON list, `labels.json` aside.
fn find_list(dir: &Path) -> Result<(PathBuf, Vec<Value>), DatasetError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| DatasetError::Unreadable { path, source }
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable(dir))? {
        let path = entry.map_err(unreadable(dir))?.path();
        let wanted = path.extension().is_some_and(|e| e == "json") && path.file_name().is_some_and(|n| n != "labels.json");
        if wanted && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    let mut lists = Vec::new();
    for path in paths {
        let bytes = std::fs::read(&path).map_err(unreadable(&path))?;
        // Only a list is read further: a missing table or a log may lie beside it.
        if bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'[') {
            lists.push((path, bytes));
        }
    }
    let [(path, bytes)] = <[_; 1]>::try_from(lists).map_err(|lists| {
        if lists.is_empty() {
            return DatasetError::NoList(dir.to_owned());
        }
        let names = lists.iter().map(|(p, _)| p.file_name().unwrap_or_default().to_string_lossy().into_owned()).collect();
        DatasetError::SeveralLists { dir: dir.to_owned(), names }
    })?;
    let list: Vec<Value> = serde_json::from_slice(&bytes).map_err(|source| DatasetError::Json { path: path.clone(), source })?;
    if list.is_empty() {
        return Err(DatasetError::NoList(dir.to_owned()));
    }
    Ok((path, list))
}

fn read_names(dir: &Path) -> Result<Option<Vec<TaskNames>>, DatasetError> {
    let path = dir.join("labels.json");
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(DatasetError::Unreadable { path, source }),
    };
    let names: Vec<TaskNames> = serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_slice(&bytes))
        .map_err(|e| DatasetError::Labels { path: path.clone(), problem: e.to_string() })?;
    let mut seen = BTreeSet::new();
    for task in &names {
        if !seen.insert(task.name.clone()) {
            return Err(DatasetError::Labels { path, problem: format!("two tasks are named {:?}; names must be unique", task.name) });
        }
        task.check().map_err(|problem| DatasetError::Labels { path: path.clone(), problem })?;
    }
    Ok(Some(names))
}

impl TaskNames {
    /// Refuses names that an artifact could not hold, or that could not be told apart in an answer.
    fn check(&self) -> Result<(), String> {
        let blank = |name: &str| if name.trim().is_empty() { Err("a name is not blank".to_owned()) } else { check_name(name) };
        blank(&self.name).map_err(|reason| format!("task_id {}: name {:?}: {reason}", self.task_id, self.name))?;
        let mut seen = BTreeSet::new();
        for (class, label) in self.labels.iter().enumerate() {
            blank(label).map_err(|reason| format!("task {:?}: label {class}, {label:?}: {reason}", self.name))?;
            if !seen.insert(label) {
                return Err(format!("task {:?}: two labels are {label:?}; labels of a task must be unique", self.name));
            }
        }
        Ok(())
    }
}

fn raw_item(value: &Value, index: usize, list: &str) -> Result<RawItem, DatasetError> {
    let image = value.get("image").and_then(Value::as_str).map(|i| format!(" ({i})")).unwrap_or_default();
    let fail = |field, problem: String| DatasetError::Field { list: list.to_owned(), index, image: image.clone(), field, problem };
    let get = |field| value.get(field).ok_or_else(|| fail(field, "missing".to_owned()));

    let task = get("task_id")?;
    let task = task.as_u64().ok_or_else(|| fail("task_id", format!("expected a whole number, found {}", shorten(task))))?;
    let split = get("split")?;
    let split = match split.as_str() {
        Some("train") => Split::Train,
        Some("val") => Split::Val,
        Some("test") => Split::Test,
        _ => return Err(fail("split", format!("expected \"train\", \"val\" or \"test\", found {}", shorten(split)))),
    };
    let file = get("image")?;
    let file = file.as_str().ok_or_else(|| fail("image", format!("expected a file name under images/, found {}", shorten(file))))?;
    if file.is_empty() || !Path::new(file).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(fail("image", format!("expected a file name under images/, found {file:?}")));
    }
    let text = get("text")?;
    let text = raw_text(text).ok_or_else(|| fail("text", format!("expected a string or a list of strings, found {}", shorten(text))))?;
    let label = get("label")?;
    let label =
        raw_label(label).ok_or_else(|| fail("label", format!("expected a class number or a list of 0 and 1, found {}", shorten(label))))?;
    Ok(RawItem { task, split, image: file.to_owned(), text, label })
}

fn raw_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => Some(parts.iter().map(Value::as_str).collect::<Option<Vec<_>>>()?.join(". ")),
        _ => None,
    }
}

fn raw_label(value: &Value) -> Option<RawLabel> {
    match value {
        Value::Array(flags) => {
            let flag = |v: &Value| v.as_f64().filter(|f| *f == 0.0 || *f == 1.0).map(|f| f == 1.0);
            flags.iter().map(flag).collect::<Option<_>>().map(RawLabel::Classes)
        }
        _ => value.as_u64().and_then(|class| usize::try_from(class).ok()).map(RawLabel::Class),
    }
}

/// The classes that occur in some items, rising.
fn present_classes<'a>(items: impl Iterator<Item = &'a RawItem>) -> BTreeSet<usize> {
    let mut present = BTreeSet::new();
    for item in items {
        match &item.label {
            RawLabel::Class(class) => {
                present.insert(*class);
            }
            RawLabel::Classes(flags) => present.extend(flags.iter().enumerate().filter(|(_, flag)| **flag).map(|(class, _)| class)),
        }
    }
    present
}

/// A label over the classes of its task; `known` maps the list's numbers to the task's rows.
fn map_label(raw: RawLabel, known: &BTreeMap<usize, usize>, classes: usize, multi_label: bool) -> Result<Label, String> {
    match raw {
        RawLabel::Class(_) if multi_label => Err("a class number, but the first item has a list: all items must have the same form".into()),
        RawLabel::Classes(_) if !multi_label => {
            Err("a list, but the first item has a class number: all items must have the same form".into())
        }
        RawLabel::Class(class) => {
            let row = known.get(&class).ok_or_else(|| format!("class {class}, but labels.json names {classes} classes for this task"))?;
            Ok(Label::Class(*row))
        }
        RawLabel::Classes(flags) => {
            let mut mine = vec![false; classes];
            for (class, _) in flags.iter().enumerate().filter(|(_, flag)| **flag) {
                let row =
                    known.get(&class).ok_or_else(|| format!("class {class}, but labels.json names {classes} classes for this task"))?;
                mine[*row] = true;
            }
            Ok(Label::Classes(mine))
        }
    }
}

/// A value as an error shows it.
fn shorten(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
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
        assert_eq!((data.rows(1, Split::Train), data.rows(1, Split::Test), data.rows(0, Split::Val)), (vec![0], vec![2], vec![]));
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
    fn names_that_no_artifact_could_hold_or_no_answer_tell_apart_are_refused() {
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
