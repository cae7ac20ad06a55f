//! With the feature `cuda`, compiles `kernels.cu` to PTX, for the same generation of GPUs as candle's kernels.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    #[cfg(feature = "cuda")]
    {
        let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
        let source = std::path::Path::new(&std::env::var("CARGO_MANIFEST_DIR")?).join("src/backend/cuda/kernels.cu");
        cudaforge::KernelBuilder::new().source_files([source]).out_dir(&out).args(["-O3", "-std=c++17"]).build_ptx()?;
    }
    Ok(())
}
