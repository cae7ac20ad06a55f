//! What a run is, read from a TOML file.
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The longest run, in seconds.
pub const MAX_SECONDS: u64 = 900;
/// The most requests of one run.
pub const MAX_REQUESTS: u64 = 1_000_000;

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
    /// A data set's directory, relative to the scenario's file, in the layout {task_id, split, image, text, label}.
    pub data: PathBuf,
    /// The split whose items are sent.
    #[serde(default = "default_split")]
    pub split: String,
    /// Requests per second.
    pub rate: Rate,
    /// For how long requests are due.
    pub duration_seconds: u64,
    /// Seeds the arrivals, the items' order and which modalities are sent.
    #[serde(default)]
    pub seed: u64,
    /// HTTP/2 connections; a server limits the calls on one.
    #[serde(default = "default_connections")]
    pub connections: usize,
    /// Calls without an answer above which the generator drops.
    #[serde(default = "default_max_outstanding")]
    pub max_outstanding: usize,
    /// The deadline given with each call.
    #[serde(default = "default_deadline")]
    pub deadline_seconds: f64,
    /// The share of answers whose truth is reported back, in [0, 1].
    #[serde(default)]
    pub outcomes: f64,
    /// Which modalities are sent.
    pub mix: Mix,
    /// How capacity is measured before the run; a relative rate needs it.
    pub capacity: Option<Capacity>,
    /// What must hold.
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

/// A closed loop before the run.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capacity {
    /// Calls kept in flight.
    pub in_flight: usize,
    /// Seconds that don't count.
    pub warm_up_seconds: u64,
    /// Seconds that do.
    pub seconds: u64,
}

/// What must hold for the run to pass; what is left out isn't asked.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// Status codes that may appear, `OK` for instance.
    pub codes: Option<Vec<String>>,
    /// Good answers over calls offered.
    pub min_ok_ratio: Option<f64>,
    /// Goodput over capacity.
    pub min_goodput_of_capacity: Option<f64>,
    /// 99th percentile of good answers' latency.
    pub max_p99_seconds: Option<f64>,
    /// Growth of a spawned server's resident memory during the run, as a share of what it was after the measurement of capacity.
    pub max_memory_growth: Option<f64>,
}

/// Requests per second: a number, or a multiple of the measured capacity such as `2x`.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
#[serde(try_from = "RateText")]
pub enum Rate {
    PerSecond(f64),
    OfCapacity(f64),
}

/// A rate as TOML may spell it.
#[derive(Deserialize)]
#[serde(untagged)]
enum RateText {
    Integer(i64),
    Float(f64),
    Text(String),
}

impl TryFrom<RateText> for Rate {
    type Error = String;

    fn try_from(text: RateText) -> Result<Self, String> {
        match text {
            RateText::Integer(n) => n.to_string().parse(),
            RateText::Float(f) => f.to_string().parse(),
            RateText::Text(s) => s.parse(),
        }
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, relative) = text.strip_suffix('x').map_or((text, false), |n| (n, true));
        match number.parse::<f64>() {
            Ok(n) if n > 0.0 && n.is_finite() => Ok(if relative { Rate::OfCapacity(n) } else { Rate::PerSecond(n) }),
            _ => Err(format!("{text:?} is no rate: write requests per second, such as 120, or a multiple of capacity, such as 2x")),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rate::PerSecond(n) => write!(f, "{n}/s"),
            Rate::OfCapacity(n) => write!(f, "{n}x"),
        }
    }
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
    /// Reads and checks a file. `data` becomes a path that is good from here.
    pub fn read(path: &Path) -> Result<Self, ScenarioError> {
        let text = std::fs::read_to_string(path).map_err(|source| ScenarioError::Read { path: path.into(), source })?;
        let mut scenario: Self =
            toml::from_str(&text).map_err(|source| ScenarioError::Parse { path: path.into(), source: source.into() })?;
        if let Some(dir) = path.parent() {
            scenario.data = dir.join(&scenario.data);
        }
        scenario.check()?;
        Ok(scenario)
    }

    /// Refuses what can't be run or has no bound.
    pub fn check(&self) -> Result<(), ScenarioError> {
        let must =
            |holds: bool, field: &'static str, problem: String| if holds { Ok(()) } else { Err(ScenarioError::Invalid { field, problem }) };
        let share = |x: f64| (0.0..=1.0).contains(&x);
        must((1..=MAX_SECONDS).contains(&self.duration_seconds), "duration_seconds", format!("from 1 to {MAX_SECONDS}"))?;
        must((1..=256).contains(&self.connections), "connections", "from 1 to 256".into())?;
        must((1..=100_000).contains(&self.max_outstanding), "max_outstanding", "from 1 to 100000".into())?;
        must(self.deadline_seconds > 0.0 && self.deadline_seconds <= 600.0, "deadline_seconds", "above 0, at most 600".into())?;
        must(share(self.outcomes), "outcomes", "a share from 0 to 1".into())?;
        let Mix { both, image, text } = self.mix;
        let weights = [both, image, text];
        must(weights.iter().all(|w| *w >= 0.0 && w.is_finite()), "mix", "weights are not negative".into())?;
        must(weights.iter().sum::<f64>() > 0.0, "mix", "give at least one of both, image and text a weight".into())?;
        if let Some(c) = self.capacity {
            must((1..=10_000).contains(&c.in_flight), "capacity.in_flight", "from 1 to 10000".into())?;
            must((1..=MAX_SECONDS).contains(&c.seconds), "capacity.seconds", format!("from 1 to {MAX_SECONDS}"))?;
            must(c.warm_up_seconds <= MAX_SECONDS, "capacity.warm_up_seconds", format!("at most {MAX_SECONDS}"))?;
        }
        let needs_capacity = matches!(self.rate, Rate::OfCapacity(_)) || self.expect.min_goodput_of_capacity.is_some();
        must(self.capacity.is_some() || !needs_capacity, "capacity", "needed for a rate or a goodput relative to it".into())?;
        for code in self.expect.codes.iter().flatten() {
            must((0..17).any(|c| crate::tally::code_name(c) == code), "expect.codes", format!("{code:?} is no gRPC status code"))?;
        }
        Ok(())
    }

    /// Requests per second, given the measured capacity; refuses a run of too many requests.
    pub fn requests_per_second(&self, capacity: Option<f64>) -> Result<f64, ScenarioError> {
        let invalid = |problem: String| ScenarioError::Invalid { field: "rate", problem };
        let rate = match (self.rate, capacity) {
            (Rate::PerSecond(n), _) => n,
            (Rate::OfCapacity(n), Some(capacity)) if capacity > 0.0 => n * capacity,
            (Rate::OfCapacity(n), _) => return Err(invalid(format!("{n}x of nothing: no call succeeded while capacity was measured"))),
        };
        let requests = rate * self.duration_seconds as f64;
        if requests > MAX_REQUESTS as f64 {
            return Err(invalid(format!("{requests:.0} requests in all; at most {MAX_REQUESTS}: lower the rate or the duration")));
        }
        Ok(rate)
    }

    /// For how long requests are due.
    pub fn duration(&self) -> Duration {
        Duration::from_secs(self.duration_seconds)
    }
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
    fn a_rate_is_a_number_or_a_multiple_of_capacity() {
        assert_eq!("120".parse(), Ok(Rate::PerSecond(120.0)));
        assert_eq!("0.6x".parse(), Ok(Rate::OfCapacity(0.6)));
        for bad in ["", "x", "-1", "0", "2 x", "infx", "NaN", "fast"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
        assert_eq!(parse(STEADY).unwrap().rate, Rate::PerSecond(10.0));
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
        assert!(huge.requests_per_second(None).is_err());
    }

    #[test]
    fn a_relative_rate_follows_the_measured_capacity() {
        let scenario =
            parse(&format!("{}[capacity]\nin_flight = 4\nwarm_up_seconds = 1\nseconds = 1", STEADY.replace("10", "'2x'"))).unwrap();
        assert_eq!(scenario.requests_per_second(Some(150.0)).unwrap(), 300.0);
        assert!(scenario.requests_per_second(Some(0.0)).is_err());
    }

    #[test]
    fn the_scenarios_that_ship_can_be_read_and_their_data_is_there() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().path()).collect();
        assert!(files.len() >= 2);
        for file in files {
            let scenario = Scenario::read(&file).unwrap();
            assert_eq!(Some(scenario.name.as_str()), file.file_stem().and_then(|s| s.to_str()));
            assert!(scenario.data.is_dir(), "{}", scenario.data.display());
        }
    }
}
