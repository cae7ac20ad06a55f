//! Who is computed next: the queue's state, without locks, threads or clocks of its own.
//!
//! Two levels of start-time fair queueing (Goyal, Vin, Cheng 1996), in tokens. Between the priorities, by weight: while both wait, [`INTERACTIVE_WEIGHT`]
//! tokens are interactive for each of bulk, so that neither starves. Between the clients of a priority, evenly: a client with one sample does not wait
//! behind another's hundred. Within a client, the tightest deadline goes first. Whoever comes back after a pause gets no credit for it.
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What goes first when there is more than can be computed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Priority {
    /// Somebody waits for it.
    Interactive,
    /// It can wait.
    Bulk,
}

/// Tokens of interactive samples for each token of bulk samples, while both wait.
pub const INTERACTIVE_WEIGHT: f64 = 4.0;
/// Of the queue's places, the part that one client may hold with one priority; the rest is for those who come next.
const CLIENT_SHARE: f64 = 0.75;
/// Of the queue's places, the part up to which bulk samples are let in; the rest is for interactive ones.
const BULK_SHARE: f64 = 0.75;
/// One in so many of the queue's places taken is a crowd. Less is what a moment of standing still leaves behind.
const CROWD: usize = 4;
/// While a crowd of interactive samples waits, a batch may be one of so many parts of them where that is more than the usual batch: it takes longer, but less a token, and
/// adds little to a wait that is as long as the backlog. Each client counts as much as the one for which least waits, which need not wait for the rest and so would only wait for the end
/// of the batch. Bulk samples don't count: interactive ones go before them.
const BACKLOG_PARTS: usize = 12;
/// How much the latest measurement counts in a moving average.
const LATEST: f64 = 0.2;
/// How many times longer than expected a batch counts as, unless the one before took longer than that too: a moment at which the process stood still says nothing of
/// the next batch.
const OUTLIER: f64 = 2.0;
/// The part of the longest wait that filling a place counts as at most, for the same reason: all places that are being filled at such a moment measure it.
const FILLING_SHARE: u32 = 4;
/// How many times its usual deviation a batch may take longer than expected before its samples are late.
const CAUTION: f64 = 2.0;

/// Bounds of a batch and of the queue.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tokens of one batch. A job that is larger runs alone.
    pub batch_tokens: usize,
    /// Tokens of one batch while a crowd of interactive samples waits, see [`BACKLOG_PARTS`].
    pub backlog_batch_tokens: usize,
    pub batch_samples: usize,
    /// Places that are reserved or wait for compute.
    pub queue_samples: usize,
    /// Memory that those hold.
    pub queue_bytes: usize,
    /// What every batch takes beside its own tokens, in tokens of a usual batch: the weights are read for it
    /// whatever is in it. Rather too much than too little: small batches then make large ones look somewhat
    /// cheaper than they are, and what is let in beyond [`Self::queue_wait`] ends by the clock. The other way
    /// round, the first crowd after a calm would be refused though there is time for it.
    pub batch_overhead: usize,
    /// The longest that an interactive sample may wait for compute; bulk samples wait until their deadline.
    pub queue_wait: Duration,
}

impl Limits {
    /// So many samples that wait are a crowd.
    pub fn crowd(&self) -> usize {
        self.queue_samples.div_ceil(CROWD)
    }
}

/// Whose sample it is, and how urgent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Claim {
    pub client: Arc<str>,
    pub priority: Priority,
}

/// Why no place is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// All places, or those of this priority, are taken.
    Full,
    /// This client holds its share of the places with samples of this priority.
    ClientShare,
    /// The memory of the queue is in use.
    Memory,
    /// By the pace measured so far it would wait longer than allowed.
    Wait,
    /// By the pace measured so far it would not be computed before its deadline.
    Deadline,
}

/// Where a waiting job is.
#[derive(Clone, Debug)]
pub struct Key {
    claim: Claim,
    order: (Instant, u64),
}

/// A job that waits.
#[derive(Debug)]
pub struct Waiting<T> {
    pub item: T,
    pub tokens: usize,
    pub bytes: usize,
    pub since: Instant,
}

/// What the compute thread takes.
#[derive(Debug)]
pub struct Taken<T> {
    pub batch: Vec<Waiting<T>>,
    /// Jobs whose time is over or whose caller has gone; they cost no compute.
    pub late: Vec<Waiting<T>>,
    /// Jobs that would be late when they are computed, by the pace measured so far; nor do they.
    pub hopeless: Vec<Waiting<T>>,
}

impl<T> Taken<T> {
    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty() && self.late.is_empty() && self.hopeless.is_empty()
    }
}

/// The jobs of one client, by deadline and arrival.
#[derive(Debug)]
struct Client<T> {
    /// Tokens computed for it, in its class's virtual time.
    served: f64,
    /// Of its jobs that wait.
    tokens: usize,
    waiting: BTreeMap<(Instant, u64), Waiting<T>>,
}

/// The jobs of one priority.
#[derive(Debug)]
struct Class<T> {
    weight: f64,
    /// Tokens computed of it over its weight: its place in the virtual time between classes.
    served: f64,
    /// Virtual time between its clients: what the last one served had before.
    now: f64,
    /// Those with a job that waits.
    clients: HashMap<Arc<str>, Client<T>>,
    /// Of the jobs that wait.
    tokens: usize,
    /// Places handed out and not yet filled or given back.
    reserved: usize,
}

impl<T> Class<T> {
    fn new(weight: f64) -> Self {
        Self { weight, served: 0.0, now: 0.0, clients: HashMap::new(), tokens: 0, reserved: 0 }
    }

    /// The client that goes next; of equals, the one with the tightest deadline.
    fn next(&self) -> Option<&Arc<str>> {
        let first = |client: &Client<T>| client.waiting.keys().next().copied();
        let order = |(_, x): &(&Arc<str>, &Client<T>), (_, y): &(&Arc<str>, &Client<T>)| {
            x.served.total_cmp(&y.served).then_with(|| first(x).cmp(&first(y)))
        };
        self.clients.iter().min_by(order).map(|(name, _)| name)
    }

    fn push(&mut self, client: Arc<str>, order: (Instant, u64), job: Waiting<T>) {
        let now = self.now;
        self.tokens += job.tokens;
        let client = self.clients.entry(client).or_insert_with(|| Client { served: now, tokens: 0, waiting: BTreeMap::new() });
        client.tokens += job.tokens;
        client.waiting.insert(order, job);
    }

    fn remove(&mut self, client: &Arc<str>, order: &(Instant, u64)) -> Option<Waiting<T>> {
        let entry = self.clients.get_mut(client)?;
        let job = entry.waiting.remove(order)?;
        entry.tokens -= job.tokens;
        if entry.waiting.is_empty() {
            self.clients.remove(client);
        }
        self.tokens -= job.tokens;
        Some(job)
    }

    /// Jobs that wait.
    fn waiting(&self) -> usize {
        self.clients.values().map(|client| client.waiting.len()).sum()
    }

    /// Tokens that wait, were there as few for each client as for the one with the fewest.
    fn even_tokens(&self) -> usize {
        self.clients.values().map(|client| client.tokens).min().unwrap_or(0) * self.clients.len()
    }
}

/// The queue.
#[derive(Debug)]
pub struct Queue<T> {
    limits: Limits,
    interactive: Class<T>,
    bulk: Class<T>,
    /// Places that each client holds with each priority, reserved or waiting.
    held: HashMap<Claim, usize>,
    arrivals: u64,
    waiting: usize,
    /// Memory of the reserved places and of the waiting jobs.
    bytes: usize,
    /// Tokens of the batch that runs, and since when.
    running: Option<(usize, Instant)>,
    pace: Pace,
}

/// Moving averages of what was measured so far.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    /// [`Limits::batch_overhead`]
    overhead: f64,
    /// Seconds of compute a token, those of the overhead included, and how far a batch is from that; `None`
    /// before the first batch.
    token: Option<(f64, f64)>,
    /// Tokens of a sample.
    tokens: f64,
    /// Seconds from the reservation to the filling of a place.
    filling: f64,
    /// The latest batch took longer than [`OUTLIER`] times what was expected.
    surprised: bool,
}

impl Pace {
    /// The first estimate: a batch of `tokens` takes `takes`.
    fn expect(&mut self, tokens: usize, takes: Duration) {
        self.token = Some((takes.as_secs_f64() / self.cost(tokens as f64), 0.0));
    }

    /// The cost of a batch of `tokens`, its fixed part included, in tokens.
    fn cost(&self, tokens: f64) -> f64 {
        (tokens + self.overhead).max(1.0)
    }

    fn computed(&mut self, tokens: usize, took: Duration) {
        let latest = took.as_secs_f64() / self.cost(tokens as f64);
        self.token = Some(match self.token {
            Some((mean, deviation)) if mean > 0.0 => {
                let before = std::mem::replace(&mut self.surprised, latest > OUTLIER * mean);
                // Two in a row are no accident.
                let latest = if before { latest } else { latest.min(OUTLIER * mean) };
                (average(mean, latest), average(deviation, (latest - mean).abs()))
            }
            _ => (latest, 0.0),
        });
    }

    /// Seconds of compute a token, as expected; none before the first batch.
    fn expected(&self) -> f64 {
        self.token.map_or(0.0, |(mean, _)| mean)
    }

    /// The same, rather too long than too short: what deadlines are held against.
    fn cautious(&self) -> f64 {
        self.token.map_or(0.0, |(mean, deviation)| mean + CAUTION * deviation)
    }
}

fn average(old: f64, latest: f64) -> f64 {
    (1.0 - LATEST) * old + LATEST * latest
}

/// A time that can be added to any moment.
fn bounded(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.min(86_400.0))
}

impl<T> Queue<T> {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            interactive: Class::new(INTERACTIVE_WEIGHT),
            bulk: Class::new(1.0),
            held: HashMap::new(),
            arrivals: 0,
            waiting: 0,
            bytes: 0,
            running: None,
            pace: Pace { overhead: limits.batch_overhead as f64, ..Pace::default() },
        }
    }

    /// Jobs that wait.
    pub fn depth(&self) -> usize {
        self.waiting
    }

    /// Places handed out and not yet filled or given back.
    pub fn reserved(&self) -> usize {
        self.interactive.reserved + self.bulk.reserved
    }

    /// Memory of the reserved places and of the waiting jobs.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Jobs that were queued so far.
    #[cfg(all(test, not(feature = "shuttle")))]
    pub fn arrivals(&self) -> u64 {
        self.arrivals
    }

    fn class(&mut self, priority: Priority) -> &mut Class<T> {
        match priority {
            Priority::Interactive => &mut self.interactive,
            Priority::Bulk => &mut self.bulk,
        }
    }

    /// How long a sample of this priority would wait for compute, by the pace measured so far. It is read
    /// and tokenised meanwhile.
    pub fn expected_wait(&self, priority: Priority, now: Instant) -> Duration {
        self.wait(priority, now, self.pace.expected())
    }

    /// The same at a pace of so many seconds a token.
    fn wait(&self, priority: Priority, now: Instant, token: f64) -> Duration {
        if self.pace.token.is_none() {
            return Duration::ZERO;
        }
        let of = |class: &Class<T>| class.tokens as f64 + class.reserved as f64 * self.pace.tokens;
        let (interactive, bulk) = (of(&self.interactive), of(&self.bulk));
        let ahead = match priority {
            Priority::Interactive => interactive + bulk.min(interactive / INTERACTIVE_WEIGHT),
            Priority::Bulk => interactive + bulk,
        };
        let running = self.running.map_or(0.0, |(tokens, since)| {
            let takes = self.pace.cost(tokens as f64) * token;
            (takes - (now - since).as_secs_f64()).max(0.0)
        });
        let overheads = (ahead / self.expected_batch()).ceil() * self.pace.overhead;
        bounded(running + (ahead + overheads) * token)
    }

    /// Tokens of the batches in which what waits will be computed.
    fn expected_batch(&self) -> f64 {
        let samples = self.limits.batch_samples as f64 * self.pace.tokens;
        (self.batch_tokens() as f64).min(samples).max(1.0)
    }

    /// Takes the first estimate from outside, before the first batch: a batch of `tokens` takes `takes`.
    pub fn expect(&mut self, tokens: usize, takes: Duration) {
        self.pace.expect(tokens, takes);
    }

    /// When a caller who is refused should try again: when half of what is ahead will be done.
    pub fn retry_after(&self, now: Instant) -> Duration {
        let whole = if self.pace.token.is_none() { Duration::from_millis(200) } else { self.expected_wait(Priority::Bulk, now) };
        (whole / 2).clamp(Duration::from_millis(10), Duration::from_secs(60))
    }

    /// Takes a place for a sample that holds `bytes` of memory and must be answered by `deadline`.
    ///
    /// # Errors
    /// [`Refusal`]
    pub fn reserve(&mut self, claim: &Claim, bytes: usize, deadline: Instant, now: Instant) -> Result<(), Refusal> {
        let (places, taken) = (self.limits.queue_samples, self.waiting + self.reserved());
        let part = |share: f64| ((places as f64 * share) as usize).max(1);
        if taken >= places || (claim.priority == Priority::Bulk && taken >= part(BULK_SHARE)) {
            return Err(Refusal::Full);
        }
        let held = self.held.get(claim).copied().unwrap_or(0);
        let clients = self.held.len() + usize::from(held == 0);
        // While there is room for all, a client may use what others do not; when it gets tight, each has its even share. One client's bulk samples do not
        // stand in the way of its interactive ones.
        let most = if taken < places / 2 { part(CLIENT_SHARE) } else { part(CLIENT_SHARE).min(places.div_ceil(clients)) };
        if held >= most {
            return Err(Refusal::ClientShare);
        }
        if self.bytes + bytes > self.limits.queue_bytes {
            return Err(Refusal::Memory);
        }
        let idle = taken == 0 && self.running.is_none();
        // What nothing is ahead of is let in whatever was measured, or a bad measurement could never be followed by a better one.
        if !idle {
            if claim.priority == Priority::Interactive && self.expected_wait(claim.priority, now) > self.limits.queue_wait {
                return Err(Refusal::Wait);
            }
            let token = self.pace.cautious();
            let until_filled = bounded(self.pace.filling);
            let takes = bounded(self.pace.cost(self.pace.tokens) * token);
            if now + self.wait(claim.priority, now, token) + until_filled + takes > deadline {
                return Err(Refusal::Deadline);
            }
        }
        self.class(claim.priority).reserved += 1;
        self.bytes += bytes;
        *self.held.entry(claim.clone()).or_default() += 1;
        Ok(())
    }

    /// Changes what a reserved place holds from `old` to `new` bytes.
    ///
    /// # Errors
    /// [`Refusal::Memory`]: nothing is changed.
    pub fn resize(&mut self, old: usize, new: usize) -> Result<(), Refusal> {
        if self.bytes - old + new > self.limits.queue_bytes {
            return Err(Refusal::Memory);
        }
        self.bytes = self.bytes - old + new;
        Ok(())
    }

    /// Gives a reserved place back unused.
    pub fn give_back(&mut self, claim: &Claim, bytes: usize) {
        self.class(claim.priority).reserved -= 1;
        self.bytes -= bytes;
        self.leave(claim);
    }

    /// Turns a place that was reserved at `reserved` into a waiting job of the same bytes.
    pub fn fill(&mut self, claim: Claim, deadline: Instant, reserved: Instant, job: Waiting<T>) -> Key {
        self.class(claim.priority).reserved -= 1;
        self.waiting += 1;
        self.arrivals += 1;
        let filling = (job.since - reserved).min(self.limits.queue_wait / FILLING_SHARE);
        self.pace.filling = average(self.pace.filling, filling.as_secs_f64());
        self.pace.tokens = if self.arrivals == 1 { job.tokens as f64 } else { average(self.pace.tokens, job.tokens as f64) };
        let order = (deadline, self.arrivals);
        let other = match claim.priority {
            Priority::Interactive => &self.bulk,
            Priority::Bulk => &self.interactive,
        };
        let others = (!other.clients.is_empty()).then_some(other.served);
        let class = self.class(claim.priority);
        if let Some(others) = others.filter(|_| class.clients.is_empty()) {
            class.served = class.served.max(others);
        }
        class.push(claim.client.clone(), order, job);
        Key { claim, order }
    }

    /// Takes a waiting job out; `None` where it is not waiting any more.
    pub fn remove(&mut self, key: &Key) -> Option<Waiting<T>> {
        let job = self.class(key.claim.priority).remove(&key.claim.client, &key.order)?;
        self.waiting -= 1;
        self.bytes -= job.bytes;
        self.leave(&key.claim);
        Some(job)
    }

    fn leave(&mut self, claim: &Claim) {
        if let Some(held) = self.held.get_mut(claim) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(claim);
            }
        }
    }

    /// The job that goes next.
    fn next(&self) -> Option<Key> {
        let [(first, class), (second, other)] = if self.interactive.served <= self.bulk.served {
            [(Priority::Interactive, &self.interactive), (Priority::Bulk, &self.bulk)]
        } else {
            [(Priority::Bulk, &self.bulk), (Priority::Interactive, &self.interactive)]
        };
        let of = |priority, class: &Class<T>| {
            let client = class.next()?.clone();
            let order = *class.clients.get(&client)?.waiting.keys().next()?;
            Some(Key { claim: Claim { client, priority }, order })
        };
        of(first, class).or_else(|| of(second, other))
    }

    /// Tokens of the next batch.
    fn batch_tokens(&self) -> usize {
        if self.interactive.waiting() < self.limits.crowd() {
            return self.limits.batch_tokens;
        }
        let of_backlog = self.interactive.even_tokens() / BACKLOG_PARTS;
        of_backlog.min(self.limits.backlog_batch_tokens).max(self.limits.batch_tokens)
    }

    /// The next batch, as far as it fits and is computed before the tightest deadline in it. `gone` says whether nobody waits for a job any more.
    pub fn take(&mut self, now: Instant, gone: impl Fn(&T) -> bool) -> Taken<T> {
        let mut taken = Taken { batch: Vec::new(), late: Vec::new(), hopeless: Vec::new() };
        let (mut tokens, mut tightest) = (0, None);
        let budget = self.batch_tokens();
        // The one of the hopeless that has most time left: computed when there is nothing better to do, since the pace may have been measured badly.
        let mut last = None;
        while let Some(key) = self.next() {
            let (limits, pace, deadline) = (self.limits, self.pace, key.order.0);
            let class = self.class(key.claim.priority);
            let Some(client) = class.clients.get_mut(&key.claim.client) else { break };
            let Some(job) = client.waiting.get(&key.order) else { break };
            let in_time = |tokens: usize, deadline: Instant| now + bounded(pace.cost(tokens as f64) * pace.cautious()) <= deadline;
            let late = deadline <= now || gone(&job.item);
            let hopeless = !late && !in_time(job.tokens, deadline);
            let until = tightest.map_or(deadline, |tightest: Instant| tightest.min(deadline));
            let with_it = tokens + job.tokens;
            let fits = taken.batch.len() < limits.batch_samples && with_it <= budget && in_time(with_it, until);
            if !(late || hopeless || fits || taken.batch.is_empty()) {
                break;
            }
            if !(late || hopeless) {
                class.now = class.now.max(client.served);
                client.served += job.tokens as f64;
                class.served += job.tokens as f64 / class.weight;
            }
            let Some(job) = self.remove(&key) else { break };
            if late {
                taken.late.push(job);
            } else if hopeless {
                last = last.max(Some((deadline, taken.hopeless.len())));
                taken.hopeless.push(job);
            } else {
                (tokens, tightest) = (with_it, Some(until));
                taken.batch.push(job);
            }
        }
        if let Some((_, last)) = last.filter(|_| taken.batch.is_empty()) {
            let job = taken.hopeless.swap_remove(last);
            tokens = job.tokens;
            taken.batch.push(job);
        }
        if !taken.batch.is_empty() {
            self.running = Some((tokens, now));
        }
        taken
    }

    /// The batch that was taken is computed.
    pub fn computed(&mut self, took: Duration) {
        if let Some((tokens, _)) = self.running.take() {
            self.pace.computed(tokens, took);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits {
        batch_tokens: 100,
        backlog_batch_tokens: 100,
        batch_samples: 1000,
        queue_samples: 1000,
        queue_bytes: 1 << 20,
        batch_overhead: 0,
        queue_wait: Duration::from_secs(3600),
    };

    fn claim(client: &str, priority: Priority) -> Claim {
        Claim { client: client.into(), priority }
    }

    struct Fixture {
        queue: Queue<String>,
        now: Instant,
    }

    fn fixture(limits: Limits) -> Fixture {
        Fixture { queue: Queue::new(limits), now: Instant::now() }
    }

    impl Fixture {
        fn push(&mut self, client: &str, priority: Priority, tokens: usize) -> Key {
            let (claim, deadline) = (claim(client, priority), self.now + Duration::from_secs(600));
            self.queue.reserve(&claim, 1, deadline, self.now).unwrap();
            let job = Waiting { item: client.to_owned(), tokens, bytes: 1, since: self.now };
            self.queue.fill(claim, deadline, self.now, job)
        }

        fn batch(&mut self) -> Vec<String> {
            let taken = self.queue.take(self.now, |_| false);
            self.queue.computed(Duration::from_millis(1));
            taken.batch.into_iter().map(|job| job.item).collect()
        }

        fn reserve(&mut self, client: &str, priority: Priority) -> Result<(), Refusal> {
            self.queue.reserve(&claim(client, priority), 0, self.now + Duration::from_secs(600), self.now)
        }

        /// Takes places until one is refused, and says how many.
        fn reserve_all(&mut self, client: &str, priority: Priority) -> usize {
            (0..).take_while(|_| self.reserve(client, priority).is_ok()).count()
        }
    }

    use Priority::{Bulk, Interactive};

    #[test]
    fn a_small_client_does_not_wait_behind_a_large_one() {
        let mut f = fixture(Limits { backlog_batch_tokens: 800, ..LIMITS });
        (0..700).for_each(|_| drop(f.push("large", Interactive, 10)));
        f.push("small", Interactive, 10);
        let first = f.batch();
        assert!(
            first.contains(&"small".to_owned()) && first.len() == 10,
            "in the first batch, which is no larger than usual: {}",
            first.len()
        );
        assert!(f.batch().len() > 50, "what is left waits for itself");
    }

    #[test]
    fn clients_share_evenly_in_tokens_and_a_pause_earns_nothing() {
        let mut f = fixture(LIMITS);
        (0..60).for_each(|_| drop(f.push("a", Interactive, 20)));
        (0..5).for_each(|_| drop(f.batch()));
        (0..60).for_each(|_| drop(f.push("b", Interactive, 10)));
        let mut tokens = HashMap::new();
        for client in (0..4).flat_map(|_| f.batch()) {
            *tokens.entry(client.clone()).or_insert(0i32) += if client == "a" { 20 } else { 10 };
        }
        assert!((tokens["a"] - tokens["b"]).abs() <= 40, "{tokens:?}");
    }

    /// A batch of 100 tokens that takes so long.
    fn a_batch_takes(f: &mut Fixture, seconds: f64) {
        f.push("a", Interactive, 100);
        f.queue.take(f.now, |_| false);
        f.queue.computed(Duration::from_secs_f64(seconds));
    }

    #[test]
    fn a_moment_at_which_everything_stood_still_spoils_no_estimate_but_a_slower_machine_is_noticed() {
        let mut f = fixture(Limits { queue_wait: Duration::from_secs(4), ..LIMITS });
        (0..20).for_each(|_| a_batch_takes(&mut f, 1.0));
        // Places that were being filled, and the batch that ran, for ten minutes.
        for _ in 0..20 {
            let (people, reserved, deadline) = (claim("people", Interactive), f.now, f.now + Duration::from_secs(3600));
            f.queue.reserve(&people, 1, deadline, reserved).unwrap();
            let since = reserved + Duration::from_secs(600);
            f.queue.fill(people, deadline, reserved, Waiting { item: String::new(), tokens: 1, bytes: 1, since });
            f.queue.take(f.now, |_| false);
        }
        a_batch_takes(&mut f, 600.0);
        f.push("a", Interactive, 100);
        for claim in [claim("b", Interactive), claim("b", Bulk)] {
            assert_eq!(f.queue.reserve(&claim, 0, f.now + Duration::from_secs(6), f.now), Ok(()));
            f.queue.give_back(&claim, 0);
        }
        a_batch_takes(&mut f, 60.0);
        assert_eq!(f.reserve("b", Interactive), Err(Refusal::Wait), "two in a row are no accident");
    }

    #[test]
    fn batches_in_which_there_was_nothing_to_do_do_not_hide_for_long_what_batches_take() {
        let mut f = fixture(Limits { queue_wait: Duration::from_secs(2), ..LIMITS });
        (0..100).for_each(|_| a_batch_takes(&mut f, 1e-6));
        (0..4).for_each(|_| a_batch_takes(&mut f, 1.0));
        assert!(f.reserve_all("a", Interactive) < 10, "two would be right, and all places are 750");
    }

    /// A machine that takes 20 ms for any batch and 1 ms more for each token.
    fn compute_all(f: &mut Fixture) -> Instant {
        let mut last_begins = f.now;
        while f.queue.depth() > 0 {
            last_begins = f.now;
            let tokens: usize = f.queue.take(f.now, |_| false).batch.iter().map(|job| job.tokens).sum();
            let took = Duration::from_millis(20 + tokens as u64);
            f.now += took;
            f.queue.computed(took);
        }
        last_begins
    }

    /// `samples` samples of 100 tokens arrive at once, each from another client. Returns how many are admitted
    /// and how long the last of them waits.
    fn crowd(f: &mut Fixture, samples: usize) -> (usize, Duration) {
        let (began, deadline) = (f.now, f.now + Duration::from_secs(30));
        let mut let_in = 0;
        for claim in (0..samples).map(|i| claim(&i.to_string(), Interactive)) {
            if f.queue.reserve(&claim, 1, deadline, f.now).is_ok() {
                f.queue.fill(claim, deadline, f.now, Waiting { item: String::new(), tokens: 100, bytes: 1, since: f.now });
                let_in += 1;
            }
        }
        (let_in, compute_all(f) - began)
    }

    /// A queue that has seen batches of 10 tokens alone. A crowd of 18 samples takes 9 batches of 0.22 s.
    fn after_a_calm(batch_overhead: usize) -> Fixture {
        let limits = Limits { batch_tokens: 200, backlog_batch_tokens: 200, batch_overhead, queue_wait: Duration::from_secs(2), ..LIMITS };
        let mut f = fixture(limits);
        for _ in 0..20 {
            f.push("calm", Interactive, 10);
            compute_all(&mut f);
        }
        f
    }

    #[test]
    fn a_crowd_that_can_be_computed_in_time_is_let_in_though_only_small_batches_were_measured() {
        let (let_in, waited) = crowd(&mut after_a_calm(200), 18);
        assert!(let_in == 18 && waited <= Duration::from_secs(2), "{let_in}, {waited:?}");
        assert!(crowd(&mut after_a_calm(0), 18).0 < 10, "by the time of small batches alone, large ones look dear");
    }

    #[test]
    fn too_large_a_crowd_is_refused_in_part_at_once_and_exactly_when_it_was_measured() {
        let mut f = after_a_calm(200);
        assert!(crowd(&mut f, 500).0 < 80, "four times what is right, and what waits too long ends by the clock");
        let (let_in, waited) = crowd(&mut f, 500);
        assert!((16..=20).contains(&let_in) && waited <= Duration::from_millis(2200), "{let_in}, {waited:?}");
    }

    #[test]
    fn the_first_crowd_is_judged_by_what_was_measured_before() {
        let mut f = fixture(Limits { queue_wait: Duration::from_secs(2), ..LIMITS });
        f.queue.expect(100, Duration::from_millis(500));
        f.push("a", Interactive, 100);
        assert!((3..=4).contains(&f.reserve_all("b", Interactive)), "each takes half a second of two");
    }

    #[test]
    fn a_batch_grows_with_the_interactive_backlog_of_a_crowd_within_its_bound() {
        let limits = Limits { backlog_batch_tokens: 300, ..LIMITS };
        let first_of = |priority, samples: usize| {
            let mut f = fixture(limits);
            (0..samples).for_each(|_| drop(f.push("a", priority, 10)));
            f.batch().len()
        };
        assert_eq!(limits.crowd(), 250);
        assert_eq!((first_of(Interactive, 249), first_of(Interactive, 250), first_of(Interactive, 700)), (10, 20, 30));
        assert_eq!(first_of(Bulk, 700), 10, "whoever comes next and is interactive would wait for it");
        let mut f = fixture(limits);
        (0..360).for_each(|i| drop(f.push(if i % 6 == 0 { "a" } else { "b" }, Interactive, 10)));
        assert_eq!(f.batch().len(), 10, "as much as if b had no more than a");
    }

    #[test]
    fn interactive_goes_before_bulk_and_bulk_does_not_starve() {
        let mut f = fixture(Limits { batch_tokens: 50, backlog_batch_tokens: 50, ..LIMITS });
        (0..200).for_each(|_| drop(f.push("bulk", Bulk, 10)));
        (0..200).for_each(|_| drop(f.push("people", Interactive, 10)));
        let computed: Vec<String> = (0..40).flat_map(|_| f.batch()).collect();
        let share = computed.iter().filter(|c| *c == "bulk").count() as f64 / computed.len() as f64;
        assert!((share - 0.2).abs() < 0.03, "bulk got {share}");
    }

    #[test]
    fn bulk_is_not_starved_where_every_batch_is_one_sample() {
        let mut f = fixture(Limits { batch_samples: 1, ..LIMITS });
        (0..50).for_each(|_| drop(f.push("bulk", Bulk, 10)));
        (0..50).for_each(|_| drop(f.push("people", Interactive, 10)));
        let computed: Vec<String> = (0..20).flat_map(|_| f.batch()).collect();
        assert_eq!(computed.iter().filter(|c| *c == "bulk").count(), 4);
    }

    #[test]
    fn places_are_left_for_interactive_samples_and_for_other_clients() {
        let mut f = fixture(Limits { queue_samples: 16, ..LIMITS });
        assert_eq!(f.reserve_all("a", Bulk), 12);
        assert_eq!(f.reserve("a", Bulk), Err(Refusal::Full));
        assert_eq!(f.reserve("b", Bulk), Err(Refusal::Full));
        assert_eq!(f.reserve_all("b", Interactive), 4);
        assert_eq!(f.reserve("c", Interactive), Err(Refusal::Full));
    }

    #[test]
    fn a_client_that_holds_its_share_leaves_places_for_others_and_its_bulk_leaves_places_for_its_interactive() {
        let mut f = fixture(Limits { queue_samples: 16, ..LIMITS });
        assert_eq!(f.reserve_all("a", Interactive), 12);
        assert_eq!(f.reserve("a", Interactive), Err(Refusal::ClientShare));
        assert_eq!(f.reserve("b", Interactive), Ok(()));
        let mut f = fixture(Limits { queue_samples: 16, ..LIMITS });
        assert_eq!(f.reserve_all("a", Bulk), 12);
        assert_eq!(f.reserve_all("a", Interactive), 4);
    }

    #[test]
    fn refuses_what_would_wait_too_long_or_miss_its_deadline() {
        let mut f = slow(Limits { queue_wait: Duration::from_secs(2), ..LIMITS });
        f.push("a", Interactive, 100);
        let reserve =
            |f: &mut Fixture, seconds: f64| f.queue.reserve(&claim("a", Interactive), 0, f.now + Duration::from_secs_f64(seconds), f.now);
        assert_eq!(reserve(&mut f, 1.9), Err(Refusal::Deadline), "a second until its turn and one for itself");
        assert_eq!(reserve(&mut f, 2.1), Ok(()));
        f.push("a", Interactive, 60);
        assert_eq!(reserve(&mut f, 60.0), Err(Refusal::Wait));
        assert_eq!(f.reserve("a", Bulk), Ok(()), "bulk can wait");
        assert!(f.queue.retry_after(f.now) > Duration::from_secs(1));
    }

    /// A queue whose pace is a hundredth of a second a token.
    fn slow(limits: Limits) -> Fixture {
        let mut f = fixture(limits);
        f.push("a", Interactive, 100);
        f.queue.take(f.now, |_| false);
        f.queue.computed(Duration::from_secs(1));
        f
    }

    fn push_until(f: &mut Fixture, client: &str, tokens: usize, deadline: Instant) {
        let claim = claim(client, Interactive);
        // Let in early enough.
        f.queue.reserve(&claim, 1, deadline + Duration::from_secs(600), f.now).unwrap();
        f.queue.fill(claim, deadline, f.now, Waiting { item: client.to_owned(), tokens, bytes: 1, since: f.now });
    }

    fn names(jobs: Vec<Waiting<String>>) -> Vec<String> {
        jobs.into_iter().map(|job| job.item).collect()
    }

    #[test]
    fn a_batch_ends_before_the_tightest_deadline_in_it() {
        let mut f = slow(LIMITS);
        let soon = f.now + Duration::from_millis(450);
        push_until(&mut f, "tight", 20, soon);
        (0..4).for_each(|_| drop(f.push("others", Interactive, 20)));
        let taken = f.queue.take(f.now, |_| false);
        assert_eq!(names(taken.batch), ["tight", "others"], "three would take 0.6 s");
        assert!(taken.hopeless.is_empty());
    }

    #[test]
    fn what_cannot_be_done_in_time_is_not_begun() {
        let mut f = slow(LIMITS);
        let soon = f.now + Duration::from_millis(150);
        push_until(&mut f, "hopeless", 20, soon);
        f.push("others", Interactive, 20);
        let taken = f.queue.take(f.now, |_| false);
        assert_eq!((names(taken.batch), names(taken.hopeless)), (vec!["others".to_owned()], vec!["hopeless".to_owned()]));
    }

    #[test]
    fn a_pace_measured_badly_is_measured_again() {
        let mut f = slow(LIMITS);
        for milliseconds in [50, 70, 60] {
            let soon = f.now + Duration::from_millis(milliseconds);
            push_until(&mut f, &milliseconds.to_string(), 20, soon);
        }
        let taken = f.queue.take(f.now, |_| false);
        assert_eq!(names(taken.batch), ["70"], "a machine that stood still for a moment may be fast again");
        assert_eq!(taken.hopeless.len(), 2);
        for _ in 0..40 {
            f.queue.computed(Duration::from_millis(20));
            f.push("a", Interactive, 20);
            f.queue.take(f.now, |_| false);
        }
        f.queue.computed(Duration::from_millis(20));
        let soon = f.now + Duration::from_millis(50);
        push_until(&mut f, "in time", 20, soon);
        push_until(&mut f, "as well", 20, soon);
        assert_eq!(f.queue.take(f.now, |_| false).batch.len(), 2);
    }

    #[test]
    fn an_idle_queue_lets_in_what_a_bad_measurement_speaks_against() {
        let mut f = slow(LIMITS);
        let soon = f.now + Duration::from_millis(50);
        assert_eq!(f.queue.reserve(&claim("a", Interactive), 0, soon, f.now), Ok(()));
        assert_eq!(f.queue.reserve(&claim("a", Interactive), 0, soon, f.now), Err(Refusal::Deadline));
    }

    #[test]
    fn what_is_late_or_given_up_is_not_in_the_batch() {
        let mut f = fixture(LIMITS);
        f.push("a", Interactive, 10);
        f.push("gone", Interactive, 10);
        f.push("b", Bulk, 10);
        let taken = f.queue.take(f.now, |item| item == "gone");
        assert_eq!((taken.batch.len(), taken.late.len()), (2, 1));
        f.push("late", Interactive, 10);
        let taken = f.queue.take(f.now + Duration::from_secs(601), |_| false);
        assert_eq!((taken.batch.len(), taken.late.len()), (0, 1));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(u8, bool, u8),
        Reserve(u8, bool),
        GiveBack,
        Hangup(u8),
        Batch,
        Wait(u16),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0u8..5, any::<bool>(), 1u8..120).prop_map(|(client, bulk, tokens)| Step::Push(client, bulk, tokens)),
            1 => (0u8..5, any::<bool>()).prop_map(|(client, bulk)| Step::Reserve(client, bulk)),
            1 => Just(Step::GiveBack),
            1 => any::<u8>().prop_map(Step::Hangup),
            2 => Just(Step::Batch),
            1 => any::<u16>().prop_map(Step::Wait),
        ];
        prop::collection::vec(step, 1..120)
    }

    proptest! {
        #[test]
        fn nothing_is_lost_computed_twice_late_or_over_a_bound(steps in steps()) {
            let limits = Limits { batch_tokens: 20, queue_samples: 20, queue_bytes: 15, batch_samples: 6, ..LIMITS };
            let (mut queue, mut now) = (Queue::new(limits), Instant::now());
            let mut waiting: HashMap<u64, (Key, Instant, usize)> = HashMap::new();
            let mut reserved: Vec<Claim> = Vec::new();
            let mut number = 0;
            for step in steps {
                let priority = |bulk| if bulk { Bulk } else { Interactive };
                match step {
                    Step::Push(client, bulk, tokens) => {
                        let (claim, deadline) = (claim(&client.to_string(), priority(bulk)), now + Duration::from_secs(tokens.into()));
                        if queue.reserve(&claim, 1, deadline, now).is_ok() {
                            number += 1;
                            let job = Waiting { item: number, tokens: tokens.into(), bytes: 1, since: now };
                            waiting.insert(number, (queue.fill(claim, deadline, now, job), deadline, tokens.into()));
                        }
                    }
                    Step::Reserve(client, bulk) => {
                        let claim = claim(&client.to_string(), priority(bulk));
                        if queue.reserve(&claim, 1, now + Duration::from_secs(60), now).is_ok() {
                            reserved.push(claim);
                        }
                    }
                    Step::GiveBack => {
                        if let Some(claim) = reserved.pop() {
                            queue.give_back(&claim, 1);
                        }
                    }
                    Step::Hangup(which) => {
                        let Some(&id) = waiting.keys().nth(usize::from(which) % waiting.len().max(1)) else { continue };
                        let (key, ..) = waiting.remove(&id).unwrap();
                        prop_assert!(queue.remove(&key).is_some());
                        prop_assert!(queue.remove(&key).is_none());
                    }
                    Step::Batch => {
                        let (mut interactive, mut samples): (HashMap<Arc<str>, usize>, _) = (HashMap::new(), 0);
                        for (key, _, tokens) in waiting.values().filter(|(key, ..)| key.claim.priority == Interactive) {
                            *interactive.entry(key.claim.client.clone()).or_default() += tokens;
                            samples += 1;
                        }
                        let even = interactive.values().min().unwrap_or(&0) * interactive.len() / BACKLOG_PARTS;
                        let of_backlog = if samples < limits.crowd() { 0 } else { even };
                        let budget = of_backlog.clamp(limits.batch_tokens, limits.backlog_batch_tokens);
                        let Taken { batch, late, hopeless } = queue.take(now, |_| false);
                        let tokens: usize = batch.iter().map(|job| job.tokens).sum();
                        prop_assert!(batch.len() <= 1 || (tokens <= budget && batch.len() <= limits.batch_samples));
                        prop_assert!(!(batch.is_empty() && queue.depth() > 0), "a free worker leaves nothing waiting");
                        for job in &batch {
                            let (_, deadline, _) = waiting.remove(&job.item).expect("it waited, and was not taken before");
                            prop_assert!(deadline > now);
                        }
                        for job in &hopeless {
                            prop_assert!(!batch.is_empty() && waiting.remove(&job.item).unwrap().1 > now);
                        }
                        late.iter().for_each(|job| assert!(waiting.remove(&job.item).unwrap().1 <= now));
                        queue.computed(Duration::from_millis(tokens as u64));
                    }
                    Step::Wait(milliseconds) => now += Duration::from_millis(milliseconds.into()),
                }
                prop_assert_eq!((queue.depth(), queue.reserved()), (waiting.len(), reserved.len()));
                prop_assert_eq!(queue.bytes(), waiting.len() + reserved.len());
                prop_assert_eq!(queue.held.values().sum::<usize>(), waiting.len() + reserved.len());
                prop_assert!(queue.bytes() <= limits.queue_bytes);
            }
        }
    }
}
