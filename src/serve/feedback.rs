//! The latest answers, remembered so that ground truth that arrives later can be held against them.
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

/// Answers for which memory is taken at the start, so that a server's memory does not grow while it fills.
const TAKEN_AT_ONCE: usize = 1 << 17;

/// A bounded memory of answers by request id; the oldest are forgotten first. Ids and labels may be long: their hashes stand for them.
#[derive(Debug)]
pub struct AnswerMemory {
    capacity: usize,
    answers: HashMap<Id, Remembered>,
    /// Ids in the order of their answers, each with the arrival that it was remembered under.
    order: VecDeque<(u64, Id)>,
    arrivals: u64,
    /// The names of their tasks, each held once.
    tasks: HashSet<Arc<str>>,
    hashers: [RandomState; 2],
}

/// A request id's hash: 128 bits of keys that nobody outside knows, so that no two ids are ever taken for one.
type Id = [u64; 2];

#[derive(Debug)]
struct Remembered {
    arrival: u64,
    task: Arc<str>,
    version: u64,
    /// Of the best label.
    label: u64,
    task_counted: bool,
    label_counted: bool,
}

/// What ground truth says of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub routed_task: String,
    /// The version that answered, where the answer is remembered.
    pub version: Option<u64>,
    /// Whether the task was right, where the truth names one.
    pub task_correct: Option<bool>,
    /// Whether the best label is among the true ones, where there are any.
    pub label_correct: Option<bool>,
    /// The task's verdict is new and counts.
    pub count_task: bool,
    /// The label's verdict is new and counts.
    pub count_label: bool,
}

impl AnswerMemory {
    pub fn new(capacity: usize) -> Self {
        // One more, before the oldest is forgotten.
        let taken = capacity.min(TAKEN_AT_ONCE) + 1;
        let (answers, order) = (HashMap::with_capacity(taken), VecDeque::with_capacity(taken));
        Self { capacity, answers, order, arrivals: 0, tasks: HashSet::new(), hashers: [RandomState::new(), RandomState::new()] }
    }

    fn id(&self, request_id: &str) -> Id {
        [self.hashers[0].hash_one(request_id), self.hashers[1].hash_one(request_id)]
    }

    fn task(&mut self, name: &str) -> Arc<str> {
        if let Some(task) = self.tasks.get(name) {
            return task.clone();
        }
        // A new one is rare: the time to drop those of which no answer is remembered.
        self.tasks.retain(|task| Arc::strong_count(task) > 1);
        let task: Arc<str> = name.into();
        self.tasks.insert(task.clone());
        task
    }

    fn label(&self, label: &str) -> u64 {
        self.hashers[0].hash_one(label)
    }

    /// Remembers an answer. An id that is used again stands for its latest answer.
    pub fn remember(&mut self, request_id: &str, task: &str, version: u64, best_label: &str) {
        if self.capacity == 0 {
            return;
        }
        self.arrivals += 1;
        let remembered = Remembered {
            arrival: self.arrivals,
            task: self.task(task),
            version,
            label: self.label(best_label),
            task_counted: false,
            label_counted: false,
        };
        let id = self.id(request_id);
        self.answers.insert(id, remembered);
        self.order.push_back((self.arrivals, id));
        while self.order.len() > self.capacity {
            // A loop over a queue longer than its capacity finds an element; `while let` would have to name it twice.
            let Some((arrival, id)) = self.order.pop_front() else { break };
            if self.answers.get(&id).is_some_and(|a| a.arrival == arrival) {
                self.answers.remove(&id);
            }
        }
    }

    /// Holds the truth against the answer of this id. Task and label count once each. `None` for an id that isn't remembered.
    pub fn judge(&mut self, request_id: &str, true_task: Option<&str>, true_labels: &[String]) -> Option<Verdict> {
        let labels: Vec<u64> = true_labels.iter().map(|label| self.label(label)).collect();
        let answer = self.answers.get_mut(&self.id(request_id))?;
        let task_correct = true_task.map(|t| t == &*answer.task);
        let label_correct = (!labels.is_empty()).then(|| labels.contains(&answer.label));
        let (count_task, count_label) = (task_correct.is_some() && !answer.task_counted, label_correct.is_some() && !answer.label_counted);
        answer.task_counted |= count_task;
        answer.label_counted |= count_label;
        Some(Verdict {
            routed_task: answer.task.to_string(),
            version: Some(answer.version),
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

    #[test]
    fn judges_the_task_and_the_best_label() {
        let mut memory = AnswerMemory::new(10);
        memory.remember("a", "food", 1, "pizza");
        let verdict = memory.judge("a", Some("travel"), &labels(&["cake", "pizza"])).unwrap();
        assert_eq!((verdict.routed_task.as_str(), verdict.task_correct, verdict.label_correct), ("food", Some(false), Some(true)));
        assert_eq!(memory.judge("b", Some("food"), &[]), None);
    }

    #[test]
    fn counts_a_task_and_a_label_once_each() {
        let mut memory = AnswerMemory::new(10);
        memory.remember("a", "food", 1, "pizza");
        let counts = |v: Option<Verdict>| v.map(|v| (v.count_task, v.count_label)).unwrap();
        assert_eq!(counts(memory.judge("a", Some("food"), &[])), (true, false));
        assert_eq!(counts(memory.judge("a", Some("food"), &labels(&["pizza"]))), (false, true));
        assert_eq!(counts(memory.judge("a", Some("food"), &labels(&["pizza"]))), (false, false));
    }

    #[test]
    fn forgets_the_oldest_answers_beyond_its_capacity() {
        let mut memory = AnswerMemory::new(3);
        for i in 0..1000 {
            memory.remember(&i.to_string(), "food", 1, "pizza");
            // One id over and over must not push the others' bound out.
            memory.remember("same", "food", 1, "pizza");
        }
        assert!(memory.order.len() <= 3 && memory.answers.len() <= 3);
        assert!(memory.judge("0", Some("food"), &[]).is_none());
        assert!(memory.judge("999", Some("food"), &[]).is_some());
        assert!(memory.judge("same", Some("food"), &[]).is_some());
    }

    #[test]
    fn keeps_no_more_task_names_than_answers() {
        let mut memory = AnswerMemory::new(3);
        (0..1000).for_each(|i| memory.remember(&i.to_string(), &format!("task {i}"), 1, "pizza"));
        assert!(memory.tasks.len() <= 4, "{}", memory.tasks.len());
        assert_eq!(memory.judge("999", Some("task 999"), &[]).unwrap().task_correct, Some(true));
    }

    #[test]
    fn a_memory_of_no_answers_remembers_none() {
        let mut memory = AnswerMemory::new(0);
        memory.remember("a", "food", 1, "pizza");
        assert!(memory.judge("a", Some("food"), &[]).is_none());
    }
}
