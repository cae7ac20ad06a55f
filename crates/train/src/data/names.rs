//! `labels.json` of a data set: the names of its tasks and of their classes.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

use super::dataset::DatasetError;
use delo_model::partition::check_name;

/// Name of the file in the data set's folder.
pub(super) const FILE: &str = "labels.json";

/// The names of one task and of its classes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TaskNames {
    pub(super) task_id: u64,
    pub(super) name: String,
    pub(super) labels: Vec<String>,
    /// The list's number of each label, where its class numbers run over all tasks. Left out: the labels are
    /// numbered from 0 within the task.
    #[serde(default)]
    pub(super) classes: Option<Vec<usize>>,
}

/// The names in `dir`; `None` where it has no `labels.json`.
///
/// # Errors
/// [`DatasetError::Unreadable`]; [`DatasetError::Labels`] for names that are damaged, blank or not unique.
pub(super) fn read(dir: &Path) -> Result<Option<Vec<TaskNames>>, DatasetError> {
    let path = dir.join(FILE);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(DatasetError::Unreadable { path, source }),
    };
    let fail = |problem| DatasetError::Labels { path: path.clone(), problem };
    let names: Vec<TaskNames> =
        serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_slice(&bytes)).map_err(|e| fail(e.to_string()))?;
    let mut seen = BTreeSet::new();
    let mut owned = BTreeSet::new();
    for task in &names {
        if !seen.insert(&task.name) {
            return Err(fail(format!("two tasks are named {:?}; names must be unique", task.name)));
        }
        task.check().map_err(fail)?;
        if task.classes.is_some() != names[0].classes.is_some() {
            return Err(fail(format!("task {:?}: give `classes` for every task or for none", task.name)));
        }
        if let Some(twice) = task.classes.iter().flatten().find(|class| !owned.insert(**class)) {
            return Err(fail(format!("task {:?}: class {twice} stands twice in `classes`; a class is of one task", task.name)));
        }
    }
    Ok(Some(names))
}

impl TaskNames {
    /// Refuses names that an artifact cannot hold, and labels of one task that are equal.
    fn check(&self) -> Result<(), String> {
        let usable = |name: &str| if name.trim().is_empty() { Err("a name is not blank".to_owned()) } else { check_name(name) };
        usable(&self.name).map_err(|reason| format!("task_id {}: name {:?}: {reason}", self.task_id, self.name))?;
        let labels = self.labels.len();
        if let Some(classes) = self.classes.as_ref().filter(|classes| classes.len() != labels) {
            let found = classes.len();
            return Err(format!("task {:?}: {labels} labels, but {found} `classes`; each label has one number", self.name));
        }
        let mut seen = BTreeSet::new();
        for (class, label) in self.labels.iter().enumerate() {
            usable(label).map_err(|reason| format!("task {:?}: label {class}, {label:?}: {reason}", self.name))?;
            if !seen.insert(label) {
                return Err(format!("task {:?}: two labels are {label:?}; labels of a task must be unique", self.name));
            }
        }
        Ok(())
    }
}
