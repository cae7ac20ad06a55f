//! Decodes PNG. The chunks are read here, as Pillow reads them; the `png` crate gets only the chunks that
//! hold pixels.
use std::borrow::Cow;
use std::io::{Cursor, Read};

use flate2::read::ZlibDecoder;
use image::DynamicImage;
use image::codecs::png::PngDecoder;
use image::metadata::Orientation;

use super::orientation::Metadata;
use super::{InputError, Limits};

pub(super) const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
/// A compressed text is inflated up to this length in bytes, as by Pillow.
const MAX_TEXT: u64 = 1 << 20;
/// The key under which ImageMagick stores EXIF, in hexadecimal digits.
const RAW_PROFILE: &[u8] = b"Raw profile type exif";
const XMP: &[u8] = b"XML:com.adobe.xmp";

/// The picture (of an animation, its default image) and its orientation.
///
/// # Errors
/// A limit is exceeded, or the file is damaged or cut short.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<(DynamicImage, Orientation), InputError> {
    let chunks = Chunks::read(bytes)?;
    chunks.check(limits)?;
    let decoder = PngDecoder::with_limits(Cursor::new(chunks.pixels()), limits.of_decoder()).map_err(|e| limits.refusal("PNG", e))?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(|e| limits.refusal("PNG", e))?;
    if let Some(transparency) = chunks.transparency {
        whiten(&mut image, transparency, chunks.depth);
    }
    Ok((image, chunks.metadata().orientation()))
}

/// The bytes of the decoded pixels, according to the header.
///
/// # Errors
/// A limit is exceeded, or the header is damaged.
pub(super) fn decoded_bytes(bytes: &[u8], limits: &Limits) -> Result<u64, InputError> {
    Chunks::read(bytes)?.check(limits)
}

/// The colour type, with its number in the header.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Colour {
    Grey = 0,
    Rgb = 2,
    Palette = 3,
    GreyAlpha = 4,
    Rgba = 6,
}

/// The contents of a file's chunks.
struct Chunks<'a> {
    /// The 13 bytes of IHDR.
    header: &'a [u8],
    width: u32,
    height: u32,
    depth: u8,
    colour: Colour,
    palette: &'a [u8],
    transparency: Option<&'a [u8]>,
    /// The contents of the first run of IDAT chunks.
    data: Vec<&'a [u8]>,
    text: Text<'a>,
}

/// The metadata: the last chunk of each kind, not inflated.
#[derive(Default)]
struct Text<'a> {
    exif: Option<&'a [u8]>,
    raw_profile: Option<Value<'a>>,
    xmp: Option<Value<'a>>,
}

/// A text in the file.
#[derive(Clone, Copy)]
enum Value<'a> {
    Plain(&'a [u8]),
    Compressed(&'a [u8]),
}

impl<'a> Value<'a> {
    fn read(self) -> Cow<'a, [u8]> {
        match self {
            Self::Plain(text) => Cow::Borrowed(text),
            Self::Compressed(deflated) => {
                let mut text = Vec::new();
                // Of a damaged text, the part before the damage.
                let _ = ZlibDecoder::new(deflated).take(MAX_TEXT).read_to_end(&mut text);
                Cow::Owned(text)
            }
        }
    }
}

impl<'a> Chunks<'a> {
    /// Reads the file's chunks. Up to the pixels, all chunks must be complete, and the checksums of the
    /// header and of the chunks that hold colours must be right. After the pixels, chunks are read as far as
    /// possible, so that a file without its end is still decoded.
    fn read(bytes: &'a [u8]) -> Result<Self, InputError> {
        let mut rest = bytes.strip_prefix(SIGNATURE).ok_or_else(|| undecodable("its signature is damaged"))?;
        let header = match Chunk::split(&mut rest) {
            Some(Chunk { kind: b"IHDR", body, sound, .. }) if body.len() >= 13 && sound => &body[..13],
            Some(Chunk { kind: b"CgBI", .. }) => {
                return Err(InputError::Unsupported { format: "PNG", feature: "Apple's own compression (CgBI)".to_owned() });
            }
            _ => return Err(undecodable("its header is damaged")),
        };
        let side = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let colour = match (header[9], header[8]) {
            (0, 1 | 2 | 4 | 8 | 16) => Colour::Grey,
            (2, 8 | 16) => Colour::Rgb,
            (3, 1 | 2 | 4 | 8) => Colour::Palette,
            (4, 8 | 16) => Colour::GreyAlpha,
            (6, 8 | 16) => Colour::Rgba,
            (colour, depth) => {
                return Err(undecodable(format!("its header states colour type {colour} with {depth} bits, which PNG has not")));
            }
        };
        let mut chunks = Self {
            header,
            width: side(0),
            height: side(4),
            depth: header[8],
            colour,
            palette: &[],
            transparency: None,
            data: Vec::new(),
            text: Text::default(),
        };
        let mut ended = false;
        while let Some(chunk) = Chunk::split(&mut rest) {
            let before = chunks.data.is_empty();
            match chunk.kind {
                b"IEND" => break,
                b"IDAT" if !ended => {
                    chunks.data.push(chunk.body);
                    continue;
                }
                _ if chunk.cut => break,
                b"PLTE" | b"tRNS" if before && !chunk.sound => {
                    return Err(undecodable("the checksum of a chunk that makes its colours is wrong"));
                }
                b"PLTE" if before => chunks.palette = chunk.body,
                b"tRNS" => chunks.set_transparency(chunk.body)?,
                _ if before && !chunk.sound => {}
                kind => chunks.text.take(kind, chunk.body),
            }
            ended = !before;
        }
        if chunks.data.is_empty() {
            return Err(undecodable("it has no pixels, or is cut short before them"));
        }
        Ok(chunks)
    }

    /// The bytes of the decoded pixels, if they are within the limits.
    fn check(&self, limits: &Limits) -> Result<u64, InputError> {
        let depth = if self.depth == 16 { 2 } else { 1 };
        let channels = match self.colour {
            Colour::Grey => 1,
            Colour::Palette => 3 + u64::from(self.transparency.is_some()),
            Colour::Rgb => 3,
            Colour::GreyAlpha => 2,
            Colour::Rgba => 4,
        };
        let decoded = (u64::from(self.width) * u64::from(self.height)).saturating_mul(depth * channels);
        limits.check_header(self.width, self.height, decoded)?;
        Ok(decoded)
    }

    /// Takes the contents of a tRNS chunk, which must hold a value for each channel.
    fn set_transparency(&mut self, body: &'a [u8]) -> Result<(), InputError> {
        let least = match self.colour {
            Colour::Palette => 0,
            Colour::Grey => 2,
            Colour::Rgb => 6,
            Colour::GreyAlpha | Colour::Rgba => return Ok(()),
        };
        if body.len() < least {
            return Err(undecodable("its transparent colour is cut short"));
        }
        self.transparency = Some(body).filter(|body| !body.is_empty());
        Ok(())
    }

    /// A file of only the chunks that hold pixels and colours. A palette that is too short is filled up with
    /// black, as in Pillow, so that it has an entry for every value of a pixel.
    fn pixels(&self) -> Vec<u8> {
        let length = self.data.iter().map(|data| data.len()).sum::<usize>();
        let mut file = Vec::with_capacity(length + 1200);
        file.extend(SIGNATURE);
        // As in Pillow, any compression method is read as deflate, and any interlace method other than 0 as
        // Adam7.
        put(&mut file, b"IHDR", &[&self.header[..10], &[0, self.header[11], self.header[12].min(1)]]);
        if self.colour == Colour::Palette {
            let entries = 1usize << self.depth;
            let mut palette = self.palette[..self.palette.len() / 3 * 3].to_vec();
            palette.resize(3 * entries, 0);
            put(&mut file, b"PLTE", &[&palette]);
            if let Some(alpha) = self.transparency {
                put(&mut file, b"tRNS", &[&alpha[..alpha.len().min(entries)]]);
            }
        }
        put(&mut file, b"IDAT", &self.data);
        put(&mut file, b"IEND", &[]);
        file
    }

    /// The metadata that may state an orientation.
    fn metadata(&self) -> Metadata<'a> {
        let exif = match (self.text.exif, self.text.raw_profile) {
            (Some(exif), _) => Some(Cow::Borrowed(exif)),
            (None, Some(profile)) => Some(Cow::Owned(of_hexadecimal(&profile.read()))),
            (None, None) => None,
        };
        Metadata { exif, xmp: self.text.xmp.map(Value::read) }
    }
}

/// Writes a chunk. Its length fits in 32 bits, because the parts come from a file of fewer bytes.
fn put(file: &mut Vec<u8>, kind: &[u8; 4], parts: &[&[u8]]) {
    let start = file.len();
    let length: usize = parts.iter().map(|part| part.len()).sum();
    file.extend((length as u32).to_be_bytes());
    file.extend(kind);
    for part in parts {
        file.extend(*part);
    }
    file.extend(crc32(&file[start + 4..]).to_be_bytes());
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// One chunk.
struct Chunk<'a> {
    kind: &'a [u8; 4],
    body: &'a [u8],
    /// Whether the file ends within the body.
    cut: bool,
    /// Whether the checksum is there and right.
    sound: bool,
}

impl<'a> Chunk<'a> {
    /// The next chunk, which is removed from `rest`; `None` where there is none.
    fn split(rest: &mut &'a [u8]) -> Option<Self> {
        let (length, after) = rest.split_first_chunk()?;
        let (kind, after) = after.split_first_chunk::<4>()?;
        if !kind.iter().all(|&byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return None;
        }
        let length = u32::from_be_bytes(*length) as usize;
        let body = after.get(..length).unwrap_or(after);
        let checksum = after.get(length..).and_then(|after| after.first_chunk());
        // As in Pillow, the checksum of IDAT is not checked: the inflated data has a checksum of its own.
        let sound = kind == b"IDAT" || checksum.is_some_and(|sum| u32::from_be_bytes(*sum) == crc32(&rest[4..8 + body.len()]));
        *rest = after.get(length..).and_then(|after| after.get(4..)).unwrap_or_default();
        Some(Self { kind, body, cut: body.len() < length, sound })
    }
}

impl<'a> Text<'a> {
    /// Keeps the contents of a chunk that holds EXIF or XMP.
    fn take(&mut self, kind: &[u8; 4], body: &'a [u8]) {
        match kind {
            b"eXIf" => self.exif = Some(body.strip_prefix(b"Exif\0\0").unwrap_or(body)),
            b"tEXt" => {
                if let Some((key, text)) = split_at_zero(body) {
                    if key == b"exif" {
                        self.exif = Some(text);
                    }
                    self.set(key, Value::Plain(text));
                }
            }
            b"zTXt" => {
                if let Some((key, [0, deflated @ ..])) = split_at_zero(body) {
                    self.set(key, Value::Compressed(deflated));
                }
            }
            b"iTXt" => {
                let Some((key, [compressed, method, rest @ ..])) = split_at_zero(body) else { return };
                let Some((_language, rest)) = split_at_zero(rest) else { return };
                let Some((_translated, text)) = split_at_zero(rest) else { return };
                match (compressed, method) {
                    (0, _) => self.set(key, Value::Plain(text)),
                    (_, 0) => self.set(key, Value::Compressed(text)),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn set(&mut self, key: &[u8], value: Value<'a>) {
        if key == RAW_PROFILE {
            self.raw_profile = Some(value);
        } else if key == XMP {
            self.xmp = Some(value);
        }
    }
}

/// The bytes before and after the first zero byte.
fn split_at_zero(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|&byte| byte == 0)?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

/// The bytes of a raw profile: an empty line, the profile's name, its length, then lines of hexadecimal
/// digits. Any other character ends the profile.
fn of_hexadecimal(profile: &[u8]) -> Vec<u8> {
    let lines = profile.split(|&byte| byte == b'\n').skip(3);
    let digits: Vec<u8> = lines
        .flatten()
        .filter(|byte| !byte.is_ascii_whitespace())
        .map_while(|&byte| char::from(byte).to_digit(16))
        .map(|d| d as u8)
        .collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// Makes the pixels of the transparent colour white: images are composited over white. As in Pillow, grey of
/// fewer than 8 bits is scaled to 0 to 255 before it is compared with the low byte of the transparent value,
/// and 16-bit colours are compared by their high byte with the low byte of the transparent value.
fn whiten(image: &mut DynamicImage, transparency: &[u8], depth: u8) {
    match image {
        DynamicImage::ImageLuma8(grey) => {
            let stated = if depth == 1 { if transparency[..2] == [0, 0] { 0 } else { 255 } } else { transparency[1] };
            grey.iter_mut().filter(|value| **value == stated).for_each(|value| *value = 255);
        }
        DynamicImage::ImageLuma16(grey) => {
            let stated = u16::from_be_bytes([transparency[0], transparency[1]]);
            grey.iter_mut().filter(|value| **value == stated).for_each(|value| *value = u16::MAX);
        }
        DynamicImage::ImageRgb8(rgb) => {
            let stated = [transparency[1], transparency[3], transparency[5]];
            rgb.pixels_mut().filter(|pixel| pixel.0 == stated).for_each(|pixel| pixel.0 = [255; 3]);
        }
        DynamicImage::ImageRgb16(rgb) => {
            let stated = [transparency[1], transparency[3], transparency[5]].map(u16::from);
            rgb.pixels_mut().filter(|pixel| pixel.0.map(|v| v >> 8) == stated).for_each(|pixel| pixel.0 = [u16::MAX; 3]);
        }
        // A palette's transparency is already in its alpha.
        _ => {}
    }
}

fn undecodable(reason: impl Into<String>) -> InputError {
    InputError::Undecodable { format: "PNG", reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::ZlibEncoder};

    use super::*;

    /// A PNG of one grey pixel, with `chunks` before it.
    fn png(chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
        let mut file = SIGNATURE.to_vec();
        put(&mut file, b"IHDR", &[&[0, 0, 0, 1, 0, 0, 0, 1, 8, 0, 0, 0, 0]]);
        chunks.iter().for_each(|(kind, body)| put(&mut file, kind, &[body]));
        put(&mut file, b"IDAT", &[&packed(&[0, 77])]);
        file
    }

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_text_that_unpacks_to_gigabytes_is_read_to_its_limit() {
        let bomb = [RAW_PROFILE, &[0, 0], &packed(&vec![b'0'; 64 << 20])].concat();
        let chunks = png(&[(b"zTXt", &bomb)]);
        let chunks = Chunks::read(&chunks).unwrap();
        assert_eq!(chunks.text.raw_profile.unwrap().read().len() as u64, MAX_TEXT);
        assert_eq!(chunks.metadata().orientation(), Orientation::NoTransforms);
    }

    #[test]
    fn only_the_last_of_many_compressed_texts_is_inflated() {
        let text = [RAW_PROFILE, &[0, 0], &packed(b"x")].concat();
        let chunks = png(&vec![(b"zTXt", &text[..]); 1000]);
        assert!(matches!(Chunks::read(&chunks).unwrap().text.raw_profile, Some(Value::Compressed(_))));
        assert_eq!(decode(&chunks, &Limits::default()).unwrap().0.into_luma8().into_raw(), [77]);
    }

    #[test]
    fn a_png_in_the_compression_of_apple_is_refused_as_unsupported_not_as_damaged() {
        let mut file = SIGNATURE.to_vec();
        put(&mut file, b"CgBI", &[&[0x50, 0, 0x20, 6]]);
        let error = decode(&file, &Limits::default()).unwrap_err();
        assert!(matches!(error, InputError::Unsupported { format: "PNG", .. }), "{error}");
    }
}
