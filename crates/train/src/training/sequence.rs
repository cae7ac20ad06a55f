//! The sessions of a data set one after another, as `delo train --all` and a benchmark train them: the names
//! of their artifacts, their key rule, and the settings of a session that learns nothing itself.
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::session::settings_of;
use super::settings::{Settings, SettingsError};
use crate::data::Dataset;
use delo_model::partition::{Artifact, KeyRule};
use delo_model::routing::keys::{KeyAverage, KeySignal, Metric};

/// The file name of each session's artifact, in the data set's order: the session's name, in which every
/// character but letters, digits, `-` and `_` is a `-`, with `.safetensors`. Where two would be the same, the
/// later one has the session's id behind the name.
pub fn artifact_names(data: &Dataset) -> Vec<String> {
    let mut names = BTreeSet::new();
    let mut unique = |name: &str, id: u64| {
        let plain = |c: char| if c.is_alphanumeric() || "-_".contains(c) { c } else { '-' };
        let mut name: String = name.chars().map(plain).collect();
        if !names.insert(name.clone()) {
            name = format!("{name}-{id}");
            names.insert(name.clone());
        }
        format!("{name}.safetensors")
    };
    data.tasks.iter().map(|task| unique(&task.name, task.id)).collect()
}

/// What a user says of the task key; what is left out follows from the backbone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeyChoices {
    /// How the key is compared with a sample.
    pub metric: Metric,
    /// The signal of the metrics `lda` and `whitened`, and of the analytic classifier. `None`: `summary`; for
    /// `lda` [`KeySignal::standard`].
    pub key_signal: Option<KeySignal>,
    /// The signal of the metric `plain`.
    pub plain_signal: KeySignal,
    /// The key of the metric `plain`.
    pub plain_average: KeyAverage,
}

impl Default for KeyChoices {
    fn default() -> Self {
        Self { metric: Metric::default(), key_signal: None, plain_signal: KeySignal::Pooled, plain_average: KeyAverage::Mean }
    }
}

impl KeyChoices {
    /// The key rule on a backbone of `layers` layers, `hidden` wide.
    ///
    /// # Errors
    /// A signal of a layer that the backbone does not have.
    pub fn rule(&self, layers: usize, hidden: usize) -> Result<KeyRule, SettingsError> {
        let signal = self.key_signal.unwrap_or_else(|| match self.metric {
            Metric::Lda => KeySignal::standard(layers, hidden),
            Metric::Plain | Metric::Whitened => KeySignal::Summary,
        });
        for (flag, signal) in [("--key-signal", signal), ("--plain-signal", self.plain_signal)] {
            if signal.layer().is_some_and(|layer| layer > layers) {
                let expected = format!("the backbone has layers 0 to {}, and @{layers} after the last", layers.saturating_sub(1));
                return Err(SettingsError { flag, found: signal.to_string(), expected });
            }
        }
        let Self { metric, plain_signal, plain_average, .. } = *self;
        Ok(KeyRule { metric, signal, plain_signal, plain_average, temperature: None })
    }
}

/// The settings of a session that takes over what `learnt` has learnt ([`super::renew`]): those of `learnt`,
/// the share of the head apart, which a residual head does not have.
///
/// # Errors
/// The artifact records no settings that this program knows.
pub fn settings_to_renew(learnt: &Artifact, head_weight: f64) -> Result<Settings, serde_json::Error> {
    let settings = settings_of(learnt)?;
    Ok(if settings.residual { settings } else { Settings { head_weight, ..settings } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Task;

    #[test]
    fn every_session_has_a_file_name_of_its_own() {
        let task = |(id, name): (u64, &str)| Task { id, name: name.to_owned(), labels: vec!["x".to_owned()] };
        let tasks = [(0, "food & drink"), (4, "food - drink"), (7, "a_b")].map(task).to_vec();
        let data = Dataset::new("".into(), "tiny".into(), false, tasks, Vec::new());
        assert_eq!(artifact_names(&data), ["food---drink.safetensors", "food---drink-4.safetensors", "a_b.safetensors"]);
    }

    #[test]
    fn the_signal_follows_from_metric_and_backbone_and_one_beyond_the_last_layer_is_refused() {
        let rule = |metric, signal: Option<&str>| {
            let key_signal = signal.map(|signal| signal.parse().unwrap());
            KeyChoices { metric, key_signal, ..KeyChoices::default() }.rule(6, 8).map(|rule| rule.signal.to_string())
        };
        assert_eq!(rule(Metric::Whitened, None).unwrap(), "summary");
        assert_eq!(rule(Metric::Lda, None).unwrap(), "parts@3+pooled");
        assert_eq!(rule(Metric::Lda, Some("parts@6")).unwrap(), "parts@6");
        let error = rule(Metric::Lda, Some("parts@7")).unwrap_err().to_string();
        assert_eq!(error, "--key-signal parts@7: the backbone has layers 0 to 5, and @6 after the last");
    }
}
