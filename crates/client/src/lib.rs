//! The Rust client of delo, an inference service for images and texts of many tasks.
//!
//! ```no_run
//! use delo_client::{Client, Report, Sample};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("http://127.0.0.1:50051").await?;
//! let sample = Sample::image_file("photo.jpg").await?.with_text("slice of pizza").top_k(3);
//! let answer = client.classify(sample).await?;
//! println!("{:?} {:?}", answer.task, answer.probability());
//! for score in &answer.scores {
//!     println!("{:.4} {}", score.score, score.label);
//! }
//! client.report_outcome(Report::of(answer.request_id).true_task("food-drink")).await?;
//! # Ok(())
//! # }
//! ```
//!
//! **Calls.** A method of [`Client`] returns a [`Call`], which is made when it is awaited. Options of one
//! call stand between: `client.classify(sample).timeout(Duration::from_secs(1)).traceparent(trace).await`.
//! What belongs to one sample is an option of [`Sample`], so that it is the same alone, in a batch and in a
//! stream. [`Call::response`] also returns the headers and trailers: the trace, the server's timing, the
//! number of attempts.
//!
//! **Many samples.** [`Client::classify_batch`] answers in order; [`Client::classify_stream`] as soon as each
//! is computed:
//!
//! ```no_run
//! # use delo_client::{Client, Sample};
//! # async fn example(client: Client) -> Result<(), delo_client::Error> {
//! let texts = ["pizza", "soup"].map(|text| Sample::text(text).request_id(text));
//! let mut answers = client.classify_stream(tokio_stream::iter(texts)).await?;
//! while let Some(result) = answers.next().await {
//!     match result? {
//!         Ok(answer) => println!("{}: {:?}", answer.request_id, answer.label()),
//!         Err(error) => println!("{:?}: {error}", error.request_id()),
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! **Deadlines and retries.** A call's timeout, 30 s by default, covers all its attempts and waits, and the
//! server is told what is left of it. After UNAVAILABLE, and after RESOURCE_EXHAUSTED with a time to retry, a
//! call is tried again, as [`Retry`] says: the client waits as long as the server asks, and up to a quarter
//! longer by chance. All attempts carry the same request id, so that the same version of a task on trial
//! answers. Streams, single samples of a batch and health are not tried again. Dropping a call cancels it.
//!
//! **Types.** A message is handed out as it is generated from `proto/` where every field means what it says:
//! [`Score`], [`Routing`], [`Timings`], [`Description`] and others. [`Answer`] and [`Outcome`] are types of
//! this crate: in their messages an empty text stands for "rejected" and numbers for modalities. [`Sample`]
//! and [`Report`] are builders; a [`Sample`] can also be made from the generated message, and a new field of
//! the protocol is thereby usable before this crate has a method for it.
#![warn(missing_docs)]

mod answer;
mod builder;
mod call;
mod client;
mod error;
mod response;
mod retry;
mod sample;
mod stream;
mod token;

pub use answer::{Answer, Outcome, SampleResult};
pub use builder::Builder;
pub use call::Call;
pub use client::Client;
/// The message behind a [`Sample`].
pub use delo_proto::ClassifyRequest;
/// What a server answers with: its tasks, model and limits.
pub use delo_proto::DescribeResponse as Description;
pub use delo_proto::{
    Candidate, Limits, Modality, Priority, RecentRouting, Routing, Score, SelectedFactors, TaskDescription, TextReading, Timings,
};
pub use error::{BoxError, ConnectError, Error, FieldViolation, FileError, TokenError};
pub use response::Response;
pub use retry::Retry;
pub use sample::{Report, Sample};
pub use stream::{Answers, StreamCall};
pub use tonic::Code;
/// Headers and trailers.
pub use tonic::metadata::MetadataMap;
/// For [`Builder::over_channel`].
pub use tonic::transport::Channel;
