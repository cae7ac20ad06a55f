//! An image file's bytes become upright 8-bit RGB pixels over white.
use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, RgbImage};

use super::{InputError, Limits};

/// The file types that are decoded, as named to users.
pub(super) const SUPPORTED: &str = "JPEG, PNG, WebP, GIF (first frame) or BMP";

const START_OF_IMAGE: u8 = 0xd8;
const END_OF_IMAGE: u8 = 0xd9;

/// Decodes the first frame of an image file: EXIF orientation applied, alpha composited over white, 16 bits reduced to their high byte, grey, palette
/// and CMYK converted to RGB; colour profiles are ignored. All as Pillow's `exif_transpose`, `alpha_composite` and `convert("RGB")` do.
///
/// # Errors
/// A limit is passed, the type is unknown, or the file is damaged or cut short.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage, InputError> {
    limits.check_encoded(bytes.len())?;
    let format = format_of(bytes)?;
    let undecodable = |e: ImageError| match e {
        ImageError::Limits(_) => InputError::ImageMemory { limit: limits.max_decoded_bytes },
        e => InputError::Undecodable { format: name(format), reason: e.to_string() },
    };
    if format == ImageFormat::Jpeg && !ends_with_its_end_marker(bytes) {
        return Err(InputError::Undecodable { format: name(format), reason: "the file is cut short".to_owned() });
    }

    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits.of_decoder());
    let mut decoder = reader.into_decoder().map_err(undecodable)?;
    let (width, height) = decoder.dimensions();
    limits.check_header(width, height, decoder.total_bytes())?;
    // Unreadable EXIF is no reason to refuse pixels that can be read.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);

    let mut upright = DynamicImage::ImageRgb8(over_white(DynamicImage::from_decoder(decoder).map_err(undecodable)?));
    upright.apply_orientation(orientation);
    Ok(upright.into_rgb8())
}

fn format_of(bytes: &[u8]) -> Result<ImageFormat, InputError> {
    use ImageFormat::{Bmp, Gif, Jpeg, Png, WebP};
    match image::guess_format(bytes) {
        Ok(format @ (Jpeg | Png | WebP | Gif | Bmp)) => Ok(format),
        Ok(other) => Err(InputError::ImageType { found: format!("the bytes look like {other:?}") }),
        Err(_) if bytes.is_empty() => Err(InputError::ImageType { found: "there are no bytes".to_owned() }),
        Err(_) => Err(InputError::ImageType { found: "the bytes begin like no known image type".to_owned() }),
    }
}

fn name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::Png => "PNG",
        ImageFormat::WebP => "WebP",
        ImageFormat::Gif => "GIF",
        _ => "BMP",
    }
}

/// 8-bit RGB of any decoded image. The cases without alpha, or already RGB, cost one pass or none.
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

fn composited<T: Copy>(rgba: &[T], to_byte: impl Fn(T) -> u8) -> Vec<u8> {
    let mut rgb = Vec::with_capacity(rgba.len() / 4 * 3);
    for pixel in rgba.chunks_exact(4) {
        let alpha = to_byte(pixel[3]);
        rgb.extend(pixel[..3].iter().map(|&v| blend(to_byte(v), alpha)));
    }
    rgb
}

/// `value` with opacity `alpha` over white, rounded.
fn blend(value: u8, alpha: u8) -> u8 {
    let (value, alpha) = (u16::from(value), u16::from(alpha));
    // At most 255 · 255 + 127, and the quotient at most 255.
    ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8
}

fn high_byte(value: u16) -> u8 {
    (value >> 8) as u8
}

/// Whether a JPEG's segments lead to an end-of-image marker. The decoder fills what is missing with grey and reports success, so that a file cut short
/// must be recognised here. What follows the marker (a thumbnail, a second picture) does not matter.
fn ends_with_its_end_marker(jpeg: &[u8]) -> bool {
    let mut rest = jpeg;
    while let Some(at) = next_marker(rest) {
        let marker = rest[at];
        rest = &rest[at + 1..];
        match marker {
            END_OF_IMAGE => return true,
            START_OF_IMAGE => {}
            _ => {
                // A segment and its two bytes of length. After a start of scan the coded data follows, in which no marker but restarts stands.
                let [high, low, ..] = *rest else { return false };
                let Some(after) = rest.get(usize::from(u16::from_be_bytes([high, low]))..) else { return false };
                rest = after;
            }
        }
    }
    false
}

/// Where the next marker's code stands: a byte after 0xff that is neither a stuffed zero, nor fill, nor a restart marker.
fn next_marker(bytes: &[u8]) -> Option<usize> {
    (1..bytes.len()).find(|&i| bytes[i - 1] == 0xff && !matches!(bytes[i], 0 | 0xff | 0xd0..=0xd7))
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
    fn a_jpeg_is_whole_only_with_its_own_end_marker() {
        // A comment that holds an end marker, a scan with a stuffed zero and a restart marker, then the end.
        let whole = [0xff, 0xd8, 0xff, 0xfe, 0, 4, 0xff, 0xd9, 0xff, 0xda, 0, 3, 0, 1, 0xff, 0, 2, 0xff, 0xd0, 3, 0xff, 0xd9];
        assert!(ends_with_its_end_marker(&whole));
        for cut in 0..whole.len() {
            assert!(!ends_with_its_end_marker(&whole[..cut]), "cut at {cut}");
        }
        assert!(ends_with_its_end_marker(&[&whole[..], &[1, 2, 3]].concat()));
    }
}
