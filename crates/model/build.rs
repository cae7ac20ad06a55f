//! Writes the Rust code that embeds the files of the default model in the binary.
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let root = Path::new(&std::env::var("CARGO_MANIFEST_DIR")?).join("../..");
    embed(&root.join("models/emoji-mini"), &out.join("embedded.rs"))
}

/// Writes two statics: the model's files and its partitions, each `&[(name, bytes)]` in the order of names.
/// They are statics because the binary would hold a constant once for each place that uses it.
fn embed(model: &Path, to: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let mut code = String::new();
    for (constant, dir) in [("EMBEDDED_MODEL", model.to_owned()), ("EMBEDDED_PARTITIONS", model.join("partitions"))] {
        println!("cargo::rerun-if-changed={}", dir.display());
        let mut files: Vec<_> = std::fs::read_dir(&dir).into_iter().flatten().collect::<Result<_, _>>()?;
        // Operating systems and editors leave dot files.
        files.retain(|f| f.path().is_file() && !f.file_name().as_encoded_bytes().starts_with(b"."));
        files.sort_by_key(|f| f.file_name());
        writeln!(code, "static {constant}: &[(&str, &[u8])] = &[")?;
        for file in files {
            let name = file.file_name();
            writeln!(code, "    ({:?}, include_bytes!({:?})),", name.to_string_lossy(), file.path().display().to_string())?;
        }
        writeln!(code, "];")?;
    }
    std::fs::write(to, code)?;
    Ok(())
}
