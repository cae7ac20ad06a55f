//! The partitions resident at one moment, and the task router solved for them. Immutable: a change makes another catalogue.
use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Resident, Trial, TrialMode};
use delo_model::partition::KeyRule;
use delo_model::routing::{KeyAverage, KeyChoice, KeySignal, Metric, SessionKeys, TaskRule, TaskScore};
use delo_model::vilt::Description;

/// Operator's choice over what the artifacts say; `None` leaves it to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoutingRule {
    pub metric: Option<Metric>,
    /// The signal of the metric that decides.
    pub signal: Option<KeySignal>,
    /// How the keys of the plain metric are drawn.
    pub average: Option<KeyAverage>,
}

#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    #[error("no task {0:?} is loaded: leave the task out to let the server choose, or load its partition")]
    UnknownTask(String),
    #[error("no task {0:?} is live, and a version on trial is compared with a live one: load it without a trial")]
    NothingToCompare(String),
    #[error("task {task:?} does not go with those that are loaded: {reason}")]
    Incompatible { task: String, reason: String },
}

/// A task and what the rule says of it for a sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Its name.
    pub task: Arc<str>,
    /// What decides, and the cosine where the rule has one.
    pub score: TaskScore,
}

impl Candidate {
    /// The cosine with the task's key; what decides, where the rule compares with no key.
    pub fn cosine(&self) -> f32 {
        self.score.cosine.unwrap_or(self.score.score)
    }
}

/// Which partitions are resident. Cheap to share (`Arc`), never changed in place; routing does not depend on the order of loads.
#[derive(Debug)]
pub struct Catalogue {
    /// By task name: the order of the router's keys.
    residents: BTreeMap<Arc<str>, Arc<Resident>>,
    /// By task name, each of a resident.
    trials: BTreeMap<Arc<str>, Trial>,
    rule: RoutingRule,
    /// Decides among the residents; `None` where there is none.
    decider: Option<Arc<dyn TaskRule>>,
    metric: Metric,
    signal: KeySignal,
    notice: Option<String>,
    dummy_image: [usize; 2],
    /// Whether special tokens in texts are read as such; every partition was trained on texts that were read
    /// so.
    special_tokens: bool,
}

/// The metric and the signal that decide among some partitions, and what to tell of a fall-back.
struct Decision {
    metric: Metric,
    choice: KeyChoice,
    notice: Option<String>,
}

impl Catalogue {
    /// No partition at all.
    pub fn empty(backbone: &Description, rule: RoutingRule) -> Self {
        let side = backbone.config.patch_size;
        Self {
            residents: BTreeMap::new(),
            trials: BTreeMap::new(),
            rule,
            decider: None,
            metric: rule.metric.unwrap_or_default(),
            signal: rule.signal.unwrap_or(KeySignal::MeanQuery { layer: 0 }),
            notice: None,
            dummy_image: [side, side],
            special_tokens: false,
        }
    }

    /// This catalogue, empty, for partitions whose training read special tokens in texts as `special_tokens`
    /// says ([`delo_model::input::InputProcessor::special_tokens`]).
    #[must_use]
    pub fn with_special_tokens(self, special_tokens: bool) -> Self {
        Self { special_tokens, ..self }
    }

    /// This catalogue with one partition more, or with another version of one.
    ///
    /// # Errors
    /// A partition whose dummy image or key signal is not that of the others, or whose reading of special
    /// tokens is not the catalogue's.
    pub fn with(&self, resident: Arc<Resident>) -> Result<Self, CatalogueError> {
        let mut residents = self.residents.clone();
        residents.insert(resident.task().into(), resident);
        self.rebuilt(residents)
    }

    /// This catalogue with a version on trial, in place of the one that its task may have on trial already.
    ///
    /// # Errors
    /// A task that is not live; a partition whose dummy image is not that of the others, or whose reading of
    /// special tokens is not the catalogue's.
    pub fn with_trial(&self, trial: Trial) -> Result<Self, CatalogueError> {
        let task = trial.resident.task().to_owned();
        if !self.residents.contains_key(task.as_str()) {
            return Err(CatalogueError::NothingToCompare(task));
        }
        check_dummy(&trial.resident, self.dummy_image)?;
        check_special_tokens(&trial.resident, self.special_tokens)?;
        let mut trials = self.trials.clone();
        trials.insert(task.into(), trial);
        Ok(self.trying(trials))
    }

    /// This catalogue with what is said of one task in place of what it holds of it.
    ///
    /// # Errors
    /// As [`Self::with`] and [`Self::with_trial`].
    pub fn with_task(&self, task: &str, live: Option<Arc<Resident>>, trial: Option<Trial>) -> Result<Self, CatalogueError> {
        let base = self.without_trial(task);
        let base = match (live, base.get(task)) {
            (Some(new), Some(old)) if Arc::ptr_eq(&new, old) => base,
            (Some(new), _) => base.with(new)?,
            (None, Some(_)) => base.without(task)?,
            (None, None) => base,
        };
        trial.map_or(Ok(base.without_trial(task)), |trial| base.with_trial(trial))
    }

    /// This catalogue without a task's version on trial, if it has one.
    #[must_use]
    pub fn without_trial(&self, task: &str) -> Self {
        let mut trials = self.trials.clone();
        trials.remove(task);
        self.trying(trials)
    }

    fn trying(&self, trials: BTreeMap<Arc<str>, Trial>) -> Self {
        Self { residents: self.residents.clone(), trials, decider: self.decider.clone(), notice: self.notice.clone(), ..*self }
    }

    /// This catalogue with one partition less, its version on trial included.
    ///
    /// # Errors
    /// [`CatalogueError::UnknownTask`]
    pub fn without(&self, task: &str) -> Result<Self, CatalogueError> {
        let mut residents = self.residents.clone();
        residents.remove(task).ok_or_else(|| CatalogueError::UnknownTask(task.to_owned()))?;
        self.rebuilt(residents)
    }

    /// A catalogue of many partitions at once: the router is solved one time only.
    ///
    /// # Errors
    /// As [`Self::with`].
    pub fn with_all(&self, more: impl IntoIterator<Item = Arc<Resident>>) -> Result<Self, CatalogueError> {
        let mut residents = self.residents.clone();
        residents.extend(more.into_iter().map(|r| (r.task().into(), r)));
        self.rebuilt(residents)
    }

    fn rebuilt(&self, residents: BTreeMap<Arc<str>, Arc<Resident>>) -> Result<Self, CatalogueError> {
        let mut trials = self.trials.clone();
        trials.retain(|task, _| residents.contains_key(task));
        let Some(first) = residents.values().next() else {
            return Ok(Self { residents, trials, decider: None, notice: None, ..*self });
        };
        let dummy_image = first.dummy_image();
        for resident in residents.values().chain(trials.values().map(|t| &t.resident)) {
            check_dummy(resident, dummy_image)?;
            check_special_tokens(resident, self.special_tokens)?;
        }
        let decision = self.decide(residents.values())?;
        let Decision { metric, choice: KeyChoice { signal, average }, .. } = decision;
        let ignorant = residents.values().find(|r| !metric.definition().knows(&r.partition.keys, decision.choice));
        if let Some(r) = ignorant {
            return Err(CatalogueError::Incompatible {
                task: r.task().to_owned(),
                reason: format!(
                    "it has no {average} key of the signal {signal}; it holds {held}: choose one of these, or train it with --plain-signal {signal} --plain-average {average}",
                    held = r.partition.keys.held()
                ),
            });
        }
        let sessions: Vec<&SessionKeys> = residents.values().map(|r| &r.partition.keys).collect();
        let decider = metric
            .definition()
            .rule(&sessions, decision.choice)
            .map_err(|e| CatalogueError::Incompatible { task: first.task().to_owned(), reason: e.to_string() })?;
        Ok(Self {
            residents,
            trials,
            rule: self.rule,
            decider: Some(decider),
            metric,
            signal,
            notice: decision.notice,
            dummy_image,
            special_tokens: self.special_tokens,
        })
    }

    /// Whitened where the operator or an artifact wants it and every partition has the moments; else plain. Partitions that disagree on the
    /// signal follow the first by name that wants the whitened metric.
    fn decide<'a>(&self, residents: impl Iterator<Item = &'a Arc<Resident>> + Clone) -> Result<Decision, CatalogueError> {
        let rules = residents.clone().map(|r| &r.partition.meta.key);
        let whitened = rules.clone().find(|rule| rule.metric == Metric::Whitened);
        let Some(KeyRule { signal, plain_signal, plain_average, .. }) = whitened.or(rules.clone().next()).cloned() else {
            unreachable!("a decision is made among at least one partition")
        };
        let metric = self.rule.metric.unwrap_or(if whitened.is_some() { Metric::Whitened } else { Metric::Plain });
        let plain = |notice| Decision {
            metric: Metric::Plain,
            choice: KeyChoice {
                signal: self.rule.signal.filter(|_| metric == Metric::Plain).unwrap_or(plain_signal),
                average: self.rule.average.unwrap_or(plain_average),
            },
            notice,
        };
        if metric == Metric::Plain {
            return Ok(plain(None));
        }
        let signal = self.rule.signal.unwrap_or(signal);
        let choice = KeyChoice { signal, average: KeyAverage::Mean };
        let lacking = residents.clone().find(|r| !metric.definition().knows(&r.partition.keys, choice));
        Ok(match lacking {
            Some(r) => plain(Some(format!(
                "task {:?} has no second moment of {signal} (it holds {}): tasks are told by the plain cosine of {plain_signal} until it is trained with --key-signal {signal} or unloaded",
                r.task(),
                r.partition.keys.held()
            ))),
            None => Decision { metric, choice, notice: None },
        })
    }

    pub fn get(&self, task: &str) -> Option<&Arc<Resident>> {
        self.residents.get(task)
    }

    /// The partition that answers a sample of this task: the live version, or the canary where the ticket falls into its share.
    pub fn pick(&self, task: &str, ticket: u64) -> Option<&Arc<Resident>> {
        match self.trials.get(task) {
            Some(Trial { resident, mode: TrialMode::Canary(share) }) if share.takes(ticket) => Some(resident),
            _ => self.residents.get(task),
        }
    }

    /// A task's version on trial.
    pub fn trial(&self, task: &str) -> Option<&Trial> {
        self.trials.get(task)
    }

    /// The versions on trial, by task name.
    pub fn trials(&self) -> impl Iterator<Item = &Trial> {
        self.trials.values()
    }

    /// The resident version of a task with this number, live or on trial.
    pub fn version(&self, task: &str, version: u64) -> Option<&Arc<Resident>> {
        let trial = self.trials.get(task).map(|t| &t.resident);
        self.residents.get(task).into_iter().chain(trial).find(|r| r.version == version)
    }

    /// The resident partitions, by task name.
    pub fn residents(&self) -> impl Iterator<Item = &Arc<Resident>> {
        self.residents.values()
    }

    pub fn is_empty(&self) -> bool {
        self.residents.is_empty()
    }

    /// The metric that decides.
    pub fn metric(&self) -> Metric {
        self.metric
    }

    /// The signal that decides.
    pub fn signal(&self) -> KeySignal {
        self.signal
    }

    /// What to tell the operator of a fall-back (a partition without moments), if anything.
    pub fn notice(&self) -> Option<&str> {
        self.notice.as_deref()
    }

    /// Height and width of the image that stands in for a missing one.
    pub fn dummy_image(&self) -> [usize; 2] {
        self.dummy_image
    }

    /// The first layer that some resident partition adapts: all before it is frozen and shared. `layers` where there is none.
    pub fn first_adapted_layer(&self, layers: usize) -> usize {
        let trials = self.trials.values().map(|t| &t.resident);
        self.residents.values().chain(trials).map(|r| r.first_adapted_layer()).min().unwrap_or(layers)
    }

    /// Every resident task with its score for a sample of this signal `[width]`, falling; equal ones by name.
    pub fn candidates(&self, signal: &[f32]) -> Vec<Candidate> {
        let scores = self.decider.as_ref().map_or_else(Vec::new, |decider| decider.scores(signal));
        let mut out: Vec<_> = self.residents.keys().zip(scores).map(|(task, score)| Candidate { task: task.clone(), score }).collect();
        out.sort_by(|x, y| y.score.score.total_cmp(&x.score.score));
        out
    }
}

fn check_dummy(resident: &Resident, dummy_image: [usize; 2]) -> Result<(), CatalogueError> {
    let [[h, w], [height, width]] = [resident.dummy_image(), dummy_image];
    if [h, w] == [height, width] {
        return Ok(());
    }
    let reason = format!("its dummy image is {h} × {w} pixels, theirs {height} × {width}; train it with the same --dummy-image");
    Err(CatalogueError::Incompatible { task: resident.task().to_owned(), reason })
}

fn check_special_tokens(resident: &Resident, special_tokens: bool) -> Result<(), CatalogueError> {
    let reason = match resident.special_tokens() {
        Some(true) if !special_tokens => {
            "it was trained with --special-tokens, and texts are read without: switch that on (input.special_tokens = true of a server), or train it without"
        }
        Some(false) if special_tokens => {
            "it was trained without --special-tokens, and texts are read with it: switch that off (input.special_tokens = false of a server), or train it with it"
        }
        _ => return Ok(()),
    };
    Err(CatalogueError::Incompatible { task: resident.task().to_owned(), reason: reason.to_owned() })
}
