//! What delo reads of an X.509 certificate: the names of its subject, and when it becomes valid and expires.
//!
//! A client's certificate is read after rustls has verified it; the server's own is the operator's. Nothing
//! is verified here.
use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// Names of one certificate that are kept.
const MAX_NAMES: usize = 64;

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    X509Certificate::from_der(certificate).ok().map(|(_, parsed)| parsed)
}

/// The common names and DNS names of the subject, at most [`MAX_NAMES`]; none of a certificate that can't be
/// read.
pub fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Some(parsed) = parse(certificate) else { return Vec::new() };
    let common_names = parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    let alternatives = parsed.subject_alternative_name().ok().flatten();
    let alternatives = alternatives.iter().flat_map(|extension| &extension.value.general_names);
    let dns_names = alternatives.filter_map(|name| if let GeneralName::DNSName(name) = name { Some(*name) } else { None });
    common_names.chain(dns_names).take(MAX_NAMES).map(str::to_owned).collect()
}

/// When it becomes valid and when it expires, in seconds since 1970; `None` of a certificate that can't be
/// read.
pub fn validity(certificate: &CertificateDer<'_>) -> Option<(i64, i64)> {
    let parsed = parse(certificate)?;
    Some((parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp()))
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
