//! `delo replay`: recorded decisions, made again by another version.
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::{StreamExt, stream};
use serde::Serialize;
use serde_json::json;
use tokio::sync::oneshot;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::Failure;
use super::client::{Authorized, Bearer, Credentials, exchange};
use super::output::{print, print_json, table};
use crate::config::{Config, Overrides};
use crate::record::{Answer, Decision, Outcome, Payload, Record};
use crate::serve::{Server, try_to_start};
use delo_kernels::make_pool;
use delo_proto::classifier_client::ClassifierClient;
use delo_proto::{ClassifyRequest, DescribeRequest, Priority};

/// Decisions that are made at the same time.
const IN_FLIGHT: usize = 32;
/// How often a decision is asked for where the server is full, and the longest pause between.
const ATTEMPTS: u32 = 20;
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long a server of this program may take to start.
const START: Duration = Duration::from_secs(300);
/// Moves from task to task that are printed.
const MOST_MOVES: usize = 10;

/// Makes recorded decisions again with other partitions or settings, and compares.
///
/// The records are those of a server with records.file and records.payload (docs/OPERATING.md); reported outcomes among
/// them say which answers were right. What answers is a server of this command, with the given settings, or the one at
/// --server.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    delo replay decisions.jsonl.1 decisions.jsonl --partitions candidates\n  \
    delo replay decisions.jsonl --server http://127.0.0.1:50051 --differences moved.jsonl --fail-below 0.98")]
pub struct ReplayArgs {
    /// Files of decision records, the earliest first; of a request id the latest decision counts.
    #[arg(value_name = "FILE", required = true)]
    records: Vec<PathBuf>,
    /// Ask a server that runs in place of one of this command.
    #[arg(long, value_name = "URL", conflicts_with_all = ["config", "backbone", "partitions"])]
    server: Option<String>,
    #[command(flatten)]
    credentials: Credentials,
    /// A TOML file of settings, as of delo serve; ports, state, registry and records in it are left out.
    #[arg(long, value_name = "FILE", env = "DELO_CONFIG")]
    config: Option<PathBuf>,
    /// A Hugging Face ViLT checkpoint directory (the one in the program by default).
    #[arg(long, value_name = "DIR")]
    backbone: Option<PathBuf>,
    /// A directory of partitions (those in the program by default).
    #[arg(long, value_name = "DIR")]
    partitions: Option<PathBuf>,
    /// Also write the decisions whose task or best label differs, one line of JSON each, without their payloads.
    #[arg(long, value_name = "FILE")]
    differences: Option<PathBuf>,
    /// Exit with 1 where a smaller share of the decisions has the same task and the same best label.
    #[arg(long, value_name = "SHARE", value_parser = share)]
    fail_below: Option<f64>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|share| (0.0..=1.0).contains(share)).ok_or_else(|| "give a number from 0 to 1".to_owned())
}

pub fn run(args: ReplayArgs) -> Result<(), Failure> {
    let Recorded { decisions, without_payload, outcomes } = read(&args.records)?;
    if decisions.is_empty() {
        return Err(Failure::Other(format!(
            "none of the {without_payload} decisions in these files has its image and text: record with records.payload = true"
        )));
    }
    let replayed = match &args.server {
        Some(server) => exchange(server, &args.credentials, |channel| async move { Ok(replay(channel, decisions).await) })?,
        None => replay_here(config(&args)?, decisions)?,
    };
    let comparison = compare(&replayed, &outcomes, without_payload);
    if let Some(path) = &args.differences {
        let written = write_differences(path, &replayed);
        written.map_err(|e| format!("can't write {}: {e}; name a file in a folder that exists", path.display()))?;
    }
    if args.json {
        print_json(&serde_json::to_value(&comparison)?)?
    } else {
        print(&comparison.text())?
    }
    if comparison.replayed == 0 {
        return Err("no decision could be made again: the failures above say why".into());
    }
    match args.fail_below {
        Some(least) if comparison.agreement < least => {
            Err(format!("{:.4} of the decisions are the same, less than --fail-below {least}", comparison.agreement).into())
        }
        _ => Ok(()),
    }
}

/// What the files hold.
struct Recorded {
    /// Those with a payload.
    decisions: Vec<Decision>,
    without_payload: usize,
    outcomes: HashMap<String, Outcome>,
}

fn read(paths: &[PathBuf]) -> Result<Recorded, Failure> {
    let mut recorded = Recorded { decisions: Vec::new(), without_payload: 0, outcomes: HashMap::new() };
    let mut places: HashMap<String, usize> = HashMap::new();
    for path in paths {
        let failed = |e: &dyn std::fmt::Display| format!("can't read {}: {e}", path.display());
        let file = BufReader::new(File::open(path).map_err(|e| failed(&e))?);
        for (number, line) in file.lines().enumerate() {
            let line = line.map_err(|e| failed(&e))?;
            let record = serde_json::from_str(&line);
            match record.map_err(|e| failed(&format!("line {}: {e}; give a file that records.file has made", number + 1)))? {
                Record::Outcome(outcome) => drop(recorded.outcomes.insert(outcome.request_id.clone(), outcome)),
                Record::Decision(decision) if decision.payload.is_none() => recorded.without_payload += 1,
                Record::Decision(decision) => match places.get(&decision.request_id) {
                    Some(&place) => recorded.decisions[place] = *decision,
                    None => {
                        places.insert(decision.request_id.clone(), recorded.decisions.len());
                        recorded.decisions.push(*decision);
                    }
                },
            }
        }
    }
    Ok(recorded)
}

/// The settings of a server that serves this command alone and keeps nothing.
fn config(args: &ReplayArgs) -> Result<Config, Failure> {
    let path =
        |path: &PathBuf| path.to_str().map(str::to_owned).ok_or_else(|| Failure::usage(format!("{} is no UTF-8 path", path.display())));
    let given = [
        ("model.backbone", args.backbone.as_ref().map(path).transpose()?),
        ("model.partitions", args.partitions.as_ref().map(path).transpose()?),
    ];
    let own = [
        ("server.listen", "127.0.0.1:0"),
        ("admin.listen", "off"),
        ("metrics.listen", "off"),
        ("http.listen", "off"),
        ("auth.clients_file", ""),
        ("tls.certificate", ""),
        ("tls.key", ""),
        ("tls.client_ca", ""),
        ("tls.client_certificate", "off"),
        ("audit.file", ""),
        ("records.file", ""),
        ("tracing.otlp_endpoint", ""),
        ("catalogue.state_dir", ""),
        ("registry.manifest", ""),
    ];
    let own = own.into_iter().map(|(key, value)| (key, value.to_owned()));
    let overrides: Overrides = given.into_iter().filter_map(|(key, value)| Some((key, value?))).chain(own).collect();
    Ok(Config::load(args.config.as_deref(), overrides)?)
}

/// As [`replay`], of a server that starts for it on a loopback port.
fn replay_here(config: Config, decisions: Vec<Decision>) -> Result<Vec<Replayed>, Failure> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = Some(config.model.threads).filter(|threads| *threads > 0);
    try_to_start(cores + threads.unwrap_or(cores))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(cores).enable_all().build()?;
    make_pool(threads).map_err(|e| format!("the compute threads do not start: {e}"))?;
    runtime.block_on(async {
        let server = Server::bind(config).await?;
        let address = server.addresses().classifier;
        let (stop, stopped) = oneshot::channel::<()>();
        let mut serving = tokio::spawn(server.run(async { drop(stopped.await) }));
        let channel = tokio::select! {
            channel = connect(address) => channel?,
            ended = &mut serving => {
                ended.map_err(|e| e.to_string())??;
                return Err("the server of this command has ended".into());
            }
        };
        let replayed = replay(channel, decisions).await;
        // An error means that the server has ended by itself.
        let _ = stop.send(());
        serving.await.map_err(|e| e.to_string())??;
        Ok(replayed)
    })
}

/// A connection to a server at this address, once it answers.
async fn connect(address: SocketAddr) -> Result<Authorized, Failure> {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"))?;
    let channel = Bearer::none().on(endpoint.connect_lazy());
    let ready = async {
        while ClassifierClient::new(channel.clone()).describe(DescribeRequest::default()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(START, ready).await.map_err(|_| format!("the server of this command is not ready after {} s", START.as_secs()))?;
    Ok(channel)
}

/// A decision, and what came of making it again.
struct Replayed {
    decision: Decision,
    again: Result<Answer, Status>,
}

/// Makes the decisions again, in their order.
async fn replay(channel: Authorized, decisions: Vec<Decision>) -> Vec<Replayed> {
    let again = |mut decision: Decision| {
        let client = ClassifierClient::new(channel.clone());
        async move {
            let Payload { image, text } = decision.payload.take().unwrap_or_default();
            let request = ClassifyRequest {
                image,
                text,
                request_id: decision.request_id.clone(),
                top_k: Some(1),
                task: decision.given_task.clone(),
                reject: decision.reject,
                priority: Priority::Bulk.into(),
                ..ClassifyRequest::default()
            };
            Replayed { again: ask(client, request).await, decision }
        }
    };
    stream::iter(decisions).map(again).buffered(IN_FLIGHT).collect().await
}

/// Asks, and again where the server says when.
async fn ask(mut client: ClassifierClient<Authorized>, request: ClassifyRequest) -> Result<Answer, Status> {
    let mut attempt = 1;
    loop {
        let status = match client.classify(request.clone()).await {
            Ok(response) => return Ok(Answer::of(response.get_ref(), String::new())),
            Err(status) => status,
        };
        let pause = status.get_details_retry_info().and_then(|info| info.retry_delay);
        match pause.filter(|_| attempt < ATTEMPTS) {
            Some(pause) => tokio::time::sleep(pause.min(LONGEST_PAUSE)).await,
            None => return Err(status),
        }
        attempt += 1;
    }
}

/// What the comparison says.
#[derive(Debug, Serialize)]
struct Comparison {
    decisions: usize,
    replayed: usize,
    without_payload: usize,
    /// By gRPC code and message, how many decisions could not be made again.
    failures: BTreeMap<String, usize>,
    /// The share of the replayed decisions with the same task.
    same_task: f64,
    /// Of those that neither side rejected, the share with the same task and the same best label.
    same_label: Option<f64>,
    /// The share with the same task and the same best label, rejections included.
    agreement: f64,
    rejected: Sides<usize>,
    mean_probability: Sides<Option<f64>>,
    task_right: Option<Accuracy>,
    label_right: Option<Accuracy>,
    /// From the recorded task to the replayed one, the most frequent first; `-` is none.
    moves: Vec<(String, String, usize)>,
}

#[derive(Debug, Serialize)]
struct Sides<T> {
    recorded: T,
    replayed: T,
}

/// Accuracy on both sides, over the decisions whose truth is known.
#[derive(Debug, Serialize)]
struct Accuracy {
    known: usize,
    recorded: f64,
    replayed: f64,
    /// Of the difference: mean of the paired differences plus or minus 1.96 standard errors.
    difference_interval: [f64; 2],
}

impl Accuracy {
    /// Of pairs: was it right when recorded, is it now. `None` without any.
    fn of(pairs: &[(bool, bool)]) -> Option<Self> {
        let known = pairs.len();
        let share = |right: &dyn Fn(&(bool, bool)) -> bool| pairs.iter().filter(|pair| right(pair)).count() as f64 / known as f64;
        let (recorded, replayed) = (share(&|pair| pair.0), share(&|pair| pair.1));
        let difference = replayed - recorded;
        // The square of a difference of two truths is whether they differ.
        let variance = share(&|pair| pair.0 != pair.1) - difference * difference;
        let margin = 1.96 * (variance.max(0.0) / known as f64).sqrt();
        (known > 0).then_some(Self { known, recorded, replayed, difference_interval: [difference - margin, difference + margin] })
    }
}

fn compare(all: &[Replayed], outcomes: &HashMap<String, Outcome>, without_payload: usize) -> Comparison {
    let mut failures = BTreeMap::new();
    let mut moves: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let (mut tasks_right, mut labels_right) = (Vec::new(), Vec::new());
    let mut pairs = Vec::new();
    for Replayed { decision, again } in all {
        match again {
            Err(status) => *failures.entry(failure(status)).or_default() += 1,
            Ok(again) => {
                let before = &decision.answer;
                pairs.push((before, again));
                if before.task != again.task {
                    *moves.entry((shown(&before.task), shown(&again.task))).or_default() += 1;
                }
                let Some(truth) = outcomes.get(&decision.request_id) else { continue };
                if !truth.true_task.is_empty() && decision.given_task.is_empty() {
                    tasks_right.push((before.task == truth.true_task, again.task == truth.true_task));
                }
                if !truth.true_labels.is_empty() {
                    let right = |answer: &Answer| answer.label.as_ref().is_some_and(|label| truth.true_labels.contains(label));
                    labels_right.push((right(before), right(again)));
                }
            }
        }
    }
    let share = |count: usize, of: usize| (of > 0).then(|| count as f64 / of as f64);
    let count = |holds: &dyn Fn(&Answer, &Answer) -> bool| pairs.iter().filter(|(before, again)| holds(before, again)).count();
    let same = |before: &Answer, again: &Answer| before.task == again.task && before.label == again.label;
    let answered = |before: &Answer, again: &Answer| !before.is_rejected() && !again.is_rejected();
    let probability = |side: &dyn Fn(&(&Answer, &Answer)) -> Option<f32>| {
        let all: Vec<f64> = pairs.iter().filter_map(side).map(f64::from).collect();
        (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
    };
    let mut moves: Vec<_> = moves.into_iter().map(|((from, to), count)| (from.to_owned(), to.to_owned(), count)).collect();
    moves.sort_by(|a, b| b.2.cmp(&a.2).then_with(|| a.cmp(b)));
    Comparison {
        decisions: all.len(),
        replayed: pairs.len(),
        without_payload,
        failures,
        same_task: share(count(&|before, again| before.task == again.task), pairs.len()).unwrap_or_default(),
        same_label: share(count(&|before, again| answered(before, again) && same(before, again)), count(&answered)),
        agreement: share(count(&same), pairs.len()).unwrap_or_default(),
        rejected: Sides { recorded: count(&|before, _| before.is_rejected()), replayed: count(&|_, again| again.is_rejected()) },
        mean_probability: Sides {
            recorded: probability(&|(before, _)| before.routing.as_ref()?.probability),
            replayed: probability(&|(_, again)| again.routing.as_ref()?.probability),
        },
        task_right: Accuracy::of(&tasks_right),
        label_right: Accuracy::of(&labels_right),
        moves,
    }
}

fn shown(task: &str) -> &str {
    if task.is_empty() { "-" } else { task }
}

fn failure(status: &Status) -> String {
    let code: Code = status.code();
    format!("{code:?}: {}", status.message())
}

impl Comparison {
    fn text(&self) -> String {
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        let maybe = |share: Option<f64>| share.map_or_else(|| "-".to_owned(), |share| format!("{share:.3}"));
        let mut lines =
            vec![format!("{} of {} decisions made again, {} more have no payload", self.replayed, self.decisions, self.without_payload)];
        lines.extend(self.failures.iter().map(|(failure, times)| format!("{times} failed: {failure}")));
        lines.push(format!("same task {}", percent(self.same_task)));
        if let Some(same) = self.same_label {
            lines.push(format!("same best label {} of those that neither side rejected", percent(same)));
        }
        lines.push(String::new());
        let row =
            |name: &str, recorded: String, replayed: String, difference: String| vec![name.to_owned(), recorded, replayed, difference];
        let mut rows = vec![row("", "recorded".into(), "replayed".into(), "difference".into())];
        rows.push(row("rejected", self.rejected.recorded.to_string(), self.rejected.replayed.to_string(), String::new()));
        rows.push(row("mean probability", maybe(self.mean_probability.recorded), maybe(self.mean_probability.replayed), String::new()));
        for (name, accuracy) in [("task right", &self.task_right), ("label right", &self.label_right)] {
            let Some(Accuracy { known, recorded, replayed, difference_interval: [low, high] }) = accuracy else { continue };
            let difference = format!(
                "{:+.1} [{:+.1}, {:+.1}] points, {known} with a reported truth",
                100.0 * (replayed - recorded),
                100.0 * low,
                100.0 * high
            );
            rows.push(row(name, percent(*recorded), percent(*replayed), difference));
        }
        lines.push(table(&rows));
        if !self.moves.is_empty() {
            lines.push(String::new());
            lines.push(format!("moved ({} of {} kinds):", self.moves.len().min(MOST_MOVES), self.moves.len()));
            lines.extend(self.moves.iter().take(MOST_MOVES).map(|(from, to, count)| format!("  {count:>6}  {from} → {to}")));
        }
        lines.join("\n")
    }
}

fn write_differences(path: &Path, all: &[Replayed]) -> std::io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for Replayed { decision, again } in all {
        let line = match again {
            Ok(again) if again.task == decision.answer.task && again.label == decision.answer.label => continue,
            Ok(again) => json!({"request_id": decision.request_id, "recorded": decision.answer, "replayed": again}),
            Err(status) => json!({"request_id": decision.request_id, "recorded": decision.answer, "failure": failure(status)}),
        };
        serde_json::to_writer(&mut file, &line)?;
        file.write_all(b"\n")?;
    }
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(task: &str, label: &str) -> Answer {
        Answer { task: task.to_owned(), label: Some(label.to_owned()).filter(|label| !label.is_empty()), ..Answer::default() }
    }

    fn replayed(id: &str, before: Answer, again: Result<Answer, Status>) -> Replayed {
        let decision = Decision {
            time: String::new(),
            request_id: id.to_owned(),
            model: String::new(),
            given_task: String::new(),
            reject: None,
            answer: before,
            payload: None,
        };
        Replayed { decision, again }
    }

    #[test]
    fn the_truth_decides_which_side_was_right_and_a_failure_counts_on_neither() {
        let all = [
            replayed("a", answer("food", "pizza"), Ok(answer("food", "pizza"))),
            replayed("b", answer("food", "pizza"), Ok(answer("travel", "train"))),
            replayed("c", answer("food", "soup"), Ok(answer("food", "pizza"))),
            replayed("d", answer("food", "soup"), Err(Status::not_found("no task"))),
        ];
        let truth = |id: &str, task: &str, label: &str| {
            let true_labels = vec![label.to_owned()];
            (id.to_owned(), Outcome { request_id: id.to_owned(), true_task: task.to_owned(), true_labels, time: String::new() })
        };
        let outcomes = HashMap::from([truth("b", "travel", "train"), truth("c", "food", "soup"), truth("d", "food", "soup")]);
        let comparison = compare(&all, &outcomes, 5);
        assert_eq!((comparison.decisions, comparison.replayed, comparison.without_payload), (4, 3, 5));
        assert_eq!(comparison.failures, BTreeMap::from([("NotFound: no task".to_owned(), 1)]));
        assert_eq!((comparison.same_task, comparison.agreement), (2.0 / 3.0, 1.0 / 3.0));
        assert_eq!(comparison.moves, [("food".to_owned(), "travel".to_owned(), 1)]);
        let task = comparison.task_right.as_ref().unwrap();
        assert_eq!((task.known, task.recorded, task.replayed), (2, 0.5, 1.0));
        // Half a point a decision in the mean, each 0 or 1: the standard error is √(0.25 / 2).
        let margin = 1.96 * 0.125_f64.sqrt();
        assert!((task.difference_interval[0] - (0.5 - margin)).abs() < 1e-12);
        let label = comparison.label_right.as_ref().unwrap();
        assert_eq!((label.recorded, label.replayed), (0.5, 0.5));
        assert!(comparison.text().contains("3 of 4 decisions made again, 5 more have no payload"));
    }
}
