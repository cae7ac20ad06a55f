//! The segments of a JPEG (ITU-T T.81, annex B), as far as they decide whether and how its coded data is
//! decoded.

const START_OF_IMAGE: u8 = 0xd8;
const END_OF_IMAGE: u8 = 0xd9;
const START_OF_SCAN: u8 = 0xda;
const HUFFMAN_TABLES: u8 = 0xc4;
const ARITHMETIC_CONDITIONS: u8 = 0xcc;
const HIERARCHY: u8 = 0xde;
const JPEG_LS: u8 = 0xf7;

/// The segments before the first scan.
#[derive(Debug, Default)]
pub(super) struct Header {
    /// The marker of the frame header; `None` where there is none before the first scan.
    frame: Option<u8>,
    precision: u8,
    height: u16,
    /// The identifiers of the components.
    pub(super) components: Vec<u8>,
    /// Whether there is a JFIF marker.
    pub(super) jfif: bool,
    /// The transform in the last Adobe marker.
    pub(super) adobe_transform: Option<u8>,
    /// Where in the file an Adobe marker states a transform other than 0, 1 and 2.
    pub(super) unknown_adobe_transforms: Vec<usize>,
    hierarchical: bool,
}

impl Header {
    /// The header of a file, as far as its segments can be read.
    pub(super) fn read(jpeg: &[u8]) -> Self {
        let mut header = Self::default();
        for Segment { marker, at, content } in segments(jpeg) {
            match (marker, content) {
                (START_OF_SCAN, _) => break,
                (0xe0, content) if content.len() >= 12 && content.starts_with(b"JFIF\0") => header.jfif = true,
                (0xee, content) if content.len() >= 12 && content.starts_with(b"Adobe") => {
                    header.adobe_transform = Some(content[11]);
                    if content[11] > 2 {
                        header.unknown_adobe_transforms.push(at + 11);
                    }
                }
                (HIERARCHY, _) => header.hierarchical = true,
                (0xc0..=0xcf | JPEG_LS, _)
                    if !matches!(marker, HUFFMAN_TABLES | ARITHMETIC_CONDITIONS | 0xc8) && header.frame.is_none() =>
                {
                    header.frame = Some(marker);
                    if let [precision, high, low, _, _, _, components @ ..] = content {
                        (header.precision, header.height) = (*precision, u16::from_be_bytes([*high, *low]));
                        header.components = components.chunks_exact(3).map(|component| component[0]).collect();
                    }
                }
                _ => {}
            }
        }
        header
    }

    /// Whether the coding is baseline or extended sequential, with Huffman codes.
    pub(super) fn sequential(&self) -> bool {
        matches!(self.frame, Some(0xc0 | 0xc1))
    }

    /// The name of the coding, if it is not supported.
    pub(super) fn unsupported(&self) -> Option<String> {
        if self.hierarchical {
            return Some("hierarchical coding".to_owned());
        }
        Some(match self.frame? {
            JPEG_LS => "JPEG-LS coding".to_owned(),
            0xc5..=0xc7 | 0xcd..=0xcf => "hierarchical coding".to_owned(),
            0xc9..=0xcb => "arithmetic coding".to_owned(),
            0xc3 => "lossless coding".to_owned(),
            _ if !matches!(self.precision, 0 | 8) => format!("{}-bit samples", self.precision),
            _ if !self.components.is_empty() && self.height == 0 => "its height stated after the picture (DNL)".to_owned(),
            _ if !matches!(self.components.len(), 0 | 1 | 3 | 4) => format!("{} components", self.components.len()),
            _ => return None,
        })
    }
}

/// The scans of a file.
#[derive(Debug, Default, PartialEq)]
pub(super) struct CodedData {
    /// The number of scans.
    pub(super) scans: usize,
    /// Whether an end-of-image marker was found. Data after it, such as a second picture, is not read.
    pub(super) ended: bool,
    /// Whether no marker follows the last scan.
    pub(super) ends_in_scan: bool,
    /// The number of components of the last scan.
    pub(super) components: usize,
    /// Whether a scan uses a Huffman table that was not defined before it.
    pub(super) lacks_huffman_tables: bool,
}

impl CodedData {
    /// The scans of a file; `None` where the file ends within a segment.
    pub(super) fn of(jpeg: &[u8]) -> Option<Self> {
        let mut coded = Self::default();
        // `defined[class][slot]`, class 0 of DC coefficients and 1 of AC coefficients.
        let mut defined = [[false; 4]; 2];
        let mut walk = segments(jpeg);
        for Segment { marker, content, .. } in walk.by_ref() {
            coded.ends_in_scan = marker == START_OF_SCAN;
            match marker {
                END_OF_IMAGE => {
                    coded.ended = true;
                    break;
                }
                HUFFMAN_TABLES => define(content, &mut defined),
                START_OF_SCAN => {
                    coded.scans += 1;
                    coded.components = content.first().copied().unwrap_or(0).into();
                    let components = content.get(1..).unwrap_or_default().chunks_exact(2).take(coded.components);
                    let mut used = components.flat_map(|component| [(0, component[1] >> 4), (1, component[1] & 15)]);
                    coded.lacks_huffman_tables |= used.any(|(class, slot)| slot < 2 && !defined[class][usize::from(slot)]);
                }
                _ => {}
            }
        }
        (!walk.cut).then_some(coded)
    }
}

/// Marks the tables that a segment of Huffman tables defines.
fn define(mut tables: &[u8], defined: &mut [[bool; 4]; 2]) {
    while let [class_and_slot, rest @ ..] = tables {
        let Some((counts, values)) = rest.split_first_chunk::<16>() else { return };
        if let Some(table) =
            defined.get_mut(usize::from(class_and_slot >> 4)).and_then(|class| class.get_mut(usize::from(class_and_slot & 15)))
        {
            *table = true;
        }
        tables = values.get(counts.iter().map(|&n| usize::from(n)).sum()..).unwrap_or_default();
    }
}

/// One segment.
#[derive(Debug)]
struct Segment<'a> {
    marker: u8,
    /// Where the content begins in the file, in bytes.
    at: usize,
    /// The content without the two bytes of its length; empty for a marker without content.
    content: &'a [u8],
}

fn segments(jpeg: &[u8]) -> Segments<'_> {
    Segments { jpeg, at: 0, cut: false }
}

/// The segments in the order of the file, up to the first one that is cut off. The coded data between
/// segments is skipped.
struct Segments<'a> {
    jpeg: &'a [u8],
    at: usize,
    /// Whether the file ended within a segment.
    cut: bool,
}

impl<'a> Iterator for Segments<'a> {
    type Item = Segment<'a>;

    fn next(&mut self) -> Option<Segment<'a>> {
        let code = self.at + next_marker(&self.jpeg[self.at..])?;
        let (marker, at) = (self.jpeg[code], code + 1);
        if matches!(marker, START_OF_IMAGE | END_OF_IMAGE) {
            self.at = at;
            return Some(Segment { marker, at, content: &[] });
        }
        let rest = &self.jpeg[at..];
        let length = rest.first_chunk().map(|length| usize::from(u16::from_be_bytes(*length)));
        match length.and_then(|length| rest.get(..length)) {
            Some(segment) => {
                self.at = at + segment.len();
                Some(Segment { marker, at: at + 2, content: segment.get(2..).unwrap_or_default() })
            }
            None => {
                self.cut = true;
                None
            }
        }
    }
}

/// The index of the next marker's code: a byte after 0xff that is neither a stuffed zero, nor a fill byte,
/// nor a restart marker.
fn next_marker(bytes: &[u8]) -> Option<usize> {
    (1..bytes.len()).find(|&i| bytes[i - 1] == 0xff && !matches!(bytes[i], 0 | 0xff | 0xd0..=0xd7))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jpeg_has_ended_only_with_its_own_end_marker() {
        // A comment that holds an end marker, a scan with a stuffed zero and a restart marker, then the end.
        let whole = [0xff, 0xd8, 0xff, 0xfe, 0, 4, 0xff, 0xd9, 0xff, 0xda, 0, 3, 0, 1, 0xff, 0, 2, 0xff, 0xd0, 3, 0xff, 0xd9];
        let ended = |jpeg: &[u8]| CodedData::of(jpeg).is_some_and(|coded| coded.ended && coded.scans == 1);
        assert!(ended(&whole));
        for cut in 0..whole.len() {
            assert!(!ended(&whole[..cut]), "cut at {cut}");
        }
        assert!(ended(&[&whole[..], &[1, 2, 3]].concat()));
    }

    #[test]
    fn a_segment_of_length_zero_or_one_is_passed() {
        let jpeg = [0xff, 0xd8, 0xff, 0xfe, 0, 0, 0xff, 0xfe, 0, 1, 0xff, 0xda, 0, 0, 0xff, 0xd9];
        assert_eq!(CodedData::of(&jpeg), Some(CodedData { scans: 1, ended: true, ..CodedData::default() }));
    }
}
