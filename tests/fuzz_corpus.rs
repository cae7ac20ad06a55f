//! What the fuzz targets promise holds for every input of their kept corpora; libFuzzer looks for others (`fuzz/README.md`).
#[path = "../fuzz/src/lib.rs"]
#[allow(dead_code, unused_imports, reason = "the fuzz targets use the rest")]
mod promises;
#[path = "common/fuzz_seeds.rs"]
mod seeds;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

/// Runs a target over its corpus and names the inputs that break its promise.
#[track_caller]
fn replay(target: &str, promise: fn(&[u8])) {
    let inputs: Vec<PathBuf> = std::fs::read_dir(corpus(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(inputs.len() >= 8, "{} inputs", inputs.len());
    let broken = |path: &PathBuf| catch_unwind(AssertUnwindSafe(|| promise(&std::fs::read(path).unwrap()))).is_err();
    let broken: Vec<_> = inputs.iter().filter(|path| broken(path)).collect();
    assert!(broken.is_empty(), "{broken:?}");
}

#[test]
fn images_of_any_bytes_are_read_or_refused() {
    replay("image", promises::image);
}

#[test]
fn texts_of_any_characters_are_tokenised() {
    replay("text", promises::text);
}

#[test]
fn partitions_of_any_bytes_are_bound_or_refused() {
    replay("artifact", promises::artifact);
}

#[test]
fn manifests_of_any_bytes_are_sound_or_refused() {
    replay("manifest", promises::manifest);
}

#[test]
fn requests_of_any_bytes_are_read_or_refused() {
    replay("request", promises::request);
}

#[test]
fn settings_of_any_text_are_sound_or_refused() {
    replay("configuration", promises::configuration);
}

#[test]
fn the_seeds_of_partitions_are_bound_and_those_of_images_are_read() {
    use delo_model::Partition;
    for (name, bytes) in seeds::artifacts() {
        let read = Partition::read(&bytes, promises::backbone());
        assert_eq!(read.is_ok(), !name.starts_with("damaged"), "{name}: {:?}", read.err());
    }
    for (name, bytes) in seeds::images() {
        assert_eq!(promises::read_image(&bytes).is_ok(), !name.starts_with("damaged"), "{name}");
    }
}

#[test]
fn the_kept_corpora_stay_small() {
    let targets = std::fs::read_dir(corpus("")).unwrap().map(|entry| entry.unwrap().path());
    let files = targets.flat_map(|target| std::fs::read_dir(target).unwrap()).map(|file| file.unwrap().metadata().unwrap().len());
    assert!(files.sum::<u64>() < 1 << 20);
}

/// `cargo test --test fuzz_corpus -- --ignored` writes the seeds again, beside what fuzzing found.
#[test]
#[ignore = "writes into fuzz/corpus"]
fn writes_the_seeds() {
    for (target, inputs) in [
        ("image", seeds::images()),
        ("text", seeds::texts()),
        ("artifact", seeds::artifacts()),
        ("manifest", seeds::manifests()),
        ("request", seeds::requests()),
        ("configuration", seeds::configurations()),
    ] {
        std::fs::create_dir_all(corpus(target)).unwrap();
        for (name, bytes) in inputs {
            std::fs::write(corpus(target).join(name), bytes).unwrap();
        }
    }
}
