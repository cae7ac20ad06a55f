//! Decoding and preprocessing of an image.
use delo_model::input::{InputError, Sample};

use super::{LIMITS, model, processor};

/// Any bytes as an image: pixels of whole patches, all of them finite, or an error that is the image's.
pub fn image(bytes: &[u8]) {
    let memory = processor().memory(Some(bytes), None);
    let read = read_image(bytes);
    assert!(memory.is_ok() || read.is_err(), "read though its header is refused");
    match read {
        Ok(sample) => {
            let pixels = sample.image.expect("an image was given");
            let patch = model().patch_size;
            assert!(sample.text.is_none() && pixels.height > 0 && pixels.width > 0);
            assert!(pixels.height.is_multiple_of(patch) && pixels.width.is_multiple_of(patch), "{} x {}", pixels.height, pixels.width);
            assert!(pixels.height / patch * (pixels.width / patch) <= LIMITS.max_patches);
            assert_eq!(pixels.data.len(), 3 * pixels.height * pixels.width);
            assert!(pixels.data.iter().all(|v| v.is_finite()));
        }
        Err(error) => {
            assert_eq!(error.field(), "image", "{error}");
            assert!(!matches!(error, InputError::Empty), "an image was given");
            assert!(error.to_string().len() < 1000, "a long message for a client: {error}");
        }
    }
}

/// What the service makes of an image.
pub fn read_image(bytes: &[u8]) -> Result<Sample, InputError> {
    processor().sample(Some(bytes), None)
}
