//! What the queue guarantees, and that its estimates recover from bad measurements.
use proptest::prelude::*;

use super::*;
use Priority::{Bulk, Interactive};

const LIMITS: QueueLimits = QueueLimits {
    batch_tokens: 100,
    backlog_batch_tokens: 100,
    batch_samples: 1000,
    queue_samples: 1000,
    queue_bytes: 1 << 20,
    batch_overhead: 0,
    queue_wait: Duration::from_secs(3600),
};

fn class(client: &str, priority: Priority) -> TrafficClass {
    TrafficClass { client: client.into(), priority }
}

struct Fixture {
    queue: Queue<String>,
    now: Instant,
}

fn fixture(limits: QueueLimits) -> Fixture {
    Fixture { queue: Queue::new(limits), now: Instant::now() }
}

impl Fixture {
    fn push(&mut self, client: &str, priority: Priority, tokens: usize) -> JobKey {
        let (class, deadline) = (class(client, priority), self.now + Duration::from_secs(600));
        self.queue.reserve(&class, 1, deadline, self.now).unwrap();
        let job = WaitingJob { item: client.to_owned(), tokens, bytes: 1, since: self.now };
        self.queue.fill(class, deadline, self.now, job)
    }

    fn batch(&mut self) -> Vec<String> {
        let taken = self.queue.take(self.now, |_| false);
        self.queue.finish_batch(Duration::from_millis(1));
        taken.batch.into_iter().map(|job| job.item).collect()
    }

    fn reserve(&mut self, client: &str, priority: Priority) -> Result<(), ReserveError> {
        self.queue.reserve(&class(client, priority), 0, self.now + Duration::from_secs(600), self.now)
    }

    /// Takes places until one is refused, and says how many.
    fn reserve_all(&mut self, client: &str, priority: Priority) -> usize {
        (0..).take_while(|_| self.reserve(client, priority).is_ok()).count()
    }
}

#[test]
fn what_ended_the_forming_of_a_batch_is_told() {
    let ended_by = |limits: QueueLimits, waiting: usize, deadline: f64| {
        let mut f = fixture(limits);
        f.queue.estimate(10, Duration::from_secs(1));
        for _ in 0..waiting {
            let (class, deadline) = (class("a", Interactive), f.now + Duration::from_secs_f64(deadline));
            f.queue.reserve(&class, 1, f.now + Duration::from_secs(600), f.now).unwrap();
            f.queue.fill(class, deadline, f.now, WaitingJob { item: String::new(), tokens: 10, bytes: 1, since: f.now });
        }
        f.queue.take(f.now, |_| false).ended_by
    };
    assert_eq!(ended_by(LIMITS, 10, 600.0), EndedBy::EmptyQueue);
    assert_eq!(ended_by(LIMITS, 11, 600.0), EndedBy::Tokens);
    assert_eq!(ended_by(QueueLimits { batch_samples: 3, ..LIMITS }, 11, 600.0), EndedBy::Samples);
    // Ten tokens take a second.
    assert_eq!(ended_by(LIMITS, 5, 3.5), EndedBy::Deadline);
}

#[test]
fn a_small_client_does_not_wait_behind_a_large_one() {
    let mut f = fixture(QueueLimits { backlog_batch_tokens: 800, ..LIMITS });
    (0..700).for_each(|_| drop(f.push("large", Interactive, 10)));
    f.push("small", Interactive, 10);
    let first = f.batch();
    assert!(
        first.contains(&"small".to_owned()) && first.len() == 10,
        "it is in the first batch, which is not larger than usual: {} samples",
        first.len()
    );
    assert!(f.batch().len() > 50, "where one client alone waits, the batch is larger");
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

/// Computes a batch of 100 tokens in `seconds`.
fn compute_batch(f: &mut Fixture, seconds: f64) {
    f.push("a", Interactive, 100);
    f.queue.take(f.now, |_| false);
    f.queue.finish_batch(Duration::from_secs_f64(seconds));
}

#[test]
fn one_pause_of_the_process_spoils_no_estimate_but_a_slower_machine_is_noticed() {
    let mut f = fixture(QueueLimits { queue_wait: Duration::from_secs(4), ..LIMITS });
    (0..20).for_each(|_| compute_batch(&mut f, 1.0));
    // The process stands still for ten minutes while 20 samples are preprocessed and a batch is computed.
    for _ in 0..20 {
        let (people, reserved, deadline) = (class("people", Interactive), f.now, f.now + Duration::from_secs(3600));
        f.queue.reserve(&people, 1, deadline, reserved).unwrap();
        let since = reserved + Duration::from_secs(600);
        f.queue.fill(people, deadline, reserved, WaitingJob { item: String::new(), tokens: 1, bytes: 1, since });
        f.queue.take(f.now, |_| false);
    }
    compute_batch(&mut f, 600.0);
    f.push("a", Interactive, 100);
    for class in [class("b", Interactive), class("b", Bulk)] {
        assert_eq!(f.queue.reserve(&class, 0, f.now + Duration::from_secs(6), f.now), Ok(()));
        f.queue.release(&class, 0);
    }
    compute_batch(&mut f, 60.0);
    assert_eq!(f.reserve("b", Interactive), Err(ReserveError::Wait), "two slow batches in a row count");
}

#[test]
fn batches_that_took_no_time_are_soon_outweighed_by_slow_ones() {
    let mut f = fixture(QueueLimits { queue_wait: Duration::from_secs(2), ..LIMITS });
    (0..100).for_each(|_| compute_batch(&mut f, 1e-6));
    (0..4).for_each(|_| compute_batch(&mut f, 1.0));
    assert!(f.reserve_all("a", Interactive) < 10, "two are right, and this client may hold 750 places");
    let mut f = fixture(QueueLimits { queue_wait: Duration::from_secs(2), ..LIMITS });
    compute_batch(&mut f, 0.0);
    compute_batch(&mut f, 1.0);
    assert!(f.reserve_all("a", Interactive) < 10, "the clock may be too coarse for the first batch");
}

/// Computes all that waits, on a machine where a batch takes `20 ms + tokens · 1 ms`. Returns when the last
/// batch began.
fn compute_all(f: &mut Fixture) -> Instant {
    let mut last_begins = f.now;
    while f.queue.depth() > 0 {
        last_begins = f.now;
        let tokens: usize = f.queue.take(f.now, |_| false).batch.iter().map(|job| job.tokens).sum();
        let took = Duration::from_millis(20 + tokens as u64);
        f.now += took;
        f.queue.finish_batch(took);
    }
    last_begins
}

/// `samples` samples of 100 tokens arrive at once, each from another client. Returns how many are admitted
/// and how long the last of them waits.
fn burst(f: &mut Fixture, samples: usize) -> (usize, Duration) {
    let (began, deadline) = (f.now, f.now + Duration::from_secs(30));
    let mut admitted = 0;
    for class in (0..samples).map(|i| class(&i.to_string(), Interactive)) {
        if f.queue.reserve(&class, 1, deadline, f.now).is_ok() {
            f.queue.fill(class, deadline, f.now, WaitingJob { item: String::new(), tokens: 100, bytes: 1, since: f.now });
            admitted += 1;
        }
    }
    (admitted, compute_all(f) - began)
}

/// A queue that has measured batches of 10 tokens only. A burst of 18 samples then takes 9 batches of 0.22 s.
fn after_small_batches(batch_overhead: usize) -> Fixture {
    let limits = QueueLimits { batch_tokens: 200, backlog_batch_tokens: 200, batch_overhead, queue_wait: Duration::from_secs(2), ..LIMITS };
    let mut f = fixture(limits);
    for _ in 0..20 {
        f.push("early", Interactive, 10);
        compute_all(&mut f);
    }
    f
}

#[test]
fn a_burst_that_can_be_computed_in_time_is_admitted_though_only_small_batches_were_measured() {
    let (admitted, waited) = burst(&mut after_small_batches(200), 18);
    assert!(admitted == 18 && waited <= Duration::from_secs(2), "{admitted}, {waited:?}");
    assert!(burst(&mut after_small_batches(0), 18).0 < 10, "without a fixed cost of a batch, large batches look too expensive");
}

#[test]
fn a_burst_that_is_too_large_is_refused_in_part_and_more_exactly_once_it_was_measured() {
    let mut f = after_small_batches(200);
    assert!(burst(&mut f, 500).0 < 80, "at most four times as many as can be computed in time");
    let (admitted, waited) = burst(&mut f, 500);
    assert!((16..=20).contains(&admitted) && waited <= Duration::from_millis(2200), "{admitted}, {waited:?}");
}

#[test]
fn the_first_burst_is_admitted_by_the_first_estimate() {
    let mut f = fixture(QueueLimits { queue_wait: Duration::from_secs(2), ..LIMITS });
    f.queue.estimate(100, Duration::from_millis(500));
    f.push("a", Interactive, 100);
    assert!((3..=4).contains(&f.reserve_all("b", Interactive)), "each takes half a second, and two seconds are allowed");
}

#[test]
fn a_batch_grows_with_the_interactive_backlog_within_its_bound() {
    let limits = QueueLimits { backlog_batch_tokens: 300, ..LIMITS };
    let first_of = |priority, samples: usize| {
        let mut f = fixture(limits);
        (0..samples).for_each(|_| drop(f.push("a", priority, 10)));
        f.batch().len()
    };
    assert_eq!(limits.backlog_threshold(), 250);
    assert_eq!((first_of(Interactive, 249), first_of(Interactive, 250), first_of(Interactive, 700)), (10, 20, 30));
    assert_eq!(first_of(Bulk, 700), 10, "an interactive sample that arrives later would wait for a large batch");
    let mut f = fixture(limits);
    (0..360).for_each(|i| drop(f.push(if i % 6 == 0 { "a" } else { "b" }, Interactive, 10)));
    assert_eq!(f.batch().len(), 10, "as many as if b had no more samples waiting than a");
    let mut f = fixture(limits);
    (0..300).for_each(|i| drop(f.push(if i % 2 == 0 { "a" } else { "b" }, Interactive, 10)));
    assert_eq!((f.batch().len(), f.batch().len()), (25, 22), "a twelfth of what waits, in samples of 10 tokens");
}

#[test]
fn interactive_goes_before_bulk_and_bulk_does_not_starve() {
    let mut f = fixture(QueueLimits { batch_tokens: 50, backlog_batch_tokens: 50, ..LIMITS });
    (0..200).for_each(|_| drop(f.push("bulk", Bulk, 10)));
    (0..200).for_each(|_| drop(f.push("people", Interactive, 10)));
    let computed: Vec<String> = (0..40).flat_map(|_| f.batch()).collect();
    let share = computed.iter().filter(|c| *c == "bulk").count() as f64 / computed.len() as f64;
    assert!((share - 0.2).abs() < 0.03, "bulk got {share}");
}

#[test]
fn bulk_gets_no_more_than_its_part_while_samples_of_both_priorities_arrive() {
    let mut f = fixture(QueueLimits { batch_tokens: 30, backlog_batch_tokens: 30, ..LIMITS });
    let arrive = |f: &mut Fixture, samples: usize| {
        (0..samples).for_each(|_| drop(f.push("bulk", Bulk, 10)));
        (0..samples).for_each(|_| drop(f.push("people", Interactive, 10)));
    };
    arrive(&mut f, 50);
    let mut bulk = 0;
    for _ in 0..40 {
        bulk += f.batch().iter().filter(|client| *client == "bulk").count();
        arrive(&mut f, 3);
    }
    assert!((bulk as f64 / 120.0 - 0.2).abs() < 0.03, "bulk got {bulk} of 120");
}

#[test]
fn bulk_is_not_starved_where_every_batch_is_one_sample() {
    let mut f = fixture(QueueLimits { batch_samples: 1, ..LIMITS });
    (0..50).for_each(|_| drop(f.push("bulk", Bulk, 10)));
    (0..50).for_each(|_| drop(f.push("people", Interactive, 10)));
    let computed: Vec<String> = (0..20).flat_map(|_| f.batch()).collect();
    assert_eq!(computed.iter().filter(|c| *c == "bulk").count(), 4);
}

#[test]
fn places_are_left_for_interactive_samples_and_for_other_clients() {
    let mut f = fixture(QueueLimits { queue_samples: 16, ..LIMITS });
    assert_eq!(f.reserve_all("a", Bulk), 12);
    assert_eq!(f.reserve("a", Bulk), Err(ReserveError::Full));
    assert_eq!(f.reserve("b", Bulk), Err(ReserveError::Full));
    assert_eq!(f.reserve_all("b", Interactive), 4);
    assert_eq!(f.reserve("c", Interactive), Err(ReserveError::Full));
}

#[test]
fn a_client_that_holds_its_share_leaves_places_for_others_and_its_bulk_leaves_places_for_its_interactive() {
    let mut f = fixture(QueueLimits { queue_samples: 16, ..LIMITS });
    assert_eq!(f.reserve_all("a", Interactive), 12);
    assert_eq!(f.reserve("a", Interactive), Err(ReserveError::ClientShare));
    assert_eq!(f.reserve("b", Interactive), Ok(()));
    let mut f = fixture(QueueLimits { queue_samples: 16, ..LIMITS });
    assert_eq!(f.reserve_all("a", Bulk), 12);
    assert_eq!(f.reserve_all("a", Interactive), 4);
}

#[test]
fn a_client_may_use_what_others_do_not_until_half_of_the_places_is_taken() {
    let mut f = fixture(QueueLimits { queue_samples: 16, ..LIMITS });
    (0..4).for_each(|_| assert_eq!(f.reserve("a", Interactive), Ok(())));
    ["b", "c", "d"].into_iter().for_each(|client| assert_eq!(f.reserve(client, Interactive), Ok(())));
    assert_eq!(f.reserve("a", Interactive), Ok(()), "7 of 16 places are taken, and it holds its even share of 4");
    assert_eq!(f.reserve("a", Interactive), Err(ReserveError::ClientShare), "half is taken");
    assert_eq!(f.reserve("b", Interactive), Ok(()));
}

#[test]
fn memory_is_given_to_the_last_byte_and_no_further() {
    let mut f = fixture(QueueLimits { queue_bytes: 100, ..LIMITS });
    let (class, deadline) = (class("a", Interactive), f.now + Duration::from_secs(600));
    let reserve = |f: &mut Fixture, bytes: usize| f.queue.reserve(&class, bytes, deadline, f.now);
    assert_eq!(reserve(&mut f, 60), Ok(()));
    assert_eq!(reserve(&mut f, 41), Err(ReserveError::Memory));
    assert_eq!(reserve(&mut f, 40), Ok(()));
    assert_eq!(f.queue.resize(60, 61), Err(ReserveError::Memory));
    assert_eq!(f.queue.bytes(), 100, "a refusal changes nothing");
    assert_eq!(f.queue.resize(60, 10), Ok(()));
    assert_eq!(f.queue.resize(10, 60), Ok(()));
    f.queue.release(&class, 60);
    assert_eq!((f.queue.bytes(), f.queue.reserved()), (40, 1));
}

#[test]
fn a_refused_caller_tries_again_after_half_of_a_bulk_sample_s_wait_within_bounds() {
    let mut f = fixture(LIMITS);
    assert_eq!(f.queue.retry_after(f.now), Duration::from_millis(100), "nothing is measured");
    f.queue.estimate(100, Duration::from_secs(1));
    assert_eq!(f.queue.retry_after(f.now), Duration::from_millis(10), "nothing waits");
    f.push("a", Interactive, 100);
    f.queue.take(f.now, |_| false);
    let after = |f: &Fixture, seconds: f64| f.queue.retry_after(f.now + Duration::from_secs_f64(seconds)).as_secs_f64();
    assert!((after(&f, 0.0) - 0.5).abs() < 1e-6, "the batch that runs takes a second");
    assert!((after(&f, 0.4) - 0.3).abs() < 1e-6, "what has passed of it counts no more");
    assert_eq!(after(&f, 5.0), 0.01, "it should have ended");
    f.push("a", Interactive, 100);
    f.push("b", Bulk, 300);
    assert!((after(&f, 0.0) - 2.5).abs() < 1e-6, "all that waits goes before a bulk sample");
    assert!(
        (f.queue.expected_wait(Interactive, f.now).as_secs_f64() - 2.25).abs() < 1e-6,
        "an interactive one waits for a part of the bulk"
    );
    f.push("c", Bulk, 100_000);
    assert_eq!(after(&f, 0.0), 60.0);
}

#[test]
fn refuses_what_would_wait_too_long_or_miss_its_deadline() {
    let mut f = slow(QueueLimits { queue_wait: Duration::from_secs(2), ..LIMITS });
    f.push("a", Interactive, 100);
    let reserve =
        |f: &mut Fixture, seconds: f64| f.queue.reserve(&class("a", Interactive), 0, f.now + Duration::from_secs_f64(seconds), f.now);
    assert_eq!(reserve(&mut f, 1.9), Err(ReserveError::Deadline), "it waits for one second and takes another");
    assert_eq!(reserve(&mut f, 2.1), Ok(()));
    f.push("a", Interactive, 60);
    assert_eq!(reserve(&mut f, 60.0), Err(ReserveError::Wait));
    assert_eq!(f.reserve("a", Bulk), Ok(()), "bulk can wait");
    assert!(f.queue.retry_after(f.now) > Duration::from_secs(1));
}

/// A queue that has measured 10 ms per token.
fn slow(limits: QueueLimits) -> Fixture {
    let mut f = fixture(limits);
    f.push("a", Interactive, 100);
    f.queue.take(f.now, |_| false);
    f.queue.finish_batch(Duration::from_secs(1));
    f
}

fn push_until(f: &mut Fixture, client: &str, tokens: usize, deadline: Instant) {
    let class = class(client, Interactive);
    // Reserved with a later deadline, which is always admitted.
    f.queue.reserve(&class, 1, deadline + Duration::from_secs(600), f.now).unwrap();
    f.queue.fill(class, deadline, f.now, WaitingJob { item: client.to_owned(), tokens, bytes: 1, since: f.now });
}

fn names(jobs: Vec<WaitingJob<String>>) -> Vec<String> {
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
    assert!(taken.would_expire.is_empty());
}

#[test]
fn a_sample_that_would_expire_is_not_computed() {
    let mut f = slow(LIMITS);
    let soon = f.now + Duration::from_millis(150);
    push_until(&mut f, "would_expire", 20, soon);
    f.push("others", Interactive, 20);
    let taken = f.queue.take(f.now, |_| false);
    assert_eq!((names(taken.batch), names(taken.would_expire)), (vec!["others".to_owned()], vec!["would_expire".to_owned()]));
}

#[test]
fn a_bad_measurement_of_the_pace_is_corrected() {
    let mut f = slow(LIMITS);
    for milliseconds in [50, 70, 60] {
        let soon = f.now + Duration::from_millis(milliseconds);
        push_until(&mut f, &milliseconds.to_string(), 20, soon);
    }
    let taken = f.queue.take(f.now, |_| false);
    assert_eq!(names(taken.batch), ["70"], "one sample is computed all the same, since the machine may be fast again");
    assert_eq!(taken.would_expire.len(), 2);
    for _ in 0..40 {
        f.queue.finish_batch(Duration::from_millis(20));
        f.push("a", Interactive, 20);
        f.queue.take(f.now, |_| false);
    }
    f.queue.finish_batch(Duration::from_millis(20));
    let soon = f.now + Duration::from_millis(50);
    push_until(&mut f, "in time", 20, soon);
    push_until(&mut f, "as well", 20, soon);
    assert_eq!(f.queue.take(f.now, |_| false).batch.len(), 2);
}

#[test]
fn an_idle_queue_admits_a_sample_whatever_was_measured() {
    let mut f = slow(LIMITS);
    let soon = f.now + Duration::from_millis(50);
    assert_eq!(f.queue.reserve(&class("a", Interactive), 0, soon, f.now), Ok(()));
    assert_eq!(f.queue.reserve(&class("a", Interactive), 0, soon, f.now), Err(ReserveError::Deadline));
}

#[test]
fn a_sample_that_expired_or_whose_caller_has_gone_is_not_in_the_batch() {
    let mut f = fixture(LIMITS);
    f.push("a", Interactive, 10);
    f.push("gone", Interactive, 10);
    f.push("b", Bulk, 10);
    let taken = f.queue.take(f.now, |item| item == "gone");
    assert_eq!((taken.batch.len(), taken.expired.len()), (2, 1));
    assert!(f.queue.take(f.now, |_| false).is_empty(), "none is left");
    f.push("expired", Interactive, 10);
    let taken = f.queue.take(f.now + Duration::from_secs(601), |_| false);
    assert_eq!((taken.batch.len(), taken.expired.len()), (0, 1));
    assert!(!taken.is_empty(), "its caller is to be told");
}

#[derive(Clone, Debug)]
enum Step {
    Push(u8, bool, u8),
    Reserve(u8, bool),
    Release,
    Hangup(u8),
    Batch,
    Wait(u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u8..5, any::<bool>(), 1u8..120).prop_map(|(client, bulk, tokens)| Step::Push(client, bulk, tokens)),
        1 => (0u8..5, any::<bool>()).prop_map(|(client, bulk)| Step::Reserve(client, bulk)),
        1 => Just(Step::Release),
        1 => any::<u8>().prop_map(Step::Hangup),
        2 => Just(Step::Batch),
        1 => any::<u16>().prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #[test]
    fn no_sample_is_lost_computed_twice_or_after_its_deadline_and_no_bound_is_exceeded(steps in steps()) {
        let limits = QueueLimits { batch_tokens: 20, queue_samples: 20, queue_bytes: 15, batch_samples: 6, ..LIMITS };
        let (mut queue, mut now) = (Queue::new(limits), Instant::now());
        let mut waiting: HashMap<u64, (JobKey, Instant)> = HashMap::new();
        let mut reserved: Vec<TrafficClass> = Vec::new();
        let mut number = 0;
        for step in steps {
            let priority = |bulk| if bulk { Bulk } else { Interactive };
            match step {
                Step::Push(client, bulk, tokens) => {
                    let (class, deadline) = (class(&client.to_string(), priority(bulk)), now + Duration::from_secs(tokens.into()));
                    if queue.reserve(&class, 1, deadline, now).is_ok() {
                        number += 1;
                        let job = WaitingJob { item: number, tokens: tokens.into(), bytes: 1, since: now };
                        waiting.insert(number, (queue.fill(class, deadline, now, job), deadline));
                    }
                }
                Step::Reserve(client, bulk) => {
                    let class = class(&client.to_string(), priority(bulk));
                    if queue.reserve(&class, 1, now + Duration::from_secs(60), now).is_ok() {
                        reserved.push(class);
                    }
                }
                Step::Release => {
                    if let Some(class) = reserved.pop() {
                        queue.release(&class, 1);
                    }
                }
                Step::Hangup(which) => {
                    let Some(&id) = waiting.keys().nth(usize::from(which) % waiting.len().max(1)) else { continue };
                    let (key, _) = waiting.remove(&id).unwrap();
                    prop_assert!(queue.remove(&key).is_some());
                    prop_assert!(queue.remove(&key).is_none());
                }
                Step::Batch => {
                    let interactive = waiting.values().filter(|(key, _)| key.class.priority == Interactive).count();
                    let has_backlog = interactive >= limits.backlog_threshold();
                    let budget = if has_backlog { limits.backlog_batch_tokens } else { limits.batch_tokens };
                    let Taken { batch, expired, would_expire, .. } = queue.take(now, |_| false);
                    let tokens: usize = batch.iter().map(|job| job.tokens).sum();
                    prop_assert!(batch.len() <= 1 || (tokens <= budget && batch.len() <= limits.batch_samples));
                    prop_assert!(!(batch.is_empty() && queue.depth() > 0), "a free worker leaves nothing waiting");
                    for job in &batch {
                        let (_, deadline) = waiting.remove(&job.item).expect("it waited, and was not taken before");
                        prop_assert!(deadline > now);
                    }
                    for job in &would_expire {
                        prop_assert!(!batch.is_empty() && waiting.remove(&job.item).unwrap().1 > now);
                    }
                    expired.iter().for_each(|job| assert!(waiting.remove(&job.item).unwrap().1 <= now));
                    queue.finish_batch(Duration::from_millis(tokens as u64));
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
