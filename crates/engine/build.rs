//! For NVIDIA GPUs, compiles the kernels to PTX for the generation that candle's are compiled for.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    #[cfg(feature = "cuda")]
    {
        let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
        let source = std::path::Path::new(&std::env::var("CARGO_MANIFEST_DIR")?).join("src/cuda/kernels.cu");
        cudaforge::KernelBuilder::new().source_files([source]).out_dir(&out).args(["-O3", "-std=c++17"]).build_ptx()?;
    }
    Ok(())
}
