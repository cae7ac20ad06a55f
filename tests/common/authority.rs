//! Certificates, tokens and files of clients.
#![allow(dead_code, reason = "each test binary uses some of them")]
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use sha2::{Digest, Sha256};
use tonic::transport::Identity;

/// One who signs certificates.
pub struct Authority {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM.
pub struct Issued {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    pub fn issue(&self, common_name: &str, names: &[&str]) -> Issued {
        self.issue_for_years(common_name, names, [1975, 4096])
    }

    /// A certificate that is valid from the begin of a year to that of another.
    pub fn issue_for_years(&self, common_name: &str, names: &[&str], [from, to]: [i32; 2]) -> Issued {
        let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
        params.distinguished_name.push(DnType::CommonName, common_name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Issued { certificate, key: key.serialize_pem() }
    }
}

impl Issued {
    pub fn identity(&self) -> Identity {
        Identity::from_pem(&self.certificate, &self.key)
    }

    /// Writes the pair, so that no reader meets half of a file.
    pub fn write(&self, dir: &Path) -> (PathBuf, PathBuf) {
        let (certificate, key) = (dir.join("server.pem"), dir.join("server.key"));
        replace(&certificate, &self.certificate);
        replace(&key, &self.key);
        (certificate, key)
    }
}

pub fn replace(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(beside, path).unwrap();
}

/// A file of clients: name, role, and a token or the name in a certificate.
pub fn clients(of_tokens: &[(&str, &str, &str)], of_certificates: &[(&str, &str, &str)]) -> String {
    let mut out = String::new();
    for (name, role, token) in of_tokens {
        let digest: String = Sha256::digest(token.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(out, "[[client]]\nname = \"{name}\"\nrole = \"{role}\"\ntoken_sha256 = \"{digest}\"").unwrap();
    }
    for (name, role, subject) in of_certificates {
        writeln!(out, "[[client]]\nname = \"{name}\"\nrole = \"{role}\"\ncertificate = \"{subject}\"").unwrap();
    }
    out
}
