//! What a request may cost before it is refused.
use image::ImageError;
use serde::{Deserialize, Serialize};

use super::InputError;

/// Bounds on one sample. Every one is checked before the memory it bounds is allocated: encoded bytes first, then the sides that the image's header
/// claims, and only then are pixels decoded. An animation never costs more than its first frame, the only one that is decoded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Encoded size of an image, in bytes.
    pub max_image_bytes: usize,
    /// Width × height of an image before it is resized.
    pub max_pixels: u64,
    /// Width, and height, of an image before it is resized, in pixels.
    pub max_side: u32,
    /// Size of the decoded pixels in bytes, in the file's own channels and depth (an 8-bit RGB pixel takes 3, a 16-bit RGBA pixel 8). Decoding peaks
    /// at two to three times this, a progressive JPEG's coefficients included.
    pub max_decoded_bytes: u64,
    /// Patches of an image after it is resized; matters where the checkpoint's settings leave the size open (`do_resize: false`).
    pub max_patches: usize,
    /// Size of a text in UTF-8 bytes. What is longer is refused; what is shorter is truncated to the backbone's text positions.
    pub max_text_bytes: usize,
}

impl Default for Limits {
    /// Photographs of today's telephones in full resolution (50 megapixels) and texts of a long article.
    fn default() -> Self {
        Self {
            max_image_bytes: 20 << 20,
            max_pixels: 50_000_000,
            max_side: 20_000,
            max_decoded_bytes: 192 << 20,
            max_patches: 4096,
            max_text_bytes: 128 << 10,
        }
    }
}

impl Limits {
    pub(super) fn check_encoded(&self, bytes: usize) -> Result<(), InputError> {
        if bytes > self.max_image_bytes {
            return Err(InputError::ImageBytes { bytes, limit: self.max_image_bytes });
        }
        Ok(())
    }

    /// `decoded` is the number of bytes that the decoder is about to fill.
    pub(super) fn check_header(&self, width: u32, height: u32, decoded: u64) -> Result<(), InputError> {
        let refuse = |limit| Err(InputError::ImageSize { width, height, limit });
        if width == 0 || height == 0 {
            Err(InputError::ImageEmpty { width, height })
        } else if width.max(height) > self.max_side {
            refuse(format!("{} pixels a side", self.max_side))
        } else if u64::from(width) * u64::from(height) > self.max_pixels {
            refuse(format!("{} pixels", self.max_pixels))
        } else if decoded > self.max_decoded_bytes {
            refuse(format!("{} decoded bytes ({decoded} needed)", self.max_decoded_bytes))
        } else {
            Ok(())
        }
    }

    pub(super) fn check_text(&self, bytes: usize) -> Result<(), InputError> {
        if bytes > self.max_text_bytes {
            return Err(InputError::TextBytes { bytes, limit: self.max_text_bytes });
        }
        Ok(())
    }

    /// The limits that a decoder keeps by itself while it runs.
    pub(super) fn of_decoder(&self) -> image::Limits {
        let mut limits = image::Limits::no_limits();
        limits.max_alloc = Some(self.max_decoded_bytes);
        limits
    }

    /// Why a decoder that keeps [`Limits::of_decoder`] refuses a file of this format: it would take too much
    /// memory, or it is damaged.
    pub(super) fn refusal(&self, format: &'static str, error: ImageError) -> InputError {
        match error {
            ImageError::Limits(_) => InputError::ImageMemory { limit: self.max_decoded_bytes },
            e => InputError::Undecodable { format, reason: e.to_string() },
        }
    }
}
