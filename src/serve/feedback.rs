//! The latest answers, remembered so that ground truth that arrives later can be compared with them.
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

/// Number of answers for which memory is taken at the start, so that the server's memory does not grow while
/// it fills.
const ALLOCATED_AT_START: usize = 1 << 17;

/// A bounded memory of answers by request id; the oldest are forgotten first. Ids and labels may be long, so
/// only their hashes are kept.
#[derive(Debug)]
pub struct AnswerMemory {
    capacity: usize,
    /// The latest answers, a ring buffer.
    ring: Vec<Option<Remembered>>,
    /// Index in the ring of the next answer.
    next: usize,
    /// Index in the ring of the latest answer of an id.
    indices: HashMap<Id, usize>,
    /// The names of the tasks of the remembered answers, each held once.
    tasks: HashSet<Arc<str>>,
    hashers: [RandomState; 2],
}

/// A request id's hash of 128 bits. Its keys are random and secret, so that nobody can choose two ids of one
/// hash.
type Id = [u64; 2];

#[derive(Debug)]
struct Remembered {
    id: Id,
    task: Arc<str>,
    version: u64,
    /// Hash of the best label.
    label: u64,
    /// Place of the best label among the version's; `None` where the sample was rejected.
    best: Option<u32>,
    /// The server decided the task; else the request named it.
    decided: bool,
    task_counted: bool,
    label_counted: bool,
}

/// An answer to remember.
#[derive(Clone, Copy, Debug)]
pub struct Remember<'a> {
    pub task: &'a str,
    pub version: u64,
    /// The best label, and its place among the version's; `None` where the sample was rejected.
    pub best: Option<(u32, &'a str)>,
    /// The server decided the task; else the request named it.
    pub decided: bool,
}

/// An answer compared with ground truth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The task that answered.
    pub routed_task: String,
    /// The version that answered, where the answer is remembered.
    pub version: Option<u64>,
    /// Place of the best label among that version's. `None` where no answer is remembered, or it was a rejection.
    pub best: Option<u32>,
    /// The sample was rejected: it was routed to no task.
    pub rejected: bool,
    /// Whether the task was right; `None` where the truth names no task.
    pub task_correct: Option<bool>,
    /// Whether the best label is among the true ones; `None` where the truth names no label.
    pub label_correct: Option<bool>,
    /// Whether `task_correct` is to be counted: it was not counted before.
    pub count_task: bool,
    /// Whether `label_correct` is to be counted: it was not counted before.
    pub count_label: bool,
}

impl AnswerMemory {
    /// An empty memory of up to `capacity` answers.
    pub fn new(capacity: usize) -> Self {
        let taken = capacity.min(ALLOCATED_AT_START);
        // Written, since the system grants a page of memory at its first write.
        let ring = std::iter::repeat_with(|| None).take(taken).collect();
        // Twice as large, since a table that is more than half full grows while entries come and go. Filled
        // once, so that its memory is written as well.
        let mut indices = HashMap::with_capacity(2 * (taken + 1));
        indices.extend((0..taken).map(|i| ([i as u64; 2], i)));
        indices.clear();
        Self { capacity, ring, next: 0, indices, tasks: HashSet::new(), hashers: [RandomState::new(), RandomState::new()] }
    }

    fn id(&self, request_id: &str) -> Id {
        [self.hashers[0].hash_one(request_id), self.hashers[1].hash_one(request_id)]
    }

    fn task(&mut self, name: &str) -> Arc<str> {
        if let Some(task) = self.tasks.get(name) {
            return task.clone();
        }
        // A new task is rare, so this is the time to drop the names of which no answer is remembered.
        self.tasks.retain(|task| Arc::strong_count(task) > 1);
        let task: Arc<str> = name.into();
        self.tasks.insert(task.clone());
        task
    }

    fn label(&self, label: &str) -> u64 {
        self.hashers[0].hash_one(label)
    }

    /// Remembers an answer. An id that is used again names its latest answer.
    pub fn remember(&mut self, request_id: &str, Remember { task, version, best, decided }: Remember<'_>) {
        if self.capacity == 0 {
            return;
        }
        let id = self.id(request_id);
        let (task, label) = (self.task(task), best.map_or(0, |(_, label)| self.label(label)));
        let best = best.map(|(place, _)| place);
        let remembered = Some(Remembered { id, task, version, label, best, decided, task_counted: false, label_counted: false });
        let forgotten = match self.ring.get_mut(self.next) {
            Some(oldest) => std::mem::replace(oldest, remembered),
            None => {
                self.ring.push(remembered);
                None
            }
        };
        if let Some(Remembered { id, .. }) = forgotten
            && self.indices.get(&id) == Some(&self.next)
        {
            self.indices.remove(&id);
        }
        self.indices.insert(id, self.next);
        self.next = (self.next + 1) % self.capacity;
    }

    /// Compares the answer of this id with the truth. Task and label count once each. `None` for an id that
    /// is not remembered.
    pub fn judge(&mut self, request_id: &str, true_task: Option<&str>, true_labels: &[String]) -> Option<Verdict> {
        let labels: Vec<u64> = true_labels.iter().map(|label| self.label(label)).collect();
        let index = *self.indices.get(&self.id(request_id))?;
        let answer = self.ring.get_mut(index)?.as_mut()?;
        let rejected = answer.best.is_none();
        let task_correct = true_task.filter(|_| !rejected).map(|t| t == &*answer.task);
        let label_correct = (!labels.is_empty() && !rejected).then(|| labels.contains(&answer.label));
        // Whether a rejection was right is known to whoever knows which tasks are loaded.
        let count_task = true_task.is_some() && answer.decided && !answer.task_counted;
        let count_label = label_correct.is_some() && !answer.label_counted;
        answer.task_counted |= count_task;
        answer.label_counted |= count_label;
        Some(Verdict {
            routed_task: if rejected { String::new() } else { answer.task.to_string() },
            version: Some(answer.version),
            best: answer.best,
            rejected,
            task_correct,
            label_correct,
            count_task,
            count_label,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(labels: &[&str]) -> Vec<String> {
        labels.iter().map(|l| (*l).to_owned()).collect()
    }

    fn of<'a>(task: &'a str, best: Option<(u32, &'a str)>) -> Remember<'a> {
        Remember { task, version: 1, best, decided: true }
    }

    #[test]
    fn a_task_that_the_request_named_is_judged_and_not_counted() {
        let mut memory = AnswerMemory::new(10);
        memory.remember("a", Remember { decided: false, ..of("food", Some((0, "pizza"))) });
        let verdict = memory.judge("a", Some("food"), &labels(&["pizza"])).unwrap();
        assert_eq!((verdict.task_correct, verdict.count_task, verdict.count_label), (Some(true), false, true));
    }

    #[test]
    fn judges_the_task_and_the_best_label() {
        let mut memory = AnswerMemory::new(10);
        memory.remember("a", of("food", Some((0, "pizza"))));
        let verdict = memory.judge("a", Some("travel"), &labels(&["cake", "pizza"])).unwrap();
        assert_eq!((verdict.routed_task.as_str(), verdict.task_correct, verdict.label_correct), ("food", Some(false), Some(true)));
        assert_eq!(memory.judge("b", Some("food"), &[]), None);
    }

    #[test]
    fn counts_a_task_and_a_label_once_each() {
        let mut memory = AnswerMemory::new(10);
        memory.remember("a", of("food", Some((0, "pizza"))));
        let counts = |v: Option<Verdict>| v.map(|v| (v.count_task, v.count_label)).unwrap();
        assert_eq!(counts(memory.judge("a", Some("food"), &[])), (true, false));
        assert_eq!(counts(memory.judge("a", Some("food"), &labels(&["pizza"]))), (false, true));
        assert_eq!(counts(memory.judge("a", Some("food"), &labels(&["pizza"]))), (false, false));
    }

    #[test]
    fn forgets_the_oldest_answers_beyond_its_capacity() {
        let mut memory = AnswerMemory::new(3);
        for i in 0..1000 {
            memory.remember(&i.to_string(), of("food", Some((0, "pizza"))));
            // One id that is used again and again must not change the bound.
            memory.remember("same", of("food", Some((0, "pizza"))));
        }
        assert!(memory.ring.len() <= 3 && memory.indices.len() <= 3);
        assert!(memory.judge("0", Some("food"), &[]).is_none());
        assert!(memory.judge("999", Some("food"), &[]).is_some());
        assert!(memory.judge("same", Some("food"), &[]).is_some());
    }

    #[test]
    fn a_rejection_has_no_task_and_no_label_and_is_counted_once() {
        let mut memory = AnswerMemory::new(3);
        memory.remember("a", of("food", Some((0, "pizza"))));
        memory.remember("a", of("food", None));
        let verdict = memory.judge("a", Some("food"), &labels(&["pizza"])).unwrap();
        assert_eq!((verdict.rejected, verdict.routed_task.as_str(), verdict.best), (true, "", None));
        assert_eq!((verdict.task_correct, verdict.label_correct, verdict.count_task, verdict.count_label), (None, None, true, false));
        assert!(!memory.judge("a", Some("food"), &[]).unwrap().count_task);
    }

    #[test]
    fn takes_no_more_memory_while_it_is_full_and_works_on() {
        let mut memory = AnswerMemory::new(1000);
        let taken = (memory.ring.capacity(), memory.indices.capacity());
        (0..20_000).for_each(|i| memory.remember(&i.to_string(), of("food", Some((0, "pizza")))));
        assert_eq!((memory.ring.capacity(), memory.indices.len()), (taken.0, 1000));
        assert!(memory.indices.capacity() <= taken.1, "{} of {}", memory.indices.capacity(), taken.1);
        assert!(memory.judge("19000", Some("food"), &[]).is_some() && memory.judge("18999", Some("food"), &[]).is_none());
    }

    #[test]
    fn keeps_no_more_task_names_than_answers() {
        let mut memory = AnswerMemory::new(3);
        (0..1000).for_each(|i| memory.remember(&i.to_string(), of(&format!("task {i}"), Some((0, "pizza")))));
        assert!(memory.tasks.len() <= 4, "{}", memory.tasks.len());
        assert_eq!(memory.judge("999", Some("task 999"), &[]).unwrap().task_correct, Some(true));
    }

    #[test]
    fn a_memory_of_no_answers_remembers_none() {
        let mut memory = AnswerMemory::new(0);
        memory.remember("a", of("food", Some((0, "pizza"))));
        assert!(memory.judge("a", Some("food"), &[]).is_none());
    }
}
