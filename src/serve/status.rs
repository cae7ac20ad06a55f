//! Every error that a caller can receive, as a gRPC status with details for programs.
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::batcher::BatchError;
use super::preprocess::PreprocessError;
use super::reason::Reason;
use delo_catalogue::CatalogueError;
use delo_engine::EngineError;
use delo_model::PartitionError;
use delo_registry::ledger::LedgerError;
use delo_registry::remote::RemoteError;
use delo_registry::signature::SignatureError;
use delo_registry::state::StateError;
use delo_registry::{ChangeError, SourceError};

/// Longest message and field name, in bytes. They travel in a header, whose size HTTP/2 bounds, and may quote
/// the request.
const MAX_MESSAGE: usize = 1000;

/// A message in one line that fits a header: without the backtrace that candle appends where RUST_BACKTRACE
/// is set, and cut off after [`MAX_MESSAGE`] bytes.
pub fn clipped(message: impl Into<String>) -> String {
    let mut message = message.into();
    message.truncate(message.find('\n').unwrap_or(message.len()));
    if message.len() > MAX_MESSAGE {
        let end = (0..=MAX_MESSAGE).rev().find(|&end| message.is_char_boundary(end)).unwrap_or(0);
        message.truncate(end);
        message.push('…');
    }
    message
}

/// Longest request id, in bytes.
pub const MAX_REQUEST_ID: usize = 128;

/// Checks the length of a request id.
///
/// # Errors
/// INVALID_ARGUMENT: an id that is too long.
pub fn check_request_id(id: &str) -> Result<(), Status> {
    if id.len() > MAX_REQUEST_ID {
        let message = format!("it has {} bytes, at most {MAX_REQUEST_ID} are allowed", id.len());
        return Err(Reason::InvalidInput.refuse(&invalid("request_id", message)));
    }
    Ok(())
}

/// INVALID_ARGUMENT with the name of the field that is wrong.
pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Status {
    let (field, message) = (clipped(field), clipped(message));
    let details = ErrorDetails::with_bad_request_violation(field, message.clone());
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// RESOURCE_EXHAUSTED with the time after which to retry.
pub fn exhausted(message: impl Into<String>, retry_after: Duration) -> Status {
    Status::with_error_details(Code::ResourceExhausted, clipped(message), ErrorDetails::with_retry_info(Some(retry_after)))
}

/// Of a request whose sample can't be made.
pub fn from_preprocess(error: PreprocessError) -> Status {
    match error {
        PreprocessError::Input(input) => Reason::InvalidInput.refuse(&invalid(input.field(), input.to_string())),
        PreprocessError::Panicked => Status::internal(clipped(error.to_string())),
    }
}

/// Of a sample that was not computed.
pub fn from_batch(error: BatchError) -> Status {
    let message = clipped(error.to_string());
    match error {
        BatchError::QueueFull { retry_after } => Reason::QueueFull.refuse(&exhausted(message, retry_after)),
        BatchError::ClientShare { retry_after } => Reason::ClientShare.refuse(&exhausted(message, retry_after)),
        BatchError::QueueWait { retry_after } => Reason::QueueWait.refuse(&exhausted(message, retry_after)),
        BatchError::WouldExpire { retry_after } => Reason::WouldExpire.refuse(&exhausted(message, retry_after)),
        BatchError::Memory { retry_after } => Reason::QueueMemory.refuse(&exhausted(message, retry_after)),
        BatchError::TooLarge => Reason::InvalidInput.refuse(&invalid("image", message)),
        BatchError::Draining => Reason::Draining.refuse(&Status::unavailable(message)),
        BatchError::DeadlineExceeded => Reason::DeadlineExceeded.refuse(&Status::deadline_exceeded(message)),
        BatchError::Panicked => Status::internal(message),
    }
}

/// Of a sample whose forward pass failed.
pub fn from_engine(error: EngineError) -> Status {
    let message = clipped(error.to_string());
    match error {
        EngineError::NothingLoaded => Reason::NothingLoaded.refuse(&Status::failed_precondition(message)),
        EngineError::Compute(_) => Status::internal(message),
    }
}

/// Of a change of the catalogue.
pub fn from_registry(error: ChangeError) -> Status {
    let message = clipped(error.to_string());
    match error {
        ChangeError::Source(source) => match source {
            SourceError::Scheme { .. } | SourceError::Address { .. } => invalid("uri", message),
            SourceError::NoRoot => Status::failed_precondition(message),
            SourceError::Outside { .. } => Status::permission_denied(message),
            SourceError::Missing { .. } => Status::not_found(message),
            SourceError::NotAFile { .. } | SourceError::TooLarge { .. } => invalid("source", message),
            SourceError::Read { .. } => Status::unavailable(message),
            SourceError::Signature(signature) => from_signature(&signature),
        },
        ChangeError::Partition(partition) => from_partition(&partition),
        ChangeError::Catalogue(error) => from_catalogue(error),
        ChangeError::Ledger(error) => match error {
            LedgerError::UnknownTask(_) | LedgerError::UnknownVersion { .. } => Status::not_found(message),
            LedgerError::NothingToCompare(_)
            | LedgerError::NothingToRollBackTo { .. }
            | LedgerError::LiveAlready { .. }
            | LedgerError::NoTrial(_) => Status::failed_precondition(message),
            LedgerError::RequestIdReused(_) => Status::already_exists(message),
        },
        ChangeError::State(StateError::Write(_) | StateError::Read(_)) => Status::unavailable(message),
        ChangeError::State(StateError::Artifact { .. }) => Status::data_loss(message),
        ChangeError::WarmUp { .. } => invalid("artifact", message),
        ChangeError::Panicked
        | ChangeError::Folder(_)
        | ChangeError::Directory { .. }
        | ChangeError::AtStart { .. }
        | ChangeError::Twice { .. }
        | ChangeError::OtherBackbone { .. } => Status::internal(message),
    }
}

/// Of a task that is not in the catalogue, or does not fit it.
pub fn from_catalogue(error: CatalogueError) -> Status {
    let message = clipped(error.to_string());
    match error {
        CatalogueError::UnknownTask(_) => Status::not_found(message),
        CatalogueError::Incompatible { .. } | CatalogueError::NothingToCompare(_) => Status::failed_precondition(message),
    }
}

fn from_partition(error: &PartitionError) -> Status {
    let message = clipped(error.to_string());
    match error {
        PartitionError::NewerFormat { .. } | PartitionError::WrongBackbone { .. } => Status::failed_precondition(message),
        PartitionError::Malformed(_) | PartitionError::Checksum { .. } => invalid("artifact", message),
        PartitionError::Field { field, .. } => invalid(format!("artifact.{field}"), message),
    }
}

fn from_signature(error: &SignatureError) -> Status {
    match error {
        SignatureError::Wrong | SignatureError::Missing => Status::permission_denied(clipped(error.to_string())),
        SignatureError::Malformed => invalid("signature", error.to_string()),
        SignatureError::Read { .. } | SignatureError::PrivateKey { .. } | SignatureError::PublicKey { .. } => {
            Status::unavailable(clipped(error.to_string()))
        }
    }
}

/// Of a load by URL.
pub fn from_remote(error: &RemoteError) -> Status {
    let message = clipped(error.to_string());
    match error {
        RemoteError::NotAllowed { .. } => Status::permission_denied(message),
        RemoteError::Signature(signature) => from_signature(signature),
        RemoteError::Partition(partition) => from_partition(partition),
        RemoteError::NotThere { .. } => Status::not_found(message),
        RemoteError::TooLarge { .. } => invalid("source", message),
        RemoteError::Denied { .. } | RemoteError::Redirected { .. } | RemoteError::Location { .. } => Status::failed_precondition(message),
        _ => Status::unavailable(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_that_quote_a_long_name_still_fit_a_header() {
        let status = from_catalogue(CatalogueError::UnknownTask("é".repeat(1 << 20)));
        assert_eq!(status.code(), Code::NotFound);
        assert!(status.message().len() < 2 * MAX_MESSAGE && status.message().starts_with("no task"));
    }

    #[test]
    fn a_backtrace_stays_inside() {
        let status = from_engine(EngineError::Compute("shapes differ\n   0: candle_core::error".to_owned()));
        assert_eq!(status.message(), "the forward pass failed: shapes differ");
    }
}
