//! The description of a run, read from a TOML file.
mod expect;
mod rate;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

pub use expect::Expect;
pub use rate::Rate;

use crate::arrivals::Rates;

/// The longest run, in seconds.
pub const MAX_SECONDS: u64 = 900;
/// The most requests of one run.
pub const MAX_REQUESTS: u64 = 1_000_000;
/// The shortest rest of a churn, in seconds. By its end the server has returned freed memory to the system,
/// and memory was read five times.
const MIN_REST: f64 = 10.0;
/// The most groups of callers.
const MAX_CLIENTS: usize = 16;

/// Why a scenario can't be run.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    #[error("cannot read {}: {source}; give the path of a scenario file, such as load-tests/scenarios/steady.toml", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}", path.display())]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
    #[error("{field}: {problem}")]
    Invalid { field: &'static str, problem: String },
}

/// One scenario file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// The scenario's name, as printed.
    pub name: String,
    /// A data set's directory, relative to the scenario's file, in the layout {task_id, split, image, text,
    /// label}.
    pub data: PathBuf,
    /// The split whose items are sent.
    #[serde(default = "default_split")]
    pub split: String,
    /// Requests per second.
    pub rate: Rate,
    /// Length of the run, in seconds.
    pub duration_seconds: u64,
    /// Seed of the arrivals, the order of items and the modalities that are sent.
    #[serde(default)]
    pub seed: u64,
    /// Number of HTTP/2 connections; a server limits the calls of each.
    #[serde(default = "default_connections")]
    pub connections: usize,
    /// The most calls without an answer; above it, the generator drops requests.
    #[serde(default = "default_max_outstanding")]
    pub max_outstanding: usize,
    /// The deadline of each call, in seconds.
    #[serde(default = "default_deadline")]
    pub deadline_seconds: f64,
    /// The share of answers whose outcome is reported to the server, in [0, 1].
    #[serde(default)]
    pub outcomes: f64,
    /// The modalities that are sent after the phases by clients without a mix of their own.
    pub mix: Mix,
    /// The modalities that all clients send before that, one phase after another.
    #[serde(default, rename = "phase")]
    pub phases: Vec<Phase>,
    /// Periods of another rate.
    pub burst: Option<Burst>,
    /// Groups of callers; one group named `all` where none is given.
    #[serde(default, rename = "client")]
    pub clients: Vec<Client>,
    /// Loads and unloads of partitions during the run.
    pub churn: Option<Churn>,
    /// How capacity is measured before the run; a relative rate needs it.
    pub capacity: Option<Capacity>,
    /// The expectations.
    #[serde(default)]
    pub expect: Expect,
}

/// Weights of the modalities sent; they need not add up to 1.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mix {
    #[serde(default)]
    pub both: f64,
    #[serde(default)]
    pub image: f64,
    #[serde(default)]
    pub text: f64,
}

/// A period with a mix of its own.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    pub seconds: u64,
    pub mix: Mix,
}

/// Bursts: every `every_seconds`, first after `every_seconds`, requests are due at another rate for
/// `length_seconds`.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Burst {
    /// From the start of one burst to the start of the next.
    pub every_seconds: f64,
    pub length_seconds: f64,
    pub rate: Rate,
}

/// A group of callers with the same behaviour.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Client {
    /// Its name in the report.
    pub name: String,
    /// Weight of its share of the requests; the weights need not add up to 1.
    pub share: f64,
    /// The modalities that it sends; the scenario's mix where it is left out.
    pub mix: Option<Mix>,
    /// The priority of its requests; the server's default where it is left out.
    pub priority: Option<Priority>,
    /// Its deadline; the scenario's where it is left out.
    pub deadline_seconds: Option<f64>,
    /// Expected: the 99th percentile of the latency of its good answers, at most.
    pub max_p99_seconds: Option<f64>,
    /// Expected: its good answers divided by its due calls, at least.
    pub min_ok_ratio: Option<f64>,
}

/// The priority of a request when the server is busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    Interactive,
    Bulk,
}

/// An admin client during the traffic. It takes the partitions in turn through load, load again, roll back
/// and unload, and loads them again at the end.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Churn {
    /// Partition files, relative to the scenario's file; they are uploaded.
    pub partitions: Vec<PathBuf>,
    /// Cycles after which the run ends early; without it the churn ends with the run.
    pub cycles: Option<u64>,
    /// The least time from the start of one cycle to the start of the next, in seconds. 0, the default:
    /// without a pause.
    #[serde(default)]
    pub every_seconds: f64,
    /// Seconds of traffic without changes, after `warm_up_cycles` and again after the last cycle, with the
    /// same partitions loaded as at the start. 0, the default: no rest. With rests, the change of memory is
    /// measured from the end of the first rest to the end of the last.
    #[serde(default)]
    pub rest_seconds: f64,
    /// Cycles before the first rest. They fill the caches that the server keeps on purpose.
    #[serde(default)]
    pub warm_up_cycles: u64,
}

/// The measurement of capacity by a closed loop.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capacity {
    /// Calls in flight at any time.
    pub in_flight: usize,
    /// Seconds before the measurement.
    pub warm_up_seconds: u64,
    /// Seconds of the measurement.
    pub seconds: u64,
    /// If given, capacity is the goodput of the slowest window of this length instead of the mean. A machine
    /// whose speed changes can serve this rate at any time.
    pub slowest_window_seconds: Option<u64>,
    /// Measures again after the run; capacity is the mean of the two.
    #[serde(default)]
    pub after: bool,
}

fn default_split() -> String {
    "test".into()
}

fn default_connections() -> usize {
    8
}

fn default_max_outstanding() -> usize {
    10_000
}

fn default_deadline() -> f64 {
    10.0
}

impl Scenario {
    /// Reads and checks a file. `data` and `partitions` become paths from the working directory.
    pub fn read(path: &Path) -> Result<Self, ScenarioError> {
        let text = std::fs::read_to_string(path).map_err(|source| ScenarioError::Read { path: path.into(), source })?;
        let mut scenario: Self =
            toml::from_str(&text).map_err(|source| ScenarioError::Parse { path: path.into(), source: source.into() })?;
        if let Some(dir) = path.parent() {
            scenario.data = dir.join(&scenario.data);
            for partition in scenario.churn.iter_mut().flat_map(|churn| &mut churn.partitions) {
                *partition = dir.join(&*partition);
            }
        }
        scenario.check()?;
        Ok(scenario)
    }

    /// Refuses a scenario that can't be run or has no bound.
    pub fn check(&self) -> Result<(), ScenarioError> {
        must((1..=MAX_SECONDS).contains(&self.duration_seconds), "duration_seconds", format!("from 1 to {MAX_SECONDS}"))?;
        must((1..=256).contains(&self.connections), "connections", "from 1 to 256".into())?;
        must((1..=100_000).contains(&self.max_outstanding), "max_outstanding", "from 1 to 100000".into())?;
        check_deadline("deadline_seconds", self.deadline_seconds)?;
        must((0.0..=1.0).contains(&self.outcomes), "outcomes", "a share from 0 to 1".into())?;
        self.mix.check("mix")?;
        self.phases.iter().try_for_each(|phase| phase.mix.check("phase.mix"))?;
        let phases = self.phases.iter().try_fold(0u64, |sum, phase| sum.checked_add(phase.seconds));
        must(phases.is_some_and(|sum| sum <= MAX_SECONDS), "phase", format!("at most {MAX_SECONDS} seconds in all"))?;
        must(self.clients.len() <= MAX_CLIENTS, "client", format!("at most {MAX_CLIENTS} groups"))?;
        self.clients.iter().try_for_each(Client::check)?;
        if let Some(b) = self.burst {
            let fits = b.length_seconds > 0.0 && b.length_seconds < b.every_seconds && b.every_seconds <= MAX_SECONDS as f64;
            must(fits, "burst", format!("length_seconds above 0 and below every_seconds, at most {MAX_SECONDS}"))?;
        }
        if let Some(churn) = &self.churn {
            must((1..=64).contains(&churn.partitions.len()), "churn.partitions", "from 1 to 64 files".into())?;
            must(churn.cycles.is_none_or(|n| (1..=100_000).contains(&n)), "churn.cycles", "from 1 to 100000".into())?;
            must((0.0..=MAX_SECONDS as f64).contains(&churn.every_seconds), "churn.every_seconds", format!("from 0 to {MAX_SECONDS}"))?;
            let rests = churn.rest_seconds == 0.0 || (MIN_REST..=MAX_SECONDS as f64).contains(&churn.rest_seconds);
            must(rests, "churn.rest_seconds", format!("0 or from {MIN_REST} to {MAX_SECONDS}"))?;
            let last = churn.rest_seconds == 0.0 || churn.cycles.is_some();
            must(last, "churn.cycles", "given where churn.rest_seconds is: the last rest comes after the last cycle".into())?;
            must(churn.cycles.is_none_or(|n| churn.warm_up_cycles < n), "churn.warm_up_cycles", "fewer than churn.cycles".into())?;
        }
        if let Some(c) = self.capacity {
            must((1..=10_000).contains(&c.in_flight), "capacity.in_flight", "from 1 to 10000".into())?;
            must((1..=MAX_SECONDS).contains(&c.seconds), "capacity.seconds", format!("from 1 to {MAX_SECONDS}"))?;
            must(c.warm_up_seconds <= MAX_SECONDS, "capacity.warm_up_seconds", format!("at most {MAX_SECONDS}"))?;
            let window = c.slowest_window_seconds.unwrap_or(1);
            must((1..=c.seconds).contains(&window), "capacity.slowest_window_seconds", "from 1 to capacity.seconds".into())?;
        }
        let relative = |rate: Rate| matches!(rate, Rate::OfCapacity(_));
        let needs_capacity =
            relative(self.rate) || self.burst.is_some_and(|b| relative(b.rate)) || self.expect.min_goodput_of_capacity.is_some();
        must(self.capacity.is_some() || !needs_capacity, "capacity", "needed for a rate or a goodput relative to it".into())?;
        self.expect.check(self.churn.is_some())
    }

    /// The groups of callers.
    pub fn groups(&self) -> Vec<Client> {
        if self.clients.is_empty() { vec![Client::all()] } else { self.clients.clone() }
    }

    /// Requests per second over time, given the measured capacity; refuses a run of too many requests.
    pub fn rates(&self, capacity: Option<f64>) -> Result<Rates, ScenarioError> {
        let invalid = |field| move |problem: String| ScenarioError::Invalid { field, problem };
        let base = self.rate.per_second(capacity).map_err(invalid("rate"))?;
        let burst = self.burst.map(|b| Ok((b.every_seconds, b.length_seconds, b.rate.per_second(capacity)?)));
        let rates = Rates { base, burst: burst.transpose().map_err(invalid("burst.rate"))? };
        let requests = rates.expected(self.duration().as_secs_f64());
        if requests > MAX_REQUESTS as f64 {
            let problem = format!("{requests:.0} requests in all; at most {MAX_REQUESTS}: lower the rate or the duration");
            return Err(invalid("rate")(problem));
        }
        Ok(rates)
    }

    /// Length of the run.
    pub fn duration(&self) -> Duration {
        Duration::from_secs(self.duration_seconds)
    }
}

impl Mix {
    fn check(&self, field: &'static str) -> Result<(), ScenarioError> {
        let weights = [self.both, self.image, self.text];
        must(weights.iter().all(|w| *w >= 0.0 && w.is_finite()), field, "weights are not negative".into())?;
        must(weights.iter().sum::<f64>() > 0.0, field, "give at least one of both, image and text a weight".into())
    }
}

impl Client {
    /// The group of all callers, where a scenario names no group.
    fn all() -> Self {
        let name = "all".to_owned();
        Self { name, share: 1.0, mix: None, priority: None, deadline_seconds: None, max_p99_seconds: None, min_ok_ratio: None }
    }

    fn check(&self) -> Result<(), ScenarioError> {
        must((1..=64).contains(&self.name.len()), "client.name", "from 1 to 64 bytes".into())?;
        must(self.share > 0.0 && self.share.is_finite(), "client.share", "a weight above 0".into())?;
        self.mix.iter().try_for_each(|mix| mix.check("client.mix"))?;
        self.deadline_seconds.map_or(Ok(()), |seconds| check_deadline("client.deadline_seconds", seconds))
    }
}

fn check_deadline(field: &'static str, seconds: f64) -> Result<(), ScenarioError> {
    must((0.001..=600.0).contains(&seconds), field, "from 0.001 to 600".into())
}

fn must(holds: bool, field: &'static str, problem: String) -> Result<(), ScenarioError> {
    if holds { Ok(()) } else { Err(ScenarioError::Invalid { field, problem }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEADY: &str = "name = 'x'\ndata = 'd'\nrate = 10\nduration_seconds = 5\n[mix]\nboth = 1.0\n";

    fn parse(text: &str) -> Result<Scenario, String> {
        let scenario: Scenario = toml::from_str(text).map_err(|e| e.to_string())?;
        scenario.check().map_err(|e| e.to_string())?;
        Ok(scenario)
    }

    #[test]
    fn unknown_fields_and_unbounded_runs_are_refused() {
        assert!(parse(&format!("speed = 3\n{STEADY}")).unwrap_err().contains("speed"));
        assert!(parse(&STEADY.replace("= 5", "= 100000")).unwrap_err().starts_with("duration_seconds"));
        assert!(parse(&STEADY.replace("both = 1.0", "both = 0.0")).unwrap_err().starts_with("mix"));
        assert!(parse(&STEADY.replace("rate = 10", "rate = '2x'")).unwrap_err().starts_with("capacity"));
        assert!(parse(&format!("{STEADY}[expect]\ncodes = ['FINE']")).unwrap_err().starts_with("expect.codes"));
        let mut huge = parse(STEADY).unwrap();
        huge.rate = Rate::PerSecond(1e6);
        assert!(huge.rates(None).is_err());
    }

    #[test]
    fn bursts_phases_clients_and_churn_are_bounded() {
        for (more, field) in [
            ("[burst]\nevery_seconds = 2\nlength_seconds = 3\nrate = 20", "burst"),
            ("[burst]\nevery_seconds = 4\nlength_seconds = 3\nrate = '3x'", "capacity"),
            ("[[phase]]\nseconds = 901\nmix = {text = 1.0}", "phase"),
            ("[[phase]]\nseconds = 2\nmix = {}", "phase.mix"),
            ("[[client]]\nname = 'a'\nshare = 0", "client.share"),
            ("[churn]\npartitions = []", "churn.partitions"),
            ("[churn]\npartitions = ['a']\nevery_seconds = -1", "churn.every_seconds"),
            ("[churn]\npartitions = ['a']\nrest_seconds = 3", "churn.rest_seconds"),
            ("[churn]\npartitions = ['a']\nrest_seconds = 30", "churn.cycles"),
            ("[churn]\npartitions = ['a']\ncycles = 9\nwarm_up_cycles = 9", "churn.warm_up_cycles"),
            ("[expect]\nmin_churn_cycles = 3", "expect.min_churn_cycles"),
            ("[expect]\nmemory_between_seconds = [3, 3]", "expect.memory_between_seconds"),
        ] {
            let error = parse(&format!("{STEADY}{more}")).unwrap_err();
            assert!(error.starts_with(&format!("{field}:")), "{error}");
        }
    }

    #[test]
    fn the_scenarios_that_ship_can_be_read_and_their_data_is_there() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().path()).collect();
        assert!(files.len() >= 8);
        for file in files {
            let scenario = Scenario::read(&file).unwrap();
            assert_eq!(Some(scenario.name.as_str()), file.file_stem().and_then(|s| s.to_str()));
            assert!(scenario.data.is_dir(), "{}", scenario.data.display());
            let partitions = scenario.churn.iter().flat_map(|churn| &churn.partitions);
            assert!(partitions.clone().all(|p| p.is_file()), "{partitions:?}");
        }
    }
}
