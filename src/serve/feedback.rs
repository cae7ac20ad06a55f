//! The latest answers, remembered so that ground truth that arrives later can be held against them.
use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

/// A bounded memory of answers by request id; the oldest are forgotten first.
#[derive(Debug)]
pub struct AnswerMemory {
    capacity: usize,
    answers: HashMap<String, Remembered>,
    /// Ids in the order of their answers, each with the arrival that it was remembered under.
    order: VecDeque<(u64, String)>,
    arrivals: u64,
}

#[derive(Debug)]
struct Remembered {
    arrival: u64,
    task: String,
    version: u64,
    /// Of the best label: a label may be long, its hash is not.
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
        Self { capacity, answers: HashMap::new(), order: VecDeque::new(), arrivals: 0 }
    }

    /// Remembers an answer. An id that is used again stands for its latest answer.
    pub fn remember(&mut self, request_id: &str, task: &str, version: u64, best_label: &str) {
        if self.capacity == 0 {
            return;
        }
        self.arrivals += 1;
        let remembered = Remembered {
            arrival: self.arrivals,
            task: task.to_owned(),
            version,
            label: hash(best_label),
            task_counted: false,
            label_counted: false,
        };
        self.answers.insert(request_id.to_owned(), remembered);
        self.order.push_back((self.arrivals, request_id.to_owned()));
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
        let answer = self.answers.get_mut(request_id)?;
        let task_correct = true_task.map(|t| t == answer.task);
        let label_correct = (!true_labels.is_empty()).then(|| true_labels.iter().any(|l| hash(l) == answer.label));
        let (count_task, count_label) = (task_correct.is_some() && !answer.task_counted, label_correct.is_some() && !answer.label_counted);
        answer.task_counted |= count_task;
        answer.label_counted |= count_label;
        Some(Verdict {
            routed_task: answer.task.clone(),
            version: Some(answer.version),
            task_correct,
            label_correct,
            count_task,
            count_label,
        })
    }
}

fn hash(label: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    label.hash(&mut hasher);
    hasher.finish()
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
    fn a_memory_of_no_answers_remembers_none() {
        let mut memory = AnswerMemory::new(0);
        memory.remember("a", "food", 1, "pizza");
        assert!(memory.judge("a", Some("food"), &[]).is_none());
    }
}
