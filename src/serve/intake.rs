//! Images are decoded and texts tokenised on the blocking pool, a bounded number at a time.
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::Semaphore;

use crate::metric_table::STAGE_SECONDS;
use delo_model::input::{InputError, InputProcessor, Preprocessed};

/// The way from a request's bytes to a [`Sample`](delo_model::input::Sample).
#[derive(Clone)]
pub struct Intake {
    processor: Arc<InputProcessor>,
    /// A permit is held while an image decodes, by the decoding itself: a caller who leaves does not let in another one early, so memory stays
    /// bounded by the permits.
    decoding: Arc<Semaphore>,
}

#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    #[error(transparent)]
    Input(#[from] InputError),
    #[error("reading this sample failed inside the server; its log says more")]
    Panicked,
}

impl Intake {
    pub fn new(processor: Arc<InputProcessor>, concurrency: usize) -> Self {
        Self { processor, decoding: Arc::new(Semaphore::new(concurrency)) }
    }

    /// The memory that making a sample takes, by what the image's header claims.
    ///
    /// # Errors
    /// What is wrong with the image's header.
    pub fn memory(&self, image: Option<&Bytes>, text: Option<&str>) -> Result<usize, IntakeError> {
        Ok(self.processor.memory(image.map(|bytes| &**bytes), text)?)
    }

    /// A sample of what is present. Dropping the future before its turn costs nothing.
    ///
    /// # Errors
    /// What is wrong with the image or the text.
    pub async fn sample(&self, image: Option<Bytes>, text: Option<String>) -> Result<Preprocessed, IntakeError> {
        // Closed is what this semaphore never is: nothing calls `close`.
        let permit = self.decoding.clone().acquire_owned().await.map_err(|_| IntakeError::Panicked)?;
        let processor = self.processor.clone();
        let work = move || {
            let started = Instant::now();
            let preprocessed = processor.preprocess(image.as_deref(), text.as_deref());
            STAGE_SECONDS.with(["input"]).record(started.elapsed());
            drop(permit);
            preprocessed
        };
        Ok(tokio::task::spawn_blocking(work).await.map_err(|_| IntakeError::Panicked)??)
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::serve::status::from_intake;
    use delo_model::input::Limits;
    use delo_model::model_dir::ModelDir;

    #[tokio::test]
    async fn an_image_that_is_not_decoded_is_an_invalid_argument_and_the_next_image_is_read() {
        let intake = Intake::new(Arc::new(InputProcessor::load(&ModelDir::Embedded, 8, 40, Limits::default()).unwrap()), 1);
        let sound: &[u8] = include_bytes!("../../tests/fixtures/input/chelsea.png");
        for _ in 0..3 {
            let cut = Bytes::from_static(&sound[..sound.len() / 2]);
            let error = intake.sample(Some(cut), None).await.unwrap_err();
            assert!(matches!(error, IntakeError::Input(InputError::Undecodable { format: "PNG", .. })), "{error}");
            assert_eq!(from_intake(error).code(), Code::InvalidArgument);
        }
        intake.sample(Some(Bytes::from_static(sound)), None).await.unwrap();
    }
}
