//! Compiles the service's protos: the generator is a client like any other and links nothing of the server.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let protos = std::path::Path::new(&std::env::var("CARGO_MANIFEST_DIR")?).join("../proto");
    println!("cargo::rerun-if-changed={}", protos.display());
    let mut compiler = protox::Compiler::new([protos])?;
    compiler.include_imports(true).open_files(["delo/v1/classifier.proto", "delo/v1/admin.proto"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
