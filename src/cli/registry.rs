//! `delo registry`: changes a registry that servers follow.
use std::future::Future;
use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use super::Failure;
use super::output::{print, print_json, table};
use delo_registry::remote::{self, RemoteError, Storage};
use delo_registry::signature::signing_key;

/// Changes a registry: the partitions that a fleet of servers can serve, and which of them are live.
#[derive(Debug, clap::Args)]
pub struct RegistryArgs {
    #[command(subcommand)]
    command: RegistryCommand,
}

#[derive(Debug, Subcommand)]
enum RegistryCommand {
    /// Adds partitions to a registry.
    #[command(after_help = "Example:\n  delo registry push symbols.safetensors --registry /srv/delo --live\n  \
                      delo registry push symbols.safetensors --registry s3://bucket/delo --key private.pem")]
    Push {
        #[arg(value_name = "FILE", required = true)]
        files: Vec<PathBuf>,
        #[command(flatten)]
        at: At,
        /// Sign them with this key, as `openssl genpkey -algorithm ed25519` makes it.
        #[arg(long, value_name = "KEY.pem")]
        key: Option<PathBuf>,
        /// Make each the live one of its task.
        #[arg(long)]
        live: bool,
    },
    /// Lists what a registry holds and what of it is live.
    #[command(after_help = "Example:\n  delo registry list --registry https://models.example.com/delo")]
    List {
        #[command(flatten)]
        at: At,
        /// Print the manifest as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Makes a partition the live one of its task: the one pushed last, or the one whose SHA-256 begins so.
    #[command(after_help = "Example:\n  \
            delo registry promote symbols --registry /srv/delo\n  \
            delo registry promote symbols@3f2a --registry /srv/delo")]
    Promote {
        /// The task, or the task, @ and the first digits of a SHA-256 as `delo registry list` shows it.
        #[arg(value_name = "TASK[@SHA256]")]
        what: String,
        #[command(flatten)]
        at: At,
    },
    /// Nothing of a task is live any more: servers that follow the registry unload it.
    #[command(after_help = "Example:\n  delo registry withdraw symbols --registry /srv/delo")]
    Withdraw {
        task: String,
        #[command(flatten)]
        at: At,
    },
}

#[derive(Debug, clap::Args)]
struct At {
    /// A directory, or s3://, gs:// or az:// (credentials from the environment); http:// and https:// can
    /// only be listed.
    #[arg(long, value_name = "URL")]
    registry: String,
}

pub fn run(args: RegistryArgs) -> Result<(), Failure> {
    match args.command {
        RegistryCommand::Push { files, at, key, live } => push(&files, &at, key, live),
        RegistryCommand::List { at, json } => list(&at, json),
        RegistryCommand::Promote { what, at } => {
            let (entry, revision) = at.exchange(async |storage| remote::promote(&storage, &what).await)?;
            print(&format!("live: task {}, {} (revision {revision}) in {}", entry.task, short(&entry.sha256), at.shown()?))
        }
        RegistryCommand::Withdraw { task, at } => {
            let revision = at.exchange(async |storage| remote::withdraw(&storage, &task).await)?;
            print(&format!("withdrawn: task {task} (revision {revision}) in {}", at.shown()?))
        }
    }
}

impl At {
    fn storage(&self) -> Result<Storage, Failure> {
        Storage::of_registry(&self.registry).map_err(|e| Failure::usage(format!("--registry: {e}")))
    }

    /// Where the registry is: its address, or its directory from the root on.
    fn shown(&self) -> Result<String, Failure> {
        Ok(match self.storage()? {
            Storage::Directory(dir) => std::path::absolute(&dir).unwrap_or(dir).display().to_string(),
            storage => storage.shown(""),
        })
    }

    /// Runs one exchange with the registry.
    fn exchange<T, F: Future<Output = Result<T, RemoteError>>>(&self, talk: impl FnOnce(Storage) -> F) -> Result<T, Failure> {
        let storage = self.storage()?;
        let runtime = super::runtime()?;
        Ok(runtime.block_on(talk(storage))?)
    }
}

fn push(files: &[PathBuf], at: &At, key: Option<PathBuf>, live: bool) -> Result<(), Failure> {
    let key = key.map(|path| signing_key(&path)).transpose()?;
    for file in files {
        let bytes = std::fs::read(file).map_err(|e| format!("can't read {}: {e}", file.display()))?;
        let pushed = at.exchange(async |storage| remote::push(&storage, bytes.into(), key.as_ref(), live).await);
        let pushed = pushed.map_err(|failure| match failure {
            Failure::Other(message) => Failure::Other(format!("{}: {message}", file.display())),
            usage => usage,
        })?;
        let entry = &pushed.entry;
        let done = match (pushed.uploaded, live) {
            (true, true) => "pushed and live",
            (false, true) => "there already and live",
            (true, false) => "pushed",
            (false, false) => "there already",
        };
        let signed = if entry.signature.is_some() { ", signed" } else { "" };
        let to = if pushed.new_registry { "to the new registry" } else { "in" };
        let shown = at.shown()?;
        print(&format!("{done}: task {}, {}{signed} (revision {}) {to} {shown}", entry.task, short(&entry.sha256), pushed.revision))?;
    }
    Ok(())
}

fn list(at: &At, as_json: bool) -> Result<(), Failure> {
    let manifest = at.exchange(async |storage| remote::list(&storage).await)?;
    if as_json {
        return print_json(&json!(manifest));
    }
    let mut rows = vec![["task", "sha256", "live", "bytes", "created", "pushed", "signed"].map(str::to_owned).to_vec()];
    rows.extend(manifest.artifacts.iter().map(|e| {
        let mark = |yes: bool| if yes { "yes" } else { "" }.to_owned();
        let live = manifest.live.get(&e.task) == Some(&e.sha256);
        let (created, pushed) = (e.created.clone(), e.pushed.clone());
        vec![e.task.clone(), short(&e.sha256), mark(live), e.bytes.to_string(), created, pushed, mark(e.signature.is_some())]
    }));
    print(&format!("revision {} {}\n{}", manifest.revision, manifest.updated, table(&rows)))
}

/// The digits of a digest that are shown.
fn short(sha256: &str) -> String {
    sha256.chars().take(12).collect()
}
