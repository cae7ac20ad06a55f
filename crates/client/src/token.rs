//! The token by which the server knows this client.
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;
use tonic::metadata::{Ascii, MetadataValue};

use crate::error::{BoxError, FileError, TokenError};

/// The longest token in bytes, as the server's own.
const LONGEST: usize = 4096;
/// How long a token's file is not read again.
const FRESH: Duration = Duration::from_secs(1);

type Returned = Pin<Box<dyn Future<Output = Result<String, BoxError>> + Send>>;
type Header = MetadataValue<Ascii>;

/// Where the token comes from.
pub(crate) enum Token {
    Fixed(String),
    File(PathBuf),
    Function(Box<dyn Fn() -> Returned + Send + Sync>),
}

/// The header of a token, made anew where the token may have changed.
pub(crate) struct Authorization {
    token: Token,
    /// Of a file: its last token that could be sent, and when the file was read.
    read: Mutex<Option<(Instant, Header)>>,
}

impl Authorization {
    pub(crate) fn of(token: Token) -> Result<Self, TokenError> {
        if let Token::Fixed(token) = &token {
            header(token)?;
        }
        Ok(Self { token, read: Mutex::default() })
    }

    /// The value of the header `authorization` for an attempt that is sent now.
    pub(crate) async fn header(&self) -> Result<Header, TokenError> {
        match &self.token {
            Token::Fixed(token) => header(token),
            Token::Function(function) => header(&function().await.map_err(TokenError::Source)?),
            Token::File(path) => {
                let mut last = self.read.lock().await;
                if let Some((_, header)) = last.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
                    return Ok(header.clone());
                }
                let read = match (read(path).await, last.as_ref()) {
                    (Ok(header), _) => header,
                    // Whoever exchanges the file may have taken it away for a moment.
                    (Err(_), Some((_, header))) => header.clone(),
                    (Err(error), None) => return Err(error),
                };
                *last = Some((Instant::now(), read.clone()));
                Ok(read)
            }
        }
    }

    /// Reads the token's file, if it is one.
    pub(crate) async fn check(&self) -> Result<(), TokenError> {
        if let Token::File(_) = self.token {
            self.header().await?;
        }
        Ok(())
    }
}

async fn read(path: &Path) -> Result<Header, TokenError> {
    let text = tokio::fs::read_to_string(path).await;
    header(&text.map_err(|source| FileError { path: path.to_owned(), source })?)
}

fn header(token: &str) -> Result<Header, TokenError> {
    let token = token.trim();
    if token.is_empty() || token.len() > LONGEST || !token.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
        return Err(TokenError::Malformed);
    }
    let mut header = Header::try_from(format!("Bearer {token}")).map_err(|_| TokenError::Malformed)?;
    // So that no layer below shows it.
    header.set_sensitive(true);
    Ok(header)
}
