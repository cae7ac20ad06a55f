//! Training holds a few chunks of decoded images, not a session's. The only test of its process, whose peak
//! it measures.
#![cfg(target_os = "linux")]

use std::ops::ControlFlow;
use std::path::Path;

use delo_engine::{Engine, Options};
use delo_fixtures::key_rule;
use delo_kernels::Precision;
use delo_model::input::{InputProcessor, Limits};
use delo_model::model_dir::ModelDir;
use delo_model::{KeySignal, Metric};
use delo_train::{Dataset, MissingKind, MissingTable, Outputs, Session, Settings, train};

/// Images of 3 × 384 × 384 numbers of 4 bytes: 1.7 MiB each, 506 MiB together.
const IMAGES: usize = 300;
/// Room for kept states.
const CACHE_MIB: usize = 4;
/// The peak may rise by this: two chunks of 32 decoded images are 108 MiB; the rest is for the patches and
/// states of a chunk on their way through the layers.
const BOUND_MIB: usize = 320;

/// The highest resident memory of this process since it started, in MiB.
fn peak_mib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() / 1024
}

/// One task of two classes, [`IMAGES`] items that all show one photograph, and one item to validate.
fn write_data(dir: &Path, photograph: &Path) {
    std::fs::create_dir(dir.join("images")).unwrap();
    std::fs::copy(photograph, dir.join("images/photograph.jpg")).unwrap();
    let item = |i: usize| {
        let split = if i == IMAGES { "val" } else { "train" };
        serde_json::json!({"task_id": 0, "split": split, "image": "photograph.jpg", "text": "one two", "label": i % 2})
    };
    let items: Vec<_> = (0..=IMAGES).map(item).collect();
    std::fs::write(dir.join("PHOTOGRAPHS.json"), serde_json::to_vec(&items).unwrap()).unwrap();
}

#[test]
fn memory_does_not_grow_with_the_number_of_images() {
    let fixtures = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures"));
    let checkpoint = ModelDir::Path(fixtures.join("vilt/masked-lm"));
    let engine = Engine::load(&checkpoint, vec![1, 2], Options { precision: Some(Precision::F32), ..Options::default() }).unwrap();
    let dir = tempfile::tempdir().unwrap();
    // Without preprocessor_config.json, the shorter edge is 384.
    std::fs::write(dir.path().join("vocab.txt"), "[PAD]\n[CLS]\n[SEP]\n[UNK]\n[MASK]\none\ntwo\n").unwrap();
    let config = &engine.backbone().config;
    let inputs = ModelDir::Path(dir.path().to_owned());
    let processor = InputProcessor::load(&inputs, config.patch_size, config.max_position_embeddings, Limits::default()).unwrap();
    assert_eq!(processor.shortest_edge(), 384);
    write_data(dir.path(), &fixtures.join("input/astronaut-444.jpg"));
    let data = Dataset::open(dir.path()).unwrap();
    let missing = MissingTable::draw(&data, 0.0, MissingKind::Both, 0).unwrap();
    let settings = Settings { first_adapted_layer: config.num_hidden_layers, epochs: 1, batch: 32, ..Settings::default() };
    let session = Session {
        engine: &engine,
        processor: &processor,
        backbone: "masked-lm".to_owned(),
        data: &data,
        missing: &missing,
        task: 0,
        settings: &settings,
        key: key_rule(Metric::Plain, KeySignal::Pooled),
        store: None,
    };
    let outputs = Outputs {
        artifact: dir.path().join("p.safetensors"),
        log: dir.path().join("p.jsonl"),
        force: false,
        resume: false,
        checkpoint_every: 0,
        cache_bytes: CACHE_MIB << 20,
        created: "2026-01-01T00:00:00Z".to_owned(),
    };
    let before = peak_mib();
    train(&session, &outputs, &mut |_| ControlFlow::Continue(())).unwrap();
    let rise = peak_mib() - before;
    println!("peak memory rose by {rise} MiB");
    assert!(rise < BOUND_MIB, "{rise} MiB");
}
