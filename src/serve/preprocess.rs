//! Preprocessing of requests: images are decoded and texts tokenised on the blocking pool, a bounded number
//! at a time.
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::steps::Step;
use crate::metric_table::STAGE_SECONDS;
use delo_model::input::{InputError, InputProcessor, Preprocessed};

/// Makes a [`Sample`](delo_model::input::Sample) of a request's image and text.
#[derive(Clone)]
pub struct Preprocessor {
    processor: Arc<InputProcessor>,
    /// The running decode itself holds the permit: when a caller hangs up, its permit stays taken until the
    /// decode ends. The number of permits therefore bounds the memory.
    permits: Arc<Semaphore>,
}

/// Why a request has no sample.
#[derive(Debug, thiserror::Error)]
pub enum PreprocessError {
    #[error(transparent)]
    Input(#[from] InputError),
    #[error("reading this sample failed inside the server; its log says more")]
    Panicked,
}

impl Preprocessor {
    /// `concurrency`: how many samples are made at a time.
    pub fn new(processor: Arc<InputProcessor>, concurrency: usize) -> Self {
        Self { processor, permits: Arc::new(Semaphore::new(concurrency)) }
    }

    /// The memory in bytes that making a sample takes, by the size in the image's header.
    ///
    /// # Errors
    /// What is wrong with the image's header.
    pub fn memory(&self, image: Option<&Bytes>, text: Option<&str>) -> Result<usize, PreprocessError> {
        Ok(self.processor.memory(image.map(|bytes| &**bytes), text)?)
    }

    /// A sample of the image and the text that are present, and the steps that it took. Dropping the future before it has a permit costs
    /// nothing.
    ///
    /// # Errors
    /// What is wrong with the image or the text.
    pub async fn sample(
        &self,
        image: Option<Bytes>,
        text: Option<String>,
    ) -> Result<(Preprocessed, [(Step, Range<Instant>); 2]), PreprocessError> {
        // An error would mean that the semaphore is closed, which nothing does.
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| PreprocessError::Panicked)?;
        let processor = self.processor.clone();
        let work = move || {
            let started = Instant::now();
            let mut text_read = started;
            let preprocessed = processor.preprocess_in_steps(image.as_deref(), text.as_deref(), || text_read = Instant::now());
            let ended = Instant::now();
            STAGE_SECONDS.with(["input"]).record(ended - started);
            drop(permit);
            preprocessed.map(|preprocessed| (preprocessed, [(Step::Tokenize, started..text_read), (Step::Decode, text_read..ended)]))
        };
        Ok(tokio::task::spawn_blocking(work).await.map_err(|_| PreprocessError::Panicked)??)
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::serve::status::from_preprocess;
    use delo_model::input::Limits;
    use delo_model::model_dir::ModelDir;

    #[tokio::test]
    async fn an_image_that_is_not_decoded_is_an_invalid_argument_and_the_next_image_is_read() {
        let processor = InputProcessor::load(&ModelDir::Embedded, 8, 40, Limits::default()).unwrap();
        let preprocessor = Preprocessor::new(Arc::new(processor), 1);
        let sound: &[u8] = include_bytes!("../../tests/fixtures/input/chelsea.png");
        for _ in 0..3 {
            let cut = Bytes::from_static(&sound[..sound.len() / 2]);
            let error = preprocessor.sample(Some(cut), None).await.unwrap_err();
            assert!(matches!(error, PreprocessError::Input(InputError::Undecodable { format: "PNG", .. })), "{error}");
            assert_eq!(from_preprocess(error).code(), Code::InvalidArgument);
        }
        preprocessor.sample(Some(Bytes::from_static(sound)), None).await.unwrap();
    }
}
