//! Certificates and clients are read again while the server runs: when their files have changed, and when the
//! operator requests it.
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use super::auth::{AuthError, Clients};
use super::files;
use super::tls::{Files, Tls, TlsError, TlsPaths};
use crate::config::Config;

/// Why a server can't start with the files it is given.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("tls: {0}")]
    Tls(#[from] TlsError),
    #[error("auth.clients_file: {0}")]
    Auth(#[from] AuthError),
}

/// The server's certificate and the clients that it accepts, as they were read last.
pub struct Credentials {
    tls: Option<(TlsPaths, Files, Tls)>,
    auth: Option<(std::path::PathBuf, Vec<u8>, Arc<ArcSwap<Clients>>)>,
    every: Duration,
}

impl Credentials {
    /// Reads the files that the configuration names.
    ///
    /// # Errors
    /// A file that can't be read or is not valid.
    pub fn read(config: &Config) -> Result<Self, TrustError> {
        let tls = TlsPaths::of(&config.tls).map(|paths| {
            let files = Files::read(&paths)?;
            let tls = Tls::new(&paths, &files)?;
            files.warn_of_validity(&paths);
            Ok::<_, TlsError>((paths, files, tls))
        });
        let auth = config.auth.clients_file.clone().map(|path| {
            let bytes = files::read(&path, super::auth::MAX_BYTES).map_err(AuthError::from)?;
            let clients = Clients::parse(&path, &bytes)?;
            if clients.any_certificate() && config.tls.client_ca.is_none() {
                tracing::warn!("clients known by a certificate can't call: set tls.client_ca and tls.client_certificate");
            }
            Ok::<_, AuthError>((path, bytes, Arc::new(ArcSwap::from_pointee(clients))))
        });
        Ok(Self { tls: tls.transpose()?, auth: auth.transpose()?, every: config.tls.reload })
    }

    pub fn tls(&self) -> Option<Tls> {
        self.tls.as_ref().map(|(.., tls)| tls.clone())
    }

    pub fn clients(&self) -> Option<Arc<ArcSwap<Clients>>> {
        self.auth.as_ref().map(|(.., clients)| clients.clone())
    }

    /// Reads the files every `tls.reload_seconds` and when `requested` is notified, until the future is
    /// dropped. Where a file is not valid, the last valid one stays in use, and each change of the file is a
    /// warning in the log.
    pub async fn follow(mut self, requested: Arc<Notify>) {
        if self.tls.is_none() && self.auth.is_none() {
            loop {
                requested.notified().await;
                tracing::info!("neither tls.certificate nor auth.clients_file is set: there is nothing to read again");
            }
        }
        loop {
            let on_request = tokio::time::timeout(self.every, requested.notified()).await.is_ok();
            // The files are small, but a file system may stall.
            let read = tokio::task::spawn_blocking(move || {
                self.read_again(on_request);
                self
            });
            match read.await {
                Ok(credentials) => self = credentials,
                // The runtime ends.
                Err(_) => return,
            }
        }
    }

    /// Takes over the files that have changed. `on_request`: the log also says where a file has not changed.
    fn read_again(&mut self, on_request: bool) {
        if let Some((paths, known, tls)) = &mut self.tls {
            match Files::read(paths) {
                Ok(files) if files == *known => {
                    if on_request {
                        tracing::info!("the certificates have not changed");
                        files.warn_of_validity(paths);
                    }
                }
                Ok(files) => {
                    match tls.replace(paths, &files) {
                        Ok(()) => {
                            tracing::info!("certificates were read again");
                            files.warn_of_validity(paths);
                        }
                        Err(error) => tracing::warn!(%error, "the new certificates are not taken, the old ones stay"),
                    }
                    *known = files;
                }
                Err(error) => tracing::warn!(%error, "the certificates can't be read, those read before stay"),
            }
        }
        if let Some((path, known, clients)) = &mut self.auth {
            match files::read(path, super::auth::MAX_BYTES) {
                Ok(bytes) if bytes == *known => {
                    if on_request {
                        tracing::info!("auth.clients_file has not changed");
                    }
                }
                Ok(bytes) => {
                    match Clients::parse(path, &bytes) {
                        Ok(read) => {
                            tracing::info!(tokens_and_certificates = read.count(), "auth.clients_file was read again");
                            clients.store(Arc::new(read));
                        }
                        Err(error) => tracing::warn!(%error, "the new auth.clients_file is not taken, the old clients stay"),
                    }
                    *known = bytes;
                }
                Err(error) => tracing::warn!(%error, "auth.clients_file can't be read, the clients read before stay"),
            }
        }
    }
}
