//! The type of a file by its first bytes: the types that are decoded, and the names of other data that is
//! sent in place of an image.

/// An image type that is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Jpeg,
    Png,
    WebP,
    Gif,
    Bmp,
}

impl Format {
    /// The type's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WebP",
            Self::Gif => "GIF",
            Self::Bmp => "BMP",
        }
    }
}

/// A kind of other data. It decides the advice in the message.
#[derive(Clone, Copy)]
enum Kind {
    Image,
    Video,
    Audio,
    Document,
    Packed,
    Model,
}

use Kind::{Audio, Document, Image, Model, Packed, Video};

/// `(offset, bytes at the offset, kind, name)`. The first row that matches counts.
const SIGNATURES: &[(usize, &[u8], Kind, &str)] = &[
    (0, b"II*\0", Image, "TIFF"),
    (0, b"MM\0*", Image, "TIFF"),
    (0, b"II+\0", Image, "BigTIFF"),
    (0, b"MM\0+", Image, "BigTIFF"),
    (0, b"II\xbc\x01", Image, "JPEG XR"),
    (0, b"IIRO", Image, "Olympus raw (ORF)"),
    (0, b"IIU\0", Image, "Panasonic raw (RW2)"),
    (0, b"FUJIFILMCCD-RAW", Image, "Fujifilm raw (RAF)"),
    (0, b"FOVb", Image, "Sigma raw (X3F)"),
    (0, b"8BPS", Image, "a Photoshop document (PSD)"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", Image, "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", Image, "JPEG 2000"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", Image, "JPEG XL"),
    (0, b"\xff\x0a", Image, "JPEG XL"),
    (0, b"\0\0\x01\0", Image, "an icon (ICO)"),
    (0, b"\0\0\x02\0", Image, "a cursor (CUR)"),
    (0, b"icns", Image, "an icon (ICNS)"),
    (0, b"qoif", Image, "QOI"),
    (0, b"#?RADIANCE", Image, "Radiance HDR"),
    (0, b"#?RGBE", Image, "Radiance HDR"),
    (0, b"\x76\x2f\x31\x01", Image, "OpenEXR"),
    (0, b"DDS ", Image, "DDS"),
    (0, b"\xabKTX ", Image, "KTX"),
    (0, b"farbfeld", Image, "farbfeld"),
    (0, b"FLIF", Image, "FLIF"),
    (0, b"BPG\xfb", Image, "BPG"),
    (0, b"\x8bJNG\r\n\x1a\n", Image, "JNG"),
    (0, b"\x8aMNG\r\n\x1a\n", Image, "MNG"),
    (0, b"\x0a\x05\x01\x08", Image, "PCX"),
    (0, b"gimp xcf", Image, "a GIMP picture (XCF)"),
    (0, b"AT&TFORM", Image, "DjVu"),
    (0, b"SIMPLE  =", Image, "FITS"),
    (128, b"DICM", Image, "DICOM"),
    (0, b"\xd7\xcd\xc6\x9a", Image, "WMF"),
    (0, b"\x01\0\0\0\x6c\0\0\0", Image, "EMF"),
    (0, b"\x01\0\0\0\x58\0\0\0", Image, "EMF"),
    (0, b"/* XPM */", Image, "XPM"),
    (0, b"%!PS-Adobe-3.0 EPSF", Image, "EPS"),
    (0, b"\xc5\xd0\xd3\xc6", Image, "EPS"),
    (0, b"%!PS", Document, "PostScript"),
    (0, b"%PDF-", Document, "PDF"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", Document, "an old Office document"),
    (0, b"{\\rtf", Document, "RTF"),
    (0, b"\x1a\x45\xdf\xa3", Video, "Matroska or WebM"),
    (0, b"FLV\x01", Video, "Flash video"),
    (0, b"\0\0\x01\xba", Video, "MPEG"),
    (0, b"\0\0\x01\xb3", Video, "MPEG"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", Video, "Windows Media"),
    (8, b"AVI ", Video, "AVI"),
    (4, b"moov", Video, "QuickTime"),
    (4, b"mdat", Video, "QuickTime"),
    (4, b"wide", Video, "QuickTime"),
    (8, b"WAVE", Audio, "WAV"),
    (0, b"ID3", Audio, "MP3"),
    (0, b"fLaC", Audio, "FLAC"),
    (0, b"OggS", Audio, "Ogg"),
    (8, b"ACON", Image, "an animated cursor (ANI)"),
    (0, b"PK\x03\x04", Packed, "ZIP"),
    (0, b"PK\x05\x06", Packed, "ZIP"),
    (0, b"\x1f\x8b", Packed, "gzip"),
    (0, b"BZh", Packed, "bzip2"),
    (0, b"\xfd7zXZ\0", Packed, "xz"),
    (0, b"\x28\xb5\x2f\xfd", Packed, "Zstandard"),
    (0, b"7z\xbc\xaf\x27\x1c", Packed, "7-Zip"),
    (0, b"Rar!\x1a\x07", Packed, "RAR"),
    (257, b"ustar", Packed, "tar"),
    (0, b"\x93NUMPY", Model, "a NumPy array"),
    (0, b"\x89HDF\r\n\x1a\n", Model, "HDF5"),
    (0, b"\x80\x04\x95", Model, "a Python pickle"),
    (0, b"\x80\x05\x95", Model, "a Python pickle"),
];

/// Brands of ISO media files; the first row whose brand is in `ftyp` counts. Brands of a single type are
/// before brands that several types have.
const BRANDS: &[(&[u8; 4], Kind, &str)] = &[
    (b"avif", Image, "AVIF"),
    (b"avis", Image, "an AVIF sequence"),
    (b"heic", Image, "HEIC"),
    (b"heix", Image, "HEIC"),
    (b"heim", Image, "HEIC"),
    (b"heis", Image, "HEIC"),
    (b"hevc", Image, "a HEIC sequence"),
    (b"hevx", Image, "a HEIC sequence"),
    (b"hevm", Image, "a HEIC sequence"),
    (b"hevs", Image, "a HEIC sequence"),
    (b"mif1", Image, "HEIF"),
    (b"mif2", Image, "HEIF"),
    (b"msf1", Image, "a HEIF sequence"),
    (b"crx ", Image, "Canon raw (CR3)"),
    (b"qt  ", Video, "QuickTime"),
];

/// The first characters of files in base64 text, and their types.
const BASE64: &[(&str, &str)] = &[
    ("iVBORw0K", "a PNG"),
    ("/9j/", "a JPEG"),
    ("_9j_", "a JPEG"),
    ("R0lGOD", "a GIF"),
    ("UklGR", "a WebP"),
    ("Qk", "a BMP"),
    ("SUkqA", "a TIFF"),
    ("TU0AK", "a TIFF"),
    ("JVBERi", "a PDF"),
    ("PHN2Z", "an SVG"),
    ("PD94bWw", "an SVG or other XML"),
];

/// The first bytes of image files that were converted to UTF-8 as if they were text, and their types.
const RECODED: &[(&[u8], &str)] = &[
    (b"\xef\xbf\xbdPNG", "a PNG"),
    (b"\xc2\x89PNG", "a PNG"),
    (b"\xe2\x80\xb0PNG", "a PNG"),
    (b"?PNG\r\n", "a PNG"),
    (b"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd", "a JPEG"),
    (b"\xc3\xbf\xc3\x98\xc3\xbf", "a JPEG"),
];

/// The part of a text that is examined, in bytes.
const TEXT_START: usize = 4096;

/// The type of an image that is decoded.
///
/// # Errors
/// A sentence that says what the bytes are and what their sender can do.
pub(super) fn format_of(bytes: &[u8]) -> Result<Format, String> {
    match bytes {
        [0xff, 0xd8, 0xff, ..] => Ok(Format::Jpeg),
        [0xff, 0xd8] | [0xff] => Err("the image is cut to its first bytes: send the whole file".to_owned()),
        [b'\x89', b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Ok(Format::Png),
        [b'\x89', b'P', b'N', b'G', ..] => {
            Err("the bytes are a PNG that was changed as if it were text: send it in binary mode".to_owned())
        }
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Ok(Format::Gif),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Ok(Format::WebP),
        // A text may begin with these letters, so the length of the second header is checked too.
        [b'B', b'M', rest @ ..] if rest.get(12..16).is_none_or(|length| matches!(length, [12..=124, 0, 0, 0])) => Ok(Format::Bmp),
        _ => Err(described(bytes)),
    }
}

/// A sentence about bytes that are no image of a supported type.
fn described(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "there are no bytes in the image: leave the field out where there is none".to_owned();
    }
    if bytes.iter().all(|&byte| byte == 0) {
        return "the bytes are all zero: send the whole file".to_owned();
    }
    let begins = |at: usize, magic: &[u8]| bytes.get(at..).is_some_and(|bytes| bytes.starts_with(magic));
    if let Some((_, _, kind, name)) = SIGNATURES.iter().find(|(at, magic, ..)| begins(*at, magic)) {
        return advice(*kind, name);
    }
    if begins(4, b"ftyp") {
        let (kind, name) = of_brands(bytes);
        return advice(kind, name);
    }
    if let [b'P', b'1'..=b'7' | b'F' | b'f', b' ' | b'\t' | b'\r' | b'\n', ..] = bytes {
        return advice(Image, "PNM (PBM, PGM, PPM, PAM or PFM)");
    }
    if let Some((_, name)) = RECODED.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return format!("the bytes are {name} that was changed as if it were text: send it as bytes, not as a string");
    }
    of_text(bytes).unwrap_or_else(|| "the first bytes are those of no known image type".to_owned())
}

/// A sentence about data of this kind and name.
fn advice(kind: Kind, name: &str) -> String {
    match kind {
        Image => format!("the image is {name}, which is not supported: convert it to JPEG or PNG"),
        Video => format!("the bytes are a video ({name}), not an image: take a frame of it and save that as JPEG or PNG"),
        Audio => format!("the bytes are sound ({name}), not an image"),
        Document => format!("the bytes are a document ({name}), not an image: save a page of it as JPEG or PNG"),
        Packed => format!("the bytes are archived or compressed ({name}): unpack them and send the image itself"),
        Model => format!("the bytes are data ({name}), not an image file: save the picture as PNG"),
    }
}

/// The kind and the name of an ISO media file, by the brands in its first box; a video where no brand is
/// known.
fn of_brands(bytes: &[u8]) -> (Kind, &'static str) {
    let length = bytes.first_chunk().map_or(0, |&length| u32::from_be_bytes(length)).clamp(12, 256) as usize;
    let box_end = bytes.len().min(length);
    let major = bytes.get(8..12);
    let compatible = bytes.get(16..box_end).unwrap_or_default();
    let named = |brand: Option<&[u8]>| BRANDS.iter().find(|(known, ..)| brand == Some(&known[..])).map(|&(_, kind, name)| (kind, name));
    let generic = matches!(major, Some(b"mif1" | b"mif2" | b"msf1"));
    let by_compatible = || BRANDS.iter().find(|(known, ..)| compatible.chunks_exact(4).any(|brand| brand == &known[..]));
    match named(major) {
        Some(named) if !generic => named,
        other => by_compatible().map(|&(_, kind, name)| (kind, name)).filter(|_| generic).or(other).unwrap_or((Video, "MP4")),
    }
}

/// A sentence about a text in place of an image; `None` for bytes that are not text.
fn of_text(bytes: &[u8]) -> Option<String> {
    if let [0xff, 0xfe, ..] | [0xfe, 0xff, ..] = bytes {
        return Some(not_an_image("text in UTF-16"));
    }
    let start = &bytes[..bytes.len().min(TEXT_START)];
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
    // The last character may be cut.
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        Err(e) if e.error_len().is_none() => std::str::from_utf8(&start[..e.valid_up_to()]).ok()?,
        Err(_) => return None,
    };
    if text.chars().any(|c| c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\x0c')) {
        return None;
    }
    let text = text.trim_start();
    let lower = text.to_ascii_lowercase();
    let begins = |beginnings: &[&str]| beginnings.iter().any(|beginning| lower.starts_with(beginning));
    let unquoted = text.trim_start_matches(['"', '\'']);
    Some(if text.is_empty() {
        not_an_image("blank text")
    } else if lower.trim_start_matches(['"', '\'']).starts_with("data:") {
        "the bytes are a data URL: decode the base64 after its comma and send the bytes".to_owned()
    } else if begins(&["<svg"]) || begins(&["<?xml", "<!doctype svg", "<!--"]) && lower.contains("<svg") {
        advice(Image, "SVG")
    } else if begins(&["<!doctype html", "<html", "<head", "<body", "<script"]) || begins(&["<?xml", "<!--"]) && lower.contains("<html") {
        "the bytes are a web page (HTML), not an image: send the image that it shows; it may be the error page of a failed download"
            .to_owned()
    } else if begins(&["<?xml", "<"]) {
        not_an_image("XML")
    } else if begins(&["version https://git-lfs.github.com/spec/"]) {
        "the bytes are a Git LFS pointer, not the image: run `git lfs pull` and send the file that it points to".to_owned()
    } else if begins(&["b'\\x", "b\"\\x", "\\x89png", "\\xff\\xd8"]) {
        "the bytes are a string literal of an image: send the bytes themselves".to_owned()
    } else if begins(&["89504e47", "ffd8ff", "0x89504e47", "0xffd8ff", "47494638", "89 50 4e 47", "ff d8 ff"]) {
        "the bytes are an image in hexadecimal text: decode it and send the bytes".to_owned()
    } else if let Some(name) = of_base64(unquoted) {
        format!("the bytes are {name} in base64 text: decode it first and send the bytes")
    } else if begins(&["{", "["]) {
        not_an_image("JSON")
    } else if begins(&["--"]) && lower.contains("content-disposition:") {
        "the bytes are the body of an HTML form (multipart): send the file inside it".to_owned()
    } else if begins(&["http://", "https://", "ftp://", "s3://", "gs://", "file://"]) {
        "the bytes are a URL, not the image: fetch the image and send its bytes".to_owned()
    } else if is_path(text.trim_end()) {
        "the bytes are a file's name, not the image: read the file and send its bytes".to_owned()
    } else {
        not_an_image("text")
    })
}

fn not_an_image(what: &str) -> String {
    format!("the bytes are {what}, not an image: a text belongs in the field `text`")
}

/// The type of the file in a base64 text; `None` for other text.
fn of_base64(text: &str) -> Option<&'static str> {
    let digit = |byte: u8| byte.is_ascii_alphanumeric() || b"+/-_=".contains(&byte);
    let all = text.bytes().all(|byte| digit(byte) || byte.is_ascii_whitespace() || byte == b'"' || byte == b'\'');
    let lines_are_long = text.split_ascii_whitespace().next().is_some_and(|line| line.len() >= 16);
    if !all || !lines_are_long {
        return None;
    }
    if text.starts_with("AAAA") && text.get(6..10) == Some("Z0eX") {
        return Some("a HEIC, AVIF or video file");
    }
    let known = BASE64.iter().find(|(beginning, _)| text.starts_with(beginning)).map(|(_, name)| *name);
    // A word of 200 characters is rare, and "//" is more likely in a path than in base64.
    known.or_else(|| (text.len() >= 200 && !text.contains("//")).then_some("something"))
}

/// Whether a text is one line that ends like the name of an image file or begins like a path.
fn is_path(line: &str) -> bool {
    let one = !line.contains('\n') && line.len() < TEXT_START;
    let ends = [".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif", ".svg", ".pdf"];
    let begins = ["/", "./", "../", "~/", "\\\\"];
    let drive = matches!(line.as_bytes(), [letter, b':', b'\\' | b'/', ..] if letter.is_ascii_alphabetic());
    let lower = line.to_ascii_lowercase();
    one && (ends.iter().any(|end| lower.ends_with(end)) || begins.iter().any(|beginning| line.starts_with(beginning)) || drive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_that_is_no_supported_image_is_named_with_advice() {
        let ftyp = |brands: &[u8]| [&(16 + brands.len() as u32 - 8).to_be_bytes(), &b"ftyp"[..], brands].concat();
        let utf16 = [&[0xff, 0xfe][..], b"h\0i\0"].concat();
        for (bytes, words) in [
            (&ftyp(b"heic\0\0\0\0mif1heic")[..], &["HEIC", "convert it to JPEG or PNG"][..]),
            (&ftyp(b"mif1\0\0\0\0mif1heic"), &["HEIC"]),
            (&ftyp(b"mif1\0\0\0\0mif1miaf"), &["HEIF"]),
            (&ftyp(b"mif1\0\0\0\0avifmif1"), &["AVIF"]),
            (&ftyp(b"avis\0\0\0\0avifmsf1"), &["AVIF sequence"]),
            (&ftyp(b"msf1\0\0\0\0msf1hevc"), &["HEIC sequence"]),
            (&ftyp(b"crx \0\0\0\0crx isom"), &["CR3"]),
            (&ftyp(b"isom\0\0\0\0isomavc1"), &["video (MP4)", "a frame"]),
            (&ftyp(b"qt  \0\0\0\0qt  "), &["QuickTime"]),
            (b"\0\0\0\x18ftypheic", &["HEIC"]),
            (b"\x1a\x45\xdf\xa3\x01\0", &["WebM"]),
            (b"RIFF\0\0\0\0AVI LIST", &["AVI"]),
            (b"RIFF\0\0\0\0WAVEfmt ", &["sound"]),
            (b"<svg xmlns='http://www.w3.org/2000/svg'/>", &["SVG", "convert"]),
            (b"<?xml version=\"1.0\"?>\n<!-- drawn -->\n<svg/>", &["SVG"]),
            (b"<?xml version=\"1.0\"?><Error><Code>NoSuchKey</Code></Error>", &["XML"]),
            (b"\xef\xbb\xbf  <!DOCTYPE HTML><html>", &["HTML", "send the image"]),
            (b"%PDF-1.7 ...", &["PDF", "page"]),
            (b"%!PS-Adobe-3.0 EPSF-3.0", &["EPS"]),
            (b"%!PS-Adobe-3.0\n", &["PostScript"]),
            (b"8BPS\0\x01", &["PSD"]),
            (b"\0\0\0\x0cjP  \r\n\x87\n", &["JPEG 2000"]),
            (b"\xff\x4f\xff\x51\0", &["JPEG 2000"]),
            (b"\xff\x0a\xfa", &["JPEG XL"]),
            (b"\0\0\0\x0cJXL \r\n\x87\n", &["JPEG XL"]),
            (b"II*\0\x08\0\0\0", &["TIFF"]),
            (b"\0\0\x01\0\x01\0", &["ICO"]),
            (b"P6\n2 2\n255\n", &["PNM"]),
            (b"qoif\0\0", &["QOI"]),
            (b"#?RADIANCE\n", &["HDR"]),
            (b"\x76\x2f\x31\x01", &["EXR"]),
            (b"DDS |\0", &["DDS"]),
            (b"farbfeld", &["farbfeld"]),
            (b"\xd7\xcd\xc6\x9a\0", &["WMF"]),
            (b"PK\x03\x04\x14", &["ZIP", "unpack"]),
            (b"\x1f\x8b\x08", &["gzip", "unpack"]),
            (b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAAB", &["a PNG in base64", "decode it"]),
            (b"/9j/4AAQSkZJRgABAQAAAQABAAD", &["a JPEG in base64"]),
            (b"\"R0lGODlhAQABAIAAAAAAAP///yH5\"", &["a GIF in base64"]),
            (b"UklGRiQAAABXRUJQVlA4", &["a WebP in base64"]),
            (b"Qk1GAAAAAAAAADYAAAAo", &["a BMP in base64"]),
            (b"AAAAHGZ0eXBhdmlmAAAAAA==", &["HEIC, AVIF"]),
            (b"DATA:image/png;base64,iVBORw0KGgo=", &["data URL", "decode"]),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", &["LFS", "git lfs pull"]),
            (b"https://example.org/cat.png", &["URL", "fetch"]),
            (b"/home/me/pictures/cat.jpeg\n", &["file's name", "read the file"]),
            (b"C:\\cat.png", &["file's name"]),
            (b"{\"image\": 1}", &["JSON"]),
            (b"[137, 80, 78, 71]", &["JSON"]),
            (b"89504e470d0a1a0a0000000d", &["hexadecimal"]),
            (b"b'\\x89PNG\\r\\n'", &["literal"]),
            (b"--b1\r\nContent-Disposition: form-data; name=\"f\"\r\n", &["form"]),
            (b"\xef\xbf\xbdPNG\r\n\x1a\n", &["as if it were text"]),
            (b"\xc3\xbf\xc3\x98\xc3\xbf\xc3\xa0", &["as if it were text"]),
            (b"\x89PNG\n\x1a\n", &["as if it were text", "binary"]),
            (b"a photo of a cat", &["are text", "`text`"]),
            (b"BMW is a maker of cars and bikes", &["are text"]),
            (b"   \n", &["blank text"]),
            (&utf16, &["UTF-16"]),
            (b"", &["no bytes"]),
            (&[0; 100], &["all zero"]),
            (b"\xff\xd8", &["cut"]),
            (b"\x07\x13 nothing known", &["no known image type"]),
        ] {
            let found = format_of(bytes).unwrap_err();
            assert!(words.iter().all(|word| found.contains(word)), "{:?}: {found}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn supported_types_are_recognised_by_their_first_bytes() {
        for (bytes, format) in [
            (&b"\xff\xd8\xff\xe0"[..], Format::Jpeg),
            (b"\x89PNG\r\n\x1a\n", Format::Png),
            (b"GIF87a", Format::Gif),
            (b"RIFF\0\0\0\0WEBPVP8 ", Format::WebP),
            (b"BM\x46\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0", Format::Bmp),
            (b"BM\x46\0", Format::Bmp),
        ] {
            assert_eq!(format_of(bytes), Ok(format));
        }
    }

    #[test]
    fn a_text_that_is_cut_anywhere_is_refused_without_a_panic() {
        let text = "\u{feff}data:image/png;base64,\u{1f600}".repeat(300);
        for end in 0..text.len() {
            assert!(format_of(&text.as_bytes()[..end]).is_err());
        }
    }
}
