//! Missing tables (METHOD.md 6): which items lose a modality, chosen once per seed, stored, and the same at
//! every use.
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::dataset::{Dataset, Split};
use crate::random::{Purpose, choose, stream};
use delo_model::input::Presence;

/// Which modality may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MissingKind {
    /// The chosen items lose the text.
    Text,
    /// The chosen items lose the image.
    Image,
    /// Half of the chosen items lose the image, the others the text.
    Both,
}

impl MissingKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Text, Self::Image, Self::Both];
}

impl fmt::Display for MissingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Image => "image",
            Self::Both => "both",
        })
    }
}

impl FromStr for MissingKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|kind| kind.to_string() == text);
        named.ok_or_else(|| format!("{text:?} is no modality to lose: write text, image or both"))
    }
}

/// Why a missing table cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MissingError {
    /// A share outside 0 to 1.
    #[error("--eta {0} is not a share: give a number from 0 (all complete) to 1 (every item loses a modality)")]
    Eta(f64),
    /// A stored table that cannot be read, written or used with the data set.
    #[error("missing table {}: {problem}", path.display())]
    Table {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// The modality pattern of every item of a data set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MissingTable {
    /// η: share of each task's and split's items that lose a modality.
    pub eta: f64,
    /// The modality that they lose.
    pub kind: MissingKind,
    /// Decides which items they are.
    pub seed: u64,
    /// Index of an item in the list → what it keeps. Items that are not listed are complete.
    pub items: BTreeMap<usize, Presence>,
}

impl MissingTable {
    /// A table by which int(n·η) of the n items of every task and split lose a modality.
    ///
    /// # Errors
    /// [`MissingError::Eta`] where η is not from 0 to 1.
    pub fn draw(data: &Dataset, eta: f64, kind: MissingKind, seed: u64) -> Result<Self, MissingError> {
        if !(0.0..=1.0).contains(&eta) {
            return Err(MissingError::Eta(eta));
        }
        let mut items = BTreeMap::new();
        for (task, known) in data.tasks.iter().enumerate() {
            for split in Split::ALL {
                let rows = data.rows(task, split);
                let count = (rows.len() as f64 * eta) as usize;
                let chosen = choose(&mut stream(Purpose::Missing, seed, (known.id, split as u64)), rows.len(), count);
                for (nth, &position) in chosen.iter().enumerate() {
                    let keeps = match kind {
                        MissingKind::Image => Presence::TextOnly,
                        MissingKind::Text => Presence::ImageOnly,
                        MissingKind::Both if nth < chosen.len() / 2 => Presence::TextOnly,
                        MissingKind::Both => Presence::ImageOnly,
                    };
                    items.insert(rows[position], keeps);
                }
            }
        }
        Ok(Self { eta, kind, seed, items })
    }

    /// What the item at `index` keeps. An item whose text is blank is image-only, whatever the table says.
    pub fn presence(&self, data: &Dataset, index: usize) -> Presence {
        if data.items[index].text.trim().is_empty() {
            return Presence::ImageOnly;
        }
        self.items.get(&index).copied().unwrap_or(Presence::Complete)
    }

    /// Reads a stored table for `data`.
    ///
    /// # Errors
    /// [`MissingError::Table`]: the file cannot be read, is no table, or names an item that `data` does not
    /// have.
    pub fn read(path: &Path, data: &Dataset) -> Result<Self, MissingError> {
        let fail = |problem: String| MissingError::Table { path: path.to_owned(), problem };
        let bytes = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
        let table: Self = serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_slice(&bytes)).map_err(|e| {
            fail(format!("{e}; expected {{\"eta\", \"kind\", \"seed\", \"items\": {{\"INDEX\": \"image_only\" | \"text_only\"}}}}"))
        })?;
        match table.items.last_key_value() {
            Some((last, _)) if *last >= data.items.len() => {
                Err(fail(format!("names item {last}, but {} has {} items: it belongs to another data set", data.name, data.items.len())))
            }
            _ => Ok(table),
        }
    }

    /// Stores the table as JSON.
    ///
    /// # Errors
    /// [`MissingError::Table`] with the problem of the file system.
    pub fn write(&self, path: &Path) -> Result<(), MissingError> {
        let json = serde_json::to_vec(self).map_err(std::io::Error::from);
        json.and_then(|json| std::fs::write(path, json)).map_err(|e| MissingError::Table { path: path.to_owned(), problem: e.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::classes::ClassSet;
    use super::super::dataset::{Item, Label, Task};
    use super::*;

    /// Two tasks: `sizes[task][split]` items.
    fn data(sizes: [[usize; 3]; 2]) -> Dataset {
        let mut items = Vec::new();
        for (task, splits) in sizes.iter().enumerate() {
            for (split, &n) in [Split::Train, Split::Val, Split::Test].iter().zip(splits) {
                let (image, text, label) = ("i.png".into(), "t".into(), Label::Class(0));
                let item = Item { task, split: *split, image, text, label, all_classes: ClassSet::default(), group: None };
                items.extend(std::iter::repeat_n(item, n));
            }
        }
        let tasks = (0..2).map(|id| Task { id, name: format!("task-{id}"), labels: vec!["0".into()] }).collect();
        Dataset::new(PathBuf::new(), "tiny".into(), false, tasks, items)
    }

    fn counts(table: &MissingTable, data: &Dataset, task: usize, split: Split) -> [usize; 3] {
        let of = |p| data.rows(task, split).iter().filter(|&&i| table.presence(data, i) == p).count();
        [Presence::Complete, Presence::ImageOnly, Presence::TextOnly].map(of)
    }

    #[test]
    fn int_of_n_eta_items_of_each_task_and_split_lose_a_modality() {
        let data = data([[11, 7, 3], [20, 0, 1]]);
        let table = MissingTable::draw(&data, 0.7, MissingKind::Both, 0).unwrap();
        assert_eq!(counts(&table, &data, 0, Split::Train), [4, 4, 3]);
        assert_eq!(counts(&table, &data, 0, Split::Val), [3, 2, 2]);
        assert_eq!(counts(&table, &data, 0, Split::Test), [1, 1, 1]);
        assert_eq!(counts(&table, &data, 1, Split::Train), [6, 7, 7]);
        assert_eq!(counts(&table, &data, 1, Split::Test), [1, 0, 0]);
        let text = MissingTable::draw(&data, 0.7, MissingKind::Text, 0).unwrap();
        assert_eq!(counts(&text, &data, 1, Split::Train), [6, 14, 0]);
        let image = MissingTable::draw(&data, 1.0, MissingKind::Image, 0).unwrap();
        assert_eq!(counts(&image, &data, 1, Split::Train), [0, 0, 20]);
        assert!(MissingTable::draw(&data, 1.5, MissingKind::Image, 0).is_err());
    }

    #[test]
    fn the_seed_decides_and_nothing_else_does() {
        let small = data([[11, 7, 3], [20, 0, 1]]);
        let draw = |data: &Dataset, seed| MissingTable::draw(data, 0.5, MissingKind::Both, seed).unwrap();
        assert_eq!(draw(&small, 3), draw(&small, 3));
        assert_ne!(draw(&small, 3).items, draw(&small, 4).items);
        // More items in task 0 change nothing in task 1.
        let large = data([[30, 7, 3], [20, 0, 1]]);
        let task_1 = |data: &Dataset| data.rows(1, Split::Train).iter().map(|&i| draw(data, 3).presence(data, i)).collect::<Vec<_>>();
        assert_eq!(task_1(&small), task_1(&large));
    }

    #[test]
    fn a_stored_table_reads_back_and_another_data_sets_is_refused() {
        let data = data([[11, 7, 3], [20, 0, 1]]);
        let table = MissingTable::draw(&data, 0.7, MissingKind::Both, 5).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing.json");
        table.write(&path).unwrap();
        assert_eq!(MissingTable::read(&path, &data).unwrap(), table);
        let other = Dataset::new(data.dir, data.name, data.multi_label, data.tasks, data.items[..3].to_vec());
        assert!(MissingTable::read(&path, &other).unwrap_err().to_string().contains("another data set"));
    }

    #[test]
    fn an_item_without_words_is_image_only() {
        let mut data = data([[1, 0, 0], [0, 0, 0]]);
        data.items[0].text = " ".into();
        let table = MissingTable { eta: 1.0, kind: MissingKind::Image, seed: 0, items: BTreeMap::from([(0, Presence::TextOnly)]) };
        assert_eq!(table.presence(&data, 0), Presence::ImageOnly);
    }
}
