//! Requests made of a data set's items.
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use crate::scenario::{Mix, Scenario};

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

/// One item as it is sent, and what is true of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The encoded picture.
    pub image: Option<Bytes>,
    pub text: Option<String>,
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

/// The items of the scenario's split, shuffled, each with the modalities that the mix chose for it.
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
    items.into_iter().map(|item| sample(dir, item, &tasks, sent(scenario.mix, &mut rng))).collect()
}

/// Whether the image and the text are sent.
fn sent(mix: Mix, rng: &mut impl Rng) -> (bool, bool) {
    let at = rng.random::<f64>() * (mix.both + mix.image + mix.text);
    if at < mix.both {
        (true, true)
    } else if at < mix.both + mix.image {
        (true, false)
    } else {
        (false, true)
    }
}

fn sample(dir: &Path, item: Item, tasks: &[Task], (image, text): (bool, bool)) -> Result<Sample, SamplesError> {
    let task = &tasks[item.task_id];
    let path = dir.join("images").join(&item.image);
    let image = if image { Some(read_file(&path)?.into()) } else { None };
    let text = text.then(|| match item.text {
        Text::One(text) => text,
        Text::Parts(parts) => parts.join(". "),
    });
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

    fn scenario(mix: &str) -> Scenario {
        let text = format!("name = 'x'\ndata = '../data/emoji-cmml'\nrate = 1\nduration_seconds = 1\n[mix]\n{mix}");
        let mut scenario: Scenario = toml::from_str(&text).unwrap();
        scenario.data = Path::new(env!("CARGO_MANIFEST_DIR")).join(scenario.data);
        scenario
    }

    #[test]
    fn the_mix_decides_which_modalities_are_sent() {
        let share = |samples: &[Sample], image: bool, text: bool| {
            samples.iter().filter(|s| s.image.is_some() == image && s.text.is_some() == text).count() as f64 / samples.len() as f64
        };
        let mixed = read(&scenario("both = 2.0\nimage = 1.0\ntext = 1.0")).unwrap();
        assert!((share(&mixed, true, true) - 0.5).abs() < 0.06);
        assert!((share(&mixed, true, false) - 0.25).abs() < 0.06);
        assert_eq!(share(&mixed, false, false), 0.0);
        assert_eq!(share(&read(&scenario("text = 1.0")).unwrap(), false, true), 1.0);
    }

    #[test]
    fn every_item_of_the_split_appears_once_with_its_truth() {
        let samples = read(&scenario("both = 1.0")).unwrap();
        assert_eq!(samples.len(), 986);
        assert!(samples.iter().all(|s| s.labels.len() == 1 && s.image.as_ref().is_some_and(|i| i.starts_with(b"\x89PNG"))));
        assert_eq!(samples.iter().map(|s| &s.task).collect::<std::collections::BTreeSet<_>>().len(), 8);
    }

    #[test]
    fn an_unknown_split_is_an_error_that_names_it() {
        let mut scenario = scenario("both = 1.0");
        scenario.split = "holdout".into();
        assert!(read(&scenario).unwrap_err().to_string().contains("holdout"));
    }
}
