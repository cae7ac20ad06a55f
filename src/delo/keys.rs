//! Task keys: how the task of a sample is told (METHOD.md 4, ROUTING.md 2).
use std::collections::BTreeMap;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

/// A signal of the frozen backbone, from which the task is told. Written `mean@0`, `cls@6`, `pooled`, `parts@3`; `@l` is the state
/// entering layer l, `@L` the state after the last layer (before the final layer norm).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeySignal {
    /// (q^v + q^t) / 2, proxies in place of what is missing. `[d]`
    MeanQuery { layer: usize },
    /// The text CLS. `[d]`
    TextCls { layer: usize },
    /// The pooler's output. `[d]`
    Pooled,
    /// The four parts and the modality pattern. `[4 d + 3]`
    Parts { layer: usize },
}

/// How a key is drawn from a session's signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum KeyAverage {
    /// key ← β·key + (1 − β)·mean of the batch, while the task trains.
    Ema,
    /// The plain mean over the session.
    Mean,
}

/// All signals of some samples: name of the signal (as displayed) → `[samples, width]`.
pub type Signals = BTreeMap<String, Tensor>;
