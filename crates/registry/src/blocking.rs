//! Work that blocks or takes long (files, hashes, checks of a partition) runs here, never on a thread of the
//! async runtime.

/// The work panicked; the log holds the panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the work failed inside the server; its log says more")]
pub struct Panicked;

/// Runs `work` on tokio's blocking pool and waits for its result. Work that has begun runs to its end, also
/// when the caller stops waiting.
///
/// # Errors
/// [`Panicked`], or the error of the work.
pub async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<Panicked> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(Panicked.into()),
    }
}
