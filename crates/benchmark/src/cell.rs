//! One cell of a benchmark: all that decides its result.
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::plan::PlanError;
use delo_engine::checkpoint::TextOptions;
use delo_model::MethodKind;
use delo_train::peers::named::{named, names};
use delo_train::training::{KeyChoices, MIXED_HEAD};
use delo_train::{MissingKind, Settings, Split};

/// A method with its settings, data, missing table and seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The name of its folder: `ROW,seed=N`.
    pub name: String,
    /// The name of its row in the table: the cells of a row differ by their seed alone.
    pub row: String,
    /// The name of the plan's table that it comes from.
    pub base: String,
    /// A method that makes partitions (`delo`, `lora`, …) or a peer.
    pub method: String,
    /// The folder of the data set.
    pub data: PathBuf,
    /// A Hugging Face ViLT checkpoint directory; `None`: the one in the program.
    pub backbone: Option<PathBuf>,
    /// Texts may hold special tokens.
    pub special_tokens: bool,
    /// The tokens of the longest text; `None`: as many as the checkpoint has positions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_positions: Option<usize>,
    /// Share of each task's and split's items that lose a modality.
    pub eta: f64,
    /// The modality that they lose.
    pub missing: MissingKind,
    /// The share of each class's groups of training items that the method learns from; `None`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_share: Option<f64>,
    /// Decides the missing table and all that is random in training.
    pub seed: u64,
    /// The splits to evaluate.
    pub splits: Vec<Split>,
    /// The name of the cell whose adapters and heads are taken over: only keys, class statistics and the
    /// share of the head are this cell's own.
    pub adapters_of: Option<String>,
    /// One session over the classes of all tasks, on all items: an upper bound.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub joint: bool,
    /// The hyper-parameters of training.
    pub settings: Settings,
    /// How partitions decide the task.
    pub key: KeyChoices,
    /// The settings that the peer has beside those of training.
    pub peer: Map<String, Value>,
}

/// The settings that a cell which takes over adapters may change: all others are those of their training.
pub const RENEWED: [&str; 5] = ["metric", "key_signal", "plain_signal", "plain_average", "head_weight"];

/// The settings that only methods have which make partitions.
const PARTITION_SETTINGS: [&str; 17] = [
    "aligned_layers",
    "alpha",
    "cross_modal_guide",
    "experts",
    "first_adapted_layer",
    "head_weight",
    "key_beta",
    "key_signal",
    "lambda_align",
    "lambda_con",
    "layout",
    "metric",
    "modality_pools",
    "plain_average",
    "plain_signal",
    "rank",
    "residual",
];

/// Where the data and the checkpoint are that a plan leaves to its user.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// In place of every cell's `data`.
    pub data: Option<PathBuf>,
    /// In place of every cell's `backbone`.
    pub backbone: Option<PathBuf>,
    /// The folder that the paths of the plan are relative to.
    pub relative_to: PathBuf,
    /// Settings over the plan's defaults.
    pub defaults: Map<String, Value>,
    /// Rows of methods that this program does not have are listed, not refused.
    pub list_absent: bool,
}

/// The name in a plan of a method that makes partitions: `NAME_partitions` where a peer has its name.
fn plan_name(method: MethodKind) -> String {
    let name = method.to_string();
    if names().any(|peer| peer == name) { format!("{name}_partitions") } else { name }
}

/// The method that makes partitions under this name in a plan; `None` for peers and names that nothing has.
fn partition_method(name: &str) -> Option<MethodKind> {
    MethodKind::ALL.into_iter().find(|&method| plan_name(method) == name)
}

/// The names in a plan of all methods that make partitions.
fn partition_names() -> String {
    MethodKind::ALL.map(plan_name).join(", ")
}

/// Whether this program has the method.
pub(crate) fn is_known(method: &str) -> bool {
    partition_method(method).is_some() || names().any(|name| name == method)
}

impl Cell {
    /// A cell of a plan's table `base`, whose row is `row`, with these settings, one value each.
    ///
    /// # Errors
    /// [`PlanError`] names the cell and the setting.
    pub fn of(
        base: &str,
        row: &str,
        mut values: Map<String, Value>,
        adapters_of: Option<String>,
        sources: &Sources,
    ) -> Result<Self, PlanError> {
        let mut read = Reader { cell: row, values: &mut values };
        let method: String = read.take("method")?.unwrap_or_else(|| "delo".to_owned());
        let path = |path: PathBuf| sources.relative_to.join(path);
        let data = read.take::<PathBuf>("data")?.map(path);
        let backbone = read.take::<PathBuf>("backbone")?.map(path);
        let seed = read.take("seed")?.unwrap_or(0);
        let special_tokens = read.take("special_tokens")?.unwrap_or(false);
        let text_positions = read.take("text_positions")?;
        let joint = read.take("joint")?.unwrap_or(false);
        let eta = read.take("eta")?.unwrap_or(0.7);
        let missing = read.take("missing")?.unwrap_or(MissingKind::Both);
        let train_share: Option<f64> = read.take("train_share")?;
        let splits: Vec<Split> = read.take("splits")?.unwrap_or_else(|| vec![Split::Val, Split::Test]);
        let head_is_set = read.values.contains_key("head_weight");
        let mut settings: Settings = read.part(
            &json!(Settings {
                method: MethodKind::Lora,
                head_weight: 0.5,
                residual: true,
                cross_modal_guide: false,
                modality_pools: false,
                bf16: true,
                ..Settings::default()
            }),
            &json!(Settings::default()),
        )?;
        settings.seed = seed;
        let key: KeyChoices = read.part(&json!(KeyChoices::default()), &json!(KeyChoices::default()))?;
        let problem = |problem: String| PlanError::Cell { cell: row.to_owned(), problem };
        match partition_method(&method) {
            Some(kind) => {
                settings.method = kind;
                if !head_is_set && !joint {
                    settings.head_weight = MIXED_HEAD;
                }
                if joint && (adapters_of.is_some() || settings.residual || settings.head_weight < 1.0) {
                    return Err(problem(
                        "joint: one session with a head alone: leave out adapters_of, residual and head_weight".to_owned(),
                    ));
                }
                if let Some(key) = values.keys().next() {
                    return Err(problem(format!("{key:?} is no setting of {method}")));
                }
            }
            None if !is_known(&method) => {
                let known = format!("{}, {}", partition_names(), names().collect::<Vec<_>>().join(", "));
                return Err(problem(format!("{method:?} is no method: give one of {known}")));
            }
            None if joint => {
                return Err(problem(format!("{method} learns one session after another: joint goes with {}", partition_names())));
            }
            None if adapters_of.is_some() => {
                return Err(problem(format!("{method} makes no partitions: adapters_of goes with {}", partition_names())));
            }
            None => drop(named(&method, values.clone()).map_err(|e| problem(e.to_string()))?),
        }
        if !(0.0..=1.0).contains(&eta) {
            return Err(problem(format!("eta {eta}: give a share from 0 to 1")));
        }
        if let Some(twice) = splits.iter().enumerate().find(|(i, split)| splits[..*i].contains(split)).map(|(_, split)| *split) {
            return Err(problem(format!("splits: {twice} stands twice")));
        }
        if let Some(share) = train_share.filter(|share| !(*share > 0.0 && *share <= 1.0)) {
            return Err(problem(format!("train_share {share}: give a share above 0, at most 1")));
        }
        Ok(Self {
            name: format!("{row},seed={seed}"),
            row: row.to_owned(),
            base: base.to_owned(),
            method,
            data: sources
                .data
                .clone()
                .or(data)
                .ok_or_else(|| problem("no data: name the folder of a data set in the plan, or give --data".to_owned()))?,
            backbone: sources.backbone.clone().or(backbone),
            special_tokens,
            text_positions,
            eta,
            missing,
            train_share,
            seed,
            splits,
            adapters_of,
            joint,
            settings,
            key,
            peer: values,
        })
    }

    /// How the cell's texts are read.
    pub fn texts(&self) -> TextOptions {
        TextOptions { special_tokens: self.special_tokens, positions: self.text_positions }
    }

    /// Whether the cell's method has no such setting although a plan has it: what a partition is, and how it
    /// decides the task, is nothing to a peer.
    pub(crate) fn ignores(&self, setting: &str) -> bool {
        !self.makes_partitions() && PARTITION_SETTINGS.contains(&setting)
    }

    /// Whether the method makes partitions, which a server can load.
    pub fn makes_partitions(&self) -> bool {
        partition_method(&self.method).is_some()
    }
}

/// Takes settings out of a cell's table.
struct Reader<'a> {
    cell: &'a str,
    values: &'a mut Map<String, Value>,
}

impl Reader<'_> {
    fn take<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, PlanError> {
        let read = |value| serde_json::from_value(value).map_err(|e| self.wrong(key, &e));
        self.values.get(key).cloned().map(read).transpose().inspect(|_| drop(self.values.remove(key)))
    }

    /// The settings of one struct, whose names are those of `names`, over its `defaults`.
    fn part<T: DeserializeOwned>(&mut self, names: &Value, defaults: &Value) -> Result<T, PlanError> {
        let mut part = defaults.clone();
        let names = names.as_object().into_iter().flat_map(Map::keys).filter(|name| *name != "seed" && *name != "method");
        for name in names {
            if let Some(value) = self.values.remove(name) {
                part[name] = value;
            }
        }
        serde_path_to_error::deserialize(part).map_err(|e| {
            let key = e.path().to_string();
            self.wrong(&key, &e.into_inner())
        })
    }

    fn wrong(&self, key: &str, problem: &dyn std::fmt::Display) -> PlanError {
        PlanError::Cell { cell: self.cell.to_owned(), problem: format!("{key}: {problem}") }
    }
}
