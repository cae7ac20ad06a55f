//! What every fuzz target promises of untrusted bytes: the target's body, run by libFuzzer and, over the kept corpus, by `cargo test`.
//!
//! A body panics where the promise is broken; refusing the bytes keeps it.
mod artifact;
mod configuration;
mod image;
pub mod json;
mod manifest;
mod request;
mod text;

pub use artifact::{artifact, backbone};
pub use configuration::configuration;
pub use image::{image, read_image};
pub use manifest::manifest;
pub use request::request;
pub use text::text;

use std::sync::OnceLock;

use delo_model::input::{InputProcessor, Limits};
use delo_model::model_dir::ModelDir;
use delo_model::vilt::ViltConfig;

/// Limits so small that thousands of images a second can be tried.
const LIMITS: Limits = Limits {
    max_image_bytes: 64 << 10,
    max_pixels: 512 * 512,
    max_side: 4096,
    max_decoded_bytes: 2 << 20,
    max_patches: 1024,
    max_text_bytes: 4 << 10,
};

/// The embedded model's settings.
fn model() -> &'static ViltConfig {
    static CONFIG: OnceLock<ViltConfig> = OnceLock::new();
    CONFIG.get_or_init(|| {
        let json = ModelDir::Embedded.read("config.json").expect("it is in the binary").expect("it is in the binary");
        ViltConfig::from_json(&json).expect("the embedded configuration is sound")
    })
}

/// The embedded model's way from bytes to a sample.
fn processor() -> &'static InputProcessor {
    static PROCESSOR: OnceLock<InputProcessor> = OnceLock::new();
    PROCESSOR.get_or_init(|| {
        let (patch, positions) = (model().patch_size, model().max_position_embeddings);
        InputProcessor::load(&ModelDir::Embedded, patch, positions, LIMITS).expect("the embedded model's files are sound")
    })
}
