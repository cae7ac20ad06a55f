//! Points at which a test stops the program. With the feature `failpoints`, the environment variable
//! `FAILPOINTS=state.catalogue.written=return` aborts it at that point; without the feature, nothing is
//! compiled.

/// Aborts the process where the environment names this point.
pub fn point(name: &str) {
    let _ = name;
    fail::fail_point!(name, |_| std::process::abort());
}
