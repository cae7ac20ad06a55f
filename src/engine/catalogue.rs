//! The partitions resident at one moment, and the task router solved for them. Immutable: a change makes another catalogue.
use std::collections::BTreeMap;
use std::sync::Arc;

use super::Candidate;
use crate::delo::keys::{KeyAverage, KeySignal, Metric};
use crate::delo::partition::KeyRule;
use crate::delo::{Partition, TaskRouter};
use crate::vilt::Description;

/// A partition and the version under which it is live.
#[derive(Debug)]
pub struct Resident {
    pub partition: Partition,
    /// SHA-256 over the artifact file's bytes, hexadecimal: the name under which registries and signatures know it.
    pub digest: String,
    /// Counts the loads of this task name, from 1.
    pub version: u64,
}

impl Resident {
    pub fn task(&self) -> &str {
        &self.partition.meta.task
    }
}

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
    #[error("no task {0:?} is loaded: `delo admin list` shows those that are")]
    UnknownTask(String),
    #[error("task {task:?} does not go with those that are loaded: {reason}")]
    Incompatible { task: String, reason: String },
}

/// Which partitions are resident. Cheap to share (`Arc`), never changed in place; routing does not depend on the order of loads.
#[derive(Debug)]
pub struct Catalogue {
    /// By task name: the order of the router's keys.
    residents: BTreeMap<Arc<str>, Arc<Resident>>,
    rule: RoutingRule,
    router: TaskRouter,
    metric: Metric,
    signal: KeySignal,
    notice: Option<String>,
    dummy_image: [usize; 2],
}

/// The metric and the signal that decide among some partitions, and what to tell of a fall-back.
struct Decision {
    metric: Metric,
    signal: KeySignal,
    average: KeyAverage,
    notice: Option<String>,
}

impl Catalogue {
    /// No partition at all.
    pub fn empty(backbone: &Description, rule: RoutingRule) -> Self {
        let side = backbone.config.patch_size;
        Self {
            residents: BTreeMap::new(),
            rule,
            router: TaskRouter::plain([]),
            metric: rule.metric.unwrap_or_default(),
            signal: rule.signal.unwrap_or(KeySignal::MeanQuery { layer: 0 }),
            notice: None,
            dummy_image: [side, side],
        }
    }

    /// This catalogue with one partition more, or with another version of one.
    ///
    /// # Errors
    /// A partition whose dummy image or key signal is not that of the others.
    pub fn with(&self, resident: Arc<Resident>) -> Result<Self, CatalogueError> {
        let mut residents = self.residents.clone();
        residents.insert(resident.task().into(), resident);
        self.rebuilt(residents)
    }

    /// This catalogue with one partition less.
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
        let Some(first) = residents.values().next() else {
            let (router, notice) = (TaskRouter::plain([]), None);
            return Ok(Self { residents, router, notice, ..*self });
        };
        let dummy_image = first.partition.meta.dummy_image;
        if let Some(other) = residents.values().find(|r| r.partition.meta.dummy_image != dummy_image) {
            let [[h, w], [height, width]] = [other.partition.meta.dummy_image, dummy_image];
            let reason = format!("its dummy image is {h} × {w} pixels, theirs {height} × {width}; train it with the same --dummy-image");
            return Err(CatalogueError::Incompatible { task: other.task().to_owned(), reason });
        }
        let decision = self.decide(residents.values())?;
        let key = |r: &'_ Arc<Resident>| -> Result<Vec<f32>, CatalogueError> {
            let average = if decision.metric == Metric::Whitened { KeyAverage::Mean } else { decision.average };
            r.partition.keys.key(decision.signal, average).map(<[f32]>::to_vec).ok_or_else(|| CatalogueError::Incompatible {
                task: r.task().to_owned(),
                reason: format!("it has no {average} key of the signal {}", decision.signal),
            })
        };
        let keys: Vec<_> = residents.values().map(key).collect::<Result<_, _>>()?;
        let router = match decision.metric {
            Metric::Plain => TaskRouter::plain(keys.iter().map(Vec::as_slice)),
            Metric::Whitened => {
                let name = decision.signal.to_string();
                let moments = residents.values().map(|r| r.partition.keys.moments[&name].as_slice());
                TaskRouter::whitened(keys.iter().map(Vec::as_slice).zip(moments))
                    .map_err(|e| CatalogueError::Incompatible { task: first.task().to_owned(), reason: e.to_string() })?
            }
        };
        Ok(Self {
            residents,
            rule: self.rule,
            router,
            metric: decision.metric,
            signal: decision.signal,
            notice: decision.notice,
            dummy_image,
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
            signal: self.rule.signal.filter(|_| metric == Metric::Plain).unwrap_or(plain_signal),
            average: self.rule.average.unwrap_or(plain_average),
            notice,
        };
        if metric == Metric::Plain {
            return Ok(plain(None));
        }
        let signal = self.rule.signal.unwrap_or(signal);
        let lacking = residents.clone().find(|r| {
            let keys = &r.partition.keys;
            !keys.moments.contains_key(&signal.to_string()) || keys.key(signal, KeyAverage::Mean).is_none()
        });
        Ok(match lacking {
            Some(r) => plain(Some(format!(
                "task {:?} has no second moment of {signal}: tasks are told by the plain cosine of {plain_signal} until it is retrained or unloaded",
                r.task()
            ))),
            None => Decision { metric, signal, average: KeyAverage::Mean, notice: None },
        })
    }

    pub fn get(&self, task: &str) -> Option<&Arc<Resident>> {
        self.residents.get(task)
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
        self.residents.values().map(|r| r.partition.meta.pools.first_adapted_layer).min().unwrap_or(layers)
    }

    /// Every resident task with the cosine of its key and this signal `[width]`, falling; equal ones by name.
    pub fn candidates(&self, signal: &[f32]) -> Vec<Candidate> {
        let cosines = self.router.cosines(signal);
        let mut out: Vec<_> = self.residents.keys().zip(cosines).map(|(task, cosine)| Candidate { task: task.clone(), cosine }).collect();
        out.sort_by(|x, y| y.cosine.total_cmp(&x.cosine));
        out
    }
}
