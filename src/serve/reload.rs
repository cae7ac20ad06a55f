//! Certificates and clients are read again while the server runs: whenever their files have changed, and when the operator asks for it.
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

/// Whom the server trusts, and by what it is trusted, at this moment.
pub struct Trust {
    tls: Option<(TlsPaths, Files, Tls)>,
    auth: Option<(std::path::PathBuf, Vec<u8>, Arc<ArcSwap<Clients>>)>,
    every: Duration,
}

impl Trust {
    /// # Errors
    /// Files that are named by the configuration and can't be used.
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

    /// Looks at the files again and again, and when `asked` is notified, until dropped. Files that can't be used leave what was there, and a warning
    /// each time they change.
    pub async fn follow(mut self, asked: Arc<Notify>) {
        if self.tls.is_none() && self.auth.is_none() {
            loop {
                asked.notified().await;
                tracing::info!("neither tls.certificate nor auth.clients_file is set: there is nothing to read again");
            }
        }
        loop {
            let by_hand = tokio::time::timeout(self.every, asked.notified()).await.is_ok();
            // Small files, and yet a file system may stall.
            let looked = tokio::task::spawn_blocking(move || {
                self.look(by_hand);
                self
            });
            match looked.await {
                Ok(trust) => self = trust,
                // Only when the runtime ends.
                Err(_) => return,
            }
        }
    }

    /// Takes files that have changed; `by_hand` also says so where they have not.
    fn look(&mut self, by_hand: bool) {
        if let Some((paths, known, tls)) = &mut self.tls {
            match Files::read(paths) {
                Ok(files) if files == *known => {
                    if by_hand {
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
                    if by_hand {
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
