//! Every schedule of the threads is as good as any other: no job is lost, answered twice or left waiting.
//! `cargo test --features shuttle --lib schedules`
use shuttle::future::block_on;
use shuttle::thread;

use super::*;

struct Increment;

impl BatchRunner for Increment {
    type Job = usize;
    type Outcome = usize;

    fn tokens(&self, _: &usize) -> usize {
        40
    }

    fn run(&self, jobs: &[usize]) -> Vec<usize> {
        thread::yield_now();
        jobs.iter().map(|job| job + 1).collect()
    }
}

fn limits() -> QueueLimits {
    QueueLimits {
        batch_tokens: 100,
        backlog_batch_tokens: 100,
        batch_samples: 4,
        queue_samples: 8,
        queue_bytes: 100,
        batch_overhead: 0,
        queue_wait: Duration::from_secs(600),
    }
}

fn slot(batcher: &Batcher<Increment>, client: usize) -> Result<Slot<Increment>, BatchError> {
    let class = TrafficClass { client: client.to_string().into(), priority: Priority::Interactive };
    batcher.reserve(class, 1, Instant::now() + Duration::from_secs(600))
}

#[test]
fn every_job_is_answered_once_or_leaves_the_queue_while_it_closes() {
    shuttle::check_random(
        || {
            let batcher = Arc::new(Batcher::start(Increment, limits()).unwrap());
            let callers: Vec<_> = (0..4)
                .map(|i| {
                    let batcher = batcher.clone();
                    thread::spawn(move || {
                        let Ok(slot) = slot(&batcher, i) else { return };
                        match i {
                            // Hangs up before it has filled its slot.
                            0 => drop(slot),
                            // Hangs up while it waits or is computed.
                            1 => drop(slot.fill(i)),
                            _ => {
                                let (_queued, outcome) = slot.fill(i);
                                assert_eq!(block_on(outcome).map(|computed| computed.map(|c| c.outcome)), Ok(Ok(i + 1)));
                            }
                        }
                    })
                })
                .collect();
            let closer = {
                let batcher = batcher.clone();
                thread::spawn(move || batcher.close())
            };
            callers.into_iter().for_each(|caller| caller.join().unwrap());
            closer.join().unwrap();
            block_on(batcher.drained());
            let state = batcher.shared.state();
            assert_eq!((state.queue.depth(), state.queue.reserved(), state.queue.bytes()), (0, 0, 0));
        },
        2000,
    );
}
