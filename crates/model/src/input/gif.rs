//! The first frame of a GIF, as Pillow shows it: on a screen that grows to hold the frame, above the frame's
//! transparent colour, or else above the palette's first colour.
use image::{DynamicImage, RgbImage, RgbaImage};
use weezl::{BitOrder, LzwStatus, decode::Decoder};

use super::{InputError, Limits};

/// The first frame.
///
/// # Errors
/// A limit is passed, or the file is damaged or cut short.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<DynamicImage, InputError> {
    let gif = Gif::read(bytes)?;
    gif.check(limits)?;
    let indices = gif.screen()?;
    let (width, height) = (gif.width, gif.height);
    // At most 256 colours; what a palette does not state is black.
    let mut colours = [[0, 0, 0, 255u8]; 256];
    match gif.palette {
        Some(palette) => colours.iter_mut().zip(palette.chunks_exact(3)).for_each(|(colour, rgb)| colour[..3].copy_from_slice(rgb)),
        None => (0..=255u8).zip(&mut colours).for_each(|(value, colour)| *colour = [value, value, value, 255]),
    }
    let image = match gif.transparent {
        Some(index) => {
            colours[usize::from(index)][3] = 0;
            let pixels = indices.iter().flat_map(|&index| colours[usize::from(index)]).collect();
            RgbaImage::from_raw(width, height, pixels).map(DynamicImage::from)
        }
        None => {
            let pixels = indices.iter().flat_map(|&index| *colours[usize::from(index)].first_chunk::<3>().expect("3 of 4")).collect();
            RgbImage::from_raw(width, height, pixels).map(DynamicImage::from)
        }
    };
    Ok(image.expect("a colour for each of the screen's pixels"))
}

/// Bytes of the decoded pixels, as the headers of the file and of its first frame claim.
///
/// # Errors
/// A limit is passed, or a header is damaged.
pub(super) fn decoded_bytes(bytes: &[u8], limits: &Limits) -> Result<u64, InputError> {
    Gif::read(bytes)?.check(limits)
}

/// A file up to the pixels of its first frame.
struct Gif<'a> {
    width: u32,
    height: u32,
    frame: Frame,
    /// RGB, the frame's or else the screen's; `None` where there is no palette but the ramp of greys: an
    /// index is a grey value then.
    palette: Option<&'a [u8]>,
    transparent: Option<u8>,
    /// From the first code size on: sub-blocks of LZW codes.
    data: &'a [u8],
}

#[derive(Clone, Copy)]
struct Frame {
    left: u32,
    top: u32,
    width: u32,
    height: u32,
    interlaced: bool,
}

impl<'a> Gif<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, InputError> {
        let mut rest = bytes;
        let header = *take::<13>(&mut rest)?;
        let screen_palette = palette(header[10], &mut rest)?;
        let mut transparent = None;
        loop {
            match take::<1>(&mut rest)? {
                b"!" => {
                    let [label] = *take::<1>(&mut rest)?;
                    let first = sub_block(&mut rest)?;
                    if label == 0xf9
                        && let [flags, _, _, index, ..] = *first
                        && flags & 1 != 0
                    {
                        transparent = Some(index);
                    }
                    let mut block = first;
                    while !block.is_empty() {
                        block = sub_block(&mut rest)?;
                    }
                }
                b"," => break,
                b";" => return Err(undecodable("it has no picture")),
                // What is no block is skipped.
                _ => {}
            }
        }
        let descriptor = *take::<9>(&mut rest)?;
        let side = |bytes: &[u8], at: usize| u32::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        let frame = Frame {
            left: side(&descriptor, 0),
            top: side(&descriptor, 2),
            width: side(&descriptor, 4),
            height: side(&descriptor, 6),
            interlaced: descriptor[8] & 0x40 != 0,
        };
        let frame_palette = palette(descriptor[8], &mut rest)?;
        let colours = |palette: &&[u8]| !is_ramp(palette);
        Ok(Self {
            width: side(&header, 6).max(frame.left + frame.width),
            height: side(&header, 8).max(frame.top + frame.height),
            frame,
            palette: frame_palette.filter(colours).or(screen_palette.filter(colours)),
            transparent,
            data: rest,
        })
    }

    /// Bytes of the decoded pixels: an index and a colour for each.
    fn check(&self, limits: &Limits) -> Result<u64, InputError> {
        let decoded = u64::from(self.width) * u64::from(self.height) * if self.transparent.is_some() { 5 } else { 4 };
        limits.check_header(self.width, self.height, decoded)?;
        Ok(decoded)
    }

    /// The palette's index of each pixel of the screen.
    fn screen(&self) -> Result<Vec<u8>, InputError> {
        let frame = self.frame;
        if frame.width == 0 || frame.height == 0 {
            return Err(undecodable("its first frame has no pixels"));
        }
        let (width, height) = (frame.width as usize, frame.height as usize);
        let pixels = self.pixels(width * height)?;
        if (self.width, self.height) == (frame.width, frame.height) && !frame.interlaced {
            return Ok(pixels);
        }
        let stride = self.width as usize;
        let mut screen = vec![self.transparent.unwrap_or(0); stride * self.height as usize];
        let mut put = |row: usize, pixels: &[u8]| {
            let start = (frame.top as usize + row) * stride + frame.left as usize;
            screen[start..start + width].copy_from_slice(pixels);
        };
        let rows = pixels.chunks_exact(width);
        if frame.interlaced {
            let passes = [(0, 8), (4, 8), (2, 4), (1, 2)];
            let order = passes.into_iter().flat_map(|(first, step)| (first..height).step_by(step));
            order.zip(rows).for_each(|(row, pixels)| put(row, pixels));
        } else {
            rows.enumerate().for_each(|(row, pixels)| put(row, pixels));
        }
        Ok(screen)
    }

    /// The frame's pixels in the order of the file. What follows the last one is not read.
    fn pixels(&self, count: usize) -> Result<Vec<u8>, InputError> {
        let mut rest = self.data;
        let [size] = *take::<1>(&mut rest)?;
        if !(1..=11).contains(&size) {
            return Err(undecodable(format!("its codes begin with {size} bits")));
        }
        let mut decoder = Decoder::new(BitOrder::Lsb, size);
        let mut pixels = vec![0; count];
        let mut filled = 0;
        while filled < count {
            let mut codes = sub_block(&mut rest)?;
            let last = codes.is_empty();
            loop {
                let step = decoder.decode_bytes(codes, &mut pixels[filled..]);
                codes = &codes[step.consumed_in..];
                filled += step.consumed_out;
                // Without new codes the decoder may still hold pixels of those before.
                if filled == count || step.consumed_in == 0 && step.consumed_out == 0 {
                    break;
                }
                match step.status {
                    Ok(LzwStatus::Done) => return Err(undecodable("its first frame has too few pixels")),
                    Ok(_) => {}
                    Err(error) => return Err(undecodable(error.to_string())),
                }
            }
            if last && filled < count {
                return Err(undecodable("its first frame has too few pixels"));
            }
        }
        Ok(pixels)
    }
}

/// The palette that `flags` announce.
fn palette<'a>(flags: u8, rest: &mut &'a [u8]) -> Result<Option<&'a [u8]>, InputError> {
    if flags & 0x80 == 0 {
        return Ok(None);
    }
    let (palette, after) = rest.split_at_checked(3 << ((flags & 7) + 1)).ok_or_else(cut)?;
    *rest = after;
    Ok(Some(palette))
}

fn is_ramp(palette: &[u8]) -> bool {
    (0..=255).zip(palette.chunks_exact(3)).all(|(value, rgb)| rgb == [value; 3])
}

/// A sub-block's contents; empty at the end of a block.
fn sub_block<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], InputError> {
    let [length] = *take::<1>(rest)?;
    let (block, after) = rest.split_at_checked(length.into()).ok_or_else(cut)?;
    *rest = after;
    Ok(block)
}

fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Result<&'a [u8; N], InputError> {
    let (taken, after) = rest.split_first_chunk().ok_or_else(cut)?;
    *rest = after;
    Ok(taken)
}

fn cut() -> InputError {
    undecodable("the file is cut short")
}

fn undecodable(reason: impl Into<String>) -> InputError {
    InputError::Undecodable { format: "GIF", reason: reason.into() }
}
