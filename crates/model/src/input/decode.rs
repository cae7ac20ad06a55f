//! Decodes an image file to upright 8-bit RGB pixels over white.
use image::metadata::Orientation;
use image::{DynamicImage, RgbImage};

use super::guard::guarded;
use super::signatures::{Format, format_of};
use super::{InputError, Limits, bmp, gif, jpeg, png, webp};

/// The names of the supported file types, for messages.
pub(super) const SUPPORTED: &str = "JPEG, PNG, WebP, GIF (first frame) or BMP";

/// Decodes the first frame of an image file. The orientation of EXIF or XMP is applied, alpha is composited
/// over white, 16 bits are reduced to the high byte, and grey, palette and CMYK are converted to RGB, all as
/// by Pillow's `exif_transpose`, `alpha_composite` and `convert("RGB")`. Colour profiles are ignored.
///
/// # Errors
/// A limit is exceeded, the type is unknown or not supported, or the file is damaged or cut short. A file
/// whose decoder panics counts as damaged.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage, InputError> {
    let format = checked(bytes, limits)?;
    guarded(format.name(), || {
        #[cfg(test)]
        assert!(!bytes.ends_with(PANICS), "the test requires a panic");
        let (image, orientation) = match format {
            Format::Jpeg => jpeg::decode(bytes, limits)?,
            Format::Png => png::decode(bytes, limits)?,
            Format::WebP => webp::decode(bytes, limits)?,
            Format::Gif => (gif::decode(bytes, limits)?, Orientation::NoTransforms),
            Format::Bmp => (bmp::decode(bytes, limits)?, Orientation::NoTransforms),
        };
        let mut upright = DynamicImage::ImageRgb8(over_white(image));
        upright.apply_orientation(orientation);
        Ok(upright.into_rgb8())
    })
}

/// In tests, the decoder of a file with this end panics.
#[cfg(test)]
const PANICS: &[u8] = b"this file's decoder is to panic";

/// The bytes of the decoded pixels, according to the header; nothing is decoded.
///
/// # Errors
/// A limit is exceeded, the type is unknown or not supported, or the header is damaged.
pub(super) fn decoded_bytes(bytes: &[u8], limits: &Limits) -> Result<u64, InputError> {
    let format = checked(bytes, limits)?;
    guarded(format.name(), || match format {
        Format::Jpeg => jpeg::decoded_bytes(bytes, limits),
        Format::Png => png::decoded_bytes(bytes, limits),
        Format::WebP => webp::decoded_bytes(bytes, limits),
        Format::Gif => gif::decoded_bytes(bytes, limits),
        Format::Bmp => bmp::decoded_bytes(bytes, limits),
    })
}

/// The type of a file whose length is within the limit.
fn checked(bytes: &[u8], limits: &Limits) -> Result<Format, InputError> {
    limits.check_encoded(bytes.len())?;
    format_of(bytes).map_err(|found| InputError::ImageType { found })
}

/// Any decoded image as 8-bit RGB, composited over white. An image that is 8-bit RGB already is not copied.
fn over_white(image: DynamicImage) -> RgbImage {
    let (width, height) = (image.width(), image.height());
    let rgb = match image {
        DynamicImage::ImageRgb8(rgb) => return rgb,
        DynamicImage::ImageLuma8(p) => p.into_raw().into_iter().flat_map(|v| [v; 3]).collect(),
        DynamicImage::ImageLumaA8(p) => p.as_raw().chunks_exact(2).flat_map(|p| [blend(p[0], p[1]); 3]).collect(),
        DynamicImage::ImageRgba8(p) => composited(p.as_raw(), |v| v),
        DynamicImage::ImageLuma16(p) => p.into_raw().into_iter().flat_map(|v| [high_byte(v); 3]).collect(),
        DynamicImage::ImageLumaA16(p) => p.as_raw().chunks_exact(2).flat_map(|p| [blend(high_byte(p[0]), high_byte(p[1])); 3]).collect(),
        DynamicImage::ImageRgb16(p) => p.into_raw().into_iter().map(high_byte).collect(),
        DynamicImage::ImageRgba16(p) => composited(p.as_raw(), high_byte),
        other => return other.into_rgb8(),
    };
    RgbImage::from_raw(width, height, rgb).expect("every arm above yields three bytes for each of the image's pixels")
}

/// 8-bit RGB of RGBA, composited over white.
fn composited<T: Copy>(rgba: &[T], to_byte: impl Fn(T) -> u8) -> Vec<u8> {
    let mut rgb = Vec::with_capacity(rgba.len() / 4 * 3);
    for pixel in rgba.chunks_exact(4) {
        let alpha = to_byte(pixel[3]);
        rgb.extend(pixel[..3].iter().map(|&v| blend(to_byte(v), alpha)));
    }
    rgb
}

/// A colour value with opacity `alpha`, composited over white and rounded.
fn blend(value: u8, alpha: u8) -> u8 {
    let (value, alpha) = (u16::from(value), u16::from(alpha));
    // At most 255 · 255 + 127, and the quotient at most 255.
    ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8
}

fn high_byte(value: u16) -> u8 {
    (value >> 8) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alpha_zero_is_white_and_alpha_full_is_the_colour() {
        for value in 0..=255 {
            assert_eq!(blend(value, 0), 255);
            assert_eq!(blend(value, 255), value);
        }
    }

    #[test]
    fn an_image_whose_decoder_panics_is_refused_and_the_next_image_is_decoded() {
        let sound: &[u8] = include_bytes!("../../../../tests/fixtures/input/chelsea.png");
        for _ in 0..3 {
            let error = decode(&[sound, PANICS].concat(), &Limits::default()).unwrap_err();
            assert!(matches!(error, InputError::Undecodable { format: "PNG", .. }), "{error}");
        }
        decode(sound, &Limits::default()).unwrap();
    }
}
