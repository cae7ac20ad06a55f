//! Decodes the first frame of a GIF as Pillow does: on a screen that is enlarged to hold the frame and is
//! filled with the frame's transparent colour, or else with the palette's first colour.
use image::{DynamicImage, RgbImage, RgbaImage};
use weezl::{BitOrder, LzwStatus, decode::Decoder};

use super::{InputError, Limits};

/// The first frame on its screen.
///
/// # Errors
/// A limit is exceeded, or the file is damaged or cut short.
pub(super) fn decode(bytes: &[u8], limits: &Limits) -> Result<DynamicImage, InputError> {
    let gif = Gif::read(bytes)?;
    gif.check(limits)?;
    let indices = gif.screen()?;
    let (width, height) = (gif.width, gif.height);
    // At most 256 colours; a colour that the palette does not state is black.
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

/// The bytes of the decoded pixels, according to the headers of the file and of its first frame.
///
/// # Errors
/// A limit is exceeded, or a header is damaged.
pub(super) fn decoded_bytes(bytes: &[u8], limits: &Limits) -> Result<u64, InputError> {
    Gif::read(bytes)?.check(limits)
}

/// A file up to its first frame. Width and height are those of the enlarged screen.
struct Gif<'a> {
    width: u32,
    height: u32,
    frame: Frame,
    /// The frame's palette or else the screen's, in RGB. `None` where there is none or it is the ramp of
    /// greys: an index is then a grey value.
    palette: Option<&'a [u8]>,
    /// The index of the transparent colour.
    transparent: Option<u8>,
    /// The frame's data: the size of the first code, then sub-blocks of LZW codes.
    data: &'a [u8],
}

/// Where the first frame lies on the screen, in pixels.
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
                // A byte that begins no block is skipped.
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

    /// The bytes of the decoded pixels, an index and a colour for each, if they are within the limits.
    fn check(&self, limits: &Limits) -> Result<u64, InputError> {
        let decoded = u64::from(self.width) * u64::from(self.height) * if self.transparent.is_some() { 5 } else { 4 };
        limits.check_header(self.width, self.height, decoded)?;
        Ok(decoded)
    }

    /// The index of the colour of each pixel of the screen.
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

    /// The frame's pixels in the order of the file. Data after the last pixel is not read.
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
                // The decoder may hold pixels of earlier codes and give them without new codes.
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

/// The palette, where bit 7 of `flags` says that there is one; its bits 0 to 2 give the length.
fn palette<'a>(flags: u8, rest: &mut &'a [u8]) -> Result<Option<&'a [u8]>, InputError> {
    if flags & 0x80 == 0 {
        return Ok(None);
    }
    let (palette, after) = rest.split_at_checked(3 << ((flags & 7) + 1)).ok_or_else(cut)?;
    *rest = after;
    Ok(Some(palette))
}

/// Whether a palette is the greys 0, 1, 2, … in order.
fn is_ramp(palette: &[u8]) -> bool {
    (0..=255).zip(palette.chunks_exact(3)).all(|(value, rgb)| rgb == [value; 3])
}

/// The contents of the next sub-block; empty at the end of a block.
fn sub_block<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], InputError> {
    let [length] = *take::<1>(rest)?;
    let (block, after) = rest.split_at_checked(length.into()).ok_or_else(cut)?;
    *rest = after;
    Ok(block)
}

/// The next `N` bytes, which are removed from `rest`.
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
