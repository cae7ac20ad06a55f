//! The orientation of a picture, from EXIF or else from XMP, as Pillow's `exif_transpose` reads it.
//!
//! A picture whose metadata cannot be read is not refused; it is not turned.
use std::borrow::Cow;
use std::collections::HashSet;

use image::metadata::Orientation;

const EXIF: &[u8] = b"Exif\0\0";
const XMP: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
/// The TIFF tag `Orientation`.
const TAG: u16 = 274;

/// The metadata of a file.
#[derive(Debug, Default)]
pub(super) struct Metadata<'a> {
    /// EXIF: a TIFF file, with or without `Exif\0\0` before it.
    pub exif: Option<Cow<'a, [u8]>>,
    /// XMP, as XML.
    pub xmp: Option<Cow<'a, [u8]>>,
}

impl Metadata<'_> {
    /// The orientation in EXIF, or in XMP where EXIF states none. No transform where the stated value is not
    /// 1 to 8, where neither states one, or where EXIF cannot be read.
    pub(super) fn orientation(&self) -> Orientation {
        let stated = match self.exif.as_deref().map(of_exif) {
            Some(Err(Unreadable)) => None,
            Some(Ok(Some(value))) => Some(value),
            None | Some(Ok(None)) => self.xmp.as_deref().and_then(of_xmp),
        };
        stated
            .filter(|value| value.fract() == 0.0 && (1.0..=8.0).contains(value))
            .and_then(|value| Orientation::from_exif(value as u8))
            .unwrap_or(Orientation::NoTransforms)
    }
}

/// The orientation of a JPEG file, from its segments before the first scan. Several EXIF segments are the
/// parts of a single one.
pub(super) fn of_jpeg(bytes: &[u8]) -> Orientation {
    let mut metadata = Metadata::default();
    for segment in app1_segments(bytes) {
        if let Some(continued) = segment.strip_prefix(EXIF) {
            match &mut metadata.exif {
                Some(exif) => exif.to_mut().extend_from_slice(continued),
                none => *none = Some(Cow::Borrowed(segment)),
            }
        } else if let Some(xmp) = segment.strip_prefix(XMP) {
            metadata.xmp = Some(Cow::Borrowed(xmp));
        }
    }
    metadata.orientation()
}

/// The contents of the APP1 segments before the first scan.
fn app1_segments(jpeg: &[u8]) -> Vec<&[u8]> {
    const APP1: u8 = 0xe1;
    const START_OF_SCAN: u8 = 0xda;
    let (mut rest, mut segments) = (jpeg, Vec::new());
    while let [byte, after @ ..] = rest {
        rest = after;
        if *byte != 0xff {
            continue;
        }
        // Fill bytes may stand before a marker's code.
        while let [0xff, after @ ..] = rest {
            rest = after;
        }
        let [code, after @ ..] = rest else { break };
        rest = after;
        match *code {
            // A stuffed zero, restarts, start and end of image, and the reserved JPEG extensions have no
            // contents.
            0 | 0xc8 | 0xd0..=0xd9 | 0xf0..=0xfd => continue,
            START_OF_SCAN => break,
            _ => {}
        }
        let Some((length, after)) = rest.split_first_chunk() else { break };
        let Some((contents, after)) = usize::from(u16::from_be_bytes(*length)).checked_sub(2).and_then(|n| after.split_at_checked(n))
        else {
            break;
        };
        if *code == APP1 {
            segments.push(contents);
        }
        rest = after;
    }
    segments
}

/// The EXIF data is not a TIFF file.
struct Unreadable;

/// The first value of the tag `Orientation` in the first directory, valid or not; `None` where there is no
/// such tag. A tag whose type is not numeric counts as 0.
fn of_exif(exif: &[u8]) -> Result<Option<f64>, Unreadable> {
    let tiff = exif.strip_prefix(EXIF).map_or(exif, |rest| rest.strip_prefix(EXIF).unwrap_or(rest));
    if tiff.is_empty() {
        return Ok(None);
    }
    let little = match tiff.get(..4) {
        Some(b"II*\0" | b"II\0*") => true,
        Some(b"MM\0*" | b"MM*\0" | b"MM\0+") => false,
        _ => return Err(Unreadable),
    };
    let reader = Tiff { bytes: tiff, little };
    let directory = reader.u32(4).ok_or(Unreadable)? as usize;
    Ok(reader.first_value(directory, TAG))
}

/// A classic TIFF file of either byte order. Reads beyond its end give `None`.
struct Tiff<'a> {
    bytes: &'a [u8],
    little: bool,
}

impl Tiff<'_> {
    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let mut array: [u8; N] = *self.bytes.get(at..)?.first_chunk()?;
        if !self.little {
            array.reverse();
        }
        Some(array)
    }

    fn u16(&self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    /// The first value of the tag `wanted` in the directory at `at`, from the first entry of the tag that can
    /// be read. As in Pillow, the search ends at the first entry that points beyond the file, and entries are
    /// skipped once the entries before them claim more bytes than the file has.
    fn first_value(&self, at: usize, wanted: u16) -> Option<f64> {
        let entries = self.u16(at)?;
        let (mut read, mut claimed) = (HashSet::new(), 0u64);
        for entry in 0..usize::from(entries) {
            let entry = at + 2 + 12 * entry;
            let (tag, kind, count) = (self.u16(entry)?, self.u16(entry + 2)?, self.u32(entry + 4)?);
            let inline = entry + 8;
            // An entry that is cut off is not read.
            let offset = self.u32(inline)? as usize;
            let Some(unit) = unit(kind).filter(|_| !read.contains(&tag)) else { continue };
            let size = u64::from(count) * unit;
            let value = if size > 4 {
                claimed += size;
                if claimed > self.bytes.len() as u64 {
                    continue;
                }
                // At most the file's length, by the line above.
                self.bytes.get(offset..)?.get(..size as usize)?;
                offset
            } else {
                inline
            };
            if size == 0 {
                continue;
            }
            if tag == wanted {
                return Some(self.number(kind, value).unwrap_or(0.0));
            }
            read.insert(tag);
        }
        None
    }

    /// The number at `at`; `None` for bytes and text, which Pillow does not read as numbers.
    fn number(&self, kind: u16, at: usize) -> Option<f64> {
        let ratio = |above: f64, below: f64| above / below;
        Some(match kind {
            3 => self.u16(at)?.into(),
            4 | 13 => self.u32(at)?.into(),
            5 => ratio(self.u32(at)?.into(), self.u32(at + 4)?.into()),
            6 => (self.array::<1>(at)?[0] as i8).into(),
            8 => (self.u16(at)? as i16).into(),
            9 => (self.u32(at)? as i32).into(),
            10 => ratio((self.u32(at)? as i32).into(), (self.u32(at + 4)? as i32).into()),
            11 => f32::from_le_bytes(self.array(at)?).into(),
            12 => f64::from_le_bytes(self.array(at)?),
            16 => u64::from_le_bytes(self.array(at)?) as f64,
            _ => return None,
        })
    }
}

/// The bytes of one value of a TIFF type; `None` for a type that Pillow does not read.
fn unit(kind: u16) -> Option<u64> {
    match kind {
        1 | 2 | 6 | 7 => Some(1),
        3 | 8 => Some(2),
        4 | 9 | 11 | 13 => Some(4),
        5 | 10 | 12 | 16 => Some(8),
        _ => None,
    }
}

/// The digit of the first `tiff:Orientation="6"` or `<tiff:Orientation>6`.
fn of_xmp(xmp: &[u8]) -> Option<f64> {
    const NAME: &[u8] = b"tiff:Orientation";
    let starts = (0..xmp.len()).filter(|&at| xmp[at..].starts_with(NAME));
    starts.map(|at| &xmp[at + NAME.len()..]).find_map(|rest| match rest {
        [b'=', b'"', digit @ b'0'..=b'9', ..] | [b'>', digit @ b'0'..=b'9', ..] => Some(f64::from(digit - b'0')),
        _ => None,
    })
}
