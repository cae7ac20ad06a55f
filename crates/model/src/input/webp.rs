//! Decodes WebP. The container is read here, as libwebp's demuxer reads it for Pillow; the `image-webp` crate
//! gets only the first frame.
use std::borrow::Cow;
use std::io::Cursor;

use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, RgbaImage};

use super::orientation::Metadata;
use super::{InputError, Limits};

// Flags of VP8X.
const ALPHA: u8 = 0x10;
const ANIMATION: u8 = 0x02;
const EXIF: u8 = 0x08;
const XMP: u8 = 0x04;

/// The picture, or the first frame of an animation on its canvas, and the orientation.
///
/// # Errors
/// A limit is exceeded, or the file is damaged or cut short.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<(DynamicImage, Orientation), InputError> {
    let file = File::read(bytes)?;
    file.check(limits)?;
    let frame = file.frame.decode(limits)?;
    Ok((file.on_canvas(frame)?, file.metadata.orientation()))
}

/// The bytes of the decoded pixels, according to the header.
///
/// # Errors
/// A limit is exceeded, or the header is damaged.
pub(super) fn decoded_bytes(bytes: &[u8], limits: &Limits) -> Result<u64, InputError> {
    File::read(bytes)?.check(limits)
}

/// The contents of a file. Width and height are those of the canvas, in pixels.
struct File<'a> {
    width: u32,
    height: u32,
    animation: bool,
    /// Whether the canvas is transparent where an animation's frame does not cover it.
    transparent: bool,
    frame: Frame<'a>,
    metadata: Metadata<'a>,
}

/// A picture in the file: the chunks of one image, and where it lies on the canvas.
struct Frame<'a> {
    left: u32,
    top: u32,
    width: u32,
    height: u32,
    /// `VP8 ` or `VP8L`, and its contents.
    kind: &'a [u8; 4],
    body: &'a [u8],
    /// The contents of the ALPH chunk of a lossy picture.
    alpha: Option<&'a [u8]>,
}

impl<'a> File<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, InputError> {
        let mut rest = bytes;
        let riff = Chunk::split(&mut rest).filter(|chunk| chunk.kind == b"RIFF").ok_or_else(cut)?;
        let mut rest = riff.body.strip_prefix(b"WEBP").ok_or_else(cut)?;
        let start = rest;
        let first = Chunk::split(&mut rest).ok_or_else(cut)?;
        if first.kind != b"VP8X" {
            let frame = Frame::read(start, true)?;
            let (width, height) = (frame.width, frame.height);
            return Ok(Self { width, height, animation: false, transparent: true, frame, metadata: Metadata::default() });
        }
        let [flags, _, _, _, size @ ..] = first.body else { return Err(cut()) };
        let (Some(width), Some(height)) = (u24(size, 0), u24(size, 3)) else { return Err(cut()) };
        let (width, height) = (width + 1, height + 1);
        let (animation, transparent) = (flags & ANIMATION != 0, flags & ALPHA != 0);
        let (mut frame, mut metadata) = (None, Metadata::default());
        loop {
            let start = rest;
            let Some(chunk) = Chunk::split(&mut rest) else { break };
            match chunk.kind {
                b"ALPH" | b"VP8 " | b"VP8L" if !animation && frame.is_none() => frame = Some(Frame::read(start, transparent)?),
                b"ANMF" if animation && frame.is_none() => frame = Some(Frame::of_animation(chunk.body)?),
                // A chunk counts only if its flag is set, and only the first one counts.
                b"EXIF" if flags & EXIF != 0 && metadata.exif.is_none() => metadata.exif = Some(Cow::Borrowed(chunk.body)),
                b"XMP " if flags & XMP != 0 && metadata.xmp.is_none() => metadata.xmp = Some(Cow::Borrowed(chunk.body)),
                _ => {}
            }
        }
        let frame = frame.ok_or_else(|| undecodable("it has no picture, or is cut short before it"))?;
        let inside = |start: u32, length: u32, canvas: u32| start.checked_add(length).is_some_and(|end| end <= canvas);
        let fits = inside(frame.left, frame.width, width) && inside(frame.top, frame.height, height);
        if !fits || !animation && (frame.width, frame.height) != (width, height) {
            return Err(undecodable("its picture is not of the size that its header states"));
        }
        Ok(Self { width, height, animation, transparent, frame, metadata })
    }

    /// The bytes of the decoded pixels, if they are within the limits.
    fn check(&self, limits: &Limits) -> Result<u64, InputError> {
        let channels = if self.animation || self.frame.has_alpha() { 4 } else { 3 };
        let pixels = |width: u32, height: u32| u64::from(width) * u64::from(height);
        let frame = if self.animation { pixels(self.frame.width, self.frame.height) } else { 0 };
        let decoded = (pixels(self.width, self.height) + frame).saturating_mul(channels);
        limits.check_header(self.width, self.height, decoded)?;
        Ok(decoded)
    }

    /// The first frame of an animation on its canvas. Where the file's flags state no alpha, the result has
    /// none, and the canvas is black where the frame does not cover it.
    fn on_canvas(&self, frame: DynamicImage) -> Result<DynamicImage, InputError> {
        if !self.animation {
            return Ok(frame);
        }
        let mut canvas = RgbaImage::new(self.width, self.height);
        image::imageops::replace(&mut canvas, &frame.into_rgba8(), self.frame.left.into(), self.frame.top.into());
        if !self.transparent {
            canvas.pixels_mut().for_each(|pixel| pixel.0[3] = 255);
        }
        Ok(canvas.into())
    }
}

impl<'a> Frame<'a> {
    /// The picture at the start of `chunks`: an ALPH chunk, if there is one, then the pixels. The ALPH chunk
    /// is ignored unless `alpha_counts`.
    fn read(mut chunks: &'a [u8], alpha_counts: bool) -> Result<Self, InputError> {
        let mut alpha = None;
        let chunk = loop {
            let chunk = Chunk::split(&mut chunks).ok_or_else(cut)?;
            match chunk.kind {
                b"ALPH" => alpha = alpha.or(Some(chunk.body).filter(|_| alpha_counts)),
                b"VP8 " | b"VP8L" => break chunk,
                _ => {}
            }
        };
        let (width, height) = match (chunk.kind, chunk.body) {
            (b"VP8 ", [tag, _, _, 0x9d, 1, 0x2a, w0, w1, h0, h1, ..]) if tag & 1 == 0 => {
                (u32::from(u16::from_le_bytes([*w0, *w1]) & 0x3fff), u32::from(u16::from_le_bytes([*h0, *h1]) & 0x3fff))
            }
            (b"VP8L", [0x2f, a, b, c, d, ..]) => {
                let bits = u32::from_le_bytes([*a, *b, *c, *d]);
                ((bits & 0x3fff) + 1, (bits >> 14 & 0x3fff) + 1)
            }
            _ => return Err(undecodable("its picture has a damaged header")),
        };
        if width == 0 || height == 0 {
            return Err(undecodable("its picture has no pixels"));
        }
        let alpha = alpha.filter(|_| chunk.kind == b"VP8 ");
        Ok(Self { left: 0, top: 0, width, height, kind: chunk.kind, body: chunk.body, alpha })
    }

    /// The frame in an ANMF chunk.
    fn of_animation(body: &'a [u8]) -> Result<Self, InputError> {
        let field = |at: usize| u24(body, at).ok_or_else(cut);
        let (left, top) = (2 * field(0)?, 2 * field(3)?);
        // The size in the header of the picture counts, not the size in the ANMF chunk.
        let frame = Self::read(body.get(16..).unwrap_or_default(), true)?;
        Ok(Self { left, top, ..frame })
    }

    fn has_alpha(&self) -> bool {
        self.alpha.is_some() || self.kind == b"VP8L" && self.body[4] & 0x10 != 0
    }

    fn decode(&self, limits: &Limits) -> Result<DynamicImage, InputError> {
        let mut decoder = WebPDecoder::new(Cursor::new(self.file())).map_err(|e| limits.refusal("WebP", e))?;
        decoder.set_limits(limits.of_decoder()).map_err(|e| limits.refusal("WebP", e))?;
        if decoder.dimensions() != (self.width, self.height) {
            return Err(undecodable("its picture has a damaged header"));
        }
        DynamicImage::from_decoder(decoder).map_err(|e| limits.refusal("WebP", e))
    }

    /// A file of only this picture.
    fn file(&self) -> Vec<u8> {
        let mut file = Vec::with_capacity(self.body.len() + self.alpha.map_or(0, <[u8]>::len) + 64);
        file.extend(b"RIFF\0\0\0\0WEBP");
        if let Some(alpha) = self.alpha {
            let side = |side: u32| (side - 1).to_le_bytes();
            let ([w0, w1, w2, _], [h0, h1, h2, _]) = (side(self.width), side(self.height));
            put(&mut file, b"VP8X", &[ALPHA, 0, 0, 0, w0, w1, w2, h0, h1, h2]);
            put(&mut file, b"ALPH", alpha);
        }
        put(&mut file, self.kind, self.body);
        let length = (file.len() - 8) as u32;
        file[4..8].copy_from_slice(&length.to_le_bytes());
        file
    }
}

/// Writes a chunk. Its length fits in 32 bits, because the parts come from a file of fewer bytes.
fn put(file: &mut Vec<u8>, kind: &[u8; 4], body: &[u8]) {
    file.extend(kind);
    file.extend((body.len() as u32).to_le_bytes());
    file.extend(body);
    if !body.len().is_multiple_of(2) {
        file.push(0);
    }
}

fn u24(bytes: &[u8], at: usize) -> Option<u32> {
    let [a, b, c] = *bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes([a, b, c, 0]))
}

/// One chunk.
struct Chunk<'a> {
    kind: &'a [u8; 4],
    body: &'a [u8],
}

impl<'a> Chunk<'a> {
    /// The next chunk, which is removed from `rest`; `None` where no complete chunk is left.
    fn split(rest: &mut &'a [u8]) -> Option<Self> {
        let (kind, after) = rest.split_first_chunk()?;
        let (length, after) = after.split_first_chunk()?;
        let length = u32::from_le_bytes(*length) as usize;
        let body = after.get(..length)?;
        *rest = after.get(length.next_multiple_of(2)..).unwrap_or_default();
        Some(Self { kind, body })
    }
}

fn cut() -> InputError {
    undecodable("the file is cut short")
}

fn undecodable(reason: impl Into<String>) -> InputError {
    InputError::Undecodable { format: "WebP", reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exif_chunk_that_claims_gigabytes_is_ignored_and_the_pixels_are_decoded() {
        let sound = include_bytes!("../../../../tests/fixtures/input/orientation-6.webp");
        let at = sound.windows(4).position(|w| w == b"EXIF").unwrap();
        let mut claims = sound.to_vec();
        claims[at + 4..at + 8].copy_from_slice(&0xf000_0000u32.to_le_bytes());
        let limits = Limits::default();
        assert_eq!(decode(sound, &limits).unwrap().1, Orientation::Rotate90);
        assert_eq!(decode(&claims, &limits).unwrap().1, Orientation::NoTransforms);
    }
}
