//! Task keys: the statistics of a session by which tasks are decided (METHOD.md 4, ROUTING.md 2).
use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use candle_core::{DType, Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::discriminant::Statistics;

/// A signal of the frozen backbone, by which the task is decided. It is written `mean@0`, `cls@6`, `pooled`,
/// `parts@3`, `summary` or `parts@3+pooled`; `@l` is the state that enters layer l, and `@L`, with L the number of layers, the
/// state after the last layer, before the final layer norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum KeySignal {
    /// (q^v + q^t) / 2; the query of a missing modality is replaced by its proxy. `[d]`
    MeanQuery {
        /// The layer that the state enters.
        layer: usize,
    },
    /// The state of the text CLS. `[d]`
    TextCls {
        /// The layer that the state enters.
        layer: usize,
    },
    /// The pooler's output. `[d]`
    Pooled,
    /// The mean over text tokens, the mean over patches, the text CLS and the image CLS, each scaled to
    /// length 1, then the one-hot modality pattern. The mean of a missing modality is zero. `[4 d + 3]`
    Parts {
        /// The layer that the state enters.
        layer: usize,
    },
    /// The mean over text tokens and the mean over patches after the last layer, and the pooler's output,
    /// each scaled to length 1, then the one-hot modality pattern. The mean of a missing modality is zero.
    /// `[3 d + 3]`
    Summary,
    /// The four vectors of [`Self::Parts`] and the pooler's output, scaled to length 1, then the one-hot
    /// modality pattern. `[5 d + 3]`, or `[width + 3]` where the five vectors are projected.
    PartsPooled {
        /// The layer that the state of the four parts enters.
        layer: usize,
        /// The number of values that the `5 d` values of the vectors are projected to ([`super::projection::project`]);
        /// `None` where they are not.
        width: Option<NonZeroU16>,
    },
}

impl KeySignal {
    /// The layer that its name gives: the state that enters it is read. `None` where it gives none.
    pub fn layer(self) -> Option<usize> {
        match self {
            Self::MeanQuery { layer } | Self::TextCls { layer } | Self::Parts { layer } | Self::PartsPooled { layer, .. } => Some(layer),
            Self::Pooled | Self::Summary => None,
        }
    }

    /// The number of values in the signal of one sample, for a backbone of width `hidden`.
    pub fn width(self, hidden: usize) -> usize {
        match self {
            Self::Parts { .. } => 4 * hidden + 3,
            Self::Summary => 3 * hidden + 3,
            Self::PartsPooled { width, .. } => width.map_or(5 * hidden, |width| width.get().into()) + 3,
            _ => hidden,
        }
    }

    /// The signal that [`Metric::Lda`] decides by, unless another is chosen, on a backbone of `layers` layers of width `hidden`: the parts of half
    /// the layers and the pooled output. Where they are wider than 1,536 values, they are projected to 1,024, so
    /// that the second moment takes 2 MiB.
    pub fn standard(layers: usize, hidden: usize) -> Self {
        const WIDEST: usize = 1536;
        let width = if 5 * hidden > WIDEST { NonZeroU16::new(1024) } else { None };
        Self::PartsPooled { layer: layers / 2, width }
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
            Self::PartsPooled { layer, width: None } => write!(f, "parts@{layer}+pooled"),
            Self::PartsPooled { layer, width: Some(width) } => write!(f, "parts@{layer}+pooled:{width}"),
        }
    }
}

impl FromStr for KeySignal {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is no key signal: write mean@LAYER, cls@LAYER, parts@LAYER, pooled, summary, \
             parts@LAYER+pooled or parts@LAYER+pooled:WIDTH"
            )
        };
        match text {
            "pooled" => return Ok(Self::Pooled),
            "summary" => return Ok(Self::Summary),
            _ => {}
        }
        let (kind, layer) = text.split_once('@').ok_or_else(wrong)?;
        if let Some((layer, width)) = layer.split_once("+pooled") {
            let layer = layer.parse().map_err(|_| wrong())?;
            let width = match width.strip_prefix(':') {
                Some(width) => Some(width.parse().map_err(|_| wrong())?),
                None if width.is_empty() => None,
                None => return Err(wrong()),
            };
            return if kind == "parts" { Ok(Self::PartsPooled { layer, width }) } else { Err(wrong()) };
        }
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

/// How a key is averaged from the signals of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyAverage {
    /// The exponential moving average while the task trains: key ← β·key + (1 − β)·mean of the batch.
    Ema,
    /// The mean over all samples of the session.
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

/// How a sample's signal is compared with what the sessions store. A greater metric decides better, and needs
/// more statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The cosine.
    Plain,
    /// The cosine in the metric of the resident sessions' second moments.
    Whitened,
    /// The probability of the task: linear discriminant analysis over the classes of the resident sessions.
    #[default]
    Lda,
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::Whitened => "whitened",
            Self::Lda => "lda",
        })
    }
}

impl Metric {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Plain, Self::Whitened, Self::Lda];
}

impl FromStr for Metric {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        Self::ALL.into_iter().find(|m| m.to_string() == text).ok_or_else(|| format!("{text:?} is no metric: give plain, whitened or lda"))
    }
}

/// Signals of some samples, by their names, `[samples, width]` each.
pub type Signals = BTreeMap<KeySignal, Tensor>;

/// The classes of a session: how many samples each has, and the means of their signals (ROUTING.md 7).
///
/// A sample with n labels counts 1/n for each of them. The samples of a multi-label session that have no label
/// are a class of their own, after the others; a session without such samples has no such class.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct ClassStatistics {
    /// Samples of each class, `[classes]`, 0 or more; empty where the session stores no classes.
    pub counts: Vec<f32>,
    /// The mean signal of each class, class by class, `[classes, width]` for each signal.
    pub means: BTreeMap<KeySignal, Vec<f32>>,
    /// τ: the temperature of the session's class probabilities, above 0; `None` where the session had too few samples to
    /// fit one.
    pub temperature: Option<f32>,
}

/// The keys, second moments and class statistics of a session, by their signals.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SessionKeys {
    /// Means over all samples, `[width]` each.
    pub mean: BTreeMap<KeySignal, Vec<f32>>,
    /// Exponential moving averages, `[width]` each.
    pub ema: BTreeMap<KeySignal, Vec<f32>>,
    /// Second moments, the mean of φφᵀ over all samples: the upper triangle row by row,
    /// `[width (width + 1) / 2]` each.
    pub moments: BTreeMap<KeySignal, Vec<f32>>,
    /// The classes. Empty in artifacts of programs before the metric `lda`.
    pub classes: ClassStatistics,
    /// Signals of samples of the session that nothing else of it is computed from, `[samples, width]` each: they
    /// say how typical of the task a new sample is ([`TaskScore::typicality`]). Empty in artifacts of programs
    /// before it.
    ///
    /// [`TaskScore::typicality`]: super::TaskScore::typicality
    pub calibration: BTreeMap<KeySignal, Vec<f32>>,
}

impl SessionKeys {
    /// The means of all signals; the second moments and class statistics of the signals in `detailed`. There are
    /// no moving averages yet. `weights` holds each sample's share of each class ([`ClassStatistics`]),
    /// `[samples, classes]`; without it there are no class statistics.
    ///
    /// # Errors
    /// A signal of `detailed` is not among `signals`, or a tensor operation fails.
    pub fn of(signals: &Signals, detailed: &[KeySignal], weights: Option<&Tensor>) -> Result<Self> {
        let mut keys = Self::default();
        for (signal, values) in signals {
            keys.mean.insert(*signal, values.mean(0)?.to_vec1()?);
        }
        for signal in detailed {
            let values = signals.get(signal).ok_or_else(|| candle_core::Error::Msg(format!("signal {signal} was not computed")))?;
            let (samples, width) = values.dims2()?;
            let moment = (values.t()?.matmul(values)? / samples as f64)?.to_vec2::<f32>()?;
            keys.moments.insert(*signal, moment.iter().enumerate().flat_map(|(i, row)| row[i..width].iter().copied()).collect());
            if let Some(weights) = weights {
                let counts = weights.sum(0)?;
                let sums = weights.t()?.matmul(values)?;
                // A class without samples has mean 0, and no weight.
                let means = sums.broadcast_div(&counts.maximum(f64::from(f32::MIN_POSITIVE))?.unsqueeze(1)?)?;
                keys.classes.counts = counts.to_vec1()?;
                keys.classes.means.insert(*signal, means.flatten_all()?.to_vec1()?);
            }
        }
        Ok(keys)
    }

    /// One step of the moving averages: key ← β·key + (1 − β)·mean of the batch's signals. The mean of the
    /// first batch is the first key (METHOD.md 4). `batch` holds the rows of `signals` that are in the batch.
    ///
    /// # Errors
    /// A row is out of range, or a tensor operation fails.
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

    /// The class statistics on a signal, with its second moment; `None` where the session does not store them.
    pub fn statistics(&self, signal: KeySignal) -> Option<Statistics<'_>> {
        let (moment, means) = (self.moments.get(&signal)?, self.classes.means.get(&signal)?);
        Some(Statistics { moment, counts: &self.classes.counts, means })
    }

    /// What the session stores, for messages: `mean keys of pooled, summary; second moment of summary`.
    pub fn held(&self) -> String {
        let kinds = [
            ("mean keys", &self.mean),
            ("ema keys", &self.ema),
            ("second moment", &self.moments),
            ("class means", &self.classes.means),
            ("calibration samples", &self.calibration),
        ];
        let names = |map: &BTreeMap<KeySignal, Vec<f32>>| {
            let mut names: Vec<String> = map.keys().map(KeySignal::to_string).collect();
            names.sort();
            names.join(", ")
        };
        let held = kinds.iter().filter(|(_, map)| !map.is_empty()).map(|(kind, map)| format!("{kind} of {}", names(map)));
        held.collect::<Vec<_>>().join("; ")
    }

    /// The key of a signal, `[width]`, averaged in this way; `None` where the session does not store it.
    pub fn key(&self, signal: KeySignal, average: KeyAverage) -> Option<&[f32]> {
        let keys = match average {
            KeyAverage::Ema => &self.ema,
            KeyAverage::Mean => &self.mean,
        };
        keys.get(&signal).map(Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn every_signal_average_and_metric_is_read_by_the_name_that_it_is_written_by() {
        let signals = [
            (KeySignal::MeanQuery { layer: 0 }, "mean@0"),
            (KeySignal::TextCls { layer: 6 }, "cls@6"),
            (KeySignal::Parts { layer: 3 }, "parts@3"),
            (KeySignal::Pooled, "pooled"),
            (KeySignal::Summary, "summary"),
            (KeySignal::PartsPooled { layer: 3, width: None }, "parts@3+pooled"),
            (KeySignal::PartsPooled { layer: 6, width: NonZeroU16::new(1024) }, "parts@6+pooled:1024"),
        ];
        for (signal, name) in signals {
            assert_eq!((signal.to_string().as_str(), name.parse()), (name, Ok(signal)));
            assert_eq!(serde_json::to_value(signal).unwrap(), name);
            assert_eq!(serde_json::from_value::<KeySignal>(name.into()).unwrap(), signal);
        }
        for (average, name) in [(KeyAverage::Ema, "ema"), (KeyAverage::Mean, "mean")] {
            assert_eq!((average.to_string().as_str(), name.parse()), (name, Ok(average)));
        }
        for (metric, name) in [(Metric::Plain, "plain"), (Metric::Whitened, "whitened"), (Metric::Lda, "lda")] {
            assert_eq!((metric.to_string().as_str(), name.parse()), (name, Ok(metric)));
        }
    }

    #[test]
    fn a_name_that_is_none_is_refused_with_those_that_there_are() {
        for name in
            ["", "mean", "mean@", "cls@-1", "other@1", "pooled@1", "parts@3+", "parts@3+pooled:0", "parts@3+pooled:", "cls@3+pooled"]
        {
            let refusal = name.parse::<KeySignal>().unwrap_err();
            let names = "mean@LAYER, cls@LAYER, parts@LAYER, pooled, summary, parts@LAYER+pooled or parts@LAYER+pooled:WIDTH";
            assert_eq!(refusal, format!("{name:?} is no key signal: write {names}"));
        }
        assert_eq!("median".parse::<KeyAverage>().unwrap_err(), "\"median\" is no average of keys: give ema or mean");
        assert_eq!("euclid".parse::<Metric>().unwrap_err(), "\"euclid\" is no metric: give plain, whitened or lda");
    }

    #[test]
    fn a_signal_has_the_layer_and_the_width_of_its_definition() {
        let of = |name: &str| name.parse::<KeySignal>().map(|signal| (signal.layer(), signal.width(24))).unwrap();
        assert_eq!(of("mean@0"), (Some(0), 24));
        assert_eq!(of("cls@6"), (Some(6), 24));
        assert_eq!(of("pooled"), (None, 24));
        assert_eq!(of("parts@3"), (Some(3), 4 * 24 + 3));
        assert_eq!(of("summary"), (None, 3 * 24 + 3));
    }

    #[test]
    fn the_plain_signals_are_those_of_every_layer_and_the_pooled_output() {
        let names: Vec<String> = KeySignal::plain(2).iter().map(KeySignal::to_string).collect();
        assert_eq!(names, ["mean@0", "mean@1", "mean@2", "cls@1", "cls@2", "pooled"]);
    }

    fn signals<const N: usize>(rows: &[[f32; 2]; N]) -> Signals {
        Signals::from([(KeySignal::Pooled, Tensor::new(rows, &Device::Cpu).unwrap())])
    }

    #[test]
    fn a_session_stores_the_mean_and_the_mean_square_of_its_samples() {
        let rows = signals(&[[1.0, 2.0], [3.0, 6.0]]);
        let keys = SessionKeys::of(&rows, &[KeySignal::Pooled], None).unwrap();
        assert_eq!(keys.key(KeySignal::Pooled, KeyAverage::Mean), Some([2.0, 4.0].as_slice()));
        assert_eq!(keys.key(KeySignal::Pooled, KeyAverage::Ema), None, "no step was made");
        assert_eq!(keys.moments[&KeySignal::Pooled], [5.0, 10.0, 20.0], "[[5, 10], [10, 20]]");
        assert!(SessionKeys::of(&rows, &[], None).unwrap().moments.is_empty());
        let refusal = SessionKeys::of(&rows, &[KeySignal::Summary], None).unwrap_err();
        assert!(refusal.to_string().starts_with("signal summary was not computed"), "{refusal}");
    }

    #[test]
    fn the_moving_average_begins_with_the_first_batch_and_keeps_beta_of_itself_in_each_step() {
        let rows = signals(&[[1.0, 2.0], [3.0, 6.0], [8.0, 0.0]]);
        let mut keys = SessionKeys::default();
        keys.moving_average_step(&rows, &[0, 1], 0.75).unwrap();
        assert_eq!(keys.ema[&KeySignal::Pooled], [2.0, 4.0]);
        keys.moving_average_step(&rows, &[2], 0.75).unwrap();
        assert_eq!(keys.ema[&KeySignal::Pooled], [3.5, 3.0]);
        assert!(keys.moving_average_step(&rows, &[3], 0.75).is_err(), "there is no such row");
    }

    #[test]
    fn a_session_says_what_it_stores() {
        let mut keys = SessionKeys::default();
        assert_eq!(keys.held(), "");
        keys.mean = BTreeMap::from([(KeySignal::Summary, vec![0.0]), (KeySignal::Pooled, vec![0.0])]);
        keys.moments = BTreeMap::from([(KeySignal::Summary, vec![0.0])]);
        assert_eq!(keys.held(), "mean keys of pooled, summary; second moment of summary");
    }
}
