//! How a text that a person writes names a file: as a plain path, or as a `file:` URI (RFC 8089).
use std::path::{Path, PathBuf};

/// The schemes of addresses from which a server reads partitions.
pub const SCHEMES: [&str; 5] = ["http", "https", "s3", "gs", "az"];

/// What a text names.
#[derive(Debug, PartialEq, Eq)]
pub enum Named<'a> {
    /// A path, as it is written: nothing in it is decoded.
    Path(&'a Path),
    /// The absolute path of a `file:` URI, decoded.
    File(PathBuf),
    /// Something else, with `://` in it.
    Address,
}

/// Reads a path, a `file:` URI or an address.
///
/// # Errors
/// Why the text is none of them, to be appended to the text.
pub fn parse(text: &str) -> Result<Named<'_>, String> {
    if text.contains('\0') {
        return Err("holds a NUL byte, which no path does".to_owned());
    }
    let Some((scheme, rest)) = text.split_once(':') else { return Ok(Named::Path(Path::new(text))) };
    if scheme.eq_ignore_ascii_case("file") {
        return file(rest).map(Named::File);
    }
    if rest.starts_with("//") {
        return Ok(Named::Address);
    }
    if SCHEMES.iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        let scheme = scheme.to_ascii_lowercase();
        return Err(format!("lacks the // after its scheme: write {scheme}://{}", rest.trim_start_matches('/')));
    }
    Ok(Named::Path(Path::new(text)))
}

/// The path of a `file:` URI, from what follows the colon.
fn file(rest: &str) -> Result<PathBuf, String> {
    let path = match rest.strip_prefix("//") {
        None => rest,
        Some(rest) => {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            if !host.is_empty() && !host.eq_ignore_ascii_case("localhost") {
                return Err(format!(
                    "names the host {host:?}, and a file: address is one of the machine that reads it: write file:///, then the path from the root on"
                ));
            }
            path
        }
    };
    if !path.starts_with('/') {
        return Err("names no absolute path: write file:///, then the path from the root on".to_owned());
    }
    let bytes: Vec<u8> = percent_encoding::percent_decode_str(path).collect();
    if bytes.contains(&0) {
        return Err("holds a NUL byte, which no path does".to_owned());
    }
    from_bytes(bytes)
}

#[cfg(unix)]
fn from_bytes(bytes: Vec<u8>) -> Result<PathBuf, String> {
    Ok(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(bytes).into())
}

#[cfg(not(unix))]
fn from_bytes(bytes: Vec<u8>) -> Result<PathBuf, String> {
    String::from_utf8(bytes).map(Into::into).map_err(|_| "holds bytes that are no UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_addresses_are_decoded_and_plain_paths_are_not() {
        // The first four are what Python's `pathlib.Path.as_uri` writes, and the forms of RFC 8089, appendix
        // B.
        for (text, path) in [
            ("file:///srv/sub%20dir%20%C3%A9/o%20b.safetensors", "/srv/sub dir é/o b.safetensors"),
            ("file:///srv/a%23b%3Fc%25d", "/srv/a#b?c%d"),
            ("file:/srv/a", "/srv/a"),
            ("file://localhost/srv/a", "/srv/a"),
            ("FILE://LocalHost/srv/a", "/srv/a"),
            ("file:///srv/a b#c?d", "/srv/a b#c?d"),
            ("file:///srv/100%.safetensors", "/srv/100%.safetensors"),
        ] {
            assert_eq!(parse(text), Ok(Named::File(path.into())), "{text}");
        }
        for text in ["a%20b.safetensors", "/srv/a%20b", "a:b", "profile:x", "file", "", "a b", "%2e%2e/x", "//srv/a"] {
            assert_eq!(parse(text), Ok(Named::Path(Path::new(text))), "{text}");
        }
        for text in ["https://host/a", "s3://bucket/a", "ftp://host/a"] {
            assert_eq!(parse(text), Ok(Named::Address), "{text}");
        }
    }

    #[test]
    fn refuses_in_words_what_names_no_file_of_this_machine() {
        for (text, words) in [
            ("file://nas/srv/a", "\"nas\""),
            ("file://nas", "\"nas\""),
            ("file:srv/a", "file:///"),
            ("file:", "file:///"),
            ("file://", "file:///"),
            ("file://localhost", "file:///"),
            ("file:///srv/a%00b", "NUL"),
            ("/srv/a\0b", "NUL"),
            ("s3:/bucket/a", "s3://bucket/a"),
            ("HTTPS:host/a", "https://host/a"),
        ] {
            assert!(parse(text).is_err_and(|reason| reason.contains(words)), "{text}: {:?}", parse(text));
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_name_may_be_any_bytes() {
        use std::os::unix::ffi::OsStrExt;
        let Ok(Named::File(path)) = parse("file:///srv/%E9") else { panic!("refused") };
        assert_eq!(path.as_os_str().as_bytes(), b"/srv/\xe9");
    }
}
