//! What must hold of several settings together.
use super::origin::Origins;
use super::{ClientCertificate, Config, ConfigError};

impl Config {
    /// # Errors
    /// The first setting that does not go with the others.
    pub(super) fn check(&self, origins: &Origins) -> Result<(), ConfigError> {
        let wrong = |path: &str, message: &str| Err(origins.refuse(path, message));
        if self.deadline.default > self.deadline.max {
            return wrong("deadline.default_seconds", "longer than deadline.max_seconds, lower it or raise that");
        }
        if self.server.max_receive_bytes < self.server.max_message_bytes {
            return wrong("server.max_receive_bytes", "less than server.max_message_bytes, so that no such message could arrive: raise it");
        }
        if self.registry.require_signature && self.registry.trusted_keys.is_empty() {
            return wrong("registry.require_signature", "no signature can be right without a key in registry.trusted_keys, name one");
        }
        let tls = &self.tls;
        match (&tls.certificate, &tls.key) {
            (Some(_), None) => return wrong("tls.key", "missing: tls.certificate needs its private key"),
            (None, Some(_)) => return wrong("tls.certificate", "missing: tls.key needs its certificate"),
            _ => {}
        }
        match (&tls.client_ca, tls.client_certificate) {
            (None, ClientCertificate::Optional | ClientCertificate::Required) => {
                wrong("tls.client_ca", "missing: tls.client_certificate asks for certificates, say who signs them")
            }
            (Some(_), ClientCertificate::Off) => {
                wrong("tls.client_certificate", "\"off\" with a tls.client_ca: choose \"optional\" or \"required\"")
            }
            (Some(_), _) if tls.certificate.is_none() => wrong("tls.certificate", "missing: only TLS carries the certificates of clients"),
            _ => Ok(()),
        }
    }
}
