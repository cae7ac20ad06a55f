//! The order of the waiting jobs: two levels of start-time fair queueing (Goyal, Vin, Cheng 1996), counted in
//! tokens.
//!
//! - Between the priorities: while both wait, [`INTERACTIVE_WEIGHT`] interactive tokens are computed for each
//!   bulk token, so that neither starves.
//! - Between the clients of one priority: evenly. A client with one sample does not wait behind a hundred
//!   samples of another.
//! - Within one client: the earliest deadline first.
//!
//! A client or priority that had nothing to compute for a while gets no credit for that time.
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{JobKey, JobOrder, Priority, Queue, TrafficClass, WaitingJob};

/// Tokens of interactive samples for each token of bulk samples, while both wait.
pub const INTERACTIVE_WEIGHT: f64 = 4.0;

/// The waiting jobs of one client with one priority.
#[derive(Debug)]
struct ClientJobs<T> {
    /// Tokens computed for the client, in the virtual time of its priority.
    served: f64,
    /// Tokens that wait.
    tokens: usize,
    waiting: BTreeMap<JobOrder, WaitingJob<T>>,
}

/// The waiting jobs of one priority.
#[derive(Debug)]
pub struct PriorityJobs<T> {
    weight: f64,
    /// Tokens computed of this priority, divided by its weight: the virtual time between priorities.
    served: f64,
    /// Virtual time between clients: `served` of the latest client whose job was taken, before that job.
    now: f64,
    /// The clients that have a waiting job.
    clients: HashMap<Arc<str>, ClientJobs<T>>,
    /// Tokens that wait.
    pub tokens: usize,
    /// Number of places that are reserved: neither filled nor released yet.
    pub reserved: usize,
}

impl<T> PriorityJobs<T> {
    pub fn new(weight: f64) -> Self {
        Self { weight, served: 0.0, now: 0.0, clients: HashMap::new(), tokens: 0, reserved: 0 }
    }

    /// The job that goes next: of the client that was served least; of equals, the one with the earliest
    /// deadline.
    fn next(&self) -> Option<(&Arc<str>, JobOrder)> {
        let first = |client: &ClientJobs<T>| client.waiting.keys().next().copied();
        let order = |(_, x): &(&Arc<str>, &ClientJobs<T>), (_, y): &(&Arc<str>, &ClientJobs<T>)| {
            x.served.total_cmp(&y.served).then_with(|| first(x).cmp(&first(y)))
        };
        let (name, client) = self.clients.iter().min_by(order)?;
        Some((name, first(client)?))
    }

    pub fn push(&mut self, client: Arc<str>, order: JobOrder, job: WaitingJob<T>) {
        let now = self.now;
        self.tokens += job.tokens;
        let jobs = self.clients.entry(client).or_insert_with(|| ClientJobs { served: now, tokens: 0, waiting: BTreeMap::new() });
        jobs.tokens += job.tokens;
        jobs.waiting.insert(order, job);
    }

    pub fn get(&self, client: &Arc<str>, order: &JobOrder) -> Option<&WaitingJob<T>> {
        self.clients.get(client)?.waiting.get(order)
    }

    pub fn remove(&mut self, client: &Arc<str>, order: &JobOrder) -> Option<WaitingJob<T>> {
        let jobs = self.clients.get_mut(client)?;
        let job = jobs.waiting.remove(order)?;
        jobs.tokens -= job.tokens;
        if jobs.waiting.is_empty() {
            self.clients.remove(client);
        }
        self.tokens -= job.tokens;
        Some(job)
    }

    /// Counts `tokens` as computed for a client that has a waiting job.
    pub fn charge(&mut self, client: &Arc<str>, tokens: usize) {
        let Some(jobs) = self.clients.get_mut(client) else { return };
        self.now = self.now.max(jobs.served);
        jobs.served += tokens as f64;
        self.served += tokens as f64 / self.weight;
    }

    /// Before the first job after a pause: gives up the credit of the pause against `other`, if that has
    /// waiting jobs.
    pub fn catch_up_with(&mut self, other: &Self) {
        if self.clients.is_empty() && !other.clients.is_empty() {
            self.served = self.served.max(other.served);
        }
    }

    /// Number of jobs that wait.
    pub fn waiting(&self) -> usize {
        self.clients.values().map(|client| client.waiting.len()).sum()
    }

    /// `clients · min(waiting tokens of a client)`: the tokens that wait if each client is counted like the
    /// one with the fewest.
    pub fn even_tokens(&self) -> usize {
        self.clients.values().map(|client| client.tokens).min().unwrap_or(0) * self.clients.len()
    }
}

impl<T> Queue<T> {
    /// The job that goes next.
    pub(super) fn next_key(&self) -> Option<JobKey> {
        let order = if self.interactive.served <= self.bulk.served {
            [Priority::Interactive, Priority::Bulk]
        } else {
            [Priority::Bulk, Priority::Interactive]
        };
        order.into_iter().find_map(|priority| {
            let (client, order) = self.jobs(priority).next()?;
            Some(JobKey { class: TrafficClass { client: client.clone(), priority }, order })
        })
    }
}
