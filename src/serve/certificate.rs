//! What delo reads of an X.509 certificate: the names of its subject, and from when and until when it is valid.
//!
//! A peer's certificate comes here after rustls has verified it, one's own is the operator's: this reads, it judges nothing.
use rustls::pki_types::CertificateDer;

/// Names of one certificate that are kept.
const MAX_NAMES: usize = 64;

/// Tags of DER.
pub const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_ID: u8 = 0x06;
const OCTETS: u8 = 0x04;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const DNS_NAME: u8 = 0x82;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// 2.5.4.3 and 2.5.29.17.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];

/// What is left of some DER.
#[derive(Clone, Copy)]
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next element: its tag and content. `None` at the end, and where it is cut or longer than 16 MiB.
    fn next(&mut self) -> Option<(u8, Der<'a>)> {
        let (&[tag, first], rest) = self.0.split_first_chunk::<2>()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x83 => {
                let (digits, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
                (digits.iter().fold(0, |n, digit| n << 8 | usize::from(*digit)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, Der(content)))
    }

    fn expect(&mut self, tag: u8) -> Option<Der<'a>> {
        self.next().filter(|(found, _)| *found == tag).map(|(_, content)| content)
    }

    fn text(self) -> Option<String> {
        std::str::from_utf8(self.0).ok().map(str::to_owned)
    }
}

/// The parts of a certificate that are read.
struct Parts<'a> {
    validity: Der<'a>,
    subject: Der<'a>,
    extensions: Der<'a>,
}

fn parts<'a>(certificate: &'a CertificateDer<'_>) -> Option<Parts<'a>> {
    let mut body = Der(certificate.as_ref()).expect(SEQUENCE)?.expect(SEQUENCE)?;
    let mut rest = body;
    if rest.next()?.0 == VERSION {
        body = rest;
    }
    // Serial number, algorithm, issuer.
    for _ in 0..3 {
        body.next()?;
    }
    let (validity, subject) = (body.expect(SEQUENCE)?, body.expect(SEQUENCE)?);
    let mut extensions = Der(&[]);
    while let Some((tag, mut content)) = body.next() {
        if tag == EXTENSIONS {
            extensions = content.expect(SEQUENCE)?;
        }
    }
    Some(Parts { validity, subject, extensions })
}

/// The common names and DNS names of the subject, at most [`MAX_NAMES`].
pub fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Some(mut parts) = parts(certificate) else { return Vec::new() };
    let mut names = Vec::new();
    while let Some((SET, mut attributes)) = parts.subject.next() {
        while let Some((SEQUENCE, mut attribute)) = attributes.next() {
            if attribute.expect(OBJECT_ID).is_some_and(|id| id.0 == COMMON_NAME) {
                names.extend(attribute.next().and_then(|(_, value)| value.text()));
            }
        }
    }
    names.extend(dns_names(parts.extensions));
    names.truncate(MAX_NAMES);
    names
}

fn dns_names(mut extensions: Der<'_>) -> Vec<String> {
    let mut names = Vec::new();
    while let Some((SEQUENCE, mut extension)) = extensions.next() {
        if extension.expect(OBJECT_ID).is_none_or(|id| id.0 != SUBJECT_ALT_NAME) {
            continue;
        }
        // The value comes last, after whether the extension is critical.
        while let Some((tag, mut value)) = extension.next() {
            let Some(mut general) = (tag == OCTETS).then(|| value.expect(SEQUENCE)).flatten() else { continue };
            while let Some((tag, name)) = general.next() {
                names.extend((tag == DNS_NAME).then(|| name.text()).flatten());
            }
        }
    }
    names
}

/// Seconds from 1970 to the beginning and to the end of its validity.
pub fn validity(certificate: &CertificateDer<'_>) -> Option<(i64, i64)> {
    let mut validity = parts(certificate)?.validity;
    Some((seconds(validity.next()?)?, seconds(validity.next()?)?))
}

/// Seconds from 1970 to a time in DER.
fn seconds((tag, text): (u8, Der<'_>)) -> Option<i64> {
    let text = text.text()?;
    let digits = text.strip_suffix('Z').filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?;
    let (year, rest) = match (tag, digits.len()) {
        (UTC_TIME, 12) => {
            let year: i64 = digits[..2].parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, &digits[2..])
        }
        (GENERALIZED_TIME, 14) => (digits[..4].parse().ok()?, &digits[4..]),
        _ => return None,
    };
    let part = |i: usize| rest[2 * i..2 * i + 2].parse::<i64>().ok();
    let days = days(year, part(0)?, part(1)?);
    Some(((days * 24 + part(2)?) * 60 + part(3)?) * 60 + part(4)?)
}

/// Days from 1970-01-01 to a day of the Gregorian calendar, by counting years from March on.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate() -> rcgen::Certificate {
        let mut params = rcgen::CertificateParams::new(vec!["app.example".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "the app");
        params.not_before = rcgen::date_time_ymd(2001, 2, 3);
        params.not_after = rcgen::date_time_ymd(2031, 2, 3);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap()
    }

    #[test]
    fn reads_names_and_validity() {
        let certificate = certificate();
        assert_eq!(names(certificate.der()), ["the app", "app.example"]);
        // `date -u -d 2001-02-03 +%s`, and of 2031.
        assert_eq!(validity(certificate.der()), Some((981_158_400, 1_927_843_200)));
    }

    #[test]
    fn a_cut_or_damaged_certificate_ends_without_a_panic() {
        let whole = certificate().der().to_vec();
        for end in 0..whole.len() {
            names(&CertificateDer::from(&whole[..end]));
            for flip in [0xff, 0x80, 1] {
                let mut damaged = whole.clone();
                damaged[end] ^= flip;
                let damaged = CertificateDer::from(damaged);
                let _ = (names(&damaged), validity(&damaged));
            }
        }
    }
}
