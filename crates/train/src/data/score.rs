//! How good predictions are: accuracy for one label, F1-macro for several (METHOD.md 6).
use serde::{Deserialize, Serialize};

use super::dataset::Label;
use delo_model::input::Presence;
use delo_model::method::selection::top;

/// The prediction of a sample from one value for each class: the class of the largest value (ties to the
/// lower index). With a `threshold` (multi-label; 0 for logits, 0.5 for scores): every class whose value is
/// above it.
pub fn predict(values: &[f32], threshold: Option<f32>) -> Label {
    if let Some(threshold) = threshold {
        return Label::Classes(values.iter().map(|&x| x > threshold).collect());
    }
    Label::Class(top(values, 1).next().map_or(0, |class| class as usize))
}

/// Accuracy, or F1-macro over the classes for multi-label, in percent; `None` without samples. A sample whose
/// prediction is `None` counts as wrong: it went to another task, so that no class of its own is predicted.
pub fn score(predictions: &[Option<&Label>], truth: &[&Label]) -> Option<f64> {
    let mut tally = Tally::default();
    predictions.iter().zip(truth).for_each(|(predicted, truth)| tally.count(*predicted, truth));
    tally.score()
}

/// The counts over some samples from which their score is computed. Tallies add up: that of all samples is the
/// sum of those of their parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    samples: u64,
    /// Samples whose one class is predicted.
    right: u64,
    /// For multi-label: each class.
    classes: Vec<ClassTally>,
}

/// How often one class was predicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ClassTally {
    /// Samples that have the class and whose prediction has it.
    hits: u64,
    /// Samples of which only one of the two has it.
    errors: u64,
}

impl Tally {
    /// Counts a sample in; `None` as its prediction is wrong, or for multi-label no class.
    pub fn count(&mut self, predicted: Option<&Label>, truth: &Label) {
        self.samples += 1;
        match truth {
            Label::Class(_) => self.right += u64::from(predicted == Some(truth)),
            Label::Classes(flags) => {
                if self.classes.len() < flags.len() {
                    self.classes.resize(flags.len(), ClassTally::default());
                }
                let predicts = |class: usize| matches!(predicted, Some(Label::Classes(flags)) if flags[class]);
                for (class, (tally, &has)) in self.classes.iter_mut().zip(flags).enumerate() {
                    match (predicts(class), has) {
                        (true, true) => tally.hits += 1,
                        (false, false) => {}
                        _ => tally.errors += 1,
                    }
                }
            }
        }
    }

    /// Adds each sample of another tally `times` times.
    pub fn add(&mut self, other: &Self, times: u64) {
        self.samples += times * other.samples;
        self.right += times * other.right;
        if self.classes.len() < other.classes.len() {
            self.classes.resize(other.classes.len(), ClassTally::default());
        }
        for (tally, other) in self.classes.iter_mut().zip(&other.classes) {
            tally.hits += times * other.hits;
            tally.errors += times * other.errors;
        }
    }

    /// Accuracy, or F1-macro over the classes for multi-label, in percent; `None` without samples.
    pub fn score(&self) -> Option<f64> {
        if self.samples == 0 {
            return None;
        }
        Some(if self.classes.is_empty() {
            100.0 * self.right as f64 / self.samples as f64
        } else {
            100.0 * self.classes.iter().map(ClassTally::f1).sum::<f64>() / self.classes.len() as f64
        })
    }
}

impl ClassTally {
    /// F1 = 2 tp / (2 tp + fp + fn); 0 where the class neither occurs nor is predicted.
    fn f1(&self) -> f64 {
        let hits = 2.0 * self.hits as f64;
        if self.hits == 0 { 0.0 } else { hits / (hits + self.errors as f64) }
    }
}

/// A figure over all samples and over those of each modality pattern, in percent; `None` where there are no
/// such samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ByPattern {
    /// Of all samples.
    pub all: Option<f64>,
    /// Of those with both modalities.
    pub complete: Option<f64>,
    /// Of those without a text.
    pub image_only: Option<f64>,
    /// Of those without an image.
    pub text_only: Option<f64>,
}

impl ByPattern {
    /// `figure` is called with the indices of all samples, and with those of each pattern.
    pub fn of(presence: &[Presence], figure: impl Fn(&[usize]) -> Option<f64>) -> Self {
        let only = |wanted| figure(&(0..presence.len()).filter(|&i| presence[i] == wanted).collect::<Vec<_>>());
        Self {
            all: figure(&(0..presence.len()).collect::<Vec<_>>()),
            complete: only(Presence::Complete),
            image_only: only(Presence::ImageOnly),
            text_only: only(Presence::TextOnly),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predicts_the_largest_value_or_every_class_above_the_threshold() {
        assert_eq!(predict(&[0.1, 0.7, 0.7, -1.0], None), Label::Class(1));
        assert_eq!(predict(&[0.1, -0.7, 0.0], Some(0.0)), Label::Classes(vec![true, false, false]));
    }

    #[test]
    fn accuracy_counts_a_missing_prediction_as_wrong() {
        let (a, b) = (Label::Class(0), Label::Class(1));
        assert_eq!(score(&[Some(&a), Some(&a), None, Some(&b)], &[&a, &b, &a, &b]), Some(50.0));
        assert_eq!(score(&[], &[]), None);
    }

    #[test]
    fn f1_macro_is_the_mean_of_the_classes() {
        let label = |a, b, c| Label::Classes(vec![a, b, c]);
        let truth = [label(true, false, false), label(true, true, false), label(false, true, false)];
        let guess = [label(true, true, false), label(false, true, false), label(false, true, false)];
        let predictions: Vec<_> = guess.iter().map(Some).collect();
        let truth: Vec<_> = truth.iter().collect();
        // Class 0: 1 hit, 1 error; class 1: 2 hits, 1 error; class 2 never occurs.
        let expected = 100.0 * (2.0 / 3.0 + 4.0 / 5.0 + 0.0) / 3.0;
        assert!((score(&predictions, &truth).unwrap() - expected).abs() < 1e-9);
        // A sample without prediction has none of its classes: class 0 keeps 1 hit and 1 error, class 1 has 3
        // errors.
        let expected = 100.0 * (2.0 / 3.0 + 0.0 + 0.0) / 3.0;
        assert!((score(&[predictions[0], None, None], &truth).unwrap() - expected).abs() < 1e-9);
    }

    #[test]
    fn the_tally_of_samples_is_the_sum_of_their_parts() {
        let label = |a, b| Label::Classes(vec![a, b]);
        for samples in [
            vec![(Some(Label::Class(0)), Label::Class(0)), (None, Label::Class(1)), (Some(Label::Class(1)), Label::Class(1))],
            vec![(Some(label(true, true)), label(true, false)), (None, label(false, true)), (Some(label(true, true)), label(true, true))],
        ] {
            let tally = |samples: &[(Option<Label>, Label)]| {
                let mut tally = Tally::default();
                samples.iter().for_each(|(predicted, truth)| tally.count(predicted.as_ref(), truth));
                tally
            };
            let mut sum = tally(&samples[..1]);
            sum.add(&tally(&samples[1..]), 2);
            let repeated: Vec<_> = samples[1..].iter().chain(&samples).cloned().collect();
            assert_eq!(sum, tally(&repeated));
            assert!(sum.score().is_some_and(|score| score > 0.0 && score < 100.0));
        }
        assert_eq!(Tally::default().score(), None);
    }

    #[test]
    fn figures_are_split_by_pattern() {
        let presence = [Presence::Complete, Presence::TextOnly, Presence::Complete];
        let counts = ByPattern::of(&presence, |rows| (!rows.is_empty()).then_some(rows.len() as f64));
        assert_eq!(counts, ByPattern { all: Some(3.0), complete: Some(2.0), image_only: None, text_only: Some(1.0) });
    }
}
