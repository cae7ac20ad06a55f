//! The items of a data set, from which requests are made.
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use crate::scenario::Scenario;

/// Why no requests can be made of a data set.
#[derive(Debug, thiserror::Error)]
pub enum SamplesError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}", path.display())]
    Parse { path: PathBuf, source: serde_json::Error },
    #[error("{} holds no list of items: expected one .json file besides labels.json", dir.display())]
    NoItems { dir: PathBuf },
    #[error("{} has no item in split {split:?}", dir.display())]
    EmptySplit { dir: PathBuf, split: String },
}

/// One item with its true task and labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The encoded image.
    pub image: Bytes,
    pub text: String,
    /// The name of the item's task.
    pub task: String,
    /// The item's true labels: one, or any number where labels are not exclusive.
    pub labels: Vec<String>,
}

#[derive(Deserialize)]
struct Item {
    task_id: usize,
    split: String,
    image: String,
    text: Text,
    label: Label,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    One(String),
    Parts(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Label {
    One(usize),
    Many(Vec<u8>),
}

#[derive(Deserialize)]
struct Task {
    name: String,
    labels: Vec<String>,
}

/// The items of the scenario's split, in random order.
pub fn read(scenario: &Scenario) -> Result<Vec<Sample>, SamplesError> {
    let dir = &scenario.data;
    let tasks: Vec<Task> = parse(&dir.join("labels.json"))?;
    let items: Vec<Item> = parse(&items_file(dir)?)?;
    let mut items: Vec<Item> = items.into_iter().filter(|i| i.split == scenario.split && i.task_id < tasks.len()).collect();
    if items.is_empty() {
        return Err(SamplesError::EmptySplit { dir: dir.clone(), split: scenario.split.clone() });
    }
    let mut rng = ChaCha8Rng::seed_from_u64(scenario.seed);
    items.shuffle(&mut rng);
    items.into_iter().map(|item| sample(dir, item, &tasks)).collect()
}

fn sample(dir: &Path, item: Item, tasks: &[Task]) -> Result<Sample, SamplesError> {
    let task = &tasks[item.task_id];
    let image = read_file(&dir.join("images").join(&item.image))?.into();
    let text = match item.text {
        Text::One(text) => text,
        Text::Parts(parts) => parts.join(". "),
    };
    let labels = match item.label {
        Label::One(label) => task.labels.get(label).cloned().into_iter().collect(),
        Label::Many(flags) => task.labels.iter().zip(flags).filter(|(_, on)| *on != 0).map(|(label, _)| label.clone()).collect(),
    };
    Ok(Sample { image, text, task: task.name.clone(), labels })
}

/// The data set's list of items: the JSON file that isn't labels.json.
fn items_file(dir: &Path) -> Result<PathBuf, SamplesError> {
    let entries = std::fs::read_dir(dir).map_err(|source| SamplesError::Read { path: dir.into(), source })?;
    let mut files: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "json") && p.file_name().is_some_and(|n| n != "labels.json"));
    files.sort();
    files.into_iter().next().ok_or_else(|| SamplesError::NoItems { dir: dir.into() })
}

fn read_file(path: &Path) -> Result<Vec<u8>, SamplesError> {
    std::fs::read(path).map_err(|source| SamplesError::Read { path: path.into(), source })
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, SamplesError> {
    serde_json::from_slice(&read_file(path)?).map_err(|source| SamplesError::Parse { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario() -> Scenario {
        let text = "name = 'x'\ndata = '../data/emoji-cmml'\nrate = 1\nduration_seconds = 1\n[mix]\nboth = 1.0";
        let mut scenario: Scenario = toml::from_str(text).unwrap();
        scenario.data = Path::new(env!("CARGO_MANIFEST_DIR")).join(scenario.data);
        scenario
    }

    #[test]
    fn every_item_of_the_split_appears_once_with_its_truth() {
        let samples = read(&scenario()).unwrap();
        assert_eq!(samples.len(), 827);
        assert!(samples.iter().all(|s| s.labels.len() == 1 && s.image.starts_with(b"\x89PNG")));
        assert_eq!(samples.iter().map(|s| &s.task).collect::<std::collections::BTreeSet<_>>().len(), 8);
    }

    #[test]
    fn an_unknown_split_is_an_error_that_names_it() {
        let mut scenario = scenario();
        scenario.split = "holdout".into();
        assert!(read(&scenario).unwrap_err().to_string().contains("holdout"));
    }
}
