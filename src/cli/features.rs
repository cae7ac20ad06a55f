//! `delo features`: the frozen backbone's features of one sample.
use std::path::PathBuf;

use serde_json::{Map, json};

use super::Failure;
use super::backbone::{Backbone, BackboneArgs};
use super::compute::InferenceArgs;
use super::output::{print, print_json, table};
use delo_model::routing::keys::KeySignal;

/// Prints the frozen backbone's features of one sample: the pooled vector, and the query signal (mean over
/// text and patches) entering each layer, `mean@0` and so on; `mean@L` is that after the last layer. It shows
/// whether a checkpoint is read as it should be.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  \
        delo features --image cat.png --text \"a cat\" --json\n  \
        delo features --backbone vilt-b32-mlm --text \"a cat\"")]
pub struct FeaturesArgs {
    /// An image file.
    #[arg(long, value_name = "FILE", required_unless_present = "text")]
    image: Option<PathBuf>,
    /// A text.
    #[arg(long, allow_hyphen_values = true)]
    text: Option<String>,
    /// Read [SEP], [PAD] and the like in the text as the special tokens that they name, as transformers does;
    /// they are words of it otherwise.
    #[arg(long)]
    special_tokens: bool,
    /// Print JSON with every number.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backbone: BackboneArgs,
    #[command(flatten)]
    compute: InferenceArgs,
}

pub fn run(args: FeaturesArgs) -> Result<(), Failure> {
    let Backbone { engine, processor, name: backbone } = args.backbone.load(args.special_tokens, args.compute.start()?)?;
    let image =
        args.image.as_ref().map(|path| std::fs::read(path).map_err(|e| format!("can't read {}: {e}", path.display()))).transpose()?;
    let sample = processor.sample(image.as_deref(), args.text.as_deref()).map_err(|error| match &args.image {
        Some(path) if error.field() == "image" => Failure::from(format!("{}: {error}", path.display())),
        _ => error.into(),
    })?;
    let presence = sample.presence();
    let described = engine.backbone();

    let wanted: Vec<_> =
        (0..=described.config.num_hidden_layers).map(|layer| KeySignal::MeanQuery { layer }).chain([KeySignal::Pooled]).collect();
    let packed = engine.embed(&[sample], engine.default_dummy_image())?;
    let signals = engine.signals(&packed, &wanted)?;
    let mut vectors = Vec::new();
    for signal in &wanted {
        let name = signal.to_string();
        let tensor = signals.get(signal).ok_or_else(|| format!("the engine gave no signal {name}"))?;
        vectors.push((name, tensor.flatten_all()?.to_vec1::<f32>()?));
    }

    if args.json {
        let pooled = vectors.pop().map(|(_, values)| values);
        let signals: Map<_, _> = vectors.into_iter().map(|(name, values)| (name, json!(values))).collect();
        return print_json(&json!({
            "backbone": backbone, "fingerprint": described.fingerprint, "presence": presence, "pooled": pooled, "signals": signals,
        }));
    }
    let mut rows = vec![["signal", "width", "norm", "first values"].map(str::to_owned).to_vec()];
    rows.extend(vectors.iter().map(|(name, values)| {
        let norm = values.iter().map(|x| x * x).sum::<f32>().sqrt();
        let first: Vec<_> = values.iter().take(4).map(|x| format!("{x:.4}")).collect();
        vec![name.clone(), values.len().to_string(), format!("{norm:.4}"), first.join(" ")]
    }));
    print(&format!("{} {}\n\n{}", backbone, described.fingerprint, table(&rows)))
}
