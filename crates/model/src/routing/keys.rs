//! Task keys: what a session stores so that its samples can be told from those of other tasks (METHOD.md 4, ROUTING.md 2).
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Result, Tensor};
use serde::{Deserialize, Serialize};

/// A signal of the frozen backbone, from which the task is told. Written `mean@0`, `cls@6`, `pooled`, `parts@3`, `summary`; `@l` is the state
/// entering layer l, `@L` the state after the last layer (before the final layer norm).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum KeySignal {
    /// (q^v + q^t) / 2, proxies in place of what is missing. `[d]`
    MeanQuery { layer: usize },
    /// The text CLS. `[d]`
    TextCls { layer: usize },
    /// The pooler's output. `[d]`
    Pooled,
    /// The mean over text tokens, the mean over patches, the text CLS and the image CLS, each scaled to length 1, the parts of a missing
    /// modality's mean zero, and the one-hot modality pattern. `[4 d + 3]`
    Parts { layer: usize },
    /// The mean over text tokens and the mean over patches after the last layer, and the pooler's output, each scaled to length 1, the mean
    /// of a missing modality zero, and the one-hot modality pattern. `[3 d + 3]`
    Summary,
}

impl KeySignal {
    /// The layer whose input tells it; `None` where the whole backbone must run.
    pub fn layer(self) -> Option<usize> {
        match self {
            Self::MeanQuery { layer } | Self::TextCls { layer } | Self::Parts { layer } => Some(layer),
            Self::Pooled | Self::Summary => None,
        }
    }

    /// Length of the signal of one sample, for a backbone `hidden` wide.
    pub fn width(self, hidden: usize) -> usize {
        match self {
            Self::Parts { .. } => 4 * hidden + 3,
            Self::Summary => 3 * hidden + 3,
            _ => hidden,
        }
    }

    /// The signals that are as wide as the backbone: `[mean@0 … mean@L, cls@1 … cls@L, pooled]`.
    pub fn plain(layers: usize) -> Vec<Self> {
        let means = (0..=layers).map(|layer| Self::MeanQuery { layer });
        means.chain((1..=layers).map(|layer| Self::TextCls { layer })).chain([Self::Pooled]).collect()
    }
}

impl fmt::Display for KeySignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MeanQuery { layer } => write!(f, "mean@{layer}"),
            Self::TextCls { layer } => write!(f, "cls@{layer}"),
            Self::Pooled => write!(f, "pooled"),
            Self::Parts { layer } => write!(f, "parts@{layer}"),
            Self::Summary => write!(f, "summary"),
        }
    }
}

impl FromStr for KeySignal {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = || format!("{text:?} is no key signal: write mean@LAYER, cls@LAYER, parts@LAYER, pooled or summary");
        match text {
            "pooled" => return Ok(Self::Pooled),
            "summary" => return Ok(Self::Summary),
            _ => {}
        }
        let (kind, layer) = text.split_once('@').ok_or_else(wrong)?;
        let layer = layer.parse().map_err(|_| wrong())?;
        match kind {
            "mean" => Ok(Self::MeanQuery { layer }),
            "cls" => Ok(Self::TextCls { layer }),
            "parts" => Ok(Self::Parts { layer }),
            _ => Err(wrong()),
        }
    }
}

impl From<KeySignal> for String {
    fn from(signal: KeySignal) -> Self {
        signal.to_string()
    }
}

impl TryFrom<String> for KeySignal {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        text.parse()
    }
}

/// How a key is drawn from a session's signals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyAverage {
    /// key ← β·key + (1 − β)·mean of the batch, while the task trains.
    Ema,
    /// The plain mean over the session.
    #[default]
    Mean,
}

impl fmt::Display for KeyAverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ema => "ema",
            Self::Mean => "mean",
        })
    }
}

impl KeyAverage {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Ema, Self::Mean];
}

impl FromStr for KeyAverage {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        Self::ALL.into_iter().find(|a| a.to_string() == text).ok_or_else(|| format!("{text:?} is no average of keys: give ema or mean"))
    }
}

/// How a query is compared with the task keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The cosine itself.
    Plain,
    /// The cosine in the metric of the resident sessions' second moments.
    #[default]
    Whitened,
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::Whitened => "whitened",
        })
    }
}

impl Metric {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Plain, Self::Whitened];
}

impl FromStr for Metric {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        Self::ALL.into_iter().find(|m| m.to_string() == text).ok_or_else(|| format!("{text:?} is no metric: give plain or whitened"))
    }
}

/// Signals of some samples, `[samples, width]` each.
pub type Signals = BTreeMap<KeySignal, Tensor>;

/// What a session stores: its keys and second moments, by their signal.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SessionKeys {
    /// Plain means, `[width]`.
    pub mean: BTreeMap<KeySignal, Vec<f32>>,
    /// Exponential moving averages, `[width]`.
    pub ema: BTreeMap<KeySignal, Vec<f32>>,
    /// Mean φφᵀ: the upper triangle row by row, `[width (width + 1) / 2]`.
    pub moments: BTreeMap<KeySignal, Vec<f32>>,
}

impl SessionKeys {
    /// Means of all signals, and second moments of those in `whitened`. The moving averages start at nothing.
    pub fn of(signals: &Signals, whitened: &[KeySignal]) -> Result<Self> {
        let mut keys = Self::default();
        for (signal, values) in signals {
            keys.mean.insert(*signal, values.mean(0)?.to_vec1()?);
        }
        for signal in whitened {
            let values = signals.get(signal).ok_or_else(|| candle_core::Error::Msg(format!("signal {signal} was not computed")))?;
            let (samples, width) = values.dims2()?;
            let moment = (values.t()?.matmul(values)? / samples as f64)?.to_vec2::<f32>()?;
            keys.moments.insert(*signal, moment.iter().enumerate().flat_map(|(i, row)| row[i..width].iter().copied()).collect());
        }
        Ok(keys)
    }

    /// One step of training: key ← β·key + (1 − β)·mean of the batch's signals; the first batch is the key's start (METHOD.md 4).
    pub fn moving_average_step(&mut self, signals: &Signals, batch: &[usize], beta: f32) -> Result<()> {
        let rows: Vec<u32> = batch.iter().map(|&row| row as u32).collect();
        for (signal, values) in signals {
            let index = Tensor::new(rows.as_slice(), values.device())?;
            let mean: Vec<f32> = values.index_select(&index, 0)?.mean(0)?.to_dtype(DType::F32)?.to_vec1()?;
            match self.ema.get_mut(signal) {
                Some(key) => key.iter_mut().zip(&mean).for_each(|(key, mean)| *key = beta * *key + (1.0 - beta) * mean),
                None => drop(self.ema.insert(*signal, mean)),
            }
        }
        Ok(())
    }

    /// What is stored, for people: `mean keys of pooled, summary; second moment of summary`.
    pub fn held(&self) -> String {
        let kinds = [("mean keys", &self.mean), ("ema keys", &self.ema), ("second moment", &self.moments)];
        let names = |map: &BTreeMap<KeySignal, Vec<f32>>| {
            let mut names: Vec<String> = map.keys().map(KeySignal::to_string).collect();
            names.sort();
            names.join(", ")
        };
        let held = kinds.iter().filter(|(_, map)| !map.is_empty()).map(|(kind, map)| format!("{kind} of {}", names(map)));
        held.collect::<Vec<_>>().join("; ")
    }

    /// The key drawn from a signal in one of the two ways, where the session has it.
    pub fn key(&self, signal: KeySignal, average: KeyAverage) -> Option<&[f32]> {
        let keys = match average {
            KeyAverage::Ema => &self.ema,
            KeyAverage::Mean => &self.mean,
        };
        keys.get(&signal).map(Vec::as_slice)
    }
}
