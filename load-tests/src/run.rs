//! One run: measure capacity, send the traffic with churn and measurements beside it, and report.
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::arrivals::Arrivals;
use crate::churn::Churn;
use crate::memory::{self, Watch};
use crate::plan::Plan;
use crate::report::{Report, Seen};
use crate::scenario::{Capacity, Scenario};
use crate::server::{Launch, Spawned};
use crate::tally::Tally;
use crate::target::Server;
use crate::{closed_loop, open_loop, scrape};

/// The server to which requests are sent.
#[derive(Debug, Clone)]
pub enum Against {
    /// A running server, with the URLs of its admin service and its metrics where they are known.
    Running { url: String, admin: Option<String>, metrics: Option<String> },
    /// A server that is started for the run.
    Spawned(Launch),
}

/// The addresses of a server, and its process.
struct Place {
    url: String,
    admin: Option<String>,
    metrics: Option<String>,
    process: Option<u32>,
}

/// Runs a scenario. A spawned server must drain after SIGTERM; otherwise the report has a failure.
///
/// # Errors
/// Anything that prevents the run: an unreachable server, an unreadable data set, a scenario that does not
/// fit.
pub async fn run(scenario: &Scenario, plan: Arc<Plan>, against: &Against) -> Result<(Report, Tally), Box<dyn Error>> {
    let (spawned, place) = match against.clone() {
        Against::Running { url, admin, metrics } => (None, Place { url, admin, metrics, process: None }),
        Against::Spawned(launch) => {
            let spawned = Spawned::start(&launch).await?;
            let (url, admin, metrics) = (spawned.url.clone(), Some(spawned.admin.clone()), Some(spawned.metrics.clone()));
            let process = Some(spawned.id());
            (Some(spawned), Place { url, admin, metrics, process })
        }
    };
    let (mut report, tally) = measure(scenario, plan, &place).await?;
    if let Some(spawned) = spawned {
        let status = spawned.stop().await?;
        if !status.success() {
            report.failed.push(format!("the server did not drain: {status}"));
        }
    }
    Ok((report, tally))
}

async fn measure(scenario: &Scenario, plan: Arc<Plan>, place: &Place) -> Result<(Report, Tally), Box<dyn Error>> {
    let mut seen = Seen::default();
    if let Some(probe) = scenario.capacity {
        seen.capacities.push(capacity(scenario, probe, &plan, place).await?);
    }
    let rates = scenario.rates(seen.capacities.first().copied())?;
    let churn = match (&scenario.churn, &place.admin) {
        (Some(churn), Some(admin)) => Some(Churn::prepare(churn, admin).await?),
        (Some(_), None) => return Err("this scenario changes partitions: give the admin service's URL (--admin)".into()),
        (None, _) => None,
    };
    let server = Server::connect(&place.url, scenario.connections, Arc::clone(&plan), scenario.outcomes).await?;
    let server = Arc::new(if churn.is_some() { server.keeping_answers() } else { server });
    let page = async || match &place.metrics {
        Some(url) => scrape::fetch(url).await.map(Some),
        None => Ok(None),
    };

    eprintln!("{}: {:.1} requests/s for {} s", scenario.name, rates.base, scenario.duration_seconds);
    let page_before = page().await?;
    let memory_before = place.process.and_then(memory::of);
    let watch = place.process.map(Watch::start);
    let stop = Arc::new(AtomicBool::new(false));
    let churning = churn.map(|churn| tokio::spawn(churn.run(Arc::clone(&stop))));
    let arrivals = Arrivals::new(rates, scenario.duration(), scenario.seed).take_while(|_| !stop.load(Ordering::Relaxed));
    let tally = open_loop::run(Arc::clone(&server), arrivals, scenario.max_outstanding).await;
    stop.store(true, Ordering::Relaxed);
    seen.churn = match churning {
        Some(churning) => Some((churning.await?, server.take_answers())),
        None => None,
    };

    seen.memory = memory_before.zip(place.process.and_then(memory::of)).map(|(before, after)| [before, after]);
    seen.memory_series = watch.map(Watch::stop);
    seen.pages = page_before.zip(page().await?).map(|(before, after)| [before, after]);
    if let Some(probe) = scenario.capacity.filter(|probe| probe.after) {
        seen.capacities.push(capacity(scenario, probe, &plan, place).await?);
    }
    Ok((Report::new(scenario, rates.base, &tally, &server.truth, seen), tally))
}

/// Deadline of the calls that measure capacity. The scenario's may be shorter than the wait in the closed
/// loop's own queue.
const CAPACITY_DEADLINE: Duration = Duration::from_secs(30);

/// The goodput of a closed loop, or of its slowest window, in requests per second.
async fn capacity(scenario: &Scenario, probe: Capacity, plan: &Arc<Plan>, place: &Place) -> Result<f64, Box<dyn Error>> {
    let (warm_up, window) = (Duration::from_secs(probe.warm_up_seconds), Duration::from_secs(probe.seconds));
    eprintln!("measuring capacity: {} calls in flight for {} s", probe.in_flight, (warm_up + window).as_secs());
    let server =
        Server::connect(&place.url, scenario.connections, Arc::clone(plan), scenario.outcomes).await?.with_deadline(CAPACITY_DEADLINE);
    let tally = closed_loop::run(Arc::new(server), probe.in_flight, warm_up, window, scenario.duration()).await;
    Ok(probe.slowest_window_seconds.map_or(tally.goodput(), |seconds| tally.slowest(seconds as usize)))
}
