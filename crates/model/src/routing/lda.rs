//! The metric of class statistics: the probability of a task is the sum of its classes' probabilities under linear
//! discriminant analysis over the classes of all resident sessions (ROUTING.md 7).
use std::ops::Range;
use std::sync::Arc;

use super::plain::PlainRule;
use super::typicality::OwnFits;
use super::{KeyAverage, KeyChoice, NotPositiveDefinite, SessionKeys, TaskMetric, TaskRule, TaskScore};
use crate::discriminant::{Discriminant, Linear, Statistics};
use crate::method::selection::softmax;
use delo_kernels::Isa;
use delo_kernels::elementwise::dot;

/// λ of the ridge of [`Discriminant`], chosen on the val splits of Emoji-CMML.
const RIDGE: f64 = 2.0;

/// The most products of numbers that finding the calibration samples of all tasks may take, some tenths of a
/// second: all of them up to about 70 tasks of 10 classes.
const CALIBRATION_PRODUCTS: usize = 1 << 32;

/// The metric of class statistics.
pub(super) struct Lda;

/// The logits z of the classes of one session by its own statistics, before any temperature.
///
/// # Errors
/// The scatter of the session is not positive definite.
pub fn session_logits(statistics: Statistics<'_>) -> Result<Linear, NotPositiveDefinite> {
    let width = statistics.means.len() / statistics.counts.len().max(1);
    Ok(Discriminant::of(&[statistics], width, RIDGE)?.classes(statistics.means))
}

/// P(task | φ) = Σ P(c | φ) over the classes c of the task, where P(c | φ) ∝ exp(z_c / τ) / C_k over the classes
/// of all tasks, z are the logits of [`Discriminant`], and C_k is the number of classes of the class's task: before
/// the sample is seen, every task is as likely as any other, however many classes it has.
#[derive(Debug)]
struct LdaRule {
    isa: Isa,
    width: usize,
    /// The weights of z / τ, task by task, `[classes, width]`.
    weights: Vec<f32>,
    /// The biases of z / τ − ln C_k, `[classes]`.
    biases: Vec<f32>,
    /// The number of classes of each task, `[tasks]`.
    classes: Vec<usize>,
    /// The weight `[width]` and the bias of z / τ of the mean signal of all sessions.
    mean: (Vec<f32>, f32),
    /// How the fits of each task's own samples are distributed.
    own_fits: Vec<Option<OwnFits>>,
    /// The cosines with the task keys, which stand beside the probabilities.
    cosines: PlainRule,
}

/// What the rule reads of one session.
struct Session<'a> {
    /// The mean signal, `[width]`.
    key: &'a [f32],
    statistics: Statistics<'a>,
    /// τ of the session, where it has one.
    temperature: Option<f32>,
    /// The signals of the calibration samples, `[samples, width]`.
    calibration: &'a [f32],
}

impl TaskMetric for Lda {
    fn statistics(&self) -> &'static str {
        "class means"
    }

    /// Requires the mean key, the second moment and the class means of the signal.
    fn knows(&self, session: &SessionKeys, choice: KeyChoice) -> bool {
        read(session, choice).is_some()
    }

    fn rule(&self, sessions: &[&SessionKeys], choice: KeyChoice) -> Result<Arc<dyn TaskRule>, NotPositiveDefinite> {
        let sessions: Vec<Session<'_>> = sessions.iter().filter_map(|session| read(session, choice)).collect();
        Ok(Arc::new(LdaRule::new(&sessions)?))
    }
}

fn read(session: &SessionKeys, KeyChoice { signal, .. }: KeyChoice) -> Option<Session<'_>> {
    Some(Session {
        key: session.key(signal, KeyAverage::Mean)?,
        statistics: session.statistics(signal)?,
        temperature: session.classes.temperature,
        calibration: session.calibration.get(&signal).map_or(&[], Vec::as_slice),
    })
}

impl LdaRule {
    /// The rule over sessions, solved in f64 and kept in f32.
    ///
    /// # Errors
    /// See [`Discriminant::of`].
    fn new(sessions: &[Session<'_>]) -> Result<Self, NotPositiveDefinite> {
        let width = sessions.first().map_or(0, |session| session.key.len());
        let statistics: Vec<Statistics<'_>> = sessions.iter().map(|session| session.statistics).collect();
        let metric = Discriminant::of(&statistics, width, RIDGE)?;
        let temperature = temperature(sessions);
        let linear = metric.classes(&statistics.iter().flat_map(|session| session.means).copied().collect::<Vec<_>>());
        let mean = metric.classes(&mean_signal(sessions, width));
        let classes: Vec<usize> = statistics.iter().map(|session| session.counts.len()).collect();
        let priors = classes.iter().flat_map(|&n| std::iter::repeat_n(-(n as f64).ln(), n));
        let keys: Vec<&[f32]> = sessions.iter().map(|session| session.key).collect();
        let mut rule = Self {
            isa: Isa::detect(),
            width,
            weights: linear.weights.into_iter().map(|x| (x / temperature) as f32).collect(),
            biases: linear.biases.into_iter().zip(priors).map(|(x, prior)| (x / temperature + prior) as f32).collect(),
            classes,
            mean: (
                mean.weights.into_iter().map(|x| (x / temperature) as f32).collect(),
                (mean.biases.iter().sum::<f64>() / temperature) as f32,
            ),
            own_fits: Vec::new(),
            cosines: PlainRule::new(&keys),
        };
        // Solved in f64, a number may be too large for f32.
        if [&rule.weights, &rule.biases, &rule.mean.0].into_iter().flatten().chain([&rule.mean.1]).any(|x| !x.is_finite()) {
            return Err(NotPositiveDefinite);
        }
        rule.own_fits = sessions.iter().enumerate().map(|(task, session)| rule.own_fits(task, session.calibration)).collect();
        Ok(rule)
    }

    /// The distribution of the fits of a task's own samples, from its calibration samples `[samples, width]`: of
    /// those that the rule gives to the task, as it does with the samples whose typicality is asked for. Where
    /// these are few, or too many products would find them, of all calibration samples: among these are some that
    /// the rule gives to other tasks, whose fit is low, so that less is rejected than asked for.
    fn own_fits(&self, task: usize, calibration: &[f32]) -> Option<OwnFits> {
        let signals = || calibration.chunks_exact(self.width.max(1));
        let products = self.classes.len() * self.weights.len();
        // At even distances: neighbours in a data set may be of one class.
        let affordable = CALIBRATION_PRODUCTS / products.max(1);
        let step = signals().count().div_ceil(affordable.max(1)).max(1);
        let own = signals().step_by(step).take(affordable).filter_map(|signal| {
            let logits = self.logits(0..self.biases.len(), signal);
            let probabilities = self.probabilities(logits.clone());
            let given = probabilities.iter().all(|&other| other <= probabilities[task]);
            given.then(|| self.fits(&logits, signal)[task])
        });
        OwnFits::of(&own.collect::<Vec<_>>()).or_else(|| {
            let first: usize = self.classes[..task].iter().sum();
            let classes = first..first + self.classes[task];
            let fit = |signal: &[f32]| best(&self.logits(classes.clone(), signal)) - self.logit_of_mean(signal);
            OwnFits::of(&signals().map(fit).collect::<Vec<_>>())
        })
    }

    /// The probability of each task from the logits of all classes.
    fn probabilities(&self, mut logits: Vec<f32>) -> Vec<f32> {
        softmax(&mut logits);
        self.by_task(&logits).map(|classes| classes.iter().sum()).collect()
    }

    /// The part of each task of some numbers of all classes.
    fn by_task<'a>(&'a self, mut rest: &'a [f32]) -> impl Iterator<Item = &'a [f32]> {
        self.classes.iter().map(move |&n| {
            let (task, others) = rest.split_at(n);
            rest = others;
            task
        })
    }

    /// How well a sample fits each task: the logarithm of the ratio of two densities, at the best class of the
    /// task and at the mean of all sessions, up to a constant of the task.
    fn fits(&self, logits: &[f32], signal: &[f32]) -> Vec<f32> {
        let mean = self.logit_of_mean(signal);
        self.by_task(logits).map(|classes| best(classes) - mean).collect()
    }

    /// z / τ of a class whose mean is that of all sessions.
    fn logit_of_mean(&self, signal: &[f32]) -> f32 {
        let (weight, bias) = &self.mean;
        self.isa.run(
            #[inline(always)]
            || bias + dot(weight, signal),
        )
    }

    /// The logits z / τ of some classes for a signal `[width]`.
    fn logits(&self, classes: Range<usize>, signal: &[f32]) -> Vec<f32> {
        let mut logits = self.biases[classes.clone()].to_vec();
        let weights = &self.weights[classes.start * self.width..classes.end * self.width];
        self.isa.run(
            #[inline(always)]
            || {
                for (logit, weight) in logits.iter_mut().zip(weights.chunks_exact(self.width.max(1))) {
                    *logit += dot(weight, signal);
                }
            },
        );
        logits
    }
}

fn best(logits: &[f32]) -> f32 {
    logits.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// The mean signal of the samples of all sessions, `[width]`.
fn mean_signal(sessions: &[Session<'_>], width: usize) -> Vec<f32> {
    let total: f64 = sessions.iter().map(|session| session.statistics.samples()).sum();
    let mut mean = vec![0f64; width];
    for session in sessions {
        let share = session.statistics.samples() / total;
        mean.iter_mut().zip(session.key).for_each(|(mean, &x)| *mean += share * f64::from(x));
    }
    mean.into_iter().map(|x| x as f32).collect()
}

/// τ of the rule: the mean of the sessions' temperatures in the logarithm, weighted by their samples; of those that
/// have one, and 1 where none has.
fn temperature(sessions: &[Session<'_>]) -> f64 {
    let (mut samples, mut sum) = (0.0, 0.0);
    for session in sessions {
        let Some(temperature) = session.temperature else { continue };
        let n = session.statistics.samples();
        samples += n;
        sum += n * f64::from(temperature).ln();
    }
    if samples > 0.0 { (sum / samples).exp() } else { 1.0 }
}

impl TaskRule for LdaRule {
    fn scores(&self, signal: &[f32]) -> Vec<TaskScore> {
        let logits = self.logits(0..self.biases.len(), signal);
        let typicalities = self.fits(&logits, signal).into_iter().zip(&self.own_fits);
        let typicalities: Vec<Option<f32>> = typicalities.map(|(fit, own)| own.map(|own| own.share_below(fit))).collect();
        let scores = self.probabilities(logits).into_iter().zip(self.cosines.scores(signal)).zip(typicalities);
        let score = |((p, TaskScore { cosine, .. }), typicality)| TaskScore { score: p, cosine, probability: Some(p), typicality };
        scores.map(score).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::{ClassStatistics, KeySignal};

    const CHOICE: KeyChoice = KeyChoice { signal: KeySignal::Pooled, average: KeyAverage::Mean };

    /// A session in two dimensions; the scatter within each of its classes is the unit matrix.
    fn session(means: &[[f32; 2]], temperature: f32) -> SessionKeys {
        let n = means.len() as f32;
        let mean = |f: &dyn Fn(&[f32; 2]) -> f32| means.iter().map(f).sum::<f32>() / n;
        let moment = vec![1.0 + mean(&|m| m[0] * m[0]), mean(&|m| m[0] * m[1]), 1.0 + mean(&|m| m[1] * m[1])];
        SessionKeys {
            mean: [(KeySignal::Pooled, vec![mean(&|m| m[0]), mean(&|m| m[1])])].into(),
            moments: [(KeySignal::Pooled, moment)].into(),
            classes: ClassStatistics {
                counts: vec![1.0; means.len()],
                means: [(KeySignal::Pooled, means.concat())].into(),
                temperature: Some(temperature),
            },
            ..SessionKeys::default()
        }
    }

    fn probabilities(sessions: &[&SessionKeys], signal: [f32; 2]) -> Vec<f32> {
        let rule = Lda.rule(sessions, CHOICE).unwrap();
        rule.scores(&signal).into_iter().filter_map(|task| task.probability).collect()
    }

    #[test]
    fn a_task_has_the_sum_of_its_classes_probabilities() {
        let (one, two) = (session(&[[1.0, 0.0], [0.0, 1.0]], 1.0), session(&[[-1.0, 0.0]], 1.0));
        let found = probabilities(&[&one, &two], [0.5, 0.25]);
        // M = I + 2 I: the logits are μ·φ/3 − ‖μ‖²/6, and all ‖μ‖ = 1. A class of the first task has half its prior.
        let exp = [0.5f32 / 3.0, 0.25 / 3.0, -0.5 / 3.0].map(f32::exp);
        let one = (exp[0] + exp[1]) / 2.0;
        let expected = [one / (one + exp[2]), exp[2] / (one + exp[2])];
        assert!((found[0] - expected[0]).abs() < 1e-6 && (found[1] - expected[1]).abs() < 1e-6, "{found:?}");
        assert!((found.iter().sum::<f32>() - 1.0).abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn typicality_is_the_share_of_the_own_samples_that_fit_less_well_of_those_that_come_to_the_task() {
        // M = 3 I and the mean of both sessions is 0: the fit to the class at (1, 0) is a third of the first value,
        // and a constant. The samples at -9 go to the other task and do not count.
        let (mut one, two) = (session(&[[1.0, 0.0]], 1.0), session(&[[-1.0, 0.0]], 1.0));
        let values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, -9.0, -9.0, -9.0f32];
        one.calibration.insert(KeySignal::Pooled, values.iter().flat_map(|&x| [x, 0.5]).collect());
        let rule = Lda.rule(&[&one, &two], CHOICE).unwrap();
        let typicality = |x: f32| {
            let scores = rule.scores(&[x, 1.0]);
            assert_eq!(scores[1].typicality, None, "a session without calibration samples");
            scores[0].typicality.unwrap()
        };
        // The own samples have mean 5 and variance 7.5.
        for (standard, share) in [(0.0, 0.5), (-1.644_854, 0.05), (1.0, 0.841_345)] {
            let found = typicality(5.0 + standard * 7.5f32.sqrt());
            assert!((found - share).abs() < 1e-4, "{standard}: {found}");
        }
    }

    #[test]
    fn a_higher_temperature_draws_the_probabilities_together() {
        let sessions = |t| (session(&[[2.0, 0.0]], t), session(&[[-2.0, 0.0]], t));
        let best = |(one, two): (SessionKeys, SessionKeys)| probabilities(&[&one, &two], [1.0, 0.0])[0];
        let (sharp, flat) = (best(sessions(1.0)), best(sessions(4.0)));
        assert!(sharp > flat && flat > 0.5, "{sharp} {flat}");
    }

    #[test]
    fn a_session_without_a_temperature_leaves_that_of_the_others() {
        let (one, mut two) = (session(&[[2.0, 0.0]], 4.0), session(&[[-2.0, 0.0]], 4.0));
        let fitted = probabilities(&[&one, &two], [1.0, 0.0]);
        two.classes.temperature = None;
        assert_eq!(probabilities(&[&one, &two], [1.0, 0.0]), fitted);
    }

    #[test]
    fn statistics_that_leave_the_range_of_f32_are_refused() {
        let (one, mut two) = (session(&[[1.0, 0.0]], 1.0), session(&[[-1.0, 0.0], [0.0, 1.0]], 1.0));
        two.classes.counts[1] = 0.0;
        if let Some(means) = two.classes.means.get_mut(&KeySignal::Pooled) {
            means[2..].fill(1e38);
        }
        assert!(Lda.rule(&[&one, &two], CHOICE).is_err());
    }

    #[test]
    fn a_session_without_class_means_is_not_known() {
        let whole = session(&[[1.0, 0.0]], 1.0);
        assert!(Lda.knows(&whole, CHOICE));
        assert!(!Lda.knows(&SessionKeys { classes: ClassStatistics::default(), ..whole.clone() }, CHOICE));
        assert!(!Lda.knows(&SessionKeys { moments: [].into(), ..whole }, CHOICE));
    }
}
