//! The same weights in any Hugging Face layout are the same backbone, and a checkpoint that does not load is
//! refused with the reason. Fixtures: `tools/fixtures/vilt.py`.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use delo_model::model_dir::ModelDir;
use delo_model::vilt::{Loader, Vilt, ViltError};
use tempfile::TempDir;

fn fixture(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("tests/fixtures/vilt").join(name)
}

fn load(dir: &Path) -> Result<Vilt, ViltError> {
    Vilt::load(&ModelDir::Path(dir.to_owned()), &Device::Cpu)
}

fn tensors(name: &str) -> BTreeMap<String, Tensor> {
    candle_core::safetensors::load(fixture(name).join("model.safetensors"), &Device::Cpu).unwrap().into_iter().collect()
}

/// A checkpoint directory with the `config.json` of a fixture and these tensors.
fn directory(config: &str, tensors: &BTreeMap<String, Tensor>) -> TempDir {
    let dir = TempDir::new().unwrap();
    std::fs::copy(fixture(config).join("config.json"), dir.path().join("config.json")).unwrap();
    candle_core::safetensors::save(&tensors.clone().into_iter().collect(), dir.path().join("model.safetensors")).unwrap();
    dir
}

fn refusal(config: &str, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) -> String {
    let mut tensors = tensors(config);
    change(&mut tensors);
    load(directory(config, &tensors).path()).unwrap_err().to_string()
}

#[test]
fn the_same_weights_have_the_same_fingerprint_in_shards() {
    assert_eq!(load(&fixture("plain")).unwrap().description.fingerprint, load(&fixture("sharded")).unwrap().description.fingerprint);
}

#[test]
fn the_same_weights_have_the_same_fingerprint_with_prefix_and_other_tensors() {
    let mut renamed: BTreeMap<_, _> = tensors("plain").into_iter().map(|(name, tensor)| (format!("vilt.{name}"), tensor)).collect();
    renamed.insert("mlm_score.bias".to_owned(), Tensor::zeros(7, DType::F32, &Device::Cpu).unwrap());
    renamed.insert("vilt.embeddings.text_embeddings.position_ids".to_owned(), Tensor::zeros((1, 16), DType::I64, &Device::Cpu).unwrap());
    let dir = directory("plain", &renamed);
    assert_eq!(load(dir.path()).unwrap().description.fingerprint, load(&fixture("plain")).unwrap().description.fingerprint);
}

#[test]
fn half_precision_weights_have_the_fingerprint_of_their_f32_copy() {
    for name in ["half", "brain"] {
        let copy = tensors(name).into_iter().map(|(name, tensor)| (name, tensor.to_dtype(DType::F32).unwrap())).collect();
        let dir = directory(name, &copy);
        assert_eq!(load(dir.path()).unwrap().description.fingerprint, load(&fixture(name)).unwrap().description.fingerprint, "{name}");
    }
}

#[test]
fn one_changed_value_changes_the_fingerprint() {
    let mut changed = tensors("plain");
    let bias = changed.get_mut("pooler.dense.bias").unwrap();
    *bias = (&*bias + 1e-3).unwrap();
    let dir = directory("plain", &changed);
    assert_ne!(load(dir.path()).unwrap().description.fingerprint, load(&fixture("plain")).unwrap().description.fingerprint);
}

#[test]
fn loads_the_layer_norm_names_of_old_checkpoints() {
    let old = tensors("plain")
        .into_iter()
        .map(|(name, tensor)| (name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"), tensor));
    let dir = directory("plain", &old.collect());
    assert_eq!(load(dir.path()).unwrap().description.fingerprint, load(&fixture("plain")).unwrap().description.fingerprint);
}

#[test]
fn text_positions_interpolate_to_longer_texts_and_keep_the_ends() {
    let embeddings = load(&fixture("plain")).unwrap().embeddings;
    let longer = embeddings.with_text_positions(31).unwrap();
    assert_eq!((embeddings.text_positions(), longer.text_positions()), (16, 31));
    assert!(embeddings.text(&[1; 17]).is_err());
    let (short, long) = (embeddings.text(&[1; 16]).unwrap(), longer.text(&[1; 31]).unwrap());
    // With 16 positions interpolated to 31, every second position is one of the 16.
    for (i, row) in short.to_vec2::<f32>().unwrap().into_iter().enumerate() {
        for (a, b) in row.into_iter().zip(long.get(2 * i).unwrap().to_vec1::<f32>().unwrap()) {
            assert!((a - b).abs() < 1e-4, "position {i}: {a} and {b}");
        }
    }
}

#[test]
fn a_loader_interpolates_the_position_table_linearly_between_its_ends() {
    let dir = ModelDir::Path(fixture("plain"));
    let load = |positions| Loader::open(&dir, &Device::Cpu).unwrap().with_text_positions(positions);
    let table = |positions| {
        let mut loader = load(positions).unwrap();
        (loader.embeddings().unwrap().text_position.to_vec2::<f32>().unwrap(), loader.config().max_position_embeddings)
    };
    let (own, count) = table(None);
    assert_eq!((own.len(), count), (16, 16));
    assert_eq!(table(Some(16)).0, own, "the checkpoint's own number leaves the table as it is, bit for bit");
    for positions in [17, 40, 512] {
        let (longer, count) = table(Some(positions));
        assert_eq!((longer.len(), count), (positions, positions));
        for (i, row) in longer.iter().enumerate() {
            // Position i of n stands at i · 15 / (n − 1) of the 16.
            let (whole, rest) = (i * 15 / (positions - 1), i * 15 % (positions - 1));
            let share = rest as f64 / (positions - 1) as f64;
            for (column, &found) in row.iter().enumerate() {
                let (below, above) = (f64::from(own[whole][column]), f64::from(own[(whole + 1).min(15)][column]));
                let expected = below * (1.0 - share) + above * share;
                assert!((f64::from(found) - expected).abs() < 1e-5, "{positions} positions, {i}, {column}: {found}, not {expected}");
            }
        }
    }
    for wrong in [0, 15, 8193] {
        let message = load(Some(wrong)).err().unwrap().to_string();
        assert!(message.contains(&wrong.to_string()) && message.contains("16") && message.contains("8192"), "{message}");
    }
}

#[test]
fn more_text_positions_are_the_same_backbone() {
    let dir = ModelDir::Path(fixture("plain"));
    let describe = |positions| {
        let loader = Loader::open(&dir, &Device::Cpu).unwrap().with_text_positions(positions).unwrap();
        Vilt::of(loader).unwrap().description
    };
    let (own, longer) = (describe(None), describe(Some(64)));
    assert_eq!(own.fingerprint, longer.fingerprint);
    assert_eq!((own.text_positions(), longer.text_positions()), (None, Some(64)));
    assert_eq!((own.checkpoint_positions, longer.checkpoint_positions), (16, 16));
}

#[test]
fn refuses_tokens_and_images_that_do_not_fit_the_checkpoint() {
    let embeddings = load(&fixture("plain")).unwrap().embeddings;
    assert!(embeddings.text(&[1, 100, 2]).unwrap_err().to_string().contains("vocabulary"));
    assert!(embeddings.image(&delo_model::input::Pixels::dummy(12, 8)).unwrap_err().to_string().contains("8 × 8"));
}

#[test]
fn names_the_tensor_that_is_missing_or_has_another_shape_or_type() {
    let missing = refusal("plain", |tensors| drop(tensors.remove("encoder.layer.1.attention.attention.key.weight")));
    assert!(missing.contains("encoder.layer.1.attention.attention.key.weight"), "{missing}");
    let shape = refusal("plain", |tensors| {
        drop(tensors.insert("layernorm.weight".to_owned(), Tensor::ones(31, DType::F32, &Device::Cpu).unwrap()))
    });
    assert!(shape.contains("layernorm.weight") && shape.contains("[31]") && shape.contains("[32]"), "{shape}");
    let integers = refusal("plain", |tensors| {
        drop(tensors.insert("layernorm.weight".to_owned(), Tensor::ones(32, DType::I64, &Device::Cpu).unwrap()))
    });
    assert!(integers.contains("layernorm.weight") && integers.contains("f16"), "{integers}");
    let infinite = refusal("plain", |tensors| {
        drop(tensors.insert("layernorm.bias".to_owned(), Tensor::full(f32::INFINITY, 32, &Device::Cpu).unwrap()));
    });
    assert!(infinite.contains("layernorm.bias") && infinite.contains("not finite"), "{infinite}");
}

#[test]
fn says_that_a_checkpoint_has_no_pooler() {
    let message = refusal("plain", |tensors| tensors.retain(|name, _| !name.starts_with("pooler.")));
    assert!(message.contains("add_pooling_layer"), "{message}");
}

#[test]
fn says_what_a_directory_lacks() {
    let dir = TempDir::new().unwrap();
    assert!(matches!(load(dir.path()), Err(ViltError::NoConfig { .. })));
    std::fs::copy(fixture("plain").join("config.json"), dir.path().join("config.json")).unwrap();
    let message = load(dir.path()).unwrap_err().to_string();
    assert!(message.contains("model.safetensors") && message.contains("safe_serialization"), "{message}");
}

#[test]
fn refuses_a_damaged_weights_file() {
    let whole = std::fs::read(fixture("plain").join("model.safetensors")).unwrap();
    let dir = directory("plain", &tensors("plain"));
    for (bytes, why) in [
        (&whole[..whole.len() / 2], "too early"),
        (&whole[..6], "too early"),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff{}".as_slice(), "not a safetensors file"),
        (b"\x02\0\0\0\0\0\0\0[]".as_slice(), "another format"),
    ] {
        std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
        let message = load(dir.path()).unwrap_err().to_string();
        assert!(message.contains(why), "{message}");
    }
}

#[test]
fn refuses_an_index_that_points_outside_its_directory() {
    let dir = directory("plain", &tensors("plain"));
    let index = r#"{"weight_map": {"layernorm.weight": "../model.safetensors"}}"#;
    std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    let message = load(dir.path()).unwrap_err().to_string();
    assert!(message.contains("../model.safetensors"), "{message}");
}
