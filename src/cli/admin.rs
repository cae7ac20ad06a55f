//! `delo admin`: a client of the admin service.
use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::Failure;
use super::client::{exchange, refusal};
use super::output::{print, print_json, table};
use crate::registry::signature;
use crate::serve::pb::admin_client::AdminClient;
use crate::serve::pb::load_partition_request::Source;
use crate::serve::pb::{
    GetStatusRequest, GetStatusResponse, ListPartitionsRequest, LoadPartitionRequest, Partition, RegistryStatus, SyncRegistryRequest,
    UnloadPartitionRequest, get_status_response,
};

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
    #[command(
        after_help = "Example:\n  delo admin load symbols.safetensors\n  delo admin load --uri symbols.safetensors   # a file in the server's --partitions directory\n  delo admin load --uri https://models.example.com/delo/symbols.safetensors   # allowed by the server's registry.allowed_urls"
    )]
    Load {
        /// A partition file on this machine; its bytes are sent to the server, with the signature in FILE.sig where there is one.
        #[arg(value_name = "FILE", required_unless_present = "uri", conflicts_with = "uri")]
        file: Option<PathBuf>,
        /// A file on the server, inside its --partitions directory: a path, or file:// and an absolute path. Or an address that the server allows.
        #[arg(long, value_name = "PATH|URL")]
        uri: Option<String>,
        #[command(flatten)]
        connection: Connection,
    },
    /// Takes a task out of service.
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
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: AdminArgs) -> Result<(), Failure> {
    match args.command {
        AdminCommand::List { connection } => list(&connection),
        AdminCommand::Load { file, uri, connection } => load(file, uri, &connection),
        AdminCommand::Unload { task, connection } => unload(task, &connection),
        AdminCommand::Sync { connection } => sync(&connection),
        AdminCommand::Status { connection } => status(&connection),
    }
}

fn client(channel: Channel) -> AdminClient<Channel> {
    AdminClient::new(channel).max_decoding_message_size(64 << 20)
}

fn list(connection: &Connection) -> Result<(), Failure> {
    let partitions = exchange(&connection.server, |channel| async {
        Ok(client(channel).list_partitions(ListPartitionsRequest {}).await.map_err(|s| refusal(&s))?.into_inner().partitions)
    })?;
    if connection.json {
        return print_json(&json!({"partitions": partitions.iter().map(json).collect::<Vec<_>>()}));
    }
    let mut rows = vec![["task", "version", "labels", "created", "checksum"].map(str::to_owned).to_vec()];
    rows.extend(partitions.iter().map(|p| {
        let checksum = p.checksum.chars().take(12).collect();
        vec![p.task.clone(), p.version.to_string(), p.labels.len().to_string(), p.created.clone(), checksum]
    }));
    print(&table(&rows))
}

fn load(file: Option<PathBuf>, uri: Option<String>, connection: &Connection) -> Result<(), Failure> {
    let mut signature = Vec::new();
    let source = match (file, uri) {
        (Some(file), _) => {
            let bytes = std::fs::read(&file)
                .map_err(|e| format!("can't read {}: {e}; a file on the server is loaded with --uri", file.display()))?;
            signature = signature::beside(&file)?.unwrap_or_default();
            Source::Artifact(bytes.into())
        }
        (None, Some(uri)) => Source::Uri(uri),
        (None, None) => return Err(Failure::usage("give a FILE or --uri")),
    };
    let partition = exchange(&connection.server, |channel| async {
        let answer = client(channel).load_partition(LoadPartitionRequest { source: Some(source), signature: signature.into() }).await;
        Ok(answer.map_err(|s| refusal(&s))?.into_inner().partition.unwrap_or_default())
    })?;
    changed("live", &partition, connection)
}

fn unload(task: String, connection: &Connection) -> Result<(), Failure> {
    let partition = exchange(&connection.server, |channel| async {
        let answer = client(channel).unload_partition(UnloadPartitionRequest { task }).await;
        Ok(answer.map_err(|s| refusal(&s))?.into_inner().partition.unwrap_or_default())
    })?;
    changed("unloaded", &partition, connection)
}

fn changed(what: &str, partition: &Partition, connection: &Connection) -> Result<(), Failure> {
    if connection.json {
        return print_json(&json(partition));
    }
    print(&format!("{what}: task {}, version {}, {} labels", partition.task, partition.version, partition.labels.len()))
}

fn json(p: &Partition) -> Value {
    json!({
        "task": p.task, "version": p.version, "checksum": p.checksum, "labels": p.labels, "multi_label": p.multi_label,
        "created": p.created, "delo_version": p.delo_version,
    })
}

fn sync(connection: &Connection) -> Result<(), Failure> {
    let answer = exchange(&connection.server, |channel| async {
        Ok(client(channel).sync_registry(SyncRegistryRequest {}).await.map_err(|s| refusal(&s))?.into_inner())
    })?;
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
        (false, true) => format!("not yet in sync: {}", r.error),
        (false, false) => format!("not in sync for {:.0} s: {}", r.seconds_since_sync, r.error),
    };
    format!("{}, revision {}, {state}", r.manifest, r.revision)
}

fn status(connection: &Connection) -> Result<(), Failure> {
    let status = exchange(&connection.server, |channel| async {
        Ok(client(channel).get_status(GetStatusRequest {}).await.map_err(|s| refusal(&s))?.into_inner())
    })?;
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
        registry,
        ..
    } = &status;
    let state = get_status_response::State::try_from(status.state).unwrap_or_default().as_str_name();
    if connection.json {
        return print_json(&json!({
            "state": state, "version": version, "model": model, "backbone_fingerprint": backbone_fingerprint, "routing_metric": routing_metric,
            "routing_signal": routing_signal, "routing_notice": routing_notice, "queue_depth": queue_depth, "uptime_seconds": uptime_seconds,
            "partitions": partitions, "kernel": kernel, "compute_threads": compute_threads, "registry": registry.as_ref().map(registry_json),
        }));
    }
    let mut rows = vec![
        ["state", state].map(str::to_owned).to_vec(),
        vec!["version".to_owned(), version.clone()],
        vec!["model".to_owned(), model.clone()],
        vec!["backbone".to_owned(), backbone_fingerprint.clone()],
        vec!["kernel".to_owned(), format!("{kernel}, {compute_threads} threads")],
        vec!["partitions".to_owned(), partitions.to_string()],
        vec!["routing".to_owned(), format!("{routing_metric} over {routing_signal}")],
        vec!["queue depth".to_owned(), queue_depth.to_string()],
        vec!["uptime".to_owned(), format!("{uptime_seconds:.0} s")],
    ];
    if let Some(registry) = registry {
        rows.push(vec!["registry".to_owned(), registry_line(registry)]);
    }
    if !routing_notice.is_empty() {
        rows.push(vec!["notice".to_owned(), routing_notice.clone()]);
    }
    print(&table(&rows))
}
