//! What is received.
use delo_proto as pb;
use tonic::Code;

use crate::{Error, Modality, Routing, Score, SelectedFactors, TextReading, Timings};

/// The answer to one sample of a batch or stream, or why it has none. Either has the sample's request id.
pub type SampleResult = Result<Answer, Error>;

/// The answer to one sample.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Answer {
    /// For [`Report::of`](crate::Report::of).
    pub request_id: String,
    /// The task that served the sample. `None`: the sample was rejected.
    pub task: Option<String>,
    /// The best labels, falling by score. None where the sample was rejected.
    pub scores: Vec<Score>,
    /// How the task was chosen. `None`: the request named the task.
    pub routing: Option<Routing>,
    /// Whether the sample had an image.
    pub image: Modality,
    /// Whether the sample had a text.
    pub text: Modality,
    /// How much of the text the model was given. `None`: the sample has no text.
    pub text_reading: Option<TextReading>,
    /// The version of the task's partition that served the sample.
    pub version: u64,
    /// The backbone that served the sample.
    pub model: String,
    /// The factors chosen, with [`explain`](crate::Sample::explain).
    pub factors: Vec<SelectedFactors>,
    /// Where the time went in seconds, with [`timings`](crate::Sample::timings).
    pub timings: Option<Timings>,
}

impl Answer {
    /// The best label. `None`: there is none.
    pub fn label(&self) -> Option<&str> {
        self.scores.first().map(|score| score.label.as_str())
    }

    /// Whether the sample belongs to none of the loaded tasks, by [`reject`](crate::Sample::reject) or the
    /// server's setting.
    pub fn rejected(&self) -> bool {
        self.routing.as_ref().is_some_and(|routing| routing.rejected)
    }

    /// The probability of the chosen task; those of all loaded tasks sum to 1. `None`: the request named the
    /// task, or the server decides tasks by cosine.
    pub fn probability(&self) -> Option<f32> {
        self.routing.as_ref()?.probability
    }
}

impl From<pb::ClassifyResponse> for Answer {
    fn from(response: pb::ClassifyResponse) -> Self {
        let modalities = response.modalities.unwrap_or_default();
        Self {
            image: modalities.image(),
            text: modalities.text(),
            text_reading: modalities.text_reading,
            request_id: response.request_id,
            task: named(response.task),
            scores: response.scores,
            routing: response.routing,
            version: response.partition_version,
            model: response.model,
            factors: response.factors,
            timings: response.timings,
        }
    }
}

/// The answer or the error of one sample.
pub(crate) fn result(message: pb::ClassifyResult) -> SampleResult {
    match message.result {
        Some(pb::classify_result::Result::Response(response)) => Ok(response.into()),
        Some(pb::classify_result::Result::Error(error)) => Err(Error::of_sample(error, message.request_id)),
        None => {
            let nothing = Error::local(Code::Internal, "the server sent neither an answer nor an error", None);
            Err(nothing.of_request(named(message.request_id), 0))
        }
    }
}

/// What a reported truth says of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// The task that had been chosen. `None`: the sample was rejected.
    pub routed_task: Option<String>,
    /// Whether that was the true task; of a rejected sample, whether the true task is not loaded. `None`: no
    /// true task was given.
    pub task_correct: Option<bool>,
    /// Whether the best label is a true one. `None`: no true label was given.
    pub label_correct: Option<bool>,
    /// False where the same was reported before: by request id, an outcome is counted once.
    pub counted: bool,
}

impl From<pb::ReportOutcomeResponse> for Outcome {
    fn from(response: pb::ReportOutcomeResponse) -> Self {
        Self {
            routed_task: named(response.routed_task),
            task_correct: response.task_correct,
            label_correct: response.label_correct,
            counted: response.counted,
        }
    }
}

fn named(name: String) -> Option<String> {
    Some(name).filter(|name| !name.is_empty())
}
