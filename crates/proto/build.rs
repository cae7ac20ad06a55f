//! Compiles the protos, with protox: no `protoc` is needed.
use std::path::{Path, PathBuf};

/// Generates the messages, clients and servers of `delo.v1` and of the Open Inference Protocol, and writes the descriptor set that reflection serves.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let protos = Path::new(&std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo::rerun-if-changed={}", protos.display());
    let mut compiler = protox::Compiler::new([protos])?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(["delo/v1/classifier.proto", "delo/v1/admin.proto", "inference/open_inference.proto"])?;
    std::fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure().bytes(".").compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
