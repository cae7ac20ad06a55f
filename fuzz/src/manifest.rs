//! Reading of a registry's manifest.
use delo_registry::remote::Manifest;

/// Any bytes as a manifest: refused, or one that is written and read again the same, whose every live digest is an artifact's.
pub fn manifest(bytes: &[u8]) {
    match Manifest::parse(bytes) {
        Ok(manifest) => {
            assert_eq!(manifest.live().count(), manifest.live.len());
            for entry in &manifest.artifacts {
                assert!(entry.object().bytes().filter(|b| *b == b'/').count() == 1 && !entry.object().contains(".."), "{}", entry.object());
            }
            // Written with indentation it may pass the limit on its length.
            if let Ok(text) = manifest.to_bytes() {
                assert_eq!(Manifest::parse(&text).expect("what was written can be read"), manifest);
            }
        }
        Err(error) => assert!(error.to_string().len() < 2000, "a long message: {error}"),
    }
}
