//! Every error that a caller can meet, as a gRPC status with the details that a program can act on.
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::batcher::BatchError;
use super::intake::IntakeError;
use crate::delo::PartitionError;
use crate::engine::{CatalogueError, EngineError};
use crate::registry::{RegistryError, SourceError};

/// INVALID_ARGUMENT that names the field at fault.
pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Status {
    let message = message.into();
    let details = ErrorDetails::with_bad_request_violation(field, message.clone());
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// RESOURCE_EXHAUSTED that says when to retry.
pub fn exhausted(message: impl Into<String>, retry_after: Duration) -> Status {
    Status::with_error_details(Code::ResourceExhausted, message, ErrorDetails::with_retry_info(Some(retry_after)))
}

pub fn from_intake(error: IntakeError) -> Status {
    match error {
        IntakeError::Input(input) => {
            refused("invalid_input");
            invalid(input.field(), input.to_string())
        }
        IntakeError::Panicked => Status::internal(error.to_string()),
    }
}

pub fn from_batch(error: BatchError) -> Status {
    let message = error.to_string();
    match error {
        BatchError::QueueFull { retry_after } => {
            refused("queue_full");
            exhausted(message, retry_after)
        }
        BatchError::TooLarge => {
            refused("invalid_input");
            invalid("image", message)
        }
        BatchError::Draining => {
            refused("draining");
            Status::unavailable(message)
        }
        BatchError::DeadlineExceeded => {
            refused("deadline_exceeded");
            Status::deadline_exceeded(message)
        }
        BatchError::Panicked => Status::internal(message),
    }
}

pub fn from_engine(error: EngineError) -> Status {
    let message = error.to_string();
    match error {
        EngineError::UnknownTask(_) => Status::not_found(message),
        EngineError::NothingLoaded => Status::failed_precondition(message),
        EngineError::Compute(_) => Status::internal(message),
    }
}

pub fn from_registry(error: RegistryError) -> Status {
    let message = error.to_string();
    match error {
        RegistryError::Source(source) => match source {
            SourceError::Scheme { .. } => invalid("uri", message),
            SourceError::NoRoot => Status::failed_precondition(message),
            SourceError::Outside { .. } => Status::permission_denied(message),
            SourceError::Missing { .. } => Status::not_found(message),
            SourceError::NotAFile { .. } | SourceError::TooLarge { .. } => invalid("source", message),
            SourceError::Read { .. } => Status::unavailable(message),
        },
        RegistryError::Partition(partition) => match partition {
            PartitionError::NewerFormat { .. } | PartitionError::WrongBackbone { .. } => Status::failed_precondition(message),
            PartitionError::Malformed(_) | PartitionError::Checksum { .. } => invalid("artifact", message),
            PartitionError::Field { field, .. } => invalid(format!("artifact.{field}"), message),
        },
        RegistryError::Catalogue(CatalogueError::UnknownTask(_)) => Status::not_found(message),
        RegistryError::Catalogue(CatalogueError::Incompatible { .. }) => Status::failed_precondition(message),
        RegistryError::Trial { .. } => invalid("artifact", message),
        RegistryError::Panicked | RegistryError::Directory { .. } | RegistryError::AtStart { .. } | RegistryError::Twice { .. } => {
            Status::internal(message)
        }
    }
}

/// Counts a request that is not served.
pub fn refused(reason: &'static str) {
    metrics::counter!("delo_rejected_total", "reason" => reason).increment(1);
}
