//! `delo admin`: a client of the admin service.
use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Value, json};
use tonic::{Response, Status};

use super::Failure;
use super::client::{Authorized, Credentials, exchange};
use super::output::{print, print_json, table};
use delo_proto::admin_client::AdminClient;
use delo_proto::load_partition_request::Source;
use delo_proto::trial_mode::Mode;
use delo_proto::{
    AbortTrialRequest, GetStatusRequest, GetStatusResponse, ListPartitionsRequest, LoadPartitionRequest, Partition, PromoteTrialRequest,
    RegistryStatus, RollbackPartitionRequest, SyncRegistryRequest, Trial, TrialMode, UnloadPartitionRequest, UnloadPartitionResponse,
    VersionCounts, get_status_response,
};
use delo_registry::signature;

/// Shows and changes which partitions a running server serves.
#[derive(Debug, clap::Args)]
pub struct AdminArgs {
    #[command(subcommand)]
    command: AdminCommand,
}

#[derive(Debug, Subcommand)]
enum AdminCommand {
    /// Lists the partitions that are live.
    #[command(after_help = "Example:\n  delo admin list --json")]
    List {
        #[command(flatten)]
        connection: Connection,
    },
    /// Makes a partition live. A task that is loaded already gets a new version.
    #[command(after_help = "Examples:\n  \
            delo admin load symbols.safetensors\n  \
            delo admin load symbols.safetensors --canary 0.1\n  \
            delo admin load --uri symbols.safetensors   # a file in the server's --partitions directory\n  \
            delo admin load --uri https://models.example.com/delo/symbols.safetensors   # allowed by the server's registry.allowed_urls")]
    Load {
        /// A partition file on this machine; its bytes are sent to the server, with the signature in FILE.sig
        /// where there is one.
        #[arg(value_name = "FILE", required_unless_present = "uri", conflicts_with = "uri")]
        file: Option<PathBuf>,
        /// A file on the server, inside its --partitions directory: a path, or a file:// address of an
        /// absolute one. Or an address that the server allows.
        #[arg(long, value_name = "PATH|URL")]
        uri: Option<String>,
        /// Not live but on trial: it answers this share of its task's traffic, above 0 and at most 1.
        #[arg(long, value_name = "SHARE", conflicts_with = "shadow")]
        canary: Option<f64>,
        /// Not live but on trial: it is computed beside the live version and compared; callers never see its
        /// answers.
        #[arg(long)]
        shadow: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Makes an earlier version of a task live again.
    #[command(after_help = "Examples:\n  delo admin rollback symbols\n  delo admin rollback symbols --to 3")]
    Rollback {
        /// The task's name.
        task: String,
        /// One of the retained versions that `delo admin list` shows; the one before the live one if left
        /// out.
        #[arg(long, value_name = "VERSION")]
        to: Option<u64>,
        #[command(flatten)]
        connection: Connection,
    },
    /// Makes the version on trial live, or gives it another share of the traffic.
    #[command(after_help = "Examples:\n  delo admin promote symbols --canary 0.5\n  delo admin promote symbols")]
    Promote {
        /// The task's name.
        task: String,
        /// Go on with the trial, on this share of the traffic.
        #[arg(long, value_name = "SHARE")]
        canary: Option<f64>,
        #[command(flatten)]
        connection: Connection,
    },
    /// Ends a trial; the version that was on it is dropped.
    #[command(after_help = "Example:\n  delo admin abort symbols")]
    Abort {
        /// The task's name.
        task: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Takes a task out of service, and waits until the requests that it was serving have ended.
    #[command(after_help = "Example:\n  delo admin unload symbols")]
    Unload {
        /// The task's name, as `delo admin list` shows it.
        task: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Makes the server read the manifest of its registry now, and load and unload what differs.
    #[command(after_help = "Example:\n  delo admin sync")]
    Sync {
        /// Take the manifest though it is older than the last one seen: the registry was put back from a
        /// copy, or made anew, on purpose.
        #[arg(long)]
        accept_older: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// Shows the server's state.
    #[command(after_help = "Example:\n  delo admin status")]
    Status {
        #[command(flatten)]
        connection: Connection,
    },
}

#[derive(Debug, clap::Args)]
struct Connection {
    /// The address of the server's admin port.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:50052")]
    server: String,
    #[command(flatten)]
    credentials: Credentials,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: AdminArgs) -> Result<(), Failure> {
    match args.command {
        AdminCommand::List { connection } => list(&connection),
        AdminCommand::Load { file, uri, canary, shadow, connection } => load(file, uri, trial(canary, shadow), &connection),
        AdminCommand::Rollback { task, to, connection } => rollback(task, to, &connection),
        AdminCommand::Promote { task, canary, connection } => promote(task, trial(canary, false), &connection),
        AdminCommand::Abort { task, connection } => abort(task, &connection),
        AdminCommand::Unload { task, connection } => unload(task, &connection),
        AdminCommand::Sync { accept_older, connection } => sync(accept_older, &connection),
        AdminCommand::Status { connection } => status(&connection),
    }
}

/// One call of the admin service.
fn call<T>(
    connection: &Connection,
    method: impl AsyncFnOnce(AdminClient<Authorized>) -> Result<Response<T>, Status>,
) -> Result<T, Failure> {
    exchange(&connection.server, &connection.credentials, async |channel| {
        let client = AdminClient::new(channel).max_decoding_message_size(64 << 20);
        Ok(method(client).await?.into_inner())
    })
}

fn list(connection: &Connection) -> Result<(), Failure> {
    let partitions = call(connection, async |mut client| client.list_partitions(ListPartitionsRequest {}).await)?.partitions;
    if connection.json {
        return print_json(&json!({"partitions": partitions.iter().map(json).collect::<Vec<_>>()}));
    }
    let mut rows = vec![["task", "version", "retained", "trial", "labels", "created", "digest"].map(str::to_owned).to_vec()];
    rows.extend(partitions.iter().map(|p| {
        let digest = p.digest.chars().take(12).collect();
        let retained = p.retained_versions.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
        let trial = p.trial.as_ref().map(|trial| format!("{} ({})", trial.version, mode(trial))).unwrap_or_default();
        vec![p.task.clone(), p.version.to_string(), retained, trial, p.labels.len().to_string(), p.created.clone(), digest]
    }));
    print(&table(&rows))
}

fn mode(trial: &Trial) -> String {
    match trial.mode.and_then(|mode| mode.mode) {
        Some(Mode::CanaryShare(share)) => format!("{:.4} %", share * 100.0),
        _ => "shadow".to_owned(),
    }
}

fn trial(canary: Option<f64>, shadow: bool) -> Option<TrialMode> {
    canary.map(Mode::CanaryShare).or(shadow.then_some(Mode::Shadow(true))).map(|mode| TrialMode { mode: Some(mode) })
}

/// A change has an id of its own, so that one that is sent again by the transport is not done again.
fn request_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

fn load(file: Option<PathBuf>, uri: Option<String>, trial: Option<TrialMode>, connection: &Connection) -> Result<(), Failure> {
    let mut signature = Vec::new();
    let source = match (file, uri) {
        (Some(file), _) => {
            signature = signature::beside(&file)?.unwrap_or_default();
            let bytes = std::fs::read(&file)
                .map_err(|e| format!("can't read {}: {e}; a file on the server is loaded with --uri", file.display()))?;
            Source::Artifact(bytes.into())
        }
        (None, Some(uri)) => Source::Uri(uri),
        (None, None) => return Err(Failure::usage("give a FILE or --uri")),
    };
    let request = LoadPartitionRequest { source: Some(source), request_id: request_id(), trial, signature: signature.into() };
    let partition = call(connection, async |mut client| client.load_partition(request).await)?.partition;
    changed(if trial.is_some() { "on trial" } else { "live" }, partition, connection)
}

fn rollback(task: String, version: Option<u64>, connection: &Connection) -> Result<(), Failure> {
    let request = RollbackPartitionRequest { task, version, request_id: request_id() };
    let partition = call(connection, async |mut client| client.rollback_partition(request).await)?.partition;
    changed("live", partition, connection)
}

fn promote(task: String, trial: Option<TrialMode>, connection: &Connection) -> Result<(), Failure> {
    let request = PromoteTrialRequest { task, trial, request_id: request_id() };
    let partition = call(connection, async |mut client| client.promote_trial(request).await)?.partition;
    changed(if trial.is_some() { "on trial" } else { "live" }, partition, connection)
}

fn abort(task: String, connection: &Connection) -> Result<(), Failure> {
    let request = AbortTrialRequest { task, request_id: request_id() };
    let partition = call(connection, async |mut client| client.abort_trial(request).await)?.partition;
    changed("aborted", partition, connection)
}

fn unload(task: String, connection: &Connection) -> Result<(), Failure> {
    let request = UnloadPartitionRequest { task, request_id: request_id() };
    let UnloadPartitionResponse { partition, drained } = call(connection, async |mut client| client.unload_partition(request).await)?;
    changed(if drained { "unloaded" } else { "unloaded, some requests still finish with it" }, partition, connection)
}

fn changed(what: &str, partition: Option<Partition>, connection: &Connection) -> Result<(), Failure> {
    let partition = partition.unwrap_or_default();
    if connection.json {
        return print_json(&json(&partition));
    }
    print(&format!("{what}: task {}, version {}, {} labels", partition.task, partition.version, partition.labels.len()))
}

fn json(p: &Partition) -> Value {
    json!({
        "task": p.task, "version": p.version, "checksum": p.checksum, "labels": p.labels, "multi_label": p.multi_label,
        "created": p.created, "delo_version": p.delo_version, "digest": p.digest, "origin": p.origin, "loaded": p.loaded,
        "retained_versions": p.retained_versions, "counts": p.counts.map(counts), "trial": p.trial.as_ref().map(|trial| json!({
            "version": trial.version, "mode": mode(trial), "digest": trial.digest, "origin": trial.origin,
            "counts": trial.counts.map(counts),
        })),
    })
}

fn counts(c: VersionCounts) -> Value {
    json!({"answers": c.answers, "right": c.right, "wrong": c.wrong, "agreed": c.agreed, "differed": c.differed})
}

fn sync(accept_older: bool, connection: &Connection) -> Result<(), Failure> {
    let answer = call(connection, async |mut client| client.sync_registry(SyncRegistryRequest { accept_older }).await)?;
    let registry = answer.registry.unwrap_or_default();
    if connection.json {
        return print_json(&json!({"registry": registry_json(&registry), "loaded": answer.loaded, "unloaded": answer.unloaded}));
    }
    let mut rows = vec![vec!["registry".to_owned(), registry_line(&registry)]];
    for (what, tasks) in [("loaded", &answer.loaded), ("unloaded", &answer.unloaded)] {
        if !tasks.is_empty() {
            rows.push(vec![what.to_owned(), tasks.join(", ")]);
        }
    }
    print(&table(&rows))
}

fn registry_json(r: &RegistryStatus) -> Value {
    json!({
        "manifest": r.manifest, "revision": r.revision, "in_sync": r.in_sync, "error": r.error, "seconds_since_sync": r.seconds_since_sync,
    })
}

fn registry_line(r: &RegistryStatus) -> String {
    let state = match (r.in_sync, r.seconds_since_sync < 0.0) {
        (true, _) => "in sync".to_owned(),
        (false, true) if r.error.is_empty() => "not yet in sync".to_owned(),
        (false, true) => format!("not yet in sync: {}", r.error),
        (false, false) => format!("not in sync for {:.0} s: {}", r.seconds_since_sync, r.error),
    };
    format!("{}, revision {}, {state}", r.manifest, r.revision)
}

fn status(connection: &Connection) -> Result<(), Failure> {
    let status = call(connection, async |mut client| client.get_status(GetStatusRequest {}).await)?;
    let GetStatusResponse {
        version,
        model,
        backbone_fingerprint,
        routing_metric,
        routing_signal,
        routing_notice,
        queue_depth,
        uptime_seconds,
        partitions,
        kernel,
        compute_threads,
        catalogue_revision,
        durable,
        notices,
        registry,
        ..
    } = &status;
    let state = get_status_response::State::try_from(status.state).unwrap_or_default().as_str_name();
    if connection.json {
        return print_json(&json!({
            "state": state, "version": version, "model": model, "backbone_fingerprint": backbone_fingerprint,
            "routing_metric": routing_metric, "routing_signal": routing_signal, "routing_notice": routing_notice,
            "queue_depth": queue_depth, "uptime_seconds": uptime_seconds, "partitions": partitions,
            "kernel": kernel, "compute_threads": compute_threads,
            "catalogue_revision": catalogue_revision, "durable": durable, "notices": notices,
            "registry": registry.as_ref().map(registry_json),
        }));
    }
    let mut rows = vec![
        ["state", state].map(str::to_owned).to_vec(),
        vec!["version".to_owned(), version.clone()],
        vec!["model".to_owned(), model.clone()],
        vec!["backbone".to_owned(), backbone_fingerprint.clone()],
        vec!["kernel".to_owned(), format!("{kernel}, {compute_threads} threads")],
        vec!["partitions".to_owned(), partitions.to_string()],
        vec![
            "changes".to_owned(),
            format!("{catalogue_revision}, {}", if *durable { "kept in the state directory" } else { "kept in memory only" }),
        ],
        vec!["routing".to_owned(), format!("{routing_metric} over {routing_signal}")],
        vec!["queue depth".to_owned(), queue_depth.to_string()],
        vec!["uptime".to_owned(), format!("{uptime_seconds:.0} s")],
    ];
    rows.extend(registry.iter().map(|registry| vec!["registry".to_owned(), registry_line(registry)]));
    let notices = notices.iter().chain(Some(routing_notice).filter(|notice| !notice.is_empty()));
    rows.extend(notices.map(|notice| vec!["notice".to_owned(), notice.clone()]));
    print(&table(&rows))
}
