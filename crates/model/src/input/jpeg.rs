//! Decodes JPEG, within a few levels of libjpeg-turbo, which Pillow uses. `tests/input_parity.rs` holds the
//! bound.
//!
//! The decoder is `jpeg-decoder`. Among the decoders in Rust, it interpolates subsampled chroma as libjpeg
//! does, also in the last row and column of a picture whose sides are not whole blocks, where others mix in
//! the padding.
use std::borrow::Cow;

use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, RgbImage};
use jpeg_decoder::{ColorTransform, Decoder, Error, ImageInfo, PixelFormat, UnsupportedFeature};

use super::jpeg_segments::{CodedData, Header};
use super::{InputError, Limits, orientation};

/// The largest number of scans. A progressive picture has about ten; each may be a few bytes long and yet
/// cost a pass over all pixels.
const MAX_SCANS: usize = 100;

/// The decoded pixels, with CMYK and YCCK converted to RGB, and the orientation.
///
/// # Errors
/// A limit is exceeded, the coding is not supported, or the file is damaged or cut short.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<(DynamicImage, Orientation), InputError> {
    let header = supported(bytes)?;
    let coded = CodedData::of(bytes).ok_or_else(cut_short)?;
    if coded.scans > MAX_SCANS {
        return Err(undecodable(format!("it has {} scans, more than {MAX_SCANS}", coded.scans)));
    }
    let whole = completed(bytes, &header, &coded).ok_or_else(cut_short)?;
    let (mut decoder, info) = open(&whole, limits)?;
    decoder.set_color_transform(color_transform(&header));
    let (width, height) = (u32::from(info.width), u32::from(info.height));
    let pixels = decoder.decode().map_err(|e| if coded.ended { damaged(e) } else { cut_short() })?;
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

/// The bytes of the decoded pixels, according to the header.
///
/// # Errors
/// A limit is exceeded, the coding is not supported, or the header is damaged.
pub(super) fn decoded_bytes(bytes: &[u8], limits: &Limits) -> Result<u64, InputError> {
    let header = supported(bytes)?;
    open(&readable(bytes, &header), limits).map(|(_, info)| size(&info))
}

/// The header, if the coding is supported.
fn supported(bytes: &[u8]) -> Result<Header, InputError> {
    let header = Header::read(bytes);
    match header.unsupported() {
        Some(feature) => Err(unsupported(feature)),
        None => Ok(header),
    }
}

/// A decoder of a file whose header is within the limits.
fn open<'a>(bytes: &'a [u8], limits: &Limits) -> Result<(Decoder<&'a [u8]>, ImageInfo), InputError> {
    let mut decoder = Decoder::new(bytes);
    decoder.read_info().map_err(damaged)?;
    let info = decoder.info().ok_or_else(|| undecodable("it has no picture"))?;
    limits.check_header(info.width.into(), info.height.into(), size(&info))?;
    Ok((decoder, info))
}

/// The bytes of the decoded pixels.
fn size(info: &ImageInfo) -> u64 {
    u64::from(info.width) * u64::from(info.height) * info.pixel_format.pixel_bytes() as u64
}

/// How the components are converted to colours, as by `default_decompress_parms` of libjpeg-turbo's
/// jdapimin.c. A JFIF marker takes precedence over an Adobe marker, and an Adobe marker over the components'
/// identifiers.
fn color_transform(header: &Header) -> ColorTransform {
    match (header.components.as_slice(), header.adobe_transform) {
        ([_], _) => ColorTransform::Grayscale,
        ([_, _, _, _], None | Some(0)) => ColorTransform::CMYK,
        ([_, _, _, _], Some(_)) => ColorTransform::YCCK,
        _ if header.jfif => ColorTransform::YCbCr,
        (_, Some(0)) => ColorTransform::RGB,
        ([b'R', b'G', b'B'], None) => ColorTransform::RGB,
        _ => ColorTransform::YCbCr,
    }
}

/// The file with a known transform in each Adobe marker. The decoder refuses unknown transforms;
/// libjpeg-turbo reads them.
fn readable<'a>(bytes: &'a [u8], header: &Header) -> Cow<'a, [u8]> {
    let mut bytes = Cow::Borrowed(bytes);
    for &at in &header.unknown_adobe_transforms {
        // Any known number will do: the decoder gets the transform by `set_color_transform`.
        bytes.to_mut()[at] = 0;
    }
    bytes
}

/// The readable file, completed in two ways: with the standard Huffman tables, where it uses tables that it
/// does not define; and with an end-of-image marker, where the only scan of a sequential file is followed by
/// bytes without a marker. `None` where the file is cut short.
fn completed<'a>(bytes: &'a [u8], header: &Header, coded: &CodedData) -> Option<Cow<'a, [u8]>> {
    let mut whole = readable(bytes, header);
    if !coded.ended {
        if !(header.sequential() && coded.scans == 1 && coded.ends_in_scan && coded.components == header.components.len()) {
            return None;
        }
        // At least one byte must follow the scan, so the scan must be complete without the last byte. Missing
        // bits are read as ones, and no code of a Huffman table consists of ones only (ITU-T T.81, annex C),
        // so a missing block is an error.
        let data = &bytes[..bytes.len() - 1];
        let zeros = data.iter().rev().take_while(|&&byte| byte == 0).count();
        let scan = whole.to_mut();
        scan.truncate(data.len() - zeros);
        if scan.last() == Some(&0xff) {
            // The stuffed zero after 0xff belongs to the scan.
            scan.push(0);
        }
        scan.extend([0xff, 0].repeat(64));
        scan.extend([0xff, 0xd9]);
    }
    if coded.lacks_huffman_tables && header.sequential() {
        whole.to_mut().splice(2..2, standard_huffman_tables());
    }
    Some(whole)
}

/// A segment of the four Huffman tables of ITU-T T.81, K.3.3, which the video frames of cameras leave out.
fn standard_huffman_tables() -> Vec<u8> {
    const DC_LUMINANCE: [u8; 16] = [0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0];
    const DC_CHROMINANCE: [u8; 16] = [0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0];
    const DC_VALUES: [u8; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
    const AC_LUMINANCE: [u8; 16] = [0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125];
    const AC_CHROMINANCE: [u8; 16] = [0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 119];
    #[rustfmt::skip]
    const AC_LUMINANCE_VALUES: [u8; 162] = [
        0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31, 0x41, 0x06, 0x13, 0x51, 0x61, 0x07, 0x22, 0x71,
        0x14, 0x32, 0x81, 0x91, 0xa1, 0x08, 0x23, 0x42, 0xb1, 0xc1, 0x15, 0x52, 0xd1, 0xf0, 0x24, 0x33, 0x62, 0x72,
        0x82, 0x09, 0x0a, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x34, 0x35, 0x36, 0x37,
        0x38, 0x39, 0x3a, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59,
        0x5a, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a, 0x83,
        0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0xa2, 0xa3,
        0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba, 0xc2, 0xc3,
        0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda, 0xe1, 0xe2,
        0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa,
    ];
    #[rustfmt::skip]
    const AC_CHROMINANCE_VALUES: [u8; 162] = [
        0x00, 0x01, 0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41, 0x51, 0x07, 0x61, 0x71, 0x13, 0x22,
        0x32, 0x81, 0x08, 0x14, 0x42, 0x91, 0xa1, 0xb1, 0xc1, 0x09, 0x23, 0x33, 0x52, 0xf0, 0x15, 0x62, 0x72, 0xd1,
        0x0a, 0x16, 0x24, 0x34, 0xe1, 0x25, 0xf1, 0x17, 0x18, 0x19, 0x1a, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x35, 0x36,
        0x37, 0x38, 0x39, 0x3a, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58,
        0x59, 0x5a, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a,
        0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a,
        0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba,
        0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda,
        0xe2, 0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa,
    ];
    let tables: [(u8, &[u8; 16], &[u8]); 4] = [
        (0x00, &DC_LUMINANCE, &DC_VALUES),
        (0x01, &DC_CHROMINANCE, &DC_VALUES),
        (0x10, &AC_LUMINANCE, &AC_LUMINANCE_VALUES),
        (0x11, &AC_CHROMINANCE, &AC_CHROMINANCE_VALUES),
    ];
    let content: Vec<u8> =
        tables.iter().flat_map(|&(class_and_slot, counts, values)| [&[class_and_slot], counts.as_slice(), values].concat()).collect();
    // 420 bytes, and two for the length itself.
    let length = content.len() as u16 + 2;
    [&[0xff, 0xc4], length.to_be_bytes().as_slice(), &content].concat()
}

fn unsupported(feature: impl Into<String>) -> InputError {
    InputError::Unsupported { format: "JPEG", feature: feature.into() }
}

fn cut_short() -> InputError {
    undecodable("the file is cut short")
}

fn undecodable(reason: impl Into<String>) -> InputError {
    InputError::Undecodable { format: "JPEG", reason: reason.into() }
}

/// The error for a decoder's refusal.
fn damaged(error: Error) -> InputError {
    undecodable(match error {
        Error::Format(reason) => reason,
        Error::Unsupported(UnsupportedFeature::NonIntegerSubsamplingRatio) => return unsupported("subsampling by no whole number"),
        Error::Unsupported(UnsupportedFeature::Hierarchical) => return unsupported("hierarchical coding"),
        Error::Unsupported(UnsupportedFeature::ArithmeticEntropyCoding) => return unsupported("arithmetic coding"),
        Error::Unsupported(feature) => return unsupported(format!("{feature:?}")),
        Error::Io(e) => e.to_string(),
        Error::Internal(e) => e.to_string(),
    })
}

/// RGB of CMYK without a colour profile, as Pillow converts it: a channel is the light that passes its ink
/// and the black ink.
fn rgb_of_cmyk(cmyk: &[u8]) -> Vec<u8> {
    let mut rgb = Vec::with_capacity(cmyk.len() / 4 * 3);
    for ink in cmyk.chunks_exact(4) {
        let light = |v: u8| u16::from(255 - v);
        // At most 255 · 255 + 127, and the quotient at most 255.
        rgb.extend([0, 1, 2].map(|c| ((light(ink[c]) * light(ink[3]) + 127) / 255) as u8));
    }
    rgb
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_scans_are_refused_before_they_are_decoded() {
        let mut jpeg = vec![0xff, 0xd8];
        jpeg.extend([0xff, 0xda, 0, 2].repeat(MAX_SCANS + 1));
        jpeg.extend([0xff, 0xd9]);
        let error = decode(&jpeg, &Limits::default()).unwrap_err();
        assert!(error.to_string().contains("101 scans"), "{error}");
    }

    #[test]
    fn black_ink_is_black_and_no_ink_is_white() {
        assert_eq!(rgb_of_cmyk(&[0, 0, 0, 255, 0, 0, 0, 0, 255, 0, 0, 0]), [0, 0, 0, 255, 255, 255, 0, 255, 255]);
    }
}
