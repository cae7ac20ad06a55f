//! Decodes BMP as Pillow does: the headers of OS/2 and Windows, palettes, bit masks and run lengths.
use image::{DynamicImage, RgbImage, RgbaImage};

use super::{InputError, Limits};

/// The decoded picture.
///
/// # Errors
/// A limit is exceeded, or the file is damaged, cut short or of an unsupported kind.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<DynamicImage, InputError> {
    let bmp = Bmp::read(bytes)?;
    bmp.check(limits)?;
    let (width, height) = (bmp.width, bmp.height);
    let (stride, rows) = bmp.rows()?;
    let row = |y: u32| {
        let y = if bmp.upwards { height - 1 - y } else { y } as usize;
        &rows[y * stride..]
    };
    let image = if let Layout::Masks(Masks { alpha: Some(_), .. }) = &bmp.layout {
        let mut rgba = Vec::with_capacity(width as usize * height as usize * 4);
        (0..height).for_each(|y| bmp.layout.colours(row(y), width, |colour| rgba.extend(colour)));
        RgbaImage::from_raw(width, height, rgba).map(DynamicImage::from)
    } else {
        let mut rgb = Vec::with_capacity(width as usize * height as usize * 3);
        (0..height).for_each(|y| bmp.layout.colours(row(y), width, |[r, g, b, _]| rgb.extend([r, g, b])));
        RgbImage::from_raw(width, height, rgb).map(DynamicImage::from)
    };
    Ok(image.expect("a colour for each pixel"))
}

/// The bytes of the decoded pixels, according to the header.
///
/// # Errors
/// A limit is exceeded, or the header is damaged or of an unsupported kind.
pub(super) fn decoded_bytes(bytes: &[u8], limits: &Limits) -> Result<u64, InputError> {
    Bmp::read(bytes)?.check(limits)
}

/// The header of a file.
struct Bmp<'a> {
    bytes: &'a [u8],
    width: u32,
    height: u32,
    /// Whether the last row of the picture is the first in the file.
    upwards: bool,
    layout: Layout,
    run_length: Option<RunLength>,
    /// Where the pixels begin in the file, in bytes.
    pixels: usize,
}

/// The bits of an index in run-length codes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RunLength {
    Bits4,
    Bits8,
}

/// How the bytes of a row encode colours.
enum Layout {
    /// Indices of `bits` bits; the first index is in the highest bits of a byte.
    Palette { bits: u32, colours: Box<[[u8; 3]; 256]> },
    /// Blue, green, red.
    Bytes3,
    /// Little-endian values of 16 or 32 bits.
    Masks(Masks),
}

/// The bits of each colour in a value of `bytes` bytes.
struct Masks {
    bytes: usize,
    red: u32,
    green: u32,
    blue: u32,
    alpha: Option<u32>,
}

impl<'a> Bmp<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, InputError> {
        const FILE_HEADER: usize = 14;
        let reader = Reader(bytes);
        let (offset, header) = (reader.u32(10)?, reader.u32(FILE_HEADER)?);
        let at = |offset: usize| FILE_HEADER + offset;
        let core = match header {
            12 => true,
            40 | 52 | 56 | 64 | 108 | 124 => false,
            16..64 => return Err(unsupported(format!("a header of {header} bytes"))),
            _ => return Err(undecodable(format!("its header states a length of {header} bytes"))),
        };
        let header = header as usize;
        let after_header = at(header);
        if bytes.len() < after_header {
            return Err(cut());
        }
        let (width, height, upwards, bits, compression, stated_colours) = if core {
            (reader.u16(at(4))?, reader.u16(at(6))?, true, reader.u16(at(10))?, 0, 0)
        } else {
            let height = reader.u32(at(8))?;
            // A negative height means that the first row of the picture is the first in the file.
            let upwards = height >> 24 != 0xff;
            let height = if upwards { height } else { height.wrapping_neg() };
            (reader.u32(at(4))?, height, upwards, reader.u16(at(14))?, reader.u32(at(16))?, reader.u32(at(32))?)
        };
        let run_length = match (compression, bits) {
            (0 | 3, _) => None,
            (1, 8 | 4) => Some(RunLength::Bits8),
            (2, 8 | 4) => Some(RunLength::Bits4),
            (1 | 2, _) => return Err(undecodable(format!("its header states run lengths of {bits} bits"))),
            (4, _) if header == 64 => return Err(unsupported("run lengths of 24 bits")),
            (4, _) => return Err(unsupported("a JPEG in it")),
            (5, _) => return Err(unsupported("a PNG in it")),
            (other, _) => return Err(unsupported(format!("compression {other}"))),
        };
        if compression == 3 && header == 64 {
            return Err(unsupported("Huffman codes"));
        }
        let mut pixels = offset as usize;
        let mut palette = after_header;
        let layout = match bits {
            1 | 4 | 8 if compression != 3 => {
                let colours = if stated_colours == 0 { 1 << bits } else { stated_colours };
                if colours > 1 << 16 {
                    return Err(undecodable(format!("its header states {colours} colours")));
                }
                let (colours, unit) = (colours as usize, if core { 3 } else { 4 });
                if pixels == after_header {
                    pixels += unit * colours;
                }
                let stated = &bytes[palette..bytes.len().min(palette + unit * colours)];
                palette += stated.len();
                // Run lengths are expanded to a byte a pixel.
                let bits = if run_length.is_some() { 8 } else { bits };
                Layout::Palette { bits, colours: colours_of(stated, unit, colours) }
            }
            24 => Layout::Bytes3,
            16 | 32 => Layout::Masks(if compression == 3 {
                let (masks, masks_end) = if header >= 52 { (at(40), after_header) } else { (after_header, after_header + 12) };
                palette = masks_end;
                let alpha = if header >= 56 { reader.u32(at(52))? } else { 0 };
                Masks::stated(bits, [reader.u32(masks)?, reader.u32(masks + 4)?, reader.u32(masks + 8)?], alpha)?
            } else {
                Masks::usual(bits)
            }),
            bits => return Err(unsupported(format!("{bits} bits for a pixel"))),
        };
        if pixels == 0 {
            pixels = palette;
        }
        Ok(Self { bytes, width, height, upwards, layout, run_length, pixels })
    }

    /// The bytes of the decoded pixels, if they are within the limits.
    fn check(&self, limits: &Limits) -> Result<u64, InputError> {
        let each = match (&self.layout, self.run_length) {
            (Layout::Masks(Masks { alpha: Some(_), .. }), _) | (_, Some(_)) => 4,
            _ => 3,
        };
        let decoded = (u64::from(self.width) * u64::from(self.height)).saturating_mul(each);
        limits.check_header(self.width, self.height, decoded)?;
        Ok(decoded)
    }

    /// The number of bytes from one row to the next, and the rows in the order of the file. The last row
    /// needs no padding.
    fn rows(&self) -> Result<(usize, std::borrow::Cow<'a, [u8]>), InputError> {
        let (width, height) = (self.width as usize, self.height as usize);
        let data = self.bytes.get(self.pixels..).ok_or_else(cut)?;
        if let Some(kind) = self.run_length {
            return Ok((width, expand(data, self.pixels, kind, width, height)?.into()));
        }
        let bits = width * self.layout.bits() as usize;
        let stride = bits.div_ceil(32) * 4;
        if data.len() < stride * (height - 1) + bits.div_ceil(8) {
            return Err(cut());
        }
        Ok((stride, data.into()))
    }
}

/// The colours of a palette. A colour that the palette does not state is black, as in Pillow. A palette of
/// the greys 0, 1, 2, … is continued to 255.
fn colours_of(stated: &[u8], unit: usize, count: usize) -> Box<[[u8; 3]; 256]> {
    let mut colours = Box::new([[0; 3]; 256]);
    for (colour, bgr) in colours.iter_mut().zip(stated.chunks_exact(unit)) {
        *colour = [bgr[2], bgr[1], bgr[0]];
    }
    if count > 2 && count <= 256 && (0..=255u8).zip(&colours[..count]).all(|(value, colour)| *colour == [value; 3]) {
        (0..=255u8).zip(colours.iter_mut()).for_each(|(value, colour)| *colour = [value; 3]);
    }
    colours
}

impl Layout {
    /// The bits of a pixel.
    fn bits(&self) -> u32 {
        match self {
            Self::Palette { bits, .. } => *bits,
            Self::Bytes3 => 24,
            Self::Masks(masks) => 8 * masks.bytes as u32,
        }
    }

    /// Calls `take` with each of the first `width` colours of a row: red, green, blue, alpha.
    fn colours(&self, row: &[u8], width: u32, mut take: impl FnMut([u8; 4])) {
        let width = width as usize;
        match self {
            Self::Palette { bits, colours } => {
                let per_byte = (8 / bits) as usize;
                for x in 0..width {
                    let shift = 8 - bits * (x % per_byte + 1) as u32;
                    let index = row[x / per_byte] >> shift & (0xffu8 >> (8 - bits));
                    let [r, g, b] = colours[usize::from(index)];
                    take([r, g, b, 255]);
                }
            }
            Self::Bytes3 => row.chunks_exact(3).take(width).for_each(|bgr| take([bgr[2], bgr[1], bgr[0], 255])),
            Self::Masks(masks) => row.chunks_exact(masks.bytes).take(width).for_each(|value| {
                let value = value.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte));
                let part = |mask| spread(value, mask);
                take([part(masks.red), part(masks.green), part(masks.blue), masks.alpha.map_or(255, part)]);
            }),
        }
    }
}

impl Masks {
    /// The masks of a file that states none: five bits for each colour, or eight.
    fn usual(bits: u32) -> Self {
        if bits == 16 {
            Self { bytes: 2, red: 0x7c00, green: 0x3e0, blue: 0x1f, alpha: None }
        } else {
            Self { bytes: 4, red: 0xff_0000, green: 0xff00, blue: 0xff, alpha: None }
        }
    }

    /// The masks that the file states. As in Pillow, a 16-bit value has no alpha, and if all masks are 0 they
    /// are the usual masks with alpha.
    fn stated(bits: u32, [red, green, blue]: [u32; 3], alpha: u32) -> Result<Self, InputError> {
        if bits == 32 && red | green | blue | alpha == 0 {
            return Ok(Self { alpha: Some(0xff00_0000), ..Self::usual(32) });
        }
        let alpha = if bits == 16 { 0 } else { alpha };
        let whole = |mask: u32| mask == 0 || (mask >> mask.trailing_zeros()).wrapping_add(1).is_power_of_two() || mask == u32::MAX;
        let bytes = if bits == 16 { 2 } else { 4 };
        let fits = |mask: u32| bytes == 4 || mask <= 0xffff;
        if ![red, green, blue, alpha].into_iter().all(|mask| whole(mask) && fits(mask)) || red | green | blue == 0 {
            return Err(undecodable("its header states impossible bit masks"));
        }
        Ok(Self { bytes, red, green, blue, alpha: Some(alpha).filter(|&alpha| alpha != 0) })
    }
}

/// The part of `value` under `mask`, scaled to 0 to 255.
fn spread(value: u32, mask: u32) -> u8 {
    if mask == 0 {
        return 0;
    }
    let shift = mask.trailing_zeros();
    // At most 255.
    (u64::from((value & mask) >> shift) * 255 / u64::from(mask >> shift)) as u8
}

/// Expands run-length codes to indices, one byte each. `start` is the position of `codes` in the file: after
/// literal pixels, the next code is at an even position of the file. Pixels that an early end or a jump
/// leaves out have index 0.
fn expand(codes: &[u8], start: usize, kind: RunLength, width: usize, height: usize) -> Result<Vec<u8>, InputError> {
    let total = width * height;
    let mut indices = Vec::with_capacity(total);
    let (mut at, mut x) = (0, 0usize);
    while indices.len() < total {
        let &[count, value] = codes.get(at..).and_then(|codes| codes.first_chunk()).ok_or_else(cut)?;
        at += 2;
        match (count, value) {
            (0, 0) => {
                indices.resize(indices.len().next_multiple_of(width), 0);
                x = 0;
            }
            (0, 1) => break,
            (0, 2) => {
                let &[right, up] = codes.get(at..).and_then(|codes| codes.first_chunk()).ok_or_else(cut)?;
                at += 2;
                let jump = usize::from(right) + usize::from(up) * width;
                indices.resize(total.min(indices.len() + jump), 0);
                x = indices.len() % width;
            }
            (0, count) => {
                let wanted = usize::from(count).min(total - indices.len());
                let bytes = if kind == RunLength::Bits4 { wanted.div_ceil(2) } else { wanted };
                let literal = codes.get(at..at + bytes).ok_or_else(cut)?;
                at += bytes;
                if kind == RunLength::Bits4 {
                    indices.extend(literal.iter().flat_map(|byte| [byte >> 4, byte & 15]).take(wanted));
                } else {
                    indices.extend(literal);
                }
                x += usize::from(count);
                at += (start + at) % 2;
            }
            (count, value) => {
                let count = usize::from(count).min(width.saturating_sub(x)).min(total - indices.len());
                let pair = if kind == RunLength::Bits4 { [value >> 4, value & 15] } else { [value; 2] };
                indices.extend(pair.iter().cycle().take(count));
                x += count;
            }
        }
    }
    indices.resize(total, 0);
    Ok(indices)
}

/// Reads little-endian numbers at positions of a file.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn u16(&self, at: usize) -> Result<u32, InputError> {
        self.0.get(at..).and_then(|bytes| bytes.first_chunk()).map(|&bytes| u16::from_le_bytes(bytes).into()).ok_or_else(cut)
    }

    fn u32(&self, at: usize) -> Result<u32, InputError> {
        self.0.get(at..).and_then(|bytes| bytes.first_chunk()).map(|&bytes| u32::from_le_bytes(bytes)).ok_or_else(cut)
    }
}

fn cut() -> InputError {
    undecodable("the file is cut short")
}

fn undecodable(reason: impl Into<String>) -> InputError {
    InputError::Undecodable { format: "BMP", reason: reason.into() }
}

fn unsupported(feature: impl Into<String>) -> InputError {
    InputError::Unsupported { format: "BMP", feature: feature.into() }
}
