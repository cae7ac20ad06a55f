//! What is sent: samples, and reports of what they truly were.
use std::path::PathBuf;

use bytes::Bytes;
use delo_proto as pb;

use crate::Priority;
use crate::error::FileError;

/// One sample, an image, a text or both, and what is wanted of its answer.
///
/// ```
/// use delo_client::Sample;
///
/// let sample = Sample::text("slice of pizza").top_k(3).reject(0.05).timings().request_id("lunch-1");
/// ```
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct Sample(pb::ClassifyRequest);

impl Sample {
    /// A sample with an encoded image: JPEG, PNG, WebP, GIF (its first frame) or BMP.
    pub fn image(image: impl Into<Bytes>) -> Self {
        Self(pb::ClassifyRequest { image: Some(image.into()), ..Default::default() })
    }

    /// A sample with the image in a file.
    ///
    /// # Errors
    /// The file cannot be read. What is in it, the server says.
    pub async fn image_file(path: impl Into<PathBuf>) -> Result<Self, FileError> {
        let path = path.into();
        match tokio::fs::read(&path).await {
            Ok(image) => Ok(Self::image(image)),
            Err(source) => Err(FileError { path, source }),
        }
    }

    /// A sample with a text.
    pub fn text(text: impl Into<String>) -> Self {
        Self(pb::ClassifyRequest { text: Some(text.into()), ..Default::default() })
    }

    /// The same with this text.
    pub fn with_text(mut self, text: impl Into<String>) -> Self {
        self.0.text = Some(text.into());
        self
    }

    /// The same with this encoded image.
    pub fn with_image(mut self, image: impl Into<Bytes>) -> Self {
        self.0.image = Some(image.into());
        self
    }

    /// The task, where it is known: the server then chooses none, and the answer has no routing.
    pub fn task(mut self, task: impl Into<String>) -> Self {
        self.0.task = task.into();
        self
    }

    /// How many scores to return: 5 where this is not called; 0: all.
    pub fn top_k(mut self, scores: u32) -> Self {
        self.0.top_k = Some(scores);
        self
    }

    /// At most how many tasks to return as candidates: 5 where this is not called; 0: none; `u32::MAX`: all.
    pub fn max_candidates(mut self, tasks: u32) -> Self {
        self.0.max_candidates = Some(tasks);
        self
    }

    /// "None of these": the sample gets neither task nor scores where its typicality, from 0 to 1, is lower
    /// than this. 0.05 refuses about 5 % of the tasks' own samples; 0: never. Where this is not called, the
    /// server's setting `routing.reject`.
    pub fn reject(mut self, typicality: f32) -> Self {
        self.0.reject = Some(typicality);
        self
    }

    /// Also return the factors chosen in each layer.
    pub fn explain(mut self) -> Self {
        self.0.explain = true;
        self
    }

    /// Also return where the time went on the server.
    pub fn timings(mut self) -> Self {
        self.0.timings = true;
        self
    }

    /// Names the sample in its answer and in [`Report`], at most 128 bytes. Where this is not called, the
    /// client makes a UUID.
    pub fn request_id(mut self, id: impl Into<String>) -> Self {
        self.0.request_id = id.into();
        self
    }

    /// What goes first when the server is busy. Where this is not called, [`Priority::Interactive`] in
    /// [`classify`](crate::Client::classify), else [`Priority::Bulk`].
    pub fn priority(mut self, priority: Priority) -> Self {
        self.0.priority = priority.into();
        self
    }

    /// The sample's message. It always has a `request_id`: by it the server decides which version of a task
    /// on trial answers, so that all attempts of a call must have the same.
    pub fn into_request(self) -> pb::ClassifyRequest {
        let mut request = self.0;
        if request.request_id.is_empty() {
            request.request_id = uuid::Uuid::new_v4().to_string();
        }
        request
    }
}

impl From<pb::ClassifyRequest> for Sample {
    fn from(request: pb::ClassifyRequest) -> Self {
        Self(request)
    }
}

/// A report of what a sample truly was: the true task, the true labels, or both.
///
/// ```
/// use delo_client::Report;
///
/// let report = Report::of("lunch-1").true_task("food-drink").true_labels(["food-fruit"]);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct Report(pb::ReportOutcomeRequest);

impl Report {
    /// Of the answer with this request id. A server remembers it for a while.
    pub fn of(request_id: impl Into<String>) -> Self {
        Self(pb::ReportOutcomeRequest { request_id: request_id.into(), ..Default::default() })
    }

    /// Of an answer whose request id is not known any more, by the task in it. Every such report counts: the
    /// server cannot know one that it has counted.
    pub fn of_task(task: impl Into<String>) -> Self {
        Self(pb::ReportOutcomeRequest { task: task.into(), ..Default::default() })
    }

    /// The task in the answer. In a fleet the report may reach another server than the one that answered,
    /// which then counts this task.
    pub fn routed_task(mut self, task: impl Into<String>) -> Self {
        self.0.task = task.into();
        self
    }

    /// The task that the sample truly belongs to.
    pub fn true_task(mut self, task: impl Into<String>) -> Self {
        self.0.true_task = task.into();
        self
    }

    /// The labels that are true of the sample. They need a request id.
    pub fn true_labels<L: Into<String>>(mut self, labels: impl IntoIterator<Item = L>) -> Self {
        self.0.true_labels = labels.into_iter().map(Into::into).collect();
        self
    }

    pub(crate) fn into_request(self) -> pb::ReportOutcomeRequest {
        self.0
    }
}
