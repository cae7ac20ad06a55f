//! Files that are whole or absent, whatever happens while they are written.
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Puts `bytes` at `path`: written beside it, on the disk, then renamed. A crash leaves the old file or the new one.
///
/// # Errors
/// Those of the file system; the old file stays.
pub fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".tmp");
    let mut file = File::create(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    // The rename itself is durable once the directory is.
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}
