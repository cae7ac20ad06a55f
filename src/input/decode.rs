//! An image file's bytes become upright 8-bit RGB pixels over white.
use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, RgbImage};

use super::{InputError, Limits, jpeg};

/// The file types that are decoded, as named to users.
pub(super) const SUPPORTED: &str = "JPEG, PNG, WebP, GIF (first frame) or BMP";

/// Decodes the first frame of an image file: EXIF orientation applied, alpha composited over white, 16 bits reduced to their high byte, grey, palette
/// and CMYK converted to RGB; colour profiles are ignored. All as Pillow's `exif_transpose`, `alpha_composite` and `convert("RGB")` do.
///
/// # Errors
/// A limit is passed, the type is unknown, or the file is damaged or cut short.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage, InputError> {
    limits.check_encoded(bytes.len())?;
    let (image, orientation) = match format_of(bytes)? {
        ImageFormat::Jpeg => jpeg::decode(bytes, limits)?,
        format => decode_as(format, bytes, limits)?,
    };
    let mut upright = DynamicImage::ImageRgb8(over_white(image));
    upright.apply_orientation(orientation);
    Ok(upright.into_rgb8())
}

/// Bytes of the decoded pixels, as the header claims; nothing is decoded.
///
/// # Errors
/// A limit is passed, the type is unknown, or the header is damaged.
pub(super) fn decoded_bytes(bytes: &[u8], limits: &Limits) -> Result<u64, InputError> {
    limits.check_encoded(bytes.len())?;
    match format_of(bytes)? {
        ImageFormat::Jpeg => jpeg::decoded_bytes(bytes, limits),
        format => Ok(open(format, bytes, limits)?.total_bytes()),
    }
}

/// A decoder whose header is within the limits, of any type but JPEG.
fn open<'a>(format: ImageFormat, bytes: &'a [u8], limits: &Limits) -> Result<impl ImageDecoder + 'a, InputError> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits.of_decoder());
    let decoder = reader.into_decoder().map_err(|e| undecodable(format, limits, e))?;
    let (width, height) = decoder.dimensions();
    limits.check_header(width, height, decoder.total_bytes())?;
    Ok(decoder)
}

fn undecodable(format: ImageFormat, limits: &Limits, error: ImageError) -> InputError {
    match error {
        ImageError::Limits(_) => InputError::ImageMemory { limit: limits.max_decoded_bytes },
        e => InputError::Undecodable { format: name(format), reason: e.to_string() },
    }
}

/// Any type but JPEG.
fn decode_as(format: ImageFormat, bytes: &[u8], limits: &Limits) -> Result<(DynamicImage, Orientation), InputError> {
    let mut decoder = open(format, bytes, limits)?;
    // Unreadable EXIF is no reason to refuse pixels that can be read. That of a WebP is read into as much memory as its length claims.
    let readable = format != ImageFormat::WebP || webp_chunks_fit(bytes);
    let orientation = if readable { decoder.orientation().ok() } else { None }.unwrap_or(Orientation::NoTransforms);
    Ok((DynamicImage::from_decoder(decoder).map_err(|e| undecodable(format, limits, e))?, orientation))
}

/// Whether every chunk of a WebP file is as long as it says.
fn webp_chunks_fit(bytes: &[u8]) -> bool {
    let mut rest = bytes.get(12..).unwrap_or_default();
    while let Some(([_, _, _, _, length @ ..], after)) = rest.split_first_chunk::<8>() {
        let length = u32::from_le_bytes(*length) as usize;
        if length > after.len() {
            return false;
        }
        rest = after.get(length.next_multiple_of(2)..).unwrap_or_default();
    }
    true
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_orientation_that_claims_gigabytes_is_left_and_the_pixels_are_read() {
        let sound = include_bytes!("../../tests/fixtures/input/orientation-6.webp");
        let at = sound.windows(4).position(|w| w == b"EXIF").unwrap();
        let mut claims = sound.to_vec();
        claims[at + 4..at + 8].copy_from_slice(&0xf000_0000u32.to_le_bytes());
        assert!(webp_chunks_fit(sound) && !webp_chunks_fit(&claims));
        let (upright, as_it_lies) = (decode(sound, &Limits::default()).unwrap(), decode(&claims, &Limits::default()).unwrap());
        assert_eq!(upright.dimensions(), (as_it_lies.height(), as_it_lies.width()));
    }

    #[test]
    fn alpha_zero_is_white_and_alpha_full_is_the_colour() {
        for value in 0..=255 {
            assert_eq!(blend(value, 0), 255);
            assert_eq!(blend(value, 255), value);
        }
    }
}
