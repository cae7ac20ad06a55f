//! Hard limits on the size of one sample.
use image::ImageError;
use serde::{Deserialize, Serialize};

use super::InputError;

/// Hard limits on one sample. Each limit is checked before the memory that it bounds is allocated: first the
/// bytes of the file, then the sides in the image's header; only then are pixels decoded. Of an animation,
/// only the first frame is decoded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Size of an image file, in bytes.
    pub max_image_bytes: usize,
    /// Width × height of an image before it is resized, in pixels.
    pub max_pixels: u64,
    /// Width and height of an image before it is resized, each in pixels.
    pub max_side: u32,
    /// Size of the decoded pixels in bytes, in the channels and the depth of the file: 3 bytes for an 8-bit
    /// RGB pixel, 8 bytes for a 16-bit RGBA pixel. The peak memory of decoding is two to three times this
    /// size, the coefficients of a progressive JPEG included.
    pub max_decoded_bytes: u64,
    /// Patches of an image after it is resized. It matters above all where the checkpoint's settings switch
    /// resizing off (`do_resize: false`).
    pub max_patches: usize,
    /// Size of a text in UTF-8 bytes. A longer text is refused. A text within the limit is truncated to the
    /// backbone's text positions.
    pub max_text_bytes: usize,
}

impl Default for Limits {
    /// Enough for a photograph of 50 megapixels and for the text of a long article.
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
    /// Refuses an image file of more bytes than the limit.
    pub(super) fn check_encoded(&self, bytes: usize) -> Result<(), InputError> {
        if bytes > self.max_image_bytes {
            return Err(InputError::ImageBytes { bytes, limit: self.max_image_bytes });
        }
        Ok(())
    }

    /// Refuses an image by the width and the height in its header and by `decoded`, the bytes of its decoded
    /// pixels.
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

    /// Refuses a text of more UTF-8 bytes than the limit.
    pub(super) fn check_text(&self, bytes: usize) -> Result<(), InputError> {
        if bytes > self.max_text_bytes {
            return Err(InputError::TextBytes { bytes, limit: self.max_text_bytes });
        }
        Ok(())
    }

    /// The limits that a decoder of the `image` crate enforces while it runs.
    pub(super) fn of_decoder(&self) -> image::Limits {
        let mut limits = image::Limits::no_limits();
        limits.max_alloc = Some(self.max_decoded_bytes);
        limits
    }

    /// The error for a decoder under [`Limits::of_decoder`] that refuses a file of this format: the file
    /// needs too much memory, or it is damaged.
    pub(super) fn refusal(&self, format: &'static str, error: ImageError) -> InputError {
        match error {
            ImageError::Limits(_) => InputError::ImageMemory { limit: self.max_decoded_bytes },
            e => InputError::Undecodable { format, reason: e.to_string() },
        }
    }
}
