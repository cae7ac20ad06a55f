//! `delo partition`: looks at a partition file, and signs it.
use std::path::{Path, PathBuf};

use candle_core::Device;
use clap::Subcommand;
use serde_json::json;

use super::Failure;
use super::output::{print, print_json, table};
use delo_model::model_dir::ModelDir;
use delo_model::partition::{Artifact, PartitionMeta};
use delo_model::vilt::Vilt;
use delo_registry::ReadArtifact;
use delo_registry::signature::{self, SignatureError, Trust};

/// Looks at a partition file, and signs it.
#[derive(Debug, clap::Args)]
pub struct PartitionArgs {
    #[command(subcommand)]
    command: PartitionCommand,
}

#[derive(Debug, Subcommand)]
enum PartitionCommand {
    /// Shows what a partition says of itself.
    #[command(after_help = "Example:\n  delo partition inspect symbols.safetensors")]
    Inspect {
        file: PathBuf,
        /// Print JSON, with every tensor's name and shape.
        #[arg(long)]
        json: bool,
    },
    /// Checks everything that a server checks before it serves a partition: format, checksum, shapes,
    /// numbers, backbone; and its signature, where a key is given.
    #[command(
        after_help = "Example:\n  delo partition verify symbols.safetensors --backbone vilt-b32-mlm\n  delo partition verify symbols.safetensors --public-key public.pem"
    )]
    Verify {
        file: PathBuf,
        /// The backbone's directory; the one in the program if left out.
        #[arg(long, value_name = "DIR")]
        backbone: Option<PathBuf>,
        /// The public key whose signature must stand in FILE.sig.
        #[arg(long, value_name = "KEY.pem")]
        public_key: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Signs a partition: writes FILE.sig beside it.
    #[command(
        after_help = "Example:\n  openssl genpkey -algorithm ed25519 -out private.pem\n  openssl pkey -in private.pem -pubout -out public.pem\n  delo partition sign symbols.safetensors --key private.pem"
    )]
    Sign {
        file: PathBuf,
        /// The private key.
        #[arg(long, value_name = "KEY.pem")]
        key: PathBuf,
    },
}

pub fn run(args: PartitionArgs) -> Result<(), Failure> {
    match args.command {
        PartitionCommand::Inspect { file, json } => inspect(&file, json),
        PartitionCommand::Verify { file, backbone, public_key, json } => verify(&file, backbone.as_deref(), public_key.as_deref(), json),
        PartitionCommand::Sign { file, key } => sign(&file, &key),
    }
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    Ok(std::fs::read(file).map_err(|e| format!("can't read {}: {e}", file.display()))?)
}

fn parse(file: &Path) -> Result<Artifact, Failure> {
    parse_artifact(file, &ReadArtifact::hash(read(file)?.into()))
}

fn parse_artifact(file: &Path, artifact: &ReadArtifact) -> Result<Artifact, Failure> {
    Ok(Artifact::parse_hashed(artifact.bytes(), artifact.digest()).map_err(|e| format!("{}: {e}", file.display()))?)
}

fn sign(file: &Path, key: &Path) -> Result<(), Failure> {
    let key = signature::signing_key(key)?;
    let artifact = ReadArtifact::hash(read(file)?.into());
    // An artifact that no server would load is not signed.
    parse_artifact(file, &artifact)?;
    let path = signature::signature_path(file);
    std::fs::write(&path, format!("{}\n", signature::sign(&key, &artifact))).map_err(|e| format!("can't write {}: {e}", path.display()))?;
    print(&format!("{}: signature of {}", path.display(), artifact.digest()))
}

fn inspect(file: &Path, as_json: bool) -> Result<(), Failure> {
    let artifact = parse(file)?;
    let parameters: usize = artifact.tensors.values().map(candle_core::Tensor::elem_count).sum();
    if as_json {
        let tensors: serde_json::Map<_, _> = artifact.tensors.iter().map(|(name, t)| (name.clone(), json!(t.dims()))).collect();
        return print_json(&json!({"partition": artifact.meta, "checksum": artifact.checksum, "numbers": parameters, "tensors": tensors}));
    }
    let PartitionMeta {
        task,
        labels,
        multi_label,
        method,
        key,
        analytic,
        dummy_image: [height, width],
        special_tokens,
        text_positions,
        backbone,
        seed,
        metrics,
        created,
        delo_version,
        ..
    } = &artifact.meta;
    let mut rows = vec![
        vec!["task".to_owned(), task.clone()],
        vec!["labels".to_owned(), format!("{} ({})", labels.len(), abridged(labels))],
        vec!["scores".to_owned(), if *multi_label { "a sigmoid each" } else { "softmax" }.to_owned()],
        vec!["method".to_owned(), method.kind().to_string()],
        vec![method.field().to_owned(), method.summary()],
        vec!["key".to_owned(), format!("{} over {}, else plain over {} ({})", key.metric, key.signal, key.plain_signal, key.plain_average)],
        vec![
            "analytic classifier".to_owned(),
            analytic.map_or("none: the head alone".to_owned(), |a| {
                format!("over {}: {} × its logits + {} × the head's", a.signal, a.weight, a.head_weight)
            }),
        ],
        vec!["dummy image".to_owned(), format!("{height} x {width} pixels")],
        vec![
            "special tokens".to_owned(),
            match special_tokens {
                None => "not recorded",
                Some(true) => "read as such in texts",
                Some(false) => "words of a text",
            }
            .to_owned(),
        ],
        vec!["text positions".to_owned(), text_positions.map_or("those of the backbone".to_owned(), |n| n.to_string())],
        vec!["backbone".to_owned(), format!("{} {}", backbone.name, backbone.fingerprint)],
        vec!["seed".to_owned(), seed.to_string()],
        vec!["created".to_owned(), format!("{created}, by delo {delo_version}")],
        vec!["checksum".to_owned(), artifact.checksum.clone()],
        vec!["numbers".to_owned(), format!("{parameters} in {} tensors", artifact.tensors.len())],
    ];
    rows.extend(metrics.iter().map(|(name, value)| vec![name.clone(), format!("{value:.4}")]));
    print(&table(&rows))
}

fn abridged(labels: &[String]) -> String {
    const SHOWN: usize = 5;
    let more = if labels.len() > SHOWN { ", …" } else { "" };
    format!("{}{more}", labels[..labels.len().min(SHOWN)].join(", "))
}

fn verify(file: &Path, backbone: Option<&Path>, public_key: Option<&Path>, as_json: bool) -> Result<(), Failure> {
    let artifact = ReadArtifact::hash(read(file)?.into());
    if let Some(path) = public_key {
        let given = signature::beside(file)?;
        let checked = Trust::in_key(signature::verifying_key(path)?).check(&artifact, given.as_deref());
        checked.map_err(|e| match e {
            SignatureError::Wrong => {
                format!("{}: the signature beside it is not of {}, or of another file", file.display(), path.display())
            }
            SignatureError::Missing => format!("{} has no signature beside it: `delo partition sign` writes one", file.display()),
            other => other.to_string(),
        })?;
    }
    let vilt = Vilt::load(&ModelDir::from(backbone), &Device::Cpu)?;
    let partition = parse_artifact(file, &artifact)?.bind(&vilt.description).map_err(|e| format!("{}: {e}", file.display()))?;
    if as_json {
        return print_json(
            &json!({"ok": true, "signed": public_key.is_some(), "task": partition.meta.task, "checksum": partition.checksum}),
        );
    }
    let signed = if public_key.is_some() { " and signed" } else { "" };
    print(&format!("{}: sound{signed}, task {}, checksum {}", file.display(), partition.meta.task, partition.checksum))
}
