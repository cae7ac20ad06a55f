//! JPEG pixels, within a few levels of libjpeg-turbo's, which Pillow uses; `tests/input_parity.rs` holds the bound.
//!
//! By `jpeg-decoder`: of the pure Rust decoders it interpolates subsampled chroma as libjpeg does, up to the last row and column of a picture whose sides fill
//! no whole number of blocks, where others let in the padding.
use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, RgbImage};
use jpeg_decoder::{Decoder, Error, ImageInfo, PixelFormat};

use super::{InputError, Limits, orientation};

const START_OF_IMAGE: u8 = 0xd8;
const END_OF_IMAGE: u8 = 0xd9;
const START_OF_SCAN: u8 = 0xda;
/// A progressive picture has about ten scans. Each may be a few bytes long and cost a pass over all pixels.
const MAX_SCANS: usize = 100;

/// The decoded pixels, CMYK and YCCK converted to RGB, and the orientation that their EXIF states.
///
/// # Errors
/// A limit is passed, or the file is damaged or cut short.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<(DynamicImage, Orientation), InputError> {
    match scans(bytes) {
        None => return Err(undecodable("the file is cut short")),
        Some(scans) if scans > MAX_SCANS => return Err(undecodable(format!("it has {scans} scans, more than {MAX_SCANS}"))),
        Some(_) => {}
    }
    let (mut decoder, info) = open(bytes, limits)?;
    let (width, height) = (u32::from(info.width), u32::from(info.height));
    let pixels = decoder.decode().map_err(damaged)?;
    let orientation = orientation::of_jpeg(bytes);
    let image = match info.pixel_format {
        PixelFormat::RGB24 => RgbImage::from_raw(width, height, pixels).map(DynamicImage::from),
        PixelFormat::L8 => GrayImage::from_raw(width, height, pixels).map(DynamicImage::from),
        PixelFormat::L16 => {
            let high = pixels.chunks_exact(2).map(|v| (u16::from_ne_bytes([v[0], v[1]]) >> 8) as u8).collect();
            GrayImage::from_raw(width, height, high).map(DynamicImage::from)
        }
        PixelFormat::CMYK32 => RgbImage::from_raw(width, height, rgb_of_cmyk(&pixels)).map(DynamicImage::from),
    };
    Ok((image.ok_or_else(|| undecodable("its pixels do not fill the size in its header"))?, orientation))
}

/// Bytes of the decoded pixels, as the header claims.
///
/// # Errors
/// A limit is passed, or the header is damaged.
pub(super) fn decoded_bytes(bytes: &[u8], limits: &Limits) -> Result<u64, InputError> {
    open(bytes, limits).map(|(_, info)| size(&info))
}

/// A decoder whose header is within the limits.
fn open<'a>(bytes: &'a [u8], limits: &Limits) -> Result<(Decoder<&'a [u8]>, ImageInfo), InputError> {
    let mut decoder = Decoder::new(bytes);
    decoder.read_info().map_err(damaged)?;
    let info = decoder.info().ok_or_else(|| undecodable("it has no picture"))?;
    limits.check_header(info.width.into(), info.height.into(), size(&info))?;
    Ok((decoder, info))
}

fn size(info: &ImageInfo) -> u64 {
    u64::from(info.width) * u64::from(info.height) * info.pixel_format.pixel_bytes() as u64
}

fn undecodable(reason: impl Into<String>) -> InputError {
    InputError::Undecodable { format: "JPEG", reason: reason.into() }
}

fn damaged(error: Error) -> InputError {
    undecodable(match error {
        Error::Format(reason) => reason,
        Error::Unsupported(feature) => format!("its {feature:?} is not supported"),
        Error::Io(e) => e.to_string(),
        Error::Internal(e) => e.to_string(),
    })
}

/// Ink without a colour profile, as Pillow converts it: a channel is what its ink and the black let through.
fn rgb_of_cmyk(cmyk: &[u8]) -> Vec<u8> {
    let mut rgb = Vec::with_capacity(cmyk.len() / 4 * 3);
    for ink in cmyk.chunks_exact(4) {
        let light = |v: u8| u16::from(255 - v);
        // At most 255 · 255 + 127, and the quotient at most 255.
        rgb.extend([0, 1, 2].map(|c| ((light(ink[c]) * light(ink[3]) + 127) / 255) as u8));
    }
    rgb
}

/// The number of scans of a JPEG whose segments lead to an end-of-image marker; `None` where they do not, that is, where the file is cut short. What follows the
/// marker (a second picture, say) does not count.
fn scans(jpeg: &[u8]) -> Option<usize> {
    let (mut rest, mut scans) = (jpeg, 0);
    while let Some(at) = next_marker(rest) {
        let marker = rest[at];
        rest = &rest[at + 1..];
        scans += usize::from(marker == START_OF_SCAN);
        match marker {
            END_OF_IMAGE => return Some(scans),
            START_OF_IMAGE => {}
            _ => {
                // A segment and its two bytes of length. After a start of scan the coded data follows, in which no marker but restarts stands.
                let [high, low, ..] = *rest else { return None };
                rest = rest.get(usize::from(u16::from_be_bytes([high, low]))..)?;
            }
        }
    }
    None
}

/// Where the next marker's code stands: a byte after 0xff that is neither a stuffed zero, nor fill, nor a restart marker.
fn next_marker(bytes: &[u8]) -> Option<usize> {
    (1..bytes.len()).find(|&i| bytes[i - 1] == 0xff && !matches!(bytes[i], 0 | 0xff | 0xd0..=0xd7))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jpeg_is_whole_only_with_its_own_end_marker() {
        // A comment that holds an end marker, a scan with a stuffed zero and a restart marker, then the end.
        let whole = [0xff, 0xd8, 0xff, 0xfe, 0, 4, 0xff, 0xd9, 0xff, 0xda, 0, 3, 0, 1, 0xff, 0, 2, 0xff, 0xd0, 3, 0xff, 0xd9];
        assert_eq!(scans(&whole), Some(1));
        for cut in 0..whole.len() {
            assert_eq!(scans(&whole[..cut]), None, "cut at {cut}");
        }
        assert_eq!(scans(&[&whole[..], &[1, 2, 3]].concat()), Some(1));
    }

    #[test]
    fn endless_scans_are_refused_before_they_are_decoded() {
        let mut jpeg = vec![0xff, START_OF_IMAGE];
        jpeg.extend([0xff, START_OF_SCAN, 0, 2].repeat(MAX_SCANS + 1));
        jpeg.extend([0xff, END_OF_IMAGE]);
        let error = decode(&jpeg, &Limits::default()).unwrap_err();
        assert!(error.to_string().contains("101 scans"), "{error}");
    }

    #[test]
    fn black_ink_is_black_and_no_ink_is_white() {
        assert_eq!(rgb_of_cmyk(&[0, 0, 0, 255, 0, 0, 0, 0, 255, 0, 0, 0]), [0, 0, 0, 255, 255, 255, 0, 255, 255]);
    }
}
