//! `delo admin`: a client of the admin service.
use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::Failure;
use super::client::{exchange, refusal};
use super::output::{print, print_json, table};
use crate::serve::pb::admin_client::AdminClient;
use crate::serve::pb::load_partition_request::Source;
use crate::serve::pb::{
    GetStatusRequest, GetStatusResponse, ListPartitionsRequest, LoadPartitionRequest, Partition, UnloadPartitionRequest,
    get_status_response,
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
        after_help = "Example:\n  delo admin load symbols.safetensors\n  delo admin load --uri symbols.safetensors   # a file in the server's --partitions directory"
    )]
    Load {
        /// A partition file on this machine; its bytes are sent to the server.
        #[arg(value_name = "FILE", required_unless_present = "uri", conflicts_with = "uri")]
        file: Option<PathBuf>,
        /// A file on the server, inside its --partitions directory: a path, or file:// and an absolute path.
        #[arg(long, value_name = "PATH")]
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
    let source = match (file, uri) {
        (Some(file), _) => {
            let bytes = std::fs::read(&file)
                .map_err(|e| format!("can't read {}: {e}; a file on the server is loaded with --uri", file.display()))?;
            Source::Artifact(bytes.into())
        }
        (None, Some(uri)) => Source::Uri(uri),
        (None, None) => return Err(Failure::usage("give a FILE or --uri")),
    };
    let partition = exchange(&connection.server, |channel| async {
        let answer = client(channel).load_partition(LoadPartitionRequest { source: Some(source) }).await;
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
        ..
    } = &status;
    let state = get_status_response::State::try_from(status.state).unwrap_or_default().as_str_name();
    if connection.json {
        return print_json(&json!({
            "state": state, "version": version, "model": model, "backbone_fingerprint": backbone_fingerprint, "routing_metric": routing_metric,
            "routing_signal": routing_signal, "routing_notice": routing_notice, "queue_depth": queue_depth, "uptime_seconds": uptime_seconds,
            "partitions": partitions, "kernel": kernel, "compute_threads": compute_threads,
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
    if !routing_notice.is_empty() {
        rows.push(vec!["notice".to_owned(), routing_notice.clone()]);
    }
    print(&table(&rows))
}
