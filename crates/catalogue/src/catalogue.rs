//! The partitions resident at one moment, and the rule that decides tasks among them.
use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Resident, Trial, TrialMode};
use delo_model::routing::{KeyAverage, KeyChoice, KeySignal, Metric, SessionKeys, TaskRule, TaskScore};
use delo_model::vilt::Description;

/// The operator's choices that take precedence over those in the artifacts; `None` leaves a choice to the
/// artifacts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoutingRule {
    /// The metric that decides the task.
    pub metric: Option<Metric>,
    /// The signal that the metric compares.
    pub signal: Option<KeySignal>,
    /// How the keys of the plain metric were averaged.
    pub average: Option<KeyAverage>,
}

/// Why a change of the catalogue is refused.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant says what it is and names its fields")]
pub enum CatalogueError {
    #[error("no task {0:?} is loaded: leave the task out to let the server choose, or load its partition")]
    UnknownTask(String),
    #[error("no task {0:?} is live, and a version on trial is compared with a live one: load it without a trial")]
    NothingToCompare(String),
    #[error("task {task:?} does not fit the tasks that are loaded: {reason}")]
    Incompatible { task: String, reason: String },
}

/// A task and its score for one sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The task's name.
    pub task: Arc<str>,
    /// The score by which the task is decided, and the cosine where the rule compares with a key.
    pub score: TaskScore,
}

impl Candidate {
    /// The cosine with the task's key, or the score itself where the rule compares with no key.
    pub fn cosine(&self) -> f32 {
        self.score.cosine.unwrap_or(self.score.score)
    }
}

/// The resident partitions, the versions on trial, and the rule that decides tasks. It is never changed in
/// place: each change makes another catalogue, and partitions are shared between catalogues (`Arc`). The
/// decision of a task does not depend on the order in which partitions were loaded.
#[derive(Debug)]
pub struct Catalogue {
    /// By task name, which is also the order of the sessions in `decider`.
    residents: BTreeMap<Arc<str>, Arc<Resident>>,
    /// The versions on trial, by task name. Each of these tasks has a live version in `residents`.
    trials: BTreeMap<Arc<str>, Trial>,
    rule: RoutingRule,
    /// The rule that decides among the residents; `None` in an empty catalogue.
    decider: Option<Arc<dyn TaskRule>>,
    metric: Metric,
    signal: KeySignal,
    notice: Option<String>,
    dummy_image: [usize; 2],
    /// Whether special tokens in texts are read as special tokens. No resident partition was trained on texts
    /// that were read the other way.
    special_tokens: bool,
    /// The longest text that is read. All resident partitions were trained with this number.
    text_positions: TextPositions,
}

/// The tokens of the longest text, CLS and SEP included.
#[derive(Clone, Copy, Debug)]
struct TextPositions {
    /// As texts are read.
    read: usize,
    /// As the checkpoint has them; those of a partition that names no number.
    of_checkpoint: usize,
}

/// The metric and the key that decide among some partitions, and a message where the metric is a fall-back.
struct Decision {
    metric: Metric,
    choice: KeyChoice,
    notice: Option<String>,
}

impl Catalogue {
    /// A catalogue without partitions, which reads no special tokens in texts.
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
            text_positions: TextPositions { read: backbone.config.max_position_embeddings, of_checkpoint: backbone.checkpoint_positions },
        }
    }

    /// This catalogue with another reading of special tokens in texts
    /// ([`delo_model::input::InputProcessor::special_tokens`]). Call it on an empty catalogue: partitions are
    /// checked against the reading when they are added.
    #[must_use]
    pub fn with_special_tokens(self, special_tokens: bool) -> Self {
        Self { special_tokens, ..self }
    }

    /// This catalogue with one more partition, or with another version of a resident one.
    ///
    /// # Errors
    /// [`CatalogueError::Incompatible`]: the dummy images of the partitions differ, the partition was trained
    /// with another reading of special tokens or another number of text positions, a partition lacks the key
    /// that decides, or the second moments are not positive definite.
    pub fn with(&self, resident: Arc<Resident>) -> Result<Self, CatalogueError> {
        let mut residents = self.residents.clone();
        residents.insert(resident.task().into(), resident);
        self.rebuilt(residents)
    }

    /// This catalogue with a version on trial. It replaces the version that its task has on trial, if any.
    ///
    /// # Errors
    /// [`CatalogueError::NothingToCompare`] for a task that is not live; [`CatalogueError::Incompatible`] for
    /// a partition with another dummy image, or trained with another reading of special tokens or another
    /// number of text positions.
    pub fn with_trial(&self, trial: Trial) -> Result<Self, CatalogueError> {
        let task = trial.resident.task().to_owned();
        if !self.residents.contains_key(task.as_str()) {
            return Err(CatalogueError::NothingToCompare(task));
        }
        check_dummy(&trial.resident, self.dummy_image)?;
        self.check_texts(&trial.resident)?;
        let mut trials = self.trials.clone();
        trials.insert(task.into(), trial);
        Ok(self.with_trials(trials))
    }

    /// This catalogue with the given live version and version on trial of one task, in place of those it
    /// holds. `None` removes a version.
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
        self.with_trials(trials)
    }

    fn with_trials(&self, trials: BTreeMap<Arc<str>, Trial>) -> Self {
        Self { residents: self.residents.clone(), trials, decider: self.decider.clone(), notice: self.notice.clone(), ..*self }
    }

    /// This catalogue without a task: neither its live version nor its version on trial.
    ///
    /// # Errors
    /// [`CatalogueError::UnknownTask`] for a task that is not live; [`CatalogueError::Incompatible`] where
    /// the partitions that remain give no rule.
    pub fn without(&self, task: &str) -> Result<Self, CatalogueError> {
        let mut residents = self.residents.clone();
        residents.remove(task).ok_or_else(|| CatalogueError::UnknownTask(task.to_owned()))?;
        self.rebuilt(residents)
    }

    /// This catalogue with many more partitions. The rule is solved once for all of them.
    ///
    /// # Errors
    /// As [`Self::with`].
    pub fn with_all(&self, more: impl IntoIterator<Item = Arc<Resident>>) -> Result<Self, CatalogueError> {
        let mut residents = self.residents.clone();
        residents.extend(more.into_iter().map(|r| (r.task().into(), r)));
        self.rebuilt(residents)
    }

    /// A catalogue of these residents under a rule made for them, with the trials of those that remain live.
    fn rebuilt(&self, residents: BTreeMap<Arc<str>, Arc<Resident>>) -> Result<Self, CatalogueError> {
        let mut trials = self.trials.clone();
        trials.retain(|task, _| residents.contains_key(task));
        let Some(first) = residents.values().next() else {
            return Ok(Self { residents, trials, decider: None, notice: None, ..*self });
        };
        let dummy_image = first.dummy_image();
        for resident in residents.values().chain(trials.values().map(|t| &t.resident)) {
            check_dummy(resident, dummy_image)?;
            self.check_texts(resident)?;
        }
        let decision = self.decide(residents.values());
        let Decision { metric, choice: KeyChoice { signal, average }, .. } = decision;
        let without_key = residents.values().find(|r| !metric.definition().knows(&r.partition.keys, decision.choice));
        if let Some(r) = without_key {
            return Err(CatalogueError::Incompatible {
                task: r.task().to_owned(),
                reason: format!(
                    "it has no {average} key of the signal {signal}; it holds {held}: choose one of these, \
                     or train it with --plain-signal {signal} --plain-average {average}",
                    held = r.partition.keys.held()
                ),
            });
        }
        let sessions: Vec<&SessionKeys> = residents.values().map(|r| &r.partition.keys).collect();
        let decider = metric.definition().rule(&sessions, decision.choice).map_err(|e| {
            let alone = |r: &&Arc<Resident>| metric.definition().rule(&[&r.partition.keys], decision.choice).is_err();
            let damaged = residents.values().find(alone).unwrap_or(first);
            CatalogueError::Incompatible { task: damaged.task().to_owned(), reason: e.to_string() }
        })?;
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
            text_positions: self.text_positions,
        })
    }

    /// Refuses a partition that was trained on texts that were read otherwise.
    fn check_texts(&self, resident: &Resident) -> Result<(), CatalogueError> {
        check_special_tokens(resident, self.special_tokens)?;
        check_text_positions(resident, self.text_positions)
    }

    /// The metric that the operator chooses, else the best that an artifact proposes ([`Metric`]'s order).
    /// Where a partition lacks the statistics for it, the next lower metric for which all have them. Where
    /// partitions propose different signals, the first one by name that proposes the metric decides.
    fn decide<'a>(&self, residents: impl Iterator<Item = &'a Arc<Resident>> + Clone) -> Decision {
        let rules = residents.clone().map(|r| &r.partition.meta.key);
        let wanted = self.rule.metric.or(rules.clone().map(|rule| rule.metric).max()).unwrap_or_default();
        let Some(rule) = rules.clone().find(|rule| rule.metric == wanted).or(rules.clone().next()) else {
            unreachable!("a decision is made among at least one partition")
        };
        let choice = |metric: Metric| match metric {
            Metric::Plain => KeyChoice {
                signal: self.rule.signal.filter(|_| wanted == Metric::Plain).unwrap_or(rule.plain_signal),
                average: self.rule.average.unwrap_or(rule.plain_average),
            },
            Metric::Whitened | Metric::Lda => KeyChoice { signal: self.rule.signal.unwrap_or(rule.signal), average: KeyAverage::Mean },
        };
        let lacking = |metric: Metric| residents.clone().find(|r| !metric.definition().knows(&r.partition.keys, choice(metric)));
        // The plain metric is the last resort; a partition without its key is refused.
        let known = |metric: &Metric| *metric <= wanted && (*metric == Metric::Plain || lacking(*metric).is_none());
        let metric = Metric::ALL.into_iter().rev().find(known).unwrap_or(Metric::Plain);
        let notice = (metric != wanted).then(|| lacking(wanted)).flatten().map(|r| {
            let KeyChoice { signal, .. } = choice(wanted);
            format!(
                "task {:?} has no {} of {signal} (it holds {}): tasks are decided by the {metric} cosine of {} until it is \
                 trained with --key-metric {wanted} --key-signal {signal} or unloaded",
                r.task(),
                wanted.definition().statistics(),
                r.partition.keys.held(),
                choice(metric).signal,
            )
        });
        Decision { metric, choice: choice(metric), notice }
    }

    /// The live version of a task.
    pub fn get(&self, task: &str) -> Option<&Arc<Resident>> {
        self.residents.get(task)
    }

    /// The version that answers a sample of this task: the canary where the ticket falls into its share of
    /// the traffic, else the live version. `None` where the task is not live.
    pub fn pick(&self, task: &str, ticket: u64) -> Option<&Arc<Resident>> {
        match self.trials.get(task) {
            Some(Trial { resident, mode: TrialMode::Canary(share) }) if share.takes(ticket) => Some(resident),
            _ => self.residents.get(task),
        }
    }

    /// The version on trial of a task.
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

    /// The live versions, by task name.
    pub fn residents(&self) -> impl Iterator<Item = &Arc<Resident>> {
        self.residents.values()
    }

    /// All resident versions: the live ones by task name, then those on trial.
    pub fn versions(&self) -> impl Iterator<Item = &Arc<Resident>> {
        self.residents.values().chain(self.trials.values().map(|trial| &trial.resident))
    }

    /// Whether no task is live.
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

    /// A message for the operator where another metric stands in for the chosen one: it names a partition
    /// that lacks the chosen metric's statistics. `None` where the chosen metric decides.
    pub fn notice(&self) -> Option<&str> {
        self.notice.as_deref()
    }

    /// Height and width of the dummy image that stands in for a missing one, in pixels.
    pub fn dummy_image(&self) -> [usize; 2] {
        self.dummy_image
    }

    /// The first layer that a version, live or on trial, adapts. All layers before it are frozen and shared
    /// by all tasks. `layers`, the number of the backbone's layers, in an empty catalogue.
    pub fn first_adapted_layer(&self, layers: usize) -> usize {
        self.all_versions().map(|r| r.first_adapted_layer()).min().unwrap_or(layers)
    }

    /// The versions, live and on trial.
    fn all_versions(&self) -> impl Iterator<Item = &Arc<Resident>> {
        self.residents.values().chain(self.trials.values().map(|trial| &trial.resident))
    }

    /// The most prompt tokens that a version, live or on trial, adds to a sample.
    pub fn prompt_tokens(&self) -> usize {
        self.all_versions().map(|resident| resident.partition.adapter.prompt_tokens()).max().unwrap_or(0)
    }

    /// Every live task with its score, given a sample's signal `[width]`: the highest score first, equal
    /// scores in the order of task names.
    pub fn candidates(&self, signal: &[f32]) -> Vec<Candidate> {
        let scores = self.decider.as_ref().map_or_else(Vec::new, |decider| decider.scores(signal));
        let mut out: Vec<_> = self.residents.keys().zip(scores).map(|(task, score)| Candidate { task: task.clone(), score }).collect();
        out.sort_by(|x, y| y.score.score.total_cmp(&x.score.score));
        out
    }
}

/// Refuses a partition whose dummy image is not of this height and width.
fn check_dummy(resident: &Resident, dummy_image: [usize; 2]) -> Result<(), CatalogueError> {
    let [[h, w], [height, width]] = [resident.dummy_image(), dummy_image];
    if [h, w] == [height, width] {
        return Ok(());
    }
    let reason =
        format!("its dummy image is {h} × {w} pixels, that of the others {height} × {width}; train it with the same --dummy-image");
    Err(CatalogueError::Incompatible { task: resident.task().to_owned(), reason })
}

/// Refuses a partition that was trained with another reading of special tokens than the catalogue's.
fn check_special_tokens(resident: &Resident, special_tokens: bool) -> Result<(), CatalogueError> {
    let reason = match resident.special_tokens() {
        Some(true) if !special_tokens => {
            "it was trained with --special-tokens, and texts are read without them: switch them on \
             (input.special_tokens = true of a server), or train it without --special-tokens"
        }
        Some(false) if special_tokens => {
            "it was trained without --special-tokens, and texts are read with them: switch them off \
             (input.special_tokens = false of a server), or train it with --special-tokens"
        }
        _ => return Ok(()),
    };
    Err(CatalogueError::Incompatible { task: resident.task().to_owned(), reason: reason.to_owned() })
}

/// Refuses a partition that was trained with another number of text positions than the catalogue's.
fn check_text_positions(resident: &Resident, positions: TextPositions) -> Result<(), CatalogueError> {
    let TextPositions { read, of_checkpoint } = positions;
    let trained = resident.text_positions().unwrap_or(of_checkpoint);
    if trained == read {
        return Ok(());
    }
    let reason = format!(
        "it was trained with {trained} text positions, and texts are read with {read}: start with --text-positions {trained} \
         (model.text_positions = {trained} of a server), or train it with --text-positions {read}"
    );
    Err(CatalogueError::Incompatible { task: resident.task().to_owned(), reason })
}
