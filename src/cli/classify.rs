//! `delo classify`: a client of the classifier.
use std::path::PathBuf;
use std::time::Duration;

use clap_complete::engine::ArgValueCompleter;
use serde_json::{Map, Value, json};
use tonic::Request;

use super::Failure;
use super::client::{Credentials, exchange};
use super::output::{print, print_json, table};
use delo_proto::classifier_client::ClassifierClient;
use delo_proto::{ClassifyRequest, ClassifyResponse, Modality, Priority, TextReading, Timings};

/// The longest answer, in bytes: --top-k 0 shows all labels of a task, which may be many thousands.
const MAX_ANSWER: usize = 64 << 20;

/// The address of a server that has the default settings.
pub const SERVER: &str = "http://127.0.0.1:50051";

/// Asks a server what an image, a text, or both show.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  delo classify --image cat.png --text \"a cat that grins\"\n  delo classify --text pizza --top-k 0 --json"
)]
pub struct ClassifyArgs {
    /// The server's address.
    #[arg(long, value_name = "URL", default_value = SERVER)]
    server: String,
    #[command(flatten)]
    credentials: Credentials,
    /// An image file: JPEG, PNG, WebP, GIF or BMP.
    #[arg(long, value_name = "FILE", required_unless_present = "text")]
    image: Option<PathBuf>,
    /// A text.
    #[arg(long, allow_hyphen_values = true)]
    text: Option<String>,
    /// The task, if it is known: skips routing.
    #[arg(long, allow_hyphen_values = true, add = ArgValueCompleter::new(super::shell::tasks))]
    task: Option<String>,
    /// How many labels to show; 0 for all.
    #[arg(long, value_name = "N", default_value_t = 5)]
    top_k: u32,
    /// How many tasks to show with their scores [default: all of them with --explain or --json, else none].
    #[arg(long, value_name = "N")]
    candidates: Option<u32>,
    /// Give no task and no labels to a sample that is less typical of its likeliest task than this share of the
    /// task's own samples; 0 never [default: the server's setting]
    #[arg(long, value_name = "SHARE")]
    reject: Option<f32>,
    /// Also show every task's score and the factors chosen in each layer.
    #[arg(long)]
    explain: bool,
    /// Also show where the server's time went.
    #[arg(long)]
    timings: bool,
    /// Seconds to wait for the answer.
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
    timeout: f64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: ClassifyArgs) -> Result<(), Failure> {
    let timeout = Duration::try_from_secs_f64(args.timeout).map_err(|e| Failure::usage(format!("--timeout: {e}")))?;
    let image =
        args.image.as_ref().map(|path| std::fs::read(path).map_err(|e| format!("can't read {}: {e}", path.display()))).transpose()?;
    let request = ClassifyRequest {
        priority: Priority::Unspecified.into(),
        image: image.map(Into::into),
        text: args.text,
        request_id: String::new(),
        top_k: Some(args.top_k),
        task: args.task.unwrap_or_default(),
        explain: args.explain,
        reject: args.reject,
        timings: args.timings,
        max_candidates: Some(args.candidates.unwrap_or(if args.explain || args.json { u32::MAX } else { 0 })),
    };
    let response = exchange(&args.server, &args.credentials, |channel| async move {
        let mut request = Request::new(request);
        request.set_timeout(timeout);
        let answer = ClassifierClient::new(channel).max_decoding_message_size(MAX_ANSWER).classify(request).await;
        Ok(answer?.into_inner())
    })?;
    if args.json { print_json(&json(&response, args.explain)) } else { print(&text(&response, args.explain)) }
}

fn modality(value: i32) -> &'static str {
    Modality::try_from(value).unwrap_or_default().as_str_name()
}

/// What the caller should know of how the text was read.
fn notices(reading: &TextReading) -> impl Iterator<Item = String> + use<> {
    let unknown = (!reading.understood).then(|| "no word of the text is known to the model".to_owned());
    let cut = reading.truncated.then(|| format!("the text was cut at {} tokens", reading.tokens));
    unknown.into_iter().chain(cut)
}

/// The steps of a sample with their seconds.
fn steps(timings: &Timings) -> impl Iterator<Item = (&'static str, f64)> + use<> {
    let &Timings { total_seconds, decode_seconds, tokenize_seconds, queue_seconds, compute_seconds, .. } = timings;
    let &Timings { frozen_seconds, decision_seconds, adapted_seconds, .. } = timings;
    let steps = [
        ("total", total_seconds),
        ("tokenize", tokenize_seconds),
        ("decode", decode_seconds),
        ("queue", queue_seconds),
        ("compute", compute_seconds),
        ("frozen", frozen_seconds),
        ("decision", decision_seconds),
        ("adapted", adapted_seconds),
    ];
    steps.into_iter()
}

fn json(response: &ClassifyResponse, explain: bool) -> Value {
    let mut out = json!({
        "request_id": response.request_id,
        "task": response.task,
        "scores": response.scores.iter().map(|s| json!({"label": s.label, "score": s.score})).collect::<Vec<_>>(),
        "partition_version": response.partition_version,
        "model": response.model,
    });
    if let Some(routing) = &response.routing {
        let candidates: Vec<_> =
            routing.candidates.iter().map(|c| json!({"task": c.task, "cosine": c.cosine, "probability": c.probability})).collect();
        out["routing"] = json!({
            "task": routing.task, "cosine": routing.cosine, "probability": routing.probability, "margin": routing.margin,
            "typicality": routing.typicality, "rejected": routing.rejected, "early": routing.early, "candidates": candidates,
        });
    }
    if let Some(modalities) = &response.modalities {
        out["modalities"] = json!({"image": modality(modalities.image), "text": modality(modalities.text)});
        if let Some(reading) = &modalities.text_reading {
            out["modalities"]["text_reading"] = json!({
                "understood": reading.understood, "truncated": reading.truncated, "tokens": reading.tokens,
                "unknown_tokens": reading.unknown_tokens,
            });
        }
    }
    if let Some(timings) = &response.timings {
        out["timings"] = steps(timings).map(|(step, seconds)| (format!("{step}_seconds"), seconds.into())).collect::<Map<_, _>>().into();
        out["timings"]["batch_samples"] = timings.batch_samples.into();
    }
    if explain {
        let factor =
            |f: &delo_proto::SelectedFactors| json!({"layer": f.layer, "target": f.target, "modality": f.modality, "a": f.a, "b": f.b});
        out["factors"] = response.factors.iter().map(factor).collect();
    }
    out
}

fn text(response: &ClassifyResponse, explain: bool) -> String {
    let rejected = response.routing.as_ref().filter(|routing| routing.rejected);
    let mut out = match rejected {
        Some(routing) => format!("none of the tasks; the likeliest is {}", routing.task),
        None => format!("task {} (version {})", response.task, response.partition_version),
    };
    if let Some(routing) = &response.routing {
        if let Some(probability) = routing.probability {
            out += &format!(", probability {probability:.3}");
        }
        out += &format!(", cosine {:.3}", routing.cosine);
        if let Some(margin) = routing.margin {
            out += &format!(", ahead by {margin:.3}");
        }
        if let Some(typicality) = routing.typicality {
            out += &format!(", typicality {typicality:.3}");
        }
        if routing.early {
            out += ", answered early";
        }
    }
    if let Some(modalities) = &response.modalities {
        out += &format!("\nimage {}, text {}", modality(modalities.image), modality(modalities.text));
        for notice in modalities.text_reading.iter().flat_map(notices) {
            out += &format!("\nnotice: {notice}");
        }
    }
    let mut rows = vec![vec!["label".to_owned(), "score".to_owned()]];
    rows.extend(response.scores.iter().map(|s| vec![s.label.clone(), format!("{:.4}", s.score)]));
    out += &format!("\n\n{}", table(&rows));
    if let Some(routing) = response.routing.as_ref().filter(|routing| !routing.candidates.is_empty()) {
        let by_probability = routing.probability.is_some();
        let head = ["task", "probability", "cosine"].into_iter().filter(|name| by_probability || *name != "probability");
        let mut rows = vec![head.map(str::to_owned).collect::<Vec<_>>()];
        rows.extend(routing.candidates.iter().map(|c| {
            let probability = c.probability.map(|p| format!("{p:.4}"));
            [Some(c.task.clone()), probability, Some(format!("{:.4}", c.cosine))].into_iter().flatten().collect()
        }));
        out += &format!("\n\n{}", table(&rows));
    }
    if explain {
        let mut rows = vec![["layer", "target", "modality", "a", "b"].map(str::to_owned).to_vec()];
        let list = |ids: &[u32]| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        rows.extend(
            response.factors.iter().map(|f| vec![f.layer.to_string(), f.target.clone(), f.modality.clone(), list(&f.a), list(&f.b)]),
        );
        out += &format!("\n\n{}", table(&rows));
    }
    if let Some(timings) = &response.timings {
        let mut rows = vec![vec!["step".to_owned(), "ms".to_owned()]];
        rows.extend(steps(timings).map(|(step, seconds)| vec![step.to_owned(), format!("{:.3}", seconds * 1e3)]));
        out += &format!("\n\n{}\n\nsamples of the batch: {}", table(&rows), timings.batch_samples);
    }
    out + &format!("\n\nrequest {}", response.request_id)
}
