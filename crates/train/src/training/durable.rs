//! Files that are replaced whole, so that a crash never leaves a part of one.
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Writes `bytes` to a file beside `path`, flushes it to the disk and renames it to `path`. A crash leaves
/// the old file or the new one.
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
    // The rename survives a crash once the directory is on the disk.
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}
