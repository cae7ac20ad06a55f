//! Reading of a partition and binding to a backbone.
use std::sync::OnceLock;

use delo_model::partition::{Artifact, PartitionError};
use delo_model::vilt::{Description, ViltConfig};

use super::json;

/// A backbone so small that a partition of it has a few kilobytes.
pub fn backbone() -> &'static Description {
    static BACKBONE: OnceLock<Description> = OnceLock::new();
    BACKBONE.get_or_init(|| Description {
        config: ViltConfig {
            hidden_size: 4,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            intermediate_size: 8,
            image_size: 32,
            patch_size: 8,
            ..ViltConfig::default()
        },
        checkpoint_positions: ViltConfig::default().max_position_embeddings,
        fingerprint: "f".repeat(64),
    })
}

/// Any bytes as a partition: refused, or ready to serve, its parts of the sizes that the header says. A file
/// that fails for its length or checksum alone is tried again with both put right, so that what stands behind
/// them is reached.
pub fn artifact(bytes: &[u8]) {
    read(bytes);
    if let Some(mut file) = json::File::parse(bytes) {
        file.fit();
        if let Err(PartitionError::Checksum { found, .. }) = Artifact::parse(&file.to_bytes()) {
            file.set_checksum(&found);
        }
        read(&file.to_bytes());
    }
}

fn read(bytes: &[u8]) {
    let Ok(artifact) = Artifact::parse(bytes) else { return };
    let (classes, tensors) = (artifact.meta.labels.len(), artifact.tensors.len());
    let partition = match artifact.bind(backbone()) {
        Ok(partition) => partition,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let d = backbone().config.hidden_size;
    assert!(tensors >= 2, "a head has a weight and a bias");
    assert_eq!((partition.head_weight.len(), partition.head_bias.len()), (classes * d, classes));
    let (first, layers) = (partition.meta.method.first_adapted_layer(), backbone().config.num_hidden_layers);
    let adapter = &partition.adapter;
    let adapted = |layer: usize| adapter.bank(layer).is_some() || adapter.prefix(layer).is_some();
    let adapts = adapted(first) || (first == 0 && adapter.prompt_tokens() > 0);
    assert!((0..first).all(|layer| !adapted(layer)) && adapts == (first < layers), "adapted from layer {first} on");
    assert!(partition.head_weight.iter().chain(&partition.head_bias).all(|x| x.is_finite()));
}
